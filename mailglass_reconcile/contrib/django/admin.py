"""Admin of deliveries with their events, the ledger, and open orphans; lists and searches use indexes only.

It is read-only, except for the action that erases a person.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.paginator import Paginator
from django.http import Http404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.formats import localize
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.timezone import template_localtime

from mailglass_reconcile.contrib.django.models import Delivery, Event, OpenOrphan, StoredColumn
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.rules import addresses, event_types, states
from mailglass_reconcile.rules.humanize import escape_unprintable

LIMIT = 1_000
"""Greatest number of rows that a list shows, counts and finds, because counting a million takes too long."""

MOST_ERASED = 100
"""Greatest number of deliveries whose recipients one action erases."""


class ShortPaginator(Paginator):
    """A paginator that counts at most `LIMIT` rows."""

    @cached_property
    def count(self) -> int:
        """The number of rows, or `LIMIT` if there are more."""
        return int(self.object_list.order_by()[:LIMIT].count())


def _escape(row: Any) -> None:
    """Escape what a stranger may have put into a row's texts, such as characters that reverse the text after them."""
    for field in row._meta.concrete_fields:
        text = row.__dict__.get(field.attname)
        if isinstance(text, str):
            setattr(row, field.attname, escape_unprintable(text))


class ReadOnlyMixin:
    """Denies adding, changing and deleting: the response to an add is 403."""

    def has_add_permission(self, *_args: Any) -> bool:
        return False

    def has_change_permission(self, *_args: Any) -> bool:
        return False

    def has_delete_permission(self, *_args: Any) -> bool:
        return False


class LargeTableAdmin(ReadOnlyMixin, admin.ModelAdmin):
    """A list of the first rows in an order that has an index, with an exact search."""

    actions: Any = None
    list_per_page = 50
    list_max_show_all = 0
    paginator = ShortPaginator
    search_fields = ("id",)
    show_full_result_count = False
    sortable_by = ()

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        if not search_term.strip():
            return queryset, False
        return queryset.filter(pk__in=self.search(search_term)), False

    def get_changelist_instance(self, request: Any) -> Any:
        """Return the list, whose texts are escaped."""
        changes = super().get_changelist_instance(request)
        for row in changes.result_list:
            _escape(row)
        return changes

    def get_object(self, request: Any, object_id: str, from_field: Any = None) -> Any:
        """Return a row, whose texts are escaped, or None."""
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            _escape(row)
        return row

    def search(self, term: str) -> list[UUID]:
        """Return the primary keys of the rows that match *term*, at most `LIMIT`."""
        raise NotImplementedError

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        """Return True for our filters only, because with others an e-mail address could be guessed."""
        return lookup in {list_filter.parameter_name for list_filter in self.list_filter}

    def first_rows(self) -> Any:
        """Return the first rows of the list, at most `LIMIT`, along an index."""
        return self.model.objects.order_by(*self.ordering)[:LIMIT]

    def history_view(self, request: Any, object_id: str, extra_context: Any = None) -> Any:
        """Respond with 404: nothing can be changed here, so there is no history."""
        raise Http404


class FirstRowsFilter(admin.SimpleListFilter):
    """A filter of the first rows that a list shows, or of the results of a search."""

    values: Sequence[str]
    field: str

    def __init__(self, request: Any, params: Any, model: Any, model_admin: Any) -> None:
        self._admin = model_admin
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values]

    def queryset(self, request: Any, queryset: Any) -> Any:
        value = self.value()
        if value is None:
            return queryset
        if not request.GET.get("q", "").strip():
            queryset = queryset.filter(pk__in=self._admin.first_rows().values("pk"))
        return queryset.filter(**{self.field: None if value == states.UNSEEN else value})


class LastEventFilter(FirstRowsFilter):
    """Filters deliveries by their last event."""

    title, parameter_name, field, values = "last event", "last", "last_event_type", event_types.TYPES


class StateFilter(FirstRowsFilter):
    """Filters open orphans by their stored state."""

    title, parameter_name, field, values = "state", "is", "state", (*states.MATCH_STATES, states.UNSEEN)


