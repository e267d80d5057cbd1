"""Rows that nobody would write on purpose, first, within or last in a batch."""

import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import factories
import mailglass_reconcile
import sweeping
from catalog import MAILGLASS
from database import Database
from mailglass_reconcile.errors import sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.result import SweepResult
from marking import nightly_unless

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

_OPEN_STATES = ("unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch")
_LINKED = """
SELECT metadata ->> 'reconciled_from_event_id' AS id FROM mailglass_events
 WHERE idempotency_key = 'reconciled:' || (metadata ->> 'reconciled_from_event_id')
"""

BATCH = 4
PLACES = (0, 1, BATCH - 1)
"""Three good orphans and a hostile one."""


@dataclass(frozen=True)
class Kind:
    """A kind of hostile row: its metadata for an id, and the expected outcome."""

    state: str | None
    metadata: Callable[[str], str]
    message_id: Callable[[str], str]
    event: Mapping[str, Any] = field(default_factory=dict)
    delivery: Mapping[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {}


def _plain(text: str) -> str:
    return text


def _postmark(text: str) -> str:
    return json.dumps(factories.postmark(text))


def kind(
    name: str,
    state: str | None,
    metadata: Callable[[str], str] | str = _postmark,
    message_id: Callable[[str], str] = _plain,
    delivery: Mapping[str, Any] | None = None,
    **event: Any,
) -> None:
    """Register a kind, whose delivery has the id that *message_id* makes of the row's."""
    text = metadata if callable(metadata) else (lambda _, fixed=metadata: fixed)
    KINDS[name] = Kind(state, text, message_id, event, delivery or {})


def make_metadata(value: Any) -> str:
    """Return Postmark's metadata with any JSON value as the id."""
    return json.dumps(factories.postmark(value))


for _name, _text in {
    "null": "null",
    "an array": '["postmark", "x"]',
    "a string": '"postmark"',
    "a number": "7",
    "true": "true",
    "an empty object": "{}",
    "an array of objects": '[{"provider": "postmark"}]',
}.items():
    kind(f"metadata is {_name}", "unmatchable", _text)
for _name, _value in {
    "a boolean": True,
    "null": None,
    "an object": {"id": "x"},
    "an array": ["x"],
    "empty": "",
    "blank": " \t ",
    "a fraction": 12.5,
    "negative": -12,
    "1 MB long": "x" * 1_000_000,
    "513 characters long": "x" * 513,
    "broken by a newline": "a\nb",
    "an ANSI escape": "\x1b[31mred\x1b[0m",
    "a bell": "a\x07b",
    "a C1 control": "a\x9bb",
    "the separator of ids": "a\x1fb",
}.items():
    kind(f"the id is {_name}", "unmatchable", make_metadata(_value))
kind(
    "the id has 5000 digits",
    "unmatchable",
    '{"provider": "postmark", "message_id": ' + "7" * 5000 + "}",
)
for _name, _shape in {
    "512 characters long": "{:x<512}",
    "right to left": "\u202e{}אבג",
    "of zero-width characters": "\u200b{}\u200d\ufeff",
    "a format of %": "%s%(x)d{}%",
    "braces": "{{}}{}{{0}}",
    "quotes": "'{}\"`",
    "a backslash": "\\{}\\x00\\",
    "SQL": "{}'; DROP TABLE mailglass_deliveries; --",
    "an array of SQL": "{{{},NULL}}",
    "beyond the BMP": "{}\U0001f4e7\U0010fffd",
    "a bind parameter": ":{} $1 ?",
    "spaced inside": "a {} b",
    "NULL": "NULL{}",
}.items():
    kind(
        f"the id is {_name}",
        "linked",
        lambda text, shape=_shape: make_metadata(shape.format(text)),
        lambda text, shape=_shape: shape.format(text),
    )
kind("the id is a number", "linked", lambda text: make_metadata(int(text, 16)), lambda text: str(int(text, 16)))
kind("the id is padded", "linked", lambda text: make_metadata(f" \t\n{text}\r\n "))
kind("the id is in angle brackets", "linked", lambda text: make_metadata(f"<{text}>"))
kind(
    "a number of 5000 digits stands beside the id",
    "unmatchable",
    lambda text: _postmark(text)[:-1] + ', "n": ' + "9" * 5000 + "}",
)
kind(
    "1500 levels stand beside the id",
    "linked" if sys.version_info >= (3, 12) else "unmatchable",
    lambda text: _postmark(text)[:-1] + ', "deep": ' + "[" * 1500 + "]" * 1500 + "}",
)
kind(
    "1 MB stands beside the id",
    "unmatchable",
    lambda text: json.dumps(factories.postmark(text, body="\u2603" * 350_000)),
)
kind("the exponent of a number is large", "linked", lambda text: _postmark(text)[:-1] + ', "n": 1e2000}')
for _name, _value in {
    "a number": 7,
    "an object": {"name": "postmark"},
    "null": None,
    "blank": "  ",
    "1 MB long": "p" * 1_000_000,
    "a control character": "post\x00mark".replace("\x00", "\x01"),
}.items():
    kind(
        f"the provider is {_name}",
        "unmatchable",
        lambda text, value=_value: json.dumps({"provider": value, "message_id": text}),
    )
kind("the provider is quoted SQL", "linked", lambda text: json.dumps({"provider": "p'\"\\{}%s", "message_id": text}))
kind(
    "the provider's event id is 1 MB long",
    "unmatchable",
    lambda text: json.dumps({**factories.postmark(text), "provider_event_id": "e" * 1_000_000}),
)
for _name, _value in {"a number": 7, "an object": {}, "empty": "", "an array": ["a@b.c"], "a control": "\x1b"}.items():
    kind(
        f"the recipient is {_name}",
        "linked",
        lambda text, value=_value: json.dumps(factories.postmark(text, recipient=value)),
    )
kind(
    "the recipient is somebody else",
    "recipient_mismatch",
    lambda text: json.dumps(factories.postmark(text, recipient="'; --@example.com")),
)
for _name, _time in {
    "infinity": "infinity",
    "minus infinity": "-infinity",
    "in the year 20000": "20000-01-01",
    "in 44 BC": "0044-03-15 BC",
    "ten years ahead": "2036-01-01",
    "the earliest there is": "4714-11-24 00:00:00 BC",
    "the latest there is": "294276-12-31 23:59:59.999999",
}.items():
    kind(f"it occurred at {_name}", "linked", occurred_at=_time)
for _type in ("zap", "", "Delivered", "re'con\"ciled\\", "{NULL}", "t" * 100_000, "\x1b[0m"):
    kind(f"the type is {_type[:20]!r}", "linked", type=_type)
kind("the type is reconciled and it needs reconciliation", "linked", type="reconciled")
kind(
    "the type is reconciled and its reference is no UUID",
    "linked",
    lambda text: json.dumps(factories.postmark(text, reconciled_from_event_id=f"no uuid {text}")),
    type="reconciled",
)
kind("a delivery is set although it needs reconciliation", None, delivery_id=str(uuid.UUID(int=7)))
kind("it has no delivery and needs no reconciliation", None, needs_reconciliation=False)
for _key in ("reconciled:no uuid", "reconciled:", "reconciled:" + "F" * 36, "reconciled:" + "-" * 36, "'; --", ""):
    kind(f"the key is {_key!r}", "linked", idempotency_key=_key)
for _name, _value in {"null": None, "an array": [], "a string": "x", "a number": 1}.items():
    kind(f"the normalized payload is {_name}", "linked", normalized_payload=_value)
for _version in (0, -1, -(2**31)):
    kind(f"the delivery's version is {_version}", "linked", delivery={"lock_version": _version})
for _name, _columns in {
    "last event is of an unknown type": {"last_event_type": "zap"},
    "last event is at infinity": {"last_event_at": "infinity"},
    "last event is in BC": {"last_event_at": "0044-03-15 BC"},
    "recipient is 1 MB of brackets": {"recipient": "<" * 200},
    "end came before": {"terminal": True, "last_event_type": "bounced", "delivered_at": "infinity"},
}.items():
    kind(f"the delivery's {_name}", "linked", delivery=_columns)
kind("another tenant's delivery has the id", "tenant_mismatch", delivery={"tenant_id": "acme "})
kind("nobody's delivery has the id", "unmatched", message_id=lambda text: f"other-{text}")


@pytest.fixture
def untouched(make_database: Callable[..., str], drop_database: Callable[[str], None]) -> Iterator[sa.Engine]:
    """A database with Mailglass's tables only."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    engine = engines.create_engine(Settings(database_url=make_database(name)))
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(MAILGLASS)
    yield engine
    drop_database(name)


def _batch(name: str, place: int, age: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return deliveries and orphans of one batch, with the hostile row at a place in the order of arrival."""
    hostile = KINDS[name]
    deliveries, events = [], []
    for position in range(BATCH):
        text = uuid.uuid4().hex
        if position == place:
            row = factories.orphan_row({}, age_seconds=age - position, **hostile.event)
            row["metadata"] = hostile.metadata(text)
            deliveries.append(factories.delivery_row(hostile.message_id(text), **hostile.delivery))
        else:
            row = factories.orphan_row(factories.postmark(text), age_seconds=age - position)
            deliveries.append(factories.delivery_row(text))
        events.append(row)
    return deliveries, events


def _refusals(engine: sa.Engine, deliveries: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[str | None]:
    """Insert rows, and return the SQLSTATE of each refused event."""
    refusals: list[str | None] = []
    with engine.begin() as connection:
        factories.insert(connection, deliveries)
        for event in events:
            try:
                with connection.begin_nested():
                    factories.insert(connection, events=[event])
                refusals.append(None)
            except DBAPIError as error:
                refusals.append(sqlstate(error))
    return refusals


@pytest.mark.parametrize("turn", nightly_unless((0).__eq__, range(len(PLACES))))
def test_a_hostile_row_is_counted_with_its_reason_and_the_rest_of_its_batch_is_linked(
    db: Database, untouched: sa.Engine, turn: int
) -> None:
    """Each kind is first, within or last in a batch of its own; the ledger accepts what it accepted without our
    triggers.
    """
    expected = {"linked": set[str](), **{state: set[str]() for state in (None, *_OPEN_STATES)}}
    names = {}
    for number, (name, hostile) in enumerate(KINDS.items()):
        place = PLACES[(number + turn) % len(PLACES)]
        deliveries, events = _batch(name, place, 80_000 - 100 * number)
        refused = _refusals(untouched, deliveries, events)
        assert _refusals(db.engine, deliveries, events) == refused == [None] * BATCH, name
        for position, event in enumerate(events):
            expected[hostile.state if position == place else "linked"].add(event["id"])
            names[event["id"]] = f"{name}: {position}"
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"batch_size": BATCH}))

    result = mailglass_reconcile.reconcile()

    linked = {row.id for row in db.rows(_LINKED)}
    assert sorted(names[id_] for id_ in linked ^ expected["linked"]) == []
    counted = {state: getattr(result, state) for state in (*_OPEN_STATES, "linked", "skipped", "failed")}
    assert counted == {**{s: len(expected[s]) for s in (*_OPEN_STATES, "linked")}, "skipped": 0, "failed": 0}
    assert (result.status, result.published) == ("ok", 2 * result.linked)


