"""The projection of events onto a delivery, compared with a plain implementation of the rules."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factories
import oracle
from mailglass_reconcile.rules import event_types
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database
from projecting import Report, apply_projection

pytestmark = pytest.mark.version_independent

NOON = datetime(2026, 3, 1, 12)
COLUMNS = ", ".join(oracle.PROJECTED)


class RolledBackError(Exception):
    """Rolls a transaction back."""


@contextmanager
def rolled_back(connection: sa.Connection) -> Iterator[database.Transaction]:
    """Run a block in a transaction with the package's settings, and roll it back."""
    try:
        with database.OpenConnection(connection, Settings()).writing() as tx:
            connection.exec_driver_sql("SET LOCAL search_path = public")
            yield tx
            raise RolledBackError
    except RolledBackError:
        pass


@pytest.fixture(scope="module")
def connection(mailglass_databases, template, redis_url):
    """A connection to a migrated database on which nothing is ever committed."""
    with mailglass_databases.copy(template, redis_url) as copy, copy.engine.connect() as connection:
        yield connection


def project(connection: sa.Connection, *batches: list[tuple[str, object, datetime]], **columns: object) -> sa.Row:
    """Project batches of `(type, occurred_at, arrival)` on a temporary delivery, and return its row."""
    row = factories.delivery_row("one", **columns)
    with rolled_back(connection) as tx:
        factories.insert(connection, deliveries=[row])
        for batch in batches:
            apply_projection(tx, [Report(row["id"], kind, str(at), str(arrival)) for kind, at, arrival in batch])
        return connection.execute(
            sa.text(
                f"SELECT {COLUMNS}, lock_version, updated_at = now()::timestamp AS touched"  # noqa: S608 - our own names
                " FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)"
            ),
            {"id": row["id"]},
        ).one()


def event(kind: str, at: datetime, arrival: datetime | None = None) -> tuple[str, datetime, datetime]:
    """Return an event that arrived a minute after it occurred."""
    return kind, at, arrival or at + timedelta(minutes=1)


times = st.datetimes(datetime(1999, 12, 31, 23), datetime(2000, 1, 1, 3)).map(
    lambda t: t.replace(second=0, microsecond=0)
)
events = st.tuples(st.sampled_from([*oracle.ALL_TYPES, "reconciled", "weird"]), times, times)
rows = st.fixed_dictionaries(
    {
        "last_event_type": st.sampled_from([*oracle.ALL_TYPES, "weird"]),
        "last_event_at": times,
        "terminal": st.booleans(),
        "dispatched_at": st.none() | times,
        "delivered_at": st.none() | times,
    }
)


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows, batch=st.lists(events, max_size=8), data=st.data())
def test_any_order_and_any_split_equal_the_fold(connection, row, batch, data):
    """One statement per part is compared with one event after the other in plain Python."""
    shuffled = data.draw(st.permutations(batch))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=3)))
    parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(batch)], strict=True)]
    full = {**row, "bounced_at": None, "complained_at": None, "suppressed_at": None}
    delivery = project(connection, *parts, **row)
    assert {name: getattr(delivery, name) for name in oracle.PROJECTED} == oracle.fold(full, batch)
    changed = any(getattr(delivery, name) != full[name] for name in oracle.PROJECTED)
    assert (delivery.lock_version > 1) == changed
    assert delivery.touched == changed
    assert delivery.lock_version <= 1 + len([part for part in parts if part])


def test_several_deliveries_in_one_statement_do_not_mix(connection):
    """Each delivery gets its own events only."""
    rows = [factories.delivery_row(str(n)) for n in range(3)]
    with rolled_back(connection) as tx:
        factories.insert(connection, deliveries=rows)
        kinds = ("delivered", "bounced", "opened")
        noon = str(NOON)
        changed = apply_projection(
            tx, [Report(row["id"], kind, noon, noon) for row, kind in zip(rows, kinds, strict=True)]
        )
        result = connection.execute(
            sa.text("SELECT last_event_type FROM mailglass_deliveries ORDER BY provider_message_id")
        )
        assert tuple(result.scalars()) == kinds
    assert changed == 3


def test_a_raced_delivered_replaces_a_later_dispatched(connection):
    """Type and time change together, although the time is earlier."""
    earlier = datetime(2026, 1, 2, 3, 4, 4)
    delivery = project(connection, [event("delivered", earlier)])
    assert (delivery.last_event_type, delivery.last_event_at, delivery.delivered_at) == ("delivered", earlier, earlier)
    assert delivery.dispatched_at == datetime(2026, 1, 2, 3, 4, 5)
    assert delivery.terminal