@admin.register(Delivery)
class DeliveryAdmin(LargeTableAdmin):
    """Deliveries by id, the greatest first: the newest, where ids are UUIDv7."""

    list_display = ("id", "recipient", "last_event_type", "last_event_at", "sent_by", "tenant_id", "mailable")
    list_filter = (LastEventFilter,)
    fields = readonly_fields = (
        "summary",
        *("id", "tenant_id", "mailable", "stream", "recipient", "sent_by", "provider_message_id"),
        *("last_event_type", "last_event_at", "terminal"),
        *("dispatched_at", "delivered_at", "bounced_at", "complained_at", "suppressed_at"),
        "timeline",
    )
    ordering = ("-id",)
    search_help_text = "A recipient's address, a provider's message id, or a delivery's id."
    actions = ("erase_recipients",)

    def search(self, term: str) -> list[UUID]:
        return _search_ids("delivery", term)

    def get_changelist_instance(self, request: Any) -> Any:
        """Return the list, each delivery with its summary and the provider of its send."""
        changes = super().get_changelist_instance(request)
        with _readers().reading() as tx:
            details = _readers().deliveries.load_deliveries(tx, [str(delivery.pk) for delivery in changes.result_list])
        by_id = {detail.delivery_id: detail for detail in details}
        for delivery in changes.result_list:
            delivery.details = by_id.get(str(delivery.pk))
        return changes

    def get_object(self, request: Any, object_id: str, from_field: Any = None) -> Any:
        """Return a delivery with its summary and its events, or None."""
        delivery = super().get_object(request, object_id, from_field)
        if delivery is not None:
            with _readers().reading() as tx:
                (delivery.details,) = _readers().deliveries.load_deliveries(tx, [str(delivery.pk)])
                delivery.timeline = _readers().deliveries.load_events(
                    tx, [str(delivery.pk)], _readers().deliveries.MAX_EVENTS
                )
        return delivery

    @admin.display(description="summary")
    def summary(self, delivery: Any) -> str:
        """Return the delivery's summary in one sentence, and the command that shows more."""
        details = getattr(delivery, "details", None)
        return (
            "-" if details is None else escape_unprintable(": ".join(filter(None, (details.summary, details.command))))
        )

    @admin.display(description="provider")
    def sent_by(self, delivery: Any) -> Any:
        """Return the provider of the delivery's send."""
        details = getattr(delivery, "details", None)
        return escape_unprintable(details.provider) if details and details.provider else "-"

    @admin.display(description="events")
    def timeline(self, delivery: Any) -> Any:
        """Return the delivery's latest events, the latest first; for links, their orphans."""
        rows = [
            (
                reverse(
                    "admin:mailglass_reconcile_event_change", args=(event.event_id,), current_app=self.admin_site.name
                ),
                escape_unprintable(event.type),
                _localized(event.occurred_at),
                f"linked {_localized(event.linked_at)}" if event.linked_at else "stored with the delivery",
            )
            for event in getattr(delivery, "timeline", ())
        ]
        return format_html_join(mark_safe("<br>"), '<a href="{}">{}</a> {}, {}', rows) or "-"

    def has_erase_permission(self, request: Any) -> bool:
        """Return True if the user may erase a person: with the permission to delete deliveries."""
        return bool(request.user.has_perm("mailglass_reconcile.delete_delivery"))

    @admin.action(description="Erase the recipients of selected deliveries", permissions=["erase"])
    def erase_recipients(self, request: Any, queryset: Any) -> Any:
        """Ask for confirmation, then erase each recipient from the rows of its tenant."""
        selected = list(queryset.only("pk", "tenant_id", "recipient")[: MOST_ERASED + 1])
        people: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for delivery in selected:
            if not delivery.recipient.endswith(addresses.ERASED):
                people[delivery.tenant_id, delivery.recipient].append(delivery)
        if len(selected) > MOST_ERASED:
            self.message_user(request, f"Select at most {MOST_ERASED} deliveries.", messages.ERROR)
        elif not request.POST.get("confirmed"):
            context = {
                **self.admin_site.each_context(request),
                "title": "Erase recipients",
                "people": [tuple(map(escape_unprintable, person)) for person in sorted(people)],
                "selected": [delivery.pk for delivery in selected],
            }
            return TemplateResponse(request, "admin/mailglass_reconcile/erase.html", context)
        else:
            self._erase(request, people)
        return None

    def _erase(self, request: Any, people: Mapping[tuple[str, str], Sequence[Any]]) -> None:
        """Erase each person, and leave an entry in the admin's log for each delivery, without the address."""
        for (tenant, recipient), selected in sorted(people.items()):
            try:
                with _readers().database.connection() as connection:
                    erased = _readers().erase(connection, recipient=recipient, tenant_id=tenant)
                    for delivery in selected:
                        self.log_change(request, delivery, f"Erased the recipient from {erased.rows}.")
            except MailglassReconcileError as error:
                self.message_user(request, f"An address was not erased: {error}.", messages.ERROR)
                continue
            self.message_user(request, f"Erased an address from {erased.rows}.", messages.SUCCESS)
            for reason in erased.not_reached:
                self.message_user(request, f"Not reached: {reason}.", messages.WARNING)


