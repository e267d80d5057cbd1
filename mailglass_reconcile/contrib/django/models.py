"""Read-only models of Mailglass's tables and ours; any write through them is refused.

They have only the columns that this package needs, because others may be missing in a database of Mailglass's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, Never, NoReturn
from uuid import UUID

from django.db import models
from django.db.models.expressions import Col
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce
from django.db.models.lookups import Exact, In
from django.db.models.signals import pre_delete, pre_save

from mailglass_reconcile.contrib.django import project


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
        equal_hashes = f"{_hash(column)} OPERATOR(pg_catalog.=) {_hash(value)}"
        return f"({equal_hashes} AND {sql})", [*column_params, *value_params, *params]


@MessageIdField.register_lookup
class _HashedIn(In):
    """The lookup `in`, by the hashes of a list of ids first; ids of a subquery or an expression are compared alone."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        sql, params = super().as_sql(compiler, connection)
        if not self.rhs_is_direct_value():
            return sql, params
        column, column_params = self.process_lhs(compiler, connection)
        values = params[len(column_params) :]
        hashes = ", ".join(_hash("%s") for _ in values)
        return (
            f"({_hash(column)} OPERATOR(pg_catalog.=) ANY (ARRAY[{hashes}]) AND {sql})",
            [*column_params, *values, *params],
        )


def _hash(text: str) -> str:
    """Return the SQL of a message id's hash, as the index has it."""
    return f"pg_catalog.hashtextextended({text}, 0)"


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


STATES = {
    "delivered": ("delivered", "opened", "clicked", "unsubscribed", "subscribed", "autoresponded"),
    "delayed": ("deferred",),
    "bounced": ("bounced",),
    "complained": ("complained",),
    "failed": ("suppressed", "rejected", "failed"),
}
"""What each state of a delivery says of the types of its last event; all others are `sent`."""


class _SchemaFunction(models.Func):
    """A function of our schema."""

    function_name: str

    @property
    def function(self) -> str:
        """The function's name with its schema, quoted."""
        return f'"{project.table(self.function_name)}"'


class _OrphanId(_SchemaFunction):
    """The id of the event that a `reconciled` event has linked, of its type and key."""

    function_name = "mailglass_reconcile_orphan_of_v1"
    output_field = models.UUIDField()


class _LinkedDeliveryId(_SchemaFunction):
    """The id of the delivery to which an event, of its id and tenant, was linked."""

    function_name = "mailglass_reconcile_link_of_v1"
    template = "(SELECT link.delivery_id FROM %(function)s(%(expressions)s) AS link)"
    output_field = models.UUIDField()


