"""One finding for each cause: effects are merged into the first error that explains them."""

import pytest

from mailglass_reconcile.ops.checks.check import NEEDED_BY_ALL, error, merge, ok, warning


def named(name, finding):
    """Return a finding of the check *name*."""
    return finding._replace(check=name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [*NEEDED_BY_ALL, "redis_privileges"])
def test_an_error_that_names_its_own_check_as_cause_is_reported(name):
    """The doctor once never returned."""
    finding = named(name, error("cancelled", "try again", (*NEEDED_BY_ALL, "redis_privileges")))
    assert merge([finding]) == [finding]


@pytest.mark.timeout(20)
def test_two_errors_that_explain_each_other_are_both_reported():
    """They once hid each other, and the doctor would have counted no error."""
    (finding,) = merge(named(name, error(f"{name} timed out", "", NEEDED_BY_ALL)) for name in ("privileges", "schema"))
    assert (finding.check, finding.message) == ("privileges", "privileges timed out; schema timed out")


def test_a_check_that_could_not_be_made_is_merged_into_a_warning_that_explains_it():
    unchecked = error("this could not be checked: NoPermissionError", "", ("lock_privileges",))
    findings = [
        named("lock_privileges", warning("this user may not take locks", "allow it")),
        *(named(name, unchecked._replace(is_unchecked=True)) for name in ("worker", "queues")),
        named("linking", error("late", "sweep", ("lock_privileges",))),
    ]
    assert [(finding.check, finding.status, finding.message) for finding in merge(findings)] == [
        ("lock_privileges", "error", "this user may not take locks; this could not be checked: NoPermissionError"),
        ("linking", "error", "late"),
    ]


def test_an_effect_is_merged_into_the_first_cause():
    """A warning that an error explains is left out, and an effect of an effect goes to the cause of both."""
    findings = [
        named("worker", error("no worker", "start a worker")),
        named("server", ok("PostgreSQL 18")),
        named("sweeps", error("no sweep", "ask", ("worker",))),
        named("beat", error("no run", "ask", ("sweeps",))),
        named("linking", error("late", "sweep", ("beat",))),
        named("reports", warning("no report", "look", ("worker",))),
        named("tenants", warning("another tenant", "route")),
    ]
    assert [(finding.check, finding.message) for finding in merge(findings)] == [
        ("worker", "no worker; no sweep; no run; late"),
        ("tenants", "another tenant"),
        ("server", "PostgreSQL 18"),
    ]