@admin.register(Event)
class EventAdmin(LargeTableAdmin):
    """Events by id, the greatest first: the newest, where ids are UUIDv7."""

    list_display = ("id", "type", "occurred_at", "delivery_id", "tenant_id", "needs_reconciliation")
    ordering = ("-id",)
    search_help_text = "A recipient's address, a provider's message id, or an event's or a delivery's id."
    fields = readonly_fields = (
        "explanation",
        *("id", "tenant_id", "delivery_link", "type", "occurred_at", "idempotency_key", "reject_reason"),
        "metadata_text",
        "needs_reconciliation",
    )

    def search(self, term: str) -> list[UUID]:
        delivery_ids = [str(delivery_id) for delivery_id in _search_ids("delivery", term)]
        with _readers().reading() as tx:
            events = _readers().deliveries.load_events(tx, delivery_ids, LIMIT)
        return [
            *(UUID(event.event_id) for event in events),
            *_search_ids("event", term),
            *filter(None, [_uuid(term)]),
        ]

    @admin.display(description="explanation")
    def explanation(self, event: Any) -> str:
        return _explain(event.pk)

    @admin.display(description="metadata")
    def metadata_text(self, event: Any) -> str:
        """Return the metadata as JSON, escaped as the other texts are."""
        return escape_unprintable(json.dumps(event.metadata, ensure_ascii=False))

    @admin.display(description="delivery")
    def delivery_link(self, event: Any) -> Any:
        """Return a link to the delivery that the event is about."""
        if event.delivery_id is None:
            return "-"
        name = "admin:mailglass_reconcile_delivery_change"
        address = reverse(name, args=(event.delivery_id,), current_app=self.admin_site.name)
        return format_html('<a href="{}">{}</a>', address, event.delivery_id)

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).with_delivery().prefetch_related(None)  # only the ids are shown


@admin.register(OpenOrphan)
class OpenOrphanAdmin(LargeTableAdmin):
    """The newest open orphans."""

    list_display = ("event_id", "arrived_at", "state", "provider", "recipient", "tenant_id", "refused")
    list_filter = (StateFilter,)
    fields = readonly_fields = (
        "explanation",
        *("event", "tenant_id", "arrived_at", "provider", "recipient", "state", "refused"),
    )
    ordering = (StoredColumn("arrived_at").desc(), "-event_id")
    search_help_text = "A provider's message id, or an event's id."

    def search(self, term: str) -> list[UUID]:
        return _search_ids("event", term)

    @admin.display(description="explanation")
    def explanation(self, orphan: Any) -> str:
        """Return why the orphan is not linked, matched now, and the remedy."""
        return _explain(orphan.pk)


def _localized(iso: str) -> str:
    """Return an ISO 8601 time in the user's time zone and language."""
    try:
        return str(localize(template_localtime(dt.datetime.fromisoformat(iso))))
    except ValueError:  # Postgres knows infinity, and years that Python does not
        return iso


def _readers() -> Any:
    """Return the module that reads for people: loading it takes long, and starting a process needs none of it."""
    from mailglass_reconcile.contrib.django import admin_readers  # noqa: PLC0415

    return admin_readers


def _search_ids(kind: str, term: str) -> list[UUID]:
    ids: list[UUID] = _readers().search_ids(kind, term, LIMIT)
    return ids


def _explain(event_id: UUID) -> str:
    html: str = _readers().explain(event_id)
    return html


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None
