"""SQLAlchemy tables to select from: `from mailglass_reconcile.tables import deliveries, events`.

Join them with your own tables, or map a class to one (`__table__ = deliveries`); never write to them. They have the
columns that applications may rely on, and the schema of the settings at the time of the import, which does not connect.

A time is a `datetime` in UTC. In a condition, compare it with a `datetime` that has a time zone, not with `now()`: the
database stores UTC without a time zone, and Postgres would convert `now()` to that of the session.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from mailglass_reconcile import runtime
from mailglass_reconcile.store.installed import READ_ONLY

__all__ = [
    "deliveries",
    "events",
    "handler_outbox",
    "metadata",
    "open_orphan_ids",
    "open_orphans",
    "reconcile_runs",
]


class _UTCDateTime(sa.TypeDecorator[dt.datetime]):
    """A `timestamp` of the database, which stores UTC; in Python, a `datetime` in UTC."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("use a datetime that has a time zone, such as datetime.now(UTC)")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        return None if value is None else value.replace(tzinfo=dt.UTC)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return self if isinstance(value, dt.datetime) else self.impl_instance.coerce_compared_value(op, value)


metadata = sa.MetaData(schema=runtime.read_settings().database_schema)
"""The MetaData of these tables."""


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(f"mailglass_{name}", metadata, *columns, info={**READ_ONLY})


def _columns(type_: type[TypeEngine[Any]], names: str, *, nullable: bool = False) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, type_, nullable=nullable) for name in names.split())


deliveries = _table(
    "deliveries",
    sa.Column("id", sa.Uuid, primary_key=True),
    *_columns(sa.Text, "tenant_id mailable stream recipient last_event_type"),
    *_columns(sa.Text, "provider provider_message_id", nullable=True),
    *_columns(_UTCDateTime, "last_event_at inserted_at"),
    *_columns(_UTCDateTime, "dispatched_at delivered_at bounced_at complained_at suppressed_at", nullable=True),
    *_columns(sa.Boolean, "terminal"),
    *_columns(JSONB, "metadata"),
)
"""One row per message and recipient, with its last event."""

events = _table(
    "events",
    sa.Column("id", sa.Uuid, primary_key=True),
    *_columns(sa.Uuid, "delivery_id", nullable=True),
    *_columns(sa.Text, "tenant_id type"),
    *_columns(sa.Text, "idempotency_key reject_reason", nullable=True),
    *_columns(_UTCDateTime, "occurred_at"),
    *_columns(JSONB, "metadata"),
    *_columns(sa.Boolean, "needs_reconciliation"),
)
"""The ledger. An event that came before its delivery has no `delivery_id`; its `reconciled` event has."""

open_orphans = _table(
    "open_orphans",
    sa.Column("event_id", sa.Uuid, primary_key=True),
    *_columns(sa.Text, "tenant_id"),
    *_columns(sa.Text, "provider recipient state", nullable=True),
    *_columns(_UTCDateTime, "arrived_at"),
)
"""The events that have no delivery yet, and why."""

open_orphan_ids = _table(
    "open_orphan_ids",
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("position", sa.SmallInteger, primary_key=True),
    *_columns(sa.Text, "candidate_id"),
)
"""The message ids under which the delivery of an open orphan may be stored."""

handler_outbox = _table(
    "handler_outbox",
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("handler", sa.Text, primary_key=True),
    *_columns(sa.Uuid, "delivery_id"),
    *_columns(sa.Text, "type state"),
    *_columns(sa.SmallInteger, "attempts"),
    *_columns(_UTCDateTime, "next_at inserted_at"),
    *_columns(_UTCDateTime, "finished_at", nullable=True),
    *_columns(sa.Text, "error", nullable=True),
)
"""Jobs, one for each handler and event."""

reconcile_runs = _table(
    "reconcile_runs",
    sa.Column("id", sa.BigInteger, primary_key=True),
    *_columns(_UTCDateTime, "started_at finished_at"),
    *_columns(sa.Text, "kind origin status"),
    *_columns(sa.Text, "tenant_id error", nullable=True),
    *_columns(sa.BigInteger, "runs scanned linked linked_unchecked unmatched unmatchable ambiguous tenant_mismatch"),
    *_columns(sa.BigInteger, "recipient_mismatch skipped failed published publish_failed duration_ms"),
    *_columns(sa.BigInteger, "remaining", nullable=True),
)
"""Sweeps, prunes and dispatches."""