def test_the_catalogue_has_at_least_45_kinds() -> None:
    """Tests are generated from the catalogue, so a lost kind would go unnoticed."""
    assert len(KINDS) >= 45


@pytest.mark.parametrize(
    "value",
    ['{"a": "\\u0000"}', '{"a": "\\ud800"}', "[" * 20_000 + "]" * 20_000, "{", ""],
    ids=["NUL", "half a surrogate", "20000 levels", "no end", "nothing"],
)
def test_what_postgres_refuses_is_refused_with_and_without_our_triggers(
    db: Database, untouched: sa.Engine, value: str
) -> None:
    """A text that is no JSON for Postgres never reaches them."""
    event = {**factories.orphan_row({}), "metadata": value}
    refusals = _refusals(db.engine, [], [event])
    assert refusals == _refusals(untouched, [], [event])
    assert refusals[0] is not None


@pytest.mark.parametrize("place", PLACES)
def test_a_delivery_deleted_between_match_and_write_affects_its_own_orphan_only(db: Database, place: int) -> None:
    deliveries = []
    for position in range(2 * BATCH):
        text = uuid.uuid4().hex
        deliveries.append(factories.delivery(db, text))
        factories.orphan(db, factories.postmark(text), age_seconds=900 - position)

    def delete(result: SweepResult) -> None:
        db.run("DELETE FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)", id=deliveries[BATCH - 1 - place])

    settings = db.settings.model_copy(update={"batch_size": BATCH})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    result = sweeping.run(reconciler.prepare(), delete)
    assert (result.status, result.linked, result.skipped, result.failed) == ("ok", 2 * BATCH - 1, 1, 0)
    assert mailglass_reconcile.reconcile().unmatched == 1


