"""The matching rule, for many events and for one, compared with the oracle; and recipients in every spelling."""

import datetime as dt
import random
import sys
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import catalog
import commands
import factories
import mailglass_reconcile
import oracle
from database_pool import Uncommitted
from factories import WIDE, delivery_row, insert, orphan_row
from mailglass_reconcile import Settings, WebhookEvent, find_orphans, reconcile, record_webhook
from mailglass_reconcile.linking import matcher
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.rules.addresses import make_index_key, normalize_address
from mailglass_reconcile.rules.matching import MOST_COMPARED, Keys
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database, Transaction, in_schema
from mailglass_reconcile.store.migration import runner
from spellings import DIFFERENT, EQUAL

TENANTS = st.sampled_from(["a", "b"])
RECIPIENTS = st.sampled_from(["Ada@Example.com", " ada@example.com ", "Ada <ADA@example.com>", "eve@example.com"])
DELIVERIES = st.lists(
    st.tuples(
        TENANTS,
        st.sampled_from(["postmark", "Postmark", " POSTMARK\xa0", None, None, "mailgun"]),
        st.sampled_from(["m1", "m2"]),
        RECIPIENTS,
    ),
    max_size=20,
    unique_by=lambda d: (d[1], d[2]) if d[1] else object(),
)
ORPHANS = st.tuples(
    TENANTS,
    st.lists(st.sampled_from(["m1", "m2", "m3"]), max_size=3, unique=True),
    st.none() | RECIPIENTS.map(str.strip),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(deliveries=DELIVERIES, orphan=ORPHANS)
def test_a_match_and_a_decision_are_what_the_oracle_says(
    tx: Uncommitted, deliveries: list[tuple[str, str | None, str, str]], orphan: tuple[str, list[str], str | None, bool]
) -> None:
    """The ids have few deliveries, or more than are read whole; the example is rolled back."""
    rows = [
        factories.delivery_row(id_, tenant_id=tenant, provider=provider, recipient=recipient)
        for tenant, provider, id_, recipient in deliveries
    ]
    tenant, candidates, recipient, lost = orphan
    keys = Keys("postmark", tuple(candidates), recipient, lost=lost and recipient is None)
    transaction = Transaction(tx.connection, tx.settings)
    with tx.connection.begin_nested() as example:
        factories.insert(tx, rows)
        match = matcher.match_events(
            transaction.reading, [matcher.EventKeys("", tenant, keys), matcher.EventKeys("", "b", keys)]
        )
        event_match = matcher.match_event(transaction.reading, factories.new_id(), tenant, keys)
        example.rollback()
    read = {"provider": "postmark", "candidate_ids": candidates, "recipient": recipient, "recipient_lost": keys.lost}
    stored = [{**row, "provider_message_id": row["message_id"]} for row in rows]
    expected = [oracle.match({**read, "tenant_id": tenant_id}, stored) for tenant_id in (tenant, "b")]
    assert [tuple(verdict) for verdict in match] == expected
    assert (event_match.state, event_match.delivery_id) == expected[0]


@pytest.mark.parametrize("provider", [pytest.param("postmark", marks=pytest.mark.slow), "acme"])
@pytest.mark.parametrize(("own", "state"), [(0, "tenant_mismatch"), (1, "matched"), (2, "ambiguous")])
def test_an_id_of_many_tenants_is_decided_by_ones_own_however_many_there_are(
    tx: Uncommitted, own: int, state: str, provider: str
) -> None:
    """A event_match reads a few of three hundred deliveries, and none of the orphan's own tenant is left out."""
    foreign = [factories.delivery_row("shared", tenant_id=f"tenant {n}") for n in range(300)]
    factories.insert(tx, [*foreign, *(factories.delivery_row("shared") for _ in range(own))])
    transaction = Transaction(tx.connection, tx.settings)
    event_match = matcher.match_event(
        transaction.reading, factories.new_id(), factories.TENANT, Keys(provider, ("shared",), None)
    )
    assert event_match.state == state
    assert len(event_match.deliveries) <= 20


KEYS = """
SELECT recipient, {recipient_key} = hashtextextended(k.key, 0)
  FROM unnest(CAST(:recipients AS text[]), CAST(:keys AS text[])) AS k (recipient, key)
"""

LINKED = "SELECT substr(idempotency_key, 12), delivery_id::text FROM mailglass_events WHERE type = 'reconciled'"
MISMATCHED = "SELECT count(*) FROM mailglass_open_orphans WHERE state = 'recipient_mismatch'"

PIECES = [
    *" \t\n\x0b\x1c\x85\u00a0\u2028\u3000<>@@@.;`\"'\\^$",
    *"aAkKzZ09iI_~!",
    *"äÄßſ\u0130\u0131\u212a\u037e\u1fef\u0308\u0338\u0391Σ\ufffd\u3002\uff21\U0001f48c",
    *("xn--", "XN--", "Ada <", "ada@example.com", "bücher", "xn--bcher-kva", "@example.com>", "\x01", "\x7f"),
]


def sparkpost(recipient, campaign="campaign"):
    """Return the metadata of an event that names its recipient."""
    return {"provider": "sparkpost", "transmission_id": campaign, "recipient": recipient}


def make_other_deliveries(campaign, number):
    """Return some deliveries of other recipients."""
    return [delivery_row(campaign, recipient=f"u{n}@example.com") for n in range(number)]


@pytest.mark.parametrize("number", [WIDE - 1, WIDE])
@pytest.mark.parametrize("way", [1, -1])
def test_an_event_links_however_its_recipient_is_spelled(db, number, way):
    """The id may name ten deliveries or eleven, and either side may have any spelling."""
    spelled = {name: spellings[::way] for name, spellings in EQUAL.items()}
    items = {name: delivery_row(name, recipient=stored) for name, (stored, _) in spelled.items()}
    orphans = {name: orphan_row(sparkpost(reported, name)) for name, (_, reported) in spelled.items()}
    other_rows = [row for name in spelled for row in make_other_deliveries(name, number)]
    insert(db, [*other_rows, *items.values()], list(orphans.values()))
    mailglass_reconcile.reconcile()
    linked = dict(map(tuple, db.rows(LINKED)))
    assert {name: linked.get(row["id"]) for name, row in orphans.items()} == {n: row["id"] for n, row in items.items()}


@pytest.mark.parametrize("other_count", [WIDE - 2, WIDE])
@pytest.mark.parametrize("recipient", [factories.RECIPIENT, None])
def test_a_delivery_is_of_its_provider_however_another_writer_spells_that(tx, other_count, recipient):
    """Of two deliveries of one recipient, the one with the event's provider is chosen, if the recipient is known."""
    spelled = factories.delivery_row("m", provider=" POSTMARK\xa0")
    factories.insert(tx, [*make_other_deliveries("m", other_count), factories.delivery_row("m"), spelled])
    transaction = Transaction(tx.connection, tx.settings)
    event = matcher.EventKeys("", factories.TENANT, Keys("postmark", ("m",), recipient))
    expected = ("matched", spelled["id"]) if recipient else ("ambiguous", None)
    assert matcher.match_events(transaction.reading, [event]) == [expected]


@pytest.mark.parametrize("own", [0, 1])
def test_one_delivery_of_a_wide_id_and_tenant_is_found_however_its_provider_is_spelled(tx, own):
    """The others are another tenant's; without a recipient, two are ambiguous."""
    foreign_rows = [factories.delivery_row("m", tenant_id="other") for _ in range(WIDE)]
    spelled = factories.delivery_row("m", provider=" POSTMARK\xa0")
    factories.insert(tx, [*foreign_rows, spelled, *(factories.delivery_row("m") for _ in range(own))])
    event = matcher.EventKeys("", factories.TENANT, Keys("postmark", ("m",), None))
    expected = ("ambiguous", None) if own else ("matched", spelled["id"])
    assert matcher.match_events(Transaction(tx.connection, tx.settings).reading, [event]) == [expected]


@pytest.mark.parametrize("number", [WIDE - 1, WIDE])
def test_an_event_of_another_recipient_stays_open(db, number):
    """The name before the address is the same; the id names ten deliveries or eleven."""
    rows = [delivery_row(name, recipient=stored) for name, (stored, _) in DIFFERENT.items()]
    orphans = [orphan_row(sparkpost(reported, name)) for name, (_, reported) in DIFFERENT.items()]
    insert(db, [*(row for name in DIFFERENT for row in make_other_deliveries(name, number)), *rows], orphans)
    mailglass_reconcile.reconcile()
    assert not db.rows(LINKED)
    assert db.value(MISMATCHED) == len(DIFFERENT)


@pytest.mark.parametrize("domain", ["bücher{}.example", "example.com"])
def test_recipients_outside_ascii_link_all(db, domain):
    """Their addresses share an index key and are compared in Python."""
    addresses = [f"{'ä' if domain.isascii() else 'info'}{n % 7}@{domain.format(n)}" for n in range(7 * WIDE)]
    addresses = [address.replace("ä", "ä" * (n + 1)) for n, address in enumerate(addresses)]
    insert(
        db,
        [delivery_row("campaign", recipient=address) for address in addresses],
        [orphan_row(sparkpost(address.upper())) for address in addresses],
    )
    assert mailglass_reconcile.reconcile().linked == len(addresses)


def test_several_deliveries_of_one_recipient_outside_ascii_are_ambiguous(db):
    insert(
        db,
        [delivery_row("campaign", recipient="ärger@example.com") for _ in range(3 * WIDE)],
        [orphan_row(sparkpost("ÄRGER@example.com"))],
    )
    assert mailglass_reconcile.reconcile().ambiguous == 1


def test_none_is_chosen_among_more_deliveries_of_a_shared_key_than_are_compared(tx):
    """The matching delivery is compared, but another one might be among those that are not."""
    rows = [delivery_row("campaign", recipient=f"info@büro{n}.example") for n in range(MOST_COMPARED + 1)]
    factories.insert(tx, rows)
    transaction = Transaction(tx.connection, tx.settings)
    keys = Keys("postmark", ("campaign",), "info@büro0.example")
    for expected in ("ambiguous", "matched"):
        assert matcher.match_event(transaction.reading, factories.new_id(), factories.TENANT, keys).state == expected
        tx.run("DELETE FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)", id=rows[-1]["id"])


LOCALES = {
    "C": "LOCALE 'C'",
    "C.UTF-8": "LOCALE 'C.UTF-8'",
    "Turkish": "LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'tr'",
}


@pytest.fixture(params=LOCALES.values(), ids=LOCALES)
def url(request, admin, drop_database):
    """The URL of an empty database of one locale."""
    name = f"mgtest_{factories.new_id()}"
    with admin.connect() as admin_connection:
        try:
            admin_connection.exec_driver_sql(
                f'CREATE DATABASE "{name}" TEMPLATE template0 ENCODING utf8 {request.param}'
            )
        except sa.exc.NotSupportedError as error:
            pytest.skip(str(error.orig))  # the server of the wheel has no ICU; Debian's has
    yield admin.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    drop_database(name)


@pytest.fixture
def connection(url):
    """A connection to that database."""
    with engines.create_engine(Settings(database_url=url)).connect() as opened:
        yield opened


def test_an_event_links_in_every_locale(url, redis_url):
    """The id may name ten deliveries or eleven."""
    installation = catalog.installation(url)
    installation.migrate()
    mailglass_reconcile.configure(engine=installation.engine, settings=installation.settings)
    expected = set()
    for spelling, (stored, reported) in EQUAL.items():
        for number in (WIDE - 1, WIDE):
            id_ = f"{spelling} {number}"
            row = delivery_row(id_, recipient=stored)
            other_rows = [delivery_row(id_, recipient=f"I{n}@example.com") for n in range(number)]
            event = {"provider": "sparkpost", "transmission_id": id_, "recipient": reported}
            factories.insert(installation, [*other_rows, row], [orphan_row(event)])
            expected.add(row["id"])
    assert mailglass_reconcile.reconcile().linked == len(expected)
    assert (
        set(installation.values("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'")) == expected
    )


def make_odd_recipients(seed):
    """Return possible recipients made of everything that makes addresses odd."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PIECES, k=chance.randint(0, 12))) for _ in range(5_000)]


def test_the_index_has_the_key_of_every_recipient(connection):
    """Postgres computes from a stored recipient the key that Python computes from a normalized one."""
    recipients = [
        recipient for pair in (*EQUAL.values(), *DIFFERENT.values()) for recipient in pair
    ] + make_odd_recipients(1)
    keys = [make_index_key(normalize_address(recipient)) for recipient in recipients]
    rows = connection.execute(sa.text(in_schema(KEYS, "public")), {"recipients": recipients, "keys": keys})
    assert [repr(recipient) for recipient, is_equal in rows if not is_equal] == []


def test_the_index_trims_what_python_calls_white_space(connection):
    """Every such character is trimmed around an address and inside its brackets."""
    blanks = [chr(n) for n in range(sys.maxunicode + 1) if chr(n).isspace()]
    recipients = [f"{blank}Ada <{blank}ADA@example.com{blank}>{blank}" for blank in blanks]
    rows = connection.execute(
        sa.text(in_schema(KEYS, "public")), {"recipients": recipients, "keys": ["ada@example.com"] * len(blanks)}
    )
    assert [repr(recipient) for recipient, is_equal in rows if not is_equal] == []


@pytest.mark.parametrize("column", ["provider_message_id", "tenant_id", "recipient"])
def test_no_value_is_too_long_for_the_index(db, column):
    """A writer's INSERT never fails because of it; Mailglass's own indexes, which have limits, are dropped here."""
    rows = db.rows("""
        SELECT indexrelid::regclass::text FROM pg_index
         WHERE indrelid = 'mailglass_deliveries'::regclass AND NOT indisprimary
           AND indexrelid <> 'mailglass_deliveries_reconcile_idx'::regclass""")
    for (index,) in rows:
        db.run(f"DROP INDEX {index}")
    noise = "".join(random.Random(2).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200_000))
    factories.delivery(db, "m-1")
    db.run(f"UPDATE mailglass_deliveries SET {column} = :noise", noise=noise)  # noqa: S608


FLAG = "SELECT metadata -> 'recipient_known' FROM mailglass_events WHERE type = 'bounced'"


def record_bobs_bounce(db) -> UUID:
    """Record a bounce of Bob's as an orphan past its grace, and return its id."""
    event = WebhookEvent(
        type="bounced",
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id="b-1",
        message_id="m",
        recipient="Bob <bob@example.com>",
    )
    with db.engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id=factories.TENANT, provider="postmark", events=[event])
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    return recorded.event_id


