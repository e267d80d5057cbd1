"""Webhooks as each version of Mailglass stores them: the raw one and its events, of each provider that it knows."""

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import factories
from database_pool import Uncommitted

PAYLOADS = Path(__file__).parent.parent / "providers" / "payloads"

_RAW = """
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload,
                                      received_at, inserted_at, updated_at)
SELECT coalesce(CAST(:id AS uuid), gen_random_uuid()), :tenant_id, :provider,
       coalesce(:event_id, gen_random_uuid()::text), 'any', :status, CAST(:body AS jsonb), now() AT TIME ZONE 'UTC',
       to_timestamp(:at) AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC'
  FROM generate_series(1, :number)
"""


def insert(
    db: Any,
    body: object = None,
    *,
    number: int = 1,
    id_: str | None = None,
    tenant_id: str = factories.TENANT,
    provider: str = "postmark",
    event_id: str | None = None,
    status: str = "succeeded",
    ago: float = 0.0,
    at: float | None = None,
) -> None:
    """Insert raw webhooks alone, by default each with a new id and a new `provider_event_id`; see `store`.

    If *db* is a connection, in its transaction.
    """
    parameters = {
        "id": id_,
        "tenant_id": tenant_id,
        "provider": provider,
        "event_id": event_id,
        "status": status,
        "body": json.dumps(body or {}),
        "at": at or time.time() - ago,
        "number": number,
    }
    with _in_transaction(db) as connection:
        connection.execute(sa.text(_RAW), parameters)


def _in_transaction(db: Any) -> AbstractContextManager[sa.Connection]:
    """Begin a transaction; return that of `tx` or of a connection."""
    connection = db.connection if isinstance(db, Uncommitted) else db
    return nullcontext(connection) if isinstance(connection, sa.Connection) else db.engine.begin()


def uuid7(at: float) -> str:
    """Return a UUIDv7 of a time in seconds."""
    value = int(at * 1000) << 80 | 7 << 76 | 2 << 62 | int.from_bytes(os.urandom(8)) >> 2
    return str(uuid.UUID(int=value))


def payload(provider: str, kind: str) -> dict[str, Any]:
    """Return a provider's own example of an event of our type."""
    events = json.loads((PAYLOADS / f"{provider}.json").read_text())["events"]
    example: dict[str, Any] = next(event["payload"] for event in events if event["type"] == kind)
    return example


def store(
    db: Any,
    provider: str,
    raw: object,
    events: Sequence[Mapping[str, object]],
    *,
    raw_id: str = "raw",
    has_webhook_id: bool = True,
    is_stored: bool = True,
    ago: float = 300.0,
    at: float | None = None,
    status: str = "succeeded",
    tenant_id: str = factories.TENANT,
    raw_tenant_id: str | None = None,
    kind: str = "bounced",
) -> list[str]:
    """Store a webhook as Mailglass does, in one transaction, and return its events' ids.

    Args:
        db: The database, or a connection in whose transaction both are stored.
        provider: Its provider.
        raw: Its body; a list stands under `_batch`.
        events: The metadata of its events, without the two `webhook_…` keys.
        raw_id: The raw webhook's `provider_event_id`.
        has_webhook_id: Whether the events name the raw webhook, as they do since 1.0.
        is_stored: Whether the raw webhook still exists.
        ago: When it came, in seconds.
        at: The same as a time, for two that came at one moment.
        status: The raw webhook's.
        tenant_id: The tenant of both.
        raw_tenant_id: Another one for the raw webhook.
        kind: The type of the events.
    """
    at = at or time.time() - ago
    webhook = uuid7(at - 0.004)
    more = {"webhook_event_id": webhook, "webhook_provider_event_id": raw_id} if has_webhook_id else {}
    rows = [
        factories.orphan_row({"provider": provider, **event, **more}, id=uuid7(at), age_seconds=ago, type=kind)
        | {"tenant_id": tenant_id}
        for event in events
    ]
    with _in_transaction(db) as connection:
        if is_stored:
            insert(
                connection,
                {"_batch": raw} if isinstance(raw, list) else raw,
                id_=webhook,
                tenant_id=raw_tenant_id or tenant_id,
                provider=provider,
                event_id=raw_id,
                status=status,
                at=at - 0.004,
            )
        factories.insert(connection, events=rows)
    return [row["id"] for row in rows]
