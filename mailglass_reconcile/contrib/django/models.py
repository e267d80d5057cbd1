"""Read-only models of Mailglass's tables and ours; any write through them is refused.

They have only the columns that this package needs, because others may be missing in a database of Mailglass's.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models.expressions import Col
from django.db.models.lookups import Exact
from django.db.models.signals import pre_delete, pre_save

from mailglass_reconcile.contrib.django import database


class _UTCColumn(Col):
    """A `timestamp without time zone` in UTC, converted to the `timestamp with time zone` that Django expects."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Return the column with its time zone, for every comparison and function."""
        sql, params = super().as_sql(compiler, connection)
        return f"({sql} AT TIME ZONE 'UTC')", params


class StoredColumn(models.F):
    """A `UTCDateTimeField` without the conversion, to order by it along an index."""

    def resolve_expression(self, *args: Any, **kwargs: Any) -> Col:
        """Return the column without its time zone."""
        column = super().resolve_expression(*args, **kwargs)
        return Col(column.alias, column.target, column.output_field)


class UTCDateTimeField(models.DateTimeField):
    """A `timestamp without time zone` in UTC, used like any other `DateTimeField`."""

    def get_col(self, alias: str, output_field: Any = None) -> Col:
        """Return the column as expressions use it."""
        return _UTCColumn(alias, self, output_field)


class MessageIdField(models.TextField):
    """A provider's message id, which the index on deliveries stores as a hash."""


@MessageIdField.register_lookup
class _HashedExact(Exact):
    """The lookup `exact`, by the id's hash first: only that index serves an id alone."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        sql, params = super().as_sql(compiler, connection)
        column, column_params = self.process_lhs(compiler, connection)
        value, value_params = self.process_rhs(compiler, connection)
        hashes = [f"pg_catalog.hashtextextended({text}, 0)" for text in (column, value)]
        equal_hashes = f"{hashes[0]} OPERATOR(pg_catalog.=) {hashes[1]}"
        return f"({equal_hashes} AND {sql})", [*column_params, *value_params, *params]


class ReadOnlyError(TypeError):
    """These tables are written by record_send, record_webhook and sweeps, never by a model."""


def refuse_write(*_args: Any, raw: bool = False, **_kwargs: Any) -> NoReturn:
    """Raise `ReadOnlyError` for a write; a *raw* one comes from `loaddata`."""
    raise ReadOnlyError(
        "loaddata cannot write the ledger, whose models have some of its columns only: leave it out of the fixture with"
        " `dumpdata --exclude mailglass_reconcile`, and copy these tables with pg_dump"
        if raw
        else ReadOnlyError.__doc__
    )


class ReadOnlyQuerySet(models.QuerySet):
    """A QuerySet without bulk writes; signals refuse saving and deleting."""

    update = refuse_write
    bulk_create = refuse_write


class LedgerManager(models.Manager.from_queryset(ReadOnlyQuerySet)):  # type: ignore[misc]
    """A manager that reads the database of `MAILGLASS_DATABASE_ALIAS`."""

    def get_queryset(self) -> Any:
        return super().get_queryset().using(database.alias())


class Delivery(models.Model):
    """One message to one recipient."""

    id = models.UUIDField(primary_key=True)
    tenant_id = models.TextField("tenant")
    mailable = models.TextField()
    stream = models.TextField()
    recipient = models.TextField()
    provider = models.TextField(null=True)
    provider_message_id = MessageIdField("message id", null=True)
    last_event_type = models.TextField("last event")
    last_event_at = UTCDateTimeField("at")
    terminal = models.BooleanField()
    dispatched_at = UTCDateTimeField(null=True)
    delivered_at = UTCDateTimeField(null=True)
    bounced_at = UTCDateTimeField(null=True)
    complained_at = UTCDateTimeField(null=True)
    suppressed_at = UTCDateTimeField(null=True)

    objects = LedgerManager()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = database.table("mailglass_deliveries")
        default_permissions = ("view", "delete")  # `delete` allows erasing a person
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return str(self.id)


class Event(models.Model):
    """One row of the append-only ledger."""

    id = models.UUIDField(primary_key=True)
    tenant_id = models.TextField("tenant")
    delivery = models.ForeignKey(Delivery, models.DO_NOTHING, null=True, db_constraint=False, related_name="events")
    type = models.TextField()
    occurred_at = UTCDateTimeField()
    idempotency_key = models.TextField(null=True)
    reject_reason = models.TextField(null=True)
    metadata = models.JSONField()
    needs_reconciliation = models.BooleanField()

    objects = LedgerManager()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = database.table("mailglass_events")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class OpenOrphan(models.Model):
    """An event without a delivery yet."""

    event = models.OneToOneField(
        Event, models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="open_orphan"
    )
    tenant_id = models.TextField("tenant")
    arrived_at = UTCDateTimeField()
    provider = models.TextField(null=True)
    recipient = models.TextField(null=True)
    state = models.TextField(null=True, help_text="As the last sweep left it; empty before the first.")
    refused = models.SmallIntegerField("times refused")

    objects = LedgerManager()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = database.table("mailglass_open_orphans")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return str(self.pk)


for _model in (Delivery, Event, OpenOrphan):
    pre_save.connect(refuse_write, sender=_model)
    pre_delete.connect(refuse_write, sender=_model)