def remove_and_migrate(db) -> None:
    """Remove our tables and migrate again, which fills the open set from the ledger."""
    runner.remove(db.engine, db.settings, lambda line: None)
    runner.migrate(db.engine, db.settings, lambda line: None)


def prune_short_and_long(db) -> None:
    """Prune with a short maximum age, which closes the orphan, and with the default, which opens it again."""
    short = Settings(**{**db.settings.model_dump(), "max_age_minutes": 1})
    mailglass_reconcile.configure(engine=db.engine, settings=short)
    assert mailglass_reconcile.prune().expired == 1
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    mailglass_reconcile.prune()
    assert db.value("SELECT recipient IS NULL FROM mailglass_open_orphans")


@pytest.mark.parametrize("rebuilt", [pytest.param(remove_and_migrate, marks=pytest.mark.slow), prune_short_and_long])
def test_a_bounce_of_bob_never_marks_alices_delivery(db, rebuilt):
    """The only delivery of the id is Alice's; without the address, the orphan stays ambiguous."""
    event_id = record_bobs_bounce(db)
    assert db.value(FLAG) is True
    rebuilt(db)
    factories.delivery(db, "m", recipient="alice@example.com")
    grace = Settings(**{**db.settings.model_dump(), "grace_seconds": 0})
    mailglass_reconcile.configure(engine=db.engine, settings=grace)
    for _ in range(2):  # once from the ledger, once from stored keys
        result = reconcile()
        assert (result.linked, result.ambiguous) == (0, 1)
    with db.engine.connect() as connection:
        (orphan,) = find_orphans(connection)
        assert mailglass_reconcile.attempt_link(connection, orphan).state == "ambiguous"
    explanation = explain(Database(db.engine, grace), event_id)
    assert (explanation.state, explanation.delivery_id) == ("ambiguous", None)
    assert "recipient is unknown" in explanation.sentence


@pytest.mark.parametrize("rekeyed", [False, True])
def test_bobs_bounce_is_linked_as_long_as_the_address_is_known(db, rekeyed):
    """Two deliveries have the id; only the open orphan has the address, and `rekey` keeps it."""
    record_bobs_bounce(db)
    if rekeyed:
        commands.run_here("rekey")
    factories.delivery(db, "m", recipient="alice@example.com")
    bob = factories.delivery(db, "m", recipient="BOB@example.com")
    assert reconcile().linked == 1
    assert db.value("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'") == bob


def test_an_erased_recipient_does_not_come_back_from_the_ledger_when_keys_are_computed_again(db):
    """Another writer's event still has it there, but an event of a person who was erased is not linked."""
    factories.orphan(db, factories.postmark("m", recipient="bob@example.com"))
    assert reconcile().unmatched == 1
    with db.engine.begin() as connection:
        assert mailglass_reconcile.erase(connection, recipient="bob@example.com").open_orphans == 1
    commands.run_here("rekey")
    factories.delivery(db, "m", recipient="bob@example.com")
    assert reconcile().ambiguous == 1
