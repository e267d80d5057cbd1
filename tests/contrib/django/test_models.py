"""The models: what an application reads of its mails, in whatever order webhooks and sends were recorded."""

import datetime as dt
import json
import types
import uuid

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

import factories
import granting
import pages
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.contrib.django import connection as borrow

pytestmark = [pytest.mark.usefixtures("app"), pytest.mark.python_dependent]

AT = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)


@pytest.fixture
def models(app):
    """The models, which need Django's settings."""
    from mailglass_reconcile.contrib.django import models  # noqa: PLC0415

    return models


def send(message_id):
    """Record a send."""
    with borrow() as borrowed:
        record_send(borrowed, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id=message_id)])


def bounce(message_id, at=AT, reason="bounced"):
    """Record a hard bounce."""
    event = WebhookEvent(
        type="bounced", occurred_at=at, provider_event_id=f"{message_id} {at}", message_id=message_id,
        recipient="ada@example.com", reject_reason=reason, bounce="hard", smtp_status="550 5.1.1",
    )  # fmt: skip
    with borrow() as borrowed:
        record_webhook(borrowed, provider="postmark", events=[event])


@pytest.mark.parametrize("order", [(bounce, send), (send, bounce)], ids=["webhook first", "send first"])
def test_a_deliverys_history_has_its_bounce_in_either_order(models, order):
    for record in order:
        record("m-1")
    delivery = models.Delivery.objects.get()
    assert [event.type for event in delivery.history()] == ["dispatched", "bounced"]
    bounced = delivery.history().filter(type="bounced").get()
    assert (bounced.reject_reason, bounced.metadata["bounce"]) == ("bounced", "hard")
    assert bounced.delivery == delivery
    assert models.Event.objects.with_delivery().get(pk=bounced.pk).delivery_id == delivery.pk
    assert (delivery.state, delivery.history().exclude(type="dispatched").count()) == ("bounced", 1)


def test_the_deliveries_of_a_list_of_events_are_one_query_more(models):
    """Of events that came before their delivery, after it, and without one."""
    for number in range(20):
        for record in (bounce, send) if number % 2 else (send, bounce):
            record(f"m-{number}")
    bounce("m-99")
    with CaptureQueriesContext(connection) as captured:
        events = list(models.Event.objects.with_delivery().filter(type="bounced"))
        message_ids = [event.delivery.provider_message_id if event.delivery else None for event in events]
    assert set(message_ids) == {None, *(f"m-{number}" for number in range(20))}
    assert len(captured) == 2
    (waiting,) = (event for event in events if event.delivery is None)
    send("m-99")
    waiting.refresh_from_db()
    assert waiting.delivery.provider_message_id == "m-99"


def test_a_history_has_no_event_of_another_tenant(db, models):
    """A forged `reconciled` event of one tenant may name an orphan of another."""
    orphan = factories.orphan(db, factories.postmark("m-9"), tenant_id="other")
    delivery_id = factories.delivery(db, "m-1")
    factories.insert(db, events=[factories.reconciled_row(orphan, delivery_id)])
    delivery = models.Delivery.objects.get(pk=delivery_id)
    event = models.Event.objects.get(pk=orphan)
    assert (list(delivery.history()), event.delivery_id, event.delivery) == ([], None, None)
    db.broken.update({"I1", "I2", "I5", "I13"})


def test_fifty_deliveries_with_state_bounce_and_reason_are_one_query(models):
    for number in range(50):
        for record in (bounce, send) if number % 2 else (send, bounce):
            record(f"m-{number}")
    with CaptureQueriesContext(connection) as captured:
        deliveries = list(models.Delivery.objects.with_state())
        states = {(each.state, each.reason, each.bounce, each.smtp_status, each.recipient) for each in deliveries}
    assert (len(deliveries), len(captured)) == (50, 1)
    assert states == {("bounced", "bounced", "hard", "550 5.1.1", "ada@example.com")}
    assert models.Delivery.objects.with_state().filter(state="bounced", bounce="hard").count() == 50


def test_a_row_that_is_loaded_again_has_the_state_and_the_delivery_of_today(models):
    bounce("m-1")
    event = models.Event.objects.get(type="bounced")
    assert event.delivery is None
    send("m-1")
    delivery = models.Delivery.objects.get()
    delivery.__dict__.update(last_event_type="dispatched")
    assert delivery.state == "sent"
    delivery.refresh_from_db()
    event.refresh_from_db()
    assert (delivery.state, event.delivery) == ("bounced", delivery)


def test_a_deliverys_reason_is_that_of_its_last_event(models):
    """An earlier bounce with another reason does not count."""
    send("m-1")
    bounce("m-1", AT, "blocked")
    bounce("m-1", AT + dt.timedelta(hours=1), "timed_out")
    assert models.Delivery.objects.with_state().get().reason == "timed_out"


