"""`link` shows the event and the delivery, and asks before it writes."""

import pytest

import commands
import factories

pytestmark = pytest.mark.version_independent

REASON = ("--reason", "ticket 4711")


@pytest.fixture
def pair(db) -> tuple[str, str]:
    """An ambiguous event, and one of its deliveries."""
    deliveries = [factories.delivery(db, "many", provider=None) for _ in range(2)]
    return factories.orphan(db, factories.postmark("many"), type="bounced"), deliveries[1]


@pytest.mark.parametrize(("answer", "code", "links"), [("n", 130, 0), ("y", 0, 1)])
def test_at_a_terminal_it_asks(db, pair, answer, code, links):
    event, delivery = pair
    output = commands.run_on_terminal(db, "link", *pair, *REASON, typed=f"{answer}\n", code=code)
    flat = " ".join(output.split())
    assert f"event {event}: bounced, postmark, ambiguous, arrived " in flat
    assert f"delivery {delivery}: Welcome, dispatched, stored " in flat
    assert "link them? This cannot be undone [y/N]:" in flat
    assert db.count_links() == links
    assert max(map(len, output.partition("link them?")[0].splitlines())) <= 80


def test_a_dry_run_shows_both_and_writes_nothing(db, pair):
    for more in ([], ["--yes"]):
        result = commands.run(db, "link", *pair, *REASON, "--dry-run", *more)
        assert result.stdout.startswith(f"event     {pair[0]}: bounced, postmark, ambiguous, arrived ")
        assert result.stdout.endswith("\nthey can be linked; nothing was written\n")
    assert db.count_links() == 0


def test_a_dry_run_refuses_what_a_link_would(db, pair):
    foreign = factories.delivery(db, "many", tenant_id="globex")
    result = commands.run_unchecked(db, "link", pair[0], foreign, *REASON, "--dry-run")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (f"mailglass-reconcile: event {pair[0]} and delivery {foreign} are of different tenants\n")