def _history(delivery_id: Any, tenant_id: Any, nested: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return the events of a delivery, the latest first: those stored with it, and those linked to it later.

    The ids are looked up first, along two indexes; with OR, Postgres would scan the ledger.
    """
    stored = Event.objects.filter(stored_delivery=nested(delivery_id), tenant_id=nested(tenant_id))
    own = stored.exclude(type="reconciled").values_list("pk")
    linked = stored.filter(type="reconciled").values_list(_OrphanId("type", "idempotency_key"))
    return Event.objects.filter(pk__in=own.union(linked), tenant_id=tenant_id).order_by("-occurred_at", "-pk")


class DeliveryQuerySet(ReadOnlyQuerySet):
    """Deliveries, with their states if they are asked for."""

    def with_state(self) -> Any:
        """Return each delivery with `state`, and with `reason`, `bounce` and `smtp_status` of its last event.

        It is one query however long the list is, and each of the four can be filtered by.
        """
        last_event = _history(models.OuterRef("pk"), models.OuterRef("tenant_id"), models.OuterRef).filter(
            type=models.OuterRef("last_event_type")
        )
        return self.annotate(
            state=models.Case(
                *(models.When(last_event_type__in=types, then=models.Value(state)) for state, types in STATES.items()),
                default=models.Value("sent"),
                output_field=models.TextField(),
            ),
            reason=models.Subquery(last_event.values("reject_reason")[:1]),
            bounce=models.Subquery(last_event.values(bounce=KT("metadata__bounce"))[:1]),
            smtp_status=models.Subquery(last_event.values(smtp_status=KT("metadata__smtp_status"))[:1]),
        )


class EventQuerySet(ReadOnlyQuerySet):
    """Events, with the deliveries that they are about if they are asked for."""

    def with_delivery(self) -> Any:
        """Return each event with its `delivery_id` and `delivery`: two queries however long the list is."""
        delivery_id = Coalesce("stored_delivery_id", _LinkedDeliveryId("pk", "tenant_id"))
        return self.annotate(delivery_id=delivery_id).prefetch_related("delivery")


class LedgerManager(models.Manager):
    """A manager that reads the database of `MAILGLASS_DATABASE_ALIAS`."""

    def get_queryset(self) -> Any:
        return super().get_queryset().using(project.alias())


class MetadataManager(LedgerManager):
    """A manager that loads `metadata`, which may be long, only when it is read."""

    def get_queryset(self) -> Any:
        return super().get_queryset().defer("metadata")


class Delivery(models.Model):
    """One message to one recipient.

    A delivery of `Delivery.objects.with_state()` has three more attributes, each None if its last event has none:
    `reason` (why it failed), `bounce` (`hard` or `soft`) and `smtp_status` (as `550 5.1.1`).
    """

    id: models.Field[Never, UUID] = models.UUIDField(primary_key=True)
    tenant_id: models.Field[Never, str] = models.TextField("tenant")
    mailable: models.Field[Never, str] = models.TextField()
    stream: models.Field[Never, str] = models.TextField()
    recipient: models.Field[Never, str] = models.TextField()
    provider: models.Field[Never, str | None] = models.TextField(null=True)
    provider_message_id: models.Field[Never, str | None] = MessageIdField("message id", null=True)
    last_event_type: models.Field[Never, str] = models.TextField("last event")
    last_event_at: models.Field[Never, dt.datetime] = UTCDateTimeField("at")
    terminal: models.Field[Never, bool] = models.BooleanField()
    dispatched_at: models.Field[Never, dt.datetime | None] = UTCDateTimeField(null=True)
    delivered_at: models.Field[Never, dt.datetime | None] = UTCDateTimeField(null=True)
    bounced_at: models.Field[Never, dt.datetime | None] = UTCDateTimeField(null=True)
    complained_at: models.Field[Never, dt.datetime | None] = UTCDateTimeField(null=True)
    suppressed_at: models.Field[Never, dt.datetime | None] = UTCDateTimeField(null=True)
    metadata: models.Field[Never, dict[str, Any]] = models.JSONField()
    inserted_at: models.Field[Never, dt.datetime] = UTCDateTimeField("recorded at")

    # Of `with_state()`:
    reason: str | None
    bounce: Literal["hard", "soft"] | None
    smtp_status: str | None

    objects = MetadataManager.from_queryset(DeliveryQuerySet)()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = project.table("mailglass_deliveries")
        default_permissions = ("view", "delete")  # `delete` allows erasing a person
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return str(self.id)

    @cached_property
    def state(self) -> str:
        """`sent`, `delayed`, `delivered`, `bounced`, `complained` or `failed`, by the type of the last event."""
        return next((state for state, types in STATES.items() if self.last_event_type in types), "sent")

    def refresh_from_db(self, using: str | None = None, fields: Any = None, from_queryset: Any = None) -> None:
        """Load the row again; `state` follows it."""
        super().refresh_from_db(using, fields, from_queryset)
        if fields is None:
            self.__dict__.pop("state", None)

    def history(self) -> models.QuerySet[Event]:
        """Return a queryset of the events of this delivery, the latest first, in whatever order they were recorded."""
        return _history(self.pk, self.tenant_id)


class _PrefetchedDelivery(cached_property["Delivery | None"]):
    """The property `Event.delivery`, which `prefetch_related` fills for many events with one query."""

    def is_cached(self, event: Event) -> bool:
        """Return True if an event's delivery was loaded."""
        return "delivery" in event.__dict__

    def get_prefetch_querysets(self, events: list[Event], querysets: Any = None) -> tuple[Any, ...]:
        """Return what `prefetch_related` needs: the deliveries, and how they and the events are compared."""
        delivery_ids = {event.delivery_id for event in events if event.delivery_id is not None}
        deliveries = (querysets or [Delivery.objects.all()])[0].filter(pk__in=delivery_ids)
        return deliveries, attrgetter("pk"), attrgetter("delivery_id"), True, "delivery", True


class Event(models.Model):
    """One row of the append-only ledger.

    Attributes:
        stored_delivery: The delivery that the row itself names; None if the event came before its delivery was
            recorded, for good. To read, use `delivery`.
    """

    id: models.Field[Never, UUID] = models.UUIDField(primary_key=True)
    tenant_id: models.Field[Never, str] = models.TextField("tenant")
    stored_delivery = models.ForeignKey(
        Delivery, models.DO_NOTHING, null=True, db_column="delivery_id", db_constraint=False, related_name="+"
    )
    type: models.Field[Never, str] = models.TextField()
    occurred_at: models.Field[Never, dt.datetime] = UTCDateTimeField()
    idempotency_key: models.Field[Never, str | None] = models.TextField(null=True)
    reject_reason: models.Field[Never, str | None] = models.TextField(null=True)
    metadata: models.Field[Never, dict[str, Any]] = models.JSONField()
    needs_reconciliation: models.Field[Never, bool] = models.BooleanField()

    objects = MetadataManager.from_queryset(EventQuerySet)()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = project.table("mailglass_events")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.type} {self.id}"

    def refresh_from_db(self, using: str | None = None, fields: Any = None, from_queryset: Any = None) -> None:
        """Load the row again; `delivery` follows a link that was made meanwhile."""
        super().refresh_from_db(using, fields, from_queryset)
        if fields is None:
            self.__dict__.pop("delivery_id", None)
            self.__dict__.pop("delivery", None)

    @cached_property
    def delivery_id(self) -> UUID | None:
        """The delivery that this event is about, stored with it or linked later; it queries, `with_delivery()` not."""
        delivery_id: UUID | None = self.stored_delivery_id
        if delivery_id is None:
            delivery_id = Event.objects.with_delivery().values_list("delivery_id", flat=True).filter(pk=self.pk).first()
        return delivery_id

    @_PrefetchedDelivery
    def delivery(self) -> Delivery | None:
        """The delivery that this event is about; it queries, unless the event is of `with_delivery()`."""
        return None if self.delivery_id is None else Delivery.objects.filter(pk=self.delivery_id).first()