def test_each_type_of_event_has_the_same_state_in_python_and_in_sql(db, models):
    from mailglass_reconcile.rules import event_types  # noqa: PLC0415

    for type_ in (*event_types.TYPES, "of a later version"):
        factories.delivery(db, last_event_type=type_)
    in_python = {each.pk: each.state for each in models.Delivery.objects.all()}
    assert in_python == dict(models.Delivery.objects.with_state().values_list("pk", "state"))
    assert set(in_python.values()) == {"sent", *models.STATES}
    db.broken.update({"I2"})


def test_metadata_is_loaded_when_it_is_read(models):
    send("m-1")
    with CaptureQueriesContext(connection) as captured:
        delivery, event = models.Delivery.objects.get(), models.Event.objects.get()
    assert "metadata" not in "".join(query["sql"] for query in captured)
    assert (delivery.metadata, event.metadata["provider"]) == ({}, "postmark")


def test_an_order_page_runs_as_the_viewer(models):
    """The page's own code, and a delivery's history, read no other column and call no other function."""
    bounce("m-1")
    send("m-1")
    (view,) = [block.text for block in pages.blocks(pages.ROOT / "docs/django.md") if "def status_of" in block.text]
    documented, role = "mailglass_viewer", f"mgtest_role_{uuid.uuid4().hex[:12]}"
    order, names = types.SimpleNamespace(message_id="m-1", refused=False), {}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role}")
        cursor.execute("".join(granting.STATEMENTS[documented]).replace(documented, role))
        cursor.execute(f"SET LOCAL ROLE {role}")
        exec(compile(view, "django.md", "exec"), names)  # noqa: S102 - a page of our own
        status, delivery = names["status_of"](order), models.Delivery.objects.with_state().get()
        events = [(event.type, event.metadata["provider"]) for event in delivery.history()]
        deliveries = {event.delivery for event in models.Event.objects.with_delivery()}
        transaction.set_rollback(True)
    assert (status, delivery.reason, delivery.bounce, delivery.metadata) == ("bounced", "bounced", "hard", {})
    assert events == [("dispatched", "postmark"), ("bounced", "postmark")]
    assert deliveries == {delivery}


@pytest.mark.parametrize("name", ["Delivery", "Event", "OpenOrphan"])
def test_each_field_tells_type_checkers_its_type_and_that_it_is_read_only(models, name):
    """They read it with django-stubs; `Never` is what may be assigned."""
    model = getattr(models, name)
    for field in model._meta.concrete_fields:
        if not field.is_relation:
            annotation = model.__annotations__[field.name]
            assert annotation.startswith("models.Field[Never, "), field
            assert annotation.endswith(" | None]") == field.null, field


FILL = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
                                  provider_message_id, last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('d' || n)::uuid, 'acme', 'python', 'transactional', 'ada@example.org', 'example.org', 'postmark', 'm-' || n,
       'bounced', now(), now(), now()
  FROM generate_series(1, 33334) AS n;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation)
SELECT md5('o' || n)::uuid, 'acme', 'bounced', now(), '{}', true FROM generate_series(1, 33333) AS n;
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, metadata, idempotency_key)
SELECT md5('e' || n)::uuid, 'acme', md5('d' || n)::uuid, type, now(), '{}',
       CASE type WHEN 'reconciled' THEN 'reconciled:' || md5('o' || n)::uuid END
  FROM generate_series(1, 33334) AS n, (VALUES ('dispatched'), ('reconciled')) AS t (type);
ANALYZE mailglass_deliveries, mailglass_events
""".replace("'e' || n", "'e' || type || n")


@pytest.fixture
def ledger_of_100_000(db, models):
    """A ledger of 100,000 events, two thirds of them of links."""
    with db.engine.begin() as setup_connection:
        setup_connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for statement in FILL.split(";"):
            setup_connection.exec_driver_sql(statement)
    db.broken.update({"I1", "I2", "I13"})
    return models


@pytest.mark.slow
def test_reading_a_history_does_not_scan_a_ledger_of_100_000_events(ledger_of_100_000):
    models = ledger_of_100_000
    delivery = models.Delivery.objects.first()
    event = models.Event.objects.filter(needs_reconciliation=True).first()
    newest = models.Delivery.objects.order_by("-pk")[:50]
    fifty = models.Delivery.objects.with_state().filter(pk__in=[each.pk for each in newest])
    for queryset, rows, most in (
        (delivery.history(), 2, 60),
        (delivery.history().filter(type="bounced"), 1, 60),
        (fifty, 50, 50 * 3 * 60),
        (models.Event.objects.filter(pk=event.pk).with_delivery(), 1, 30),
        (models.Delivery.objects.filter(provider_message_id="m-777"), 1, 30),
    ):
        assert len(queryset) == rows
        (plan,) = json.loads(queryset.explain(format="JSON", analyze=True, buffers=True))
        assert "Seq Scan" not in json.dumps(plan)
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < most
