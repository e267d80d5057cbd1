"""Six reasons why a customer got no mail, the same in the terminal, JSON, dashboard and Django's admin."""

import html
import importlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from django.core.management import call_command

import commands
import factories
import mailglass_reconcile
from browsing import Visitor
from browsing import app as dashboard
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.ops import explanation
from marking import slow_unless
from recording import event, record

pytestmark = pytest.mark.version_independent

CUSTOMER = "ada@example.com"
TYPED = "Ada <ADA@Example.com>"
ADMIN = "/admin/mailglass_reconcile"
LASTING_TABLES = ("mailglass_reconcile_runs", "mailglass_events", "mailglass_handler_outbox")


def send(db: Any) -> str:
    """Record a send to the customer, and return its delivery."""
    with db.begin() as connection:
        sends = [Sent(recipient=CUSTOMER, message_id="m-1")]
        (sent,) = record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sends)
    return str(sent.delivery_id)


def receive(db: Any, type_: str, *, tenant_id: str = factories.TENANT, **columns: object) -> str:
    """Record a webhook about the customer, and return its event."""
    with db.begin() as connection:
        (recorded,) = record(
            connection, event("m-1", type_, recipient=CUSTOMER, **columns), tenant_id=tenant_id, provider="postmark"
        )
    return str(recorded.event_id)


@dataclass(frozen=True)
class Answer:
    """An answer to the customer.

    Attributes:
        plant: What happened; returns the delivery and the open event that there are.
        words: What the operator reads of the delivery, or of the event if there is none.
    """

    plant: Callable[[Any], tuple[str | None, str | None]]
    words: str


def deliver(db: Any) -> tuple[str | None, str | None]:
    """Plant a delivered mail."""
    delivery = send(db)
    receive(db, "delivered")
    return delivery, None


def bounce(db: Any) -> tuple[str | None, str | None]:
    """Plant a hard bounce."""
    delivery = send(db)
    receive(db, "bounced", bounce="hard", smtp_status="550 5.1.1")
    return delivery, None


def arrive_first(db: Any) -> tuple[str | None, str | None]:
    """Plant a webhook that came before the send was recorded."""
    return None, receive(db, "delivered")


def go_astray(db: Any) -> tuple[str | None, str | None]:
    """Plant a webhook of another tenant."""
    delivery = send(db)
    astray = receive(db, "bounced", tenant_id="globex")
    mailglass_reconcile.reconcile()
    return delivery, astray


def stay_silent(db: Any) -> tuple[str | None, str | None]:
    """Plant a send without a webhook for thirty hours."""
    delivery = send(db)
    db.run("UPDATE mailglass_deliveries SET last_event_at = now()::timestamp - interval '30 hours'")
    db.broken.update({"I2", "I7"})
    return delivery, None


def know_nothing(db: Any) -> tuple[str | None, str | None]:
    """Plant nothing."""
    return None, None


ANSWERS = {
    "delivered": Answer(deliver, "delivered, N ago: the recipient's mail server accepted it"),
    "hard bounce": Answer(bounce, "bounced, hard, 550 5.1.1, N ago"),
    "waiting": Answer(arrive_first, "still in its grace period"),
    "wrong tenant": Answer(go_astray, "1 open event of tenant globex names its message id"),
    "never reported": Answer(stay_silent, "dispatched N ago, no webhook has arrived: check postmark's log"),
    "never recorded": Answer(know_nothing, "if your application sent the message, its send was not recorded: see"),
}


@pytest.fixture
def admin(app, admin_client):
    """Django's admin, for somebody who may see everything."""
    call_command("migrate", "contenttypes", verbosity=0)
    importlib.import_module("admin_urls")
    return admin_client


def read(text: str) -> str:
    """Return the text that a person reads, without times."""
    plain = html.unescape(re.sub(r"<[^>]+>", "", text))
    return re.sub(r"(\d+|an?) (second|minute|hour|day)s? ago", "N ago", re.sub(r"\s+", " ", plain)).lower()


@pytest.mark.parametrize("name", slow_unless(lambda name: name in ("hard bounce", "wrong tenant"), ANSWERS))
def test_every_interface_gives_the_same_answer(db, admin, caplog, name):
    """The customer's spelling of the address finds it; no output, log or lasting table has the address."""
    caplog.set_level(logging.DEBUG)
    answer = ANSWERS[name]
    delivery, open_event = answer.plant(db)
    explained = delivery or open_event
    visitor = Visitor(dashboard(db))

    result = commands.run_unchecked(db, "find", "-", stdin=TYPED)
    hits = [
        json.loads(line) for line in commands.run_unchecked(db, "find", "-", "--json", stdin=TYPED).stdout.splitlines()
    ]
    page = visitor.ask("POST", "/find", data={"q": TYPED}).text
    assert {hit["id"] for hit in hits} == {id_ for id_ in (delivery, open_event) if id_}
    for id_ in filter(None, (delivery, open_event)):
        assert f" explain {id_}\n" in result.stdout
        assert id_ in page
    stored = "".join(str(db.rows(f"SELECT t::text FROM {table} AS t")) for table in LASTING_TABLES)  # noqa: S608
    assert CUSTOMER not in (result.stdout + result.stderr + page + caplog.text + stored).lower()

    for kind, id_ in (("delivery", delivery), ("openorphan", open_event)):
        rows = admin.get(f"{ADMIN}/{kind}/?q={quote(TYPED)}").content.decode()
        assert re.findall(r"/([0-9a-f-]{36})/change/", rows) == [id_] * bool(id_)

    if explained is None:
        assert result.returncode == 1
        assert answer.words in read(result.stdout)
        assert answer.words in read(page)
        return
    path = "deliveries" if delivery else "events"
    changed = "delivery" if delivery else "openorphan"
    voices = {
        "explain": commands.run(db, "explain", explained).stdout,
        "dashboard": visitor.get(f"/{path}/{explained}").text,
        "admin": admin.get(f"{ADMIN}/{changed}/{explained}/change/").content.decode(),
        "explain --json": commands.run(db, "explain", "--json", explained).stdout,
    }
    if delivery:
        (hit,) = [hit for hit in hits if hit["id"] == delivery]
        voices |= {"find": result.stdout, "find --json": hit["summary"], "dashboard's find": page}
        if not hit["type"] or name in ("wrong tenant", "never reported"):
            voices.pop("explain --json")  # it prints events, and the delivery has none
    assert [voice for voice, text in voices.items() if answer.words.lower() not in read(text)] == []


@pytest.mark.parametrize("name", ["waiting", "wrong tenant"])
def test_every_interface_shows_the_same_facts_of_an_event(db, admin, name):
    """Its fields, and when it is tried next; each interface once had its own list and words."""
    _, open_event = ANSWERS[name].plant(db)
    event = explanation.explain(db.database, UUID(open_event))
    facts = [*explanation.facts(event), *explanation.outlook(event)]
    lines = [(fact.name, fact.text.partition("{}")[0]) for fact in facts if not (fact.is_remedy or fact.is_delivery)]
    assert {"type", "tenant", "provider", "arrived", "next try"} <= {name for name, _ in lines}
    voices = {
        "explain": commands.run(db, "explain", open_event).stdout,
        "dashboard": Visitor(dashboard(db)).get(f"/events/{open_event}").text,
        "admin": admin.get(f"{ADMIN}/openorphan/{open_event}/change/").content.decode(),
    }
    for voice, text in voices.items():
        missing = [
            line for line in lines if not re.search(rf"{line[0]}:? ?{re.escape(line[1].strip())}", read(text), re.I)
        ]
        assert missing == [], voice
