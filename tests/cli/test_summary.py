"""The summary of a sweep: what it linked, why the rest stays open, and why there is nothing to do."""

import re

import pytest

import commands
import factories
from mailglass_reconcile.cli.sweep import summary
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = pytest.mark.version_independent


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (SweepResult(scanned=1, linked=1, duration_ms=7), ["linked 1 of 1 open event in 7 ms"]),
        (
            SweepResult(scanned=48_000, linked=10, skipped=47_990, skipped_limit=47_990, duration_ms=1_234),
            [
                "linked 10 of 48,000 open events in 1,234 ms",
                "47,990 more not checked or not linked: sweep again, or without --limit",
            ],
        ),
        (
            SweepResult(scanned=3, unmatched=2, failed=1, remaining=3, status="partial", tenant_id="a\nb"),
            [
                r"linked 0 of 3 open events of tenant 'a\nb' in 0 ms",
                "         2 unmatched: no delivery has a matching id yet",
                "         1 failed: the database refused to read or link them",
                "this sweep is partial: 3 eligible events remain",
            ],
        ),
        (
            SweepResult(scanned=1, linked=1, publish_failed=2, remaining=None, status="failed", duration_ms=150_000),
            [
                "linked 1 of 1 open event in 2 minutes",
                "2 of 2 broadcasts not sent: check MAILGLASS_REDIS_URL",
                "this sweep is failed: what remains could not be counted",
            ],
        ),
    ],
)
def test_a_sweep_says_what_it_did_and_alarms_only_if_somebody_has_to_act(result, lines):
    """Reaching a limit that somebody set is no alarm."""
    assert summary(result).splitlines() == lines


def test_a_sweep_with_nothing_to_do_says_why(db):
    assert commands.run_here("sweep").stdout == "nothing to do: there are no open events\n"
    for number in range(8):
        factories.orphan(db, factories.postmark(number), age_seconds=1)
    assert commands.run_here("sweep").stdout == "nothing to do yet: 8 events are in their 60 s grace period\n"
    factories.orphan(db, factories.postmark("b"), age_seconds=1, tenant_id="b")
    stdout = commands.run_here("sweep", "--tenant", "b").stdout
    assert stdout == "nothing to do yet: 1 event of tenant 'b' is in its 60 s grace period\n"
    assert commands.run_here("sweep", "--tenant", "b\x00").stdout.startswith(
        "nothing to do: there are no open events of"
    )
    stdout = commands.run_here("sweep", "--provider", "ses", "--yes").stdout
    assert stdout == "nothing to link: no open event is selected\n"


def test_the_help_of_the_whole_command_has_whole_sentences_and_every_setting():
    """No sentence is cut off, whatever the width."""
    stdout = commands.run_here("--help").stdout
    assert "..." not in stdout.partition("Every day:")[2]
    assert {f"MAILGLASS_{name.upper()}" for name in Settings.model_fields} <= set(
        re.findall(r"MAILGLASS_[A-Z_]+", stdout)
    )
