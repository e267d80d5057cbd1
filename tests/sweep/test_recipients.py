"""An event finds its recipient's delivery in every spelling and locale, however many deliveries its id has."""

import random
import sys

import pytest
import sqlalchemy as sa

import catalog
import factories
import mailglass_reconcile
from factories import delivery_row, insert, orphan_row
from mailglass_reconcile.rules.addresses import address, index_key
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines, schema
from mailglass_reconcile.store.deliveries import FEW
from spellings import DIFFERENT, SAME

KEYS = f"""
SELECT recipient, {schema.RECIPIENT_KEY} = hashtextextended(k.key, 0)
  FROM unnest(CAST(:recipients AS text[]), CAST(:keys AS text[])) AS k (recipient, key)
"""  # noqa: S608

PIECES = [
    *" \t\n\x0b\x1c\x85\u00a0\u2028\u3000<>@@@.;`\"'\\^$",
    *"aAkKzZ09iI_~!",
    *"äÄßſ\u0130\u0131\u212a\u037e\u1fef\u0308\u0338\u0391Σ\ufffd\u3002\uff21\U0001f48c",
    *("xn--", "XN--", "Ada <", "ada@example.com", "bücher", "xn--bcher-kva", "@example.com>", "\x01", "\x7f"),
]


def sparkpost(recipient):
    """Return the metadata of an event that names its recipient."""
    return {"provider": "sparkpost", "transmission_id": "campaign", "recipient": recipient}


@pytest.mark.parametrize("spellings", SAME.values(), ids=SAME)
@pytest.mark.parametrize("others", [FEW - 1, FEW])
@pytest.mark.parametrize("way", [1, -1])
def test_an_event_links_however_its_recipient_is_spelled(db, spellings, others, way):
    """Whether its id names ten deliveries or eleven, and whichever side has which spelling."""
    stored, reported = spellings[::way]
    mine = delivery_row("campaign", recipient=stored)
    rest = [delivery_row("campaign", recipient=f"u{n}@example.com") for n in range(others)]
    insert(db, [*rest, mine], [orphan_row(sparkpost(reported))])
    assert mailglass_reconcile.reconcile().linked == 1
    assert db.value("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'") == mine["id"]


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("others", [FEW - 1, FEW])
def test_an_event_of_another_recipient_stays_open(db, pair, others):
    """With ten deliveries and with eleven, by the same name."""
    rest = [delivery_row("campaign", recipient=f"u{n}@example.com") for n in range(others)]
    insert(db, [*rest, delivery_row("campaign", recipient=pair[0])], [orphan_row(sparkpost(pair[1]))])
    assert mailglass_reconcile.reconcile().recipient_mismatch == 1


@pytest.mark.parametrize("domain", ["bücher{}.example", "example.com"])
def test_recipients_outside_ascii_link_all(db, domain):
    """Their addresses share a key, and are compared one by one."""
    addresses = [f"{'ä' if domain.isascii() else 'info'}{n % 7}@{domain.format(n)}" for n in range(7 * FEW)]
    addresses = [one.replace("ä", "ä" * (n + 1)) for n, one in enumerate(addresses)]
    insert(
        db,
        [delivery_row("campaign", recipient=one) for one in addresses],
        [orphan_row(sparkpost(one.upper())) for one in addresses],
    )
    assert mailglass_reconcile.reconcile().linked == len(addresses)


def test_several_deliveries_of_one_recipient_outside_ascii_are_ambiguous(db):
    """However many there are."""
    insert(
        db,
        [delivery_row("campaign", recipient="ärger@example.com") for _ in range(3 * FEW)],
        [orphan_row(sparkpost("ÄRGER@example.com"))],
    )
    assert mailglass_reconcile.reconcile().ambiguous == 1


LOCALES = {
    "C": "LOCALE 'C'",
    "C.UTF-8": "LOCALE 'C.UTF-8'",
    "Turkish": "LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'tr'",
}


@pytest.fixture(params=LOCALES.values(), ids=LOCALES)
def url(request, admin, drop_database):
    """The URL of an empty database of some locale."""
    name = f"mgtest_{factories.new_id()}"
    with admin.connect() as there:
        try:
            there.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE template0 ENCODING utf8 {request.param}')
        except sa.exc.NotSupportedError as error:
            pytest.skip(str(error.orig))  # the wheel's server has no ICU; Debian's has
    yield admin.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    drop_database(name)


@pytest.fixture
def connection(url):
    """A connection to it."""
    with engines.create_engine(Settings(database_url=url)).connect() as made:
        yield made


def test_an_event_links_in_every_locale(url, redis_url):
    """Whether its id names ten deliveries or eleven."""
    there = catalog.installation(url)
    there.migrate()
    mailglass_reconcile.configure(engine=there.engine, settings=there.settings)
    wanted = set()
    for spelling, (stored, reported) in SAME.items():
        for others in (FEW - 1, FEW):
            id_ = f"{spelling} {others}"
            mine = delivery_row(id_, recipient=stored)
            rest = [delivery_row(id_, recipient=f"I{n}@example.com") for n in range(others)]
            event = {"provider": "sparkpost", "transmission_id": id_, "recipient": reported}
            factories.insert(there, [*rest, mine], [orphan_row(event)])
            wanted.add(mine["id"])
    assert mailglass_reconcile.reconcile().linked == len(wanted)
    assert set(there.values("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'")) == wanted


def spelled(seed):
    """Return texts that may be recipients, of all that makes addresses odd."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PIECES, k=chance.randint(0, 12))) for _ in range(5_000)]


def test_the_index_has_the_key_of_every_recipient(connection):
    """Postgres makes of a recipient as it is stored the key that Python makes of it as it is compared."""
    recipients = [one for pair in (*SAME.values(), *DIFFERENT.values()) for one in pair] + spelled(1)
    rows = connection.execute(
        sa.text(KEYS), {"recipients": recipients, "keys": [index_key(address(one)) for one in recipients]}
    )
    assert [repr(recipient) for recipient, same in rows if not same] == []


def test_the_index_leaves_out_what_python_calls_white_space(connection):
    """Every character of it."""
    blanks = [chr(n) for n in range(sys.maxunicode + 1) if chr(n).isspace()]
    recipients = [f"{one}a{one}da@exam{one}ple.com{one}" for one in blanks]
    rows = connection.execute(sa.text(KEYS), {"recipients": recipients, "keys": ["ada@example.com"] * len(blanks)})
    assert [repr(recipient) for recipient, same in rows if not same] == []


@pytest.mark.parametrize("column", ["provider_message_id", "tenant_id", "recipient"])
def test_no_value_is_too_long_for_the_index(db, column):
    """A writer's INSERT never fails because of it; Mailglass's own indexes have limits, so they are away here."""
    theirs = db.rows("""
        SELECT indexrelid::regclass::text FROM pg_index
         WHERE indrelid = 'mailglass_deliveries'::regclass AND NOT indisprimary
           AND indexrelid <> 'mailglass_deliveries_reconcile_idx'::regclass""")
    for (index,) in theirs:
        db.run(f"DROP INDEX {index}")
    noise = "".join(random.Random(2).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200_000))
    factories.delivery(db, "m-1")
    db.run(f"UPDATE mailglass_deliveries SET {column} = :noise", noise=noise)  # noqa: S608