@pytest.mark.parametrize("kind", ["queued", "sent", "dispatched", "unknown"])
def test_our_own_side_never_replaces_a_providers_report(connection, kind):
    """Its time does not matter."""
    delivery = project(connection, [event("delivered", NOON)], [event(kind, NOON + timedelta(days=1))])
    assert (delivery.last_event_type, delivery.last_event_at) == ("delivered", NOON)


def test_on_equal_times_the_fixed_list_decides(connection):
    """A complaint wins over a click, whichever is projected first."""
    for kinds in (("clicked", "complained"), ("complained", "clicked")):
        assert project(connection, *[[event(kind, NOON)] for kind in kinds]).last_event_type == "complained"


def test_the_earliest_report_of_a_kind_is_kept(connection):
    """Later ones do not change it, an earlier one does."""
    days = [NOON + timedelta(days=n) for n in (1, 2, 0)]
    delivery = project(connection, *[[event("bounced", day)] for day in days])
    assert (delivery.bounced_at, delivery.last_event_at) == (NOON, days[1])


@pytest.mark.parametrize("at", ["2026-03-02 12:00:00", "infinity", "-infinity", "1999-12-31 23:59:59", "0044-03-15 BC"])
def test_an_impossible_time_counts_as_arrival(connection, at):
    """It is much later than the arrival, infinite, or before the year 2000."""
    delivery = project(connection, [("delivered", at, NOON)])
    assert (delivery.last_event_at, delivery.delivered_at) == (NOON, NOON)


@pytest.mark.parametrize("later", [timedelta(milliseconds=3), timedelta(minutes=5)])
def test_a_time_a_little_later_than_arrival_is_kept(connection, later):
    """Mailglass sets the time after its transaction has begun; thus its events do not tie."""
    delivery = project(connection, [("delivered", NOON + later, NOON), ("opened", NOON, NOON)])
    assert (delivery.last_event_type, delivery.last_event_at, delivery.delivered_at) == (
        "delivered",
        NOON + later,
        NOON + later,
    )


def test_a_time_more_than_five_minutes_later_than_arrival_counts_as_arrival(connection):
    """A microsecond more is too late."""
    at = NOON + timedelta(minutes=5, microseconds=1)
    assert project(connection, [("delivered", at, NOON)]).last_event_at == NOON


@pytest.mark.parametrize(
    ("at", "arrival"),
    [("4713-01-01 BC", NOON), (NOON, "294276-12-31 23:59:59"), ("294276-12-31 23:59:59", NOON), ("infinity", NOON)],
)
def test_no_time_of_postgres_fails_a_projection(connection, at, arrival):
    """The five minutes do not overflow either end of its calendar."""
    assert project(connection, [("delivered", at, arrival)]).last_event_at == NOON


@pytest.mark.parametrize("kind", ["reconciled", "weird", "", "Delivered", "delivered "])
def test_an_unknown_type_changes_nothing(connection, kind):
    """Mailglass could not load a delivery with it."""
    delivery = project(connection, [event(kind, NOON)])
    assert (delivery.last_event_type, delivery.lock_version, delivery.touched) == ("dispatched", 1, False)


@pytest.mark.parametrize("kind", sorted(oracle.FINAL))
def test_a_final_type_makes_it_terminal_for_ever(connection, kind):
    """A later report that is not final does not reset it."""
    assert project(connection, [event(kind, NOON)], [event("opened", NOON + timedelta(days=1))]).terminal


@pytest.mark.parametrize("kind", sorted({*oracle.ALL_TYPES} - oracle.FINAL))
def test_no_other_type_makes_it_terminal(connection, kind):
    """Types such as opened and clicked say nothing about the end."""
    assert not project(connection, [event(kind, NOON)]).terminal


def test_the_version_does_not_change_if_nothing_changes(connection):
    """The same report comes twice, and then an older one."""
    batches = [[event("opened", NOON)]] * 2 + [[event("opened", NOON - timedelta(days=1))]]
    assert project(connection, *batches).lock_version == 2


def test_one_batch_changes_the_version_once(connection):
    """The number of changing events does not matter."""
    assert project(connection, [event(kind, NOON) for kind in ("delivered", "opened", "clicked")]).lock_version == 2


def test_every_known_type_is_ranked_as_the_design_says(connection):
    """Our own types rank below the providers' reports, and each type has one rank."""
    assert sorted(event_types.SENDER_TYPES) == sorted(oracle.OWN_SIDE)
    assert list(event_types.PROVIDER_TYPES) == oracle.PROVIDER_SIDE