class OpenOrphan(models.Model):
    """An event without a delivery yet."""

    event = models.OneToOneField(
        Event, models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="open_orphan"
    )
    tenant_id: models.Field[Never, str] = models.TextField("tenant")
    arrived_at: models.Field[Never, dt.datetime] = UTCDateTimeField()
    provider: models.Field[Never, str | None] = models.TextField(null=True)
    recipient: models.Field[Never, str | None] = models.TextField(null=True)
    state: models.Field[Never, str | None] = models.TextField(
        null=True, help_text="As the last sweep left it; empty before the first."
    )
    refused: models.Field[Never, int] = models.SmallIntegerField("times refused")

    objects = LedgerManager.from_queryset(ReadOnlyQuerySet)()

    class Meta:
        """Django never creates, changes or flushes the table."""

        managed = False
        db_table = project.table("mailglass_open_orphans")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return str(self.pk)


_TABLES: dict[type[models.Model], str] = {
    Delivery: "mailglass_deliveries",
    Event: "mailglass_events",
    OpenOrphan: "mailglass_open_orphans",
}


def follow_schema() -> None:
    """Let the models' tables be in the schema of the settings, which a test may have changed."""
    for model, name in _TABLES.items():
        model._meta.db_table = project.table(name)
        for field in model._meta.concrete_fields:
            field.__dict__.pop("cached_col", None)  # it has the table's name


for _model in _TABLES:
    pre_save.connect(refuse_write, sender=_model)
    pre_delete.connect(refuse_write, sender=_model)
