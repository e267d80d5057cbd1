"""Helpers of the tests of writers: a time, deliveries, events of a webhook, and published messages."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import factories
from mailglass_reconcile import WebhookEvent, record_webhook
from waiting import PATIENCE

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LEDGER = "SELECT count(*) FROM mailglass_events"
STORE_QUERIES = """
CREATE TABLE noted (query text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.noted VALUES (current_query()); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON mailglass_deliveries FOR EACH STATEMENT EXECUTE FUNCTION note();
"""
"""Triggers that note the text of each statement that writes to the ledger or a delivery."""


def event(message_id="m-1", type_="delivered", **more):
    """Return a webhook's event about a message."""
    fields = {"occurred_at": NOW, "provider_event_id": "evt", **more}
    return WebhookEvent(type=type_, message_id=message_id, **fields)


def record(connection, *events, provider="postmark", **more):
    """Record a Postmark webhook of the factories' tenant."""
    return record_webhook(connection, **{"tenant_id": factories.TENANT, "provider": provider, "events": events, **more})


def record_together(db, writer, *calls):
    """Call *writer* with a connection and the values of each call, all at once, and return the results."""
    barrier = Barrier(len(calls))

    def record_call(values):
        with db.engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            barrier.wait(timeout=PATIENCE)
            return writer(connection, *values)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(record_call, calls))


def metadata(db):
    """Return the metadata of the ledger's only event."""
    return db.value("SELECT metadata FROM mailglass_events")


def messages(db):
    """Return `(channel, payload)` of the messages about attached events only."""
    return [(channel, payload) for channel, payload in db.witness.messages() if payload["event_type"] != "reconciled"]


NAMELESS = """
CREATE TABLE public.audit (delivery_id uuid);
CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO audit VALUES (NEW.id);
  RETURN NEW;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON public.mailglass_deliveries FOR EACH ROW
EXECUTE FUNCTION public.audit();
"""


WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