@pytest.mark.guard
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("replica", [True, False])
def test_a_key_that_another_delivery_has_closes_its_orphan(db: Database, first: bool, replica: bool) -> None:
    """The trigger closes it if the key comes later, the sweep in all other cases."""
    text = uuid.uuid4().hex
    delivery, other_delivery = factories.delivery(db, text), factories.delivery(db)
    orphan = factories.orphan_row(factories.postmark(text))
    link_to_other = factories.reconciled_row(orphan["id"], other_delivery)
    with db.engine.begin() as connection:
        factories.insert(connection, events=[link_to_other] if first else [orphan])
    with db.engine.begin() as connection:
        if replica and not first:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        factories.insert(connection, events=[orphan] if first else [link_to_other])

    result = mailglass_reconcile.reconcile()

    assert (result.linked, result.failed, result.published) == (0, 0, 0)
    assert result.skipped == (1 if replica or first else 0)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert db.value("SELECT lock_version FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)", id=delivery) == 1


@pytest.mark.parametrize("inserted_at", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_an_arrival_outside_the_window_is_accepted_and_not_swept(
    db: Database, untouched: sa.Engine, inserted_at: str
) -> None:
    """The ledger accepts it as it did without our triggers."""
    db.broken.add("I13")
    sql = sa.text(
        "INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)"
        " VALUES (gen_random_uuid(), 'acme', 'delivered', now(), '{}', true, CAST(:at AS timestamp))"
    )
    for engine in (untouched, db.engine):
        with engine.begin() as connection:
            connection.execute(sql, {"at": inserted_at})
    assert mailglass_reconcile.reconcile().scanned == 0
    db.run("DELETE FROM mailglass_open_orphans")


@pytest.mark.parametrize(
    "session",
    [
        "SET TIME ZONE 'Pacific/Apia'",
        "SET search_path = pg_temp",
        "SET DateStyle = 'German'",
        "SET standard_conforming_strings = off",
        "SET IntervalStyle = 'iso_8601'",
        "SET bytea_output = 'escape'; SET extra_float_digits = -15; SET lc_messages = 'C'",
        "SET default_transaction_isolation = 'serializable'",
        "SET plpgsql.variable_conflict = 'use_column'",
        "SET lock_timeout = 1; SET row_security = off; SET check_function_bodies = off",
        "SET client_encoding = 'SQL_ASCII'",
    ],
)
def test_a_writer_of_any_session_is_not_hurt_by_the_trigger(db: Database, session: str) -> None:
    """The functions have a search path of their own, and compare no times as text."""
    text = uuid.uuid4().hex
    factories.delivery(db, text)
    with db.engine.connect() as connection:
        connection.exec_driver_sql(session)
        connection.commit()
        connection.execute(
            sa.text(
                "INSERT INTO public.mailglass_events (id, tenant_id, type, occurred_at, metadata,"
                " needs_reconciliation, inserted_at) VALUES (gen_random_uuid(), 'acme', 'delivered', now(),"
                " CAST(:metadata AS jsonb), true, (now() AT TIME ZONE 'UTC') - interval '5 minutes')"
            ),
            {"metadata": json.dumps(factories.postmark(text))},
        )
        connection.commit()
    assert mailglass_reconcile.reconcile().linked == 1
