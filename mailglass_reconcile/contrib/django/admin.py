"""Deliveries with their events, the ledger, and open orphans; lists and searches go by indexes only.

Nothing can be changed, but that a person can be erased.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.paginator import Paginator
from django.http import Http404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.formats import localize
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.timezone import template_localtime

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.contrib.django.models import Delivery, Event, OpenOrphan, Stored
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import deliveries, explanation, search
from mailglass_reconcile.record.erasure import erase
from mailglass_reconcile.rules import addresses, event_types, states
from mailglass_reconcile.store.caller_transaction import borrowed
from mailglass_reconcile.store.database import Transaction

LIMIT = 1_000
"""Rows that a list shows and counts at most: counting all of a million would take longer than anything else."""

MOST_ERASED = 100
"""Deliveries whose recipients are erased by one action."""


class ShortPaginator(Paginator):
    """Counts no further than a list goes."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, or `LIMIT` if there are more."""
        return int(self.object_list.order_by()[:LIMIT].count())


class ReadOnly:
    """Nothing can be added, changed or deleted: every add is answered with 403."""

    def has_add_permission(self, *_args: Any) -> bool:
        return False

    def has_change_permission(self, *_args: Any) -> bool:
        return False

    def has_delete_permission(self, *_args: Any) -> bool:
        return False


class LargeTableAdmin(ReadOnly, admin.ModelAdmin):
    """A list of the newest, and a search for what is named exactly."""

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

    def search(self, term: str) -> list[UUID]:
        """Return the primary keys of what is found for *term*, at most `LIMIT`."""
        raise NotImplementedError

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        """Whether the address of a list may filter it: by our filters only, or an address could be guessed so."""
        return lookup in {one.parameter_name for one in self.list_filter}

    def newest(self) -> Any:
        """Return the newest rows, at most `LIMIT`, along an index."""
        return self.model.objects.order_by(*self.ordering)[:LIMIT]

    def history_view(self, request: Any, object_id: str, extra_context: Any = None) -> Any:
        """Answer with 404: nothing can be changed here, so there is no history."""
        raise Http404


class Among(admin.SimpleListFilter):
    """A filter among the newest rows that a list shows, or among those that a search has found."""

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in self.names()]

    def names(self) -> list[str]:
        raise NotImplementedError

    def queryset(self, request: Any, queryset: Any) -> Any:
        value = self.value()
        if value is None:
            return queryset
        if not request.GET.get("q", "").strip():
            queryset = queryset.filter(pk__in=self._admin.newest().values("pk"))
        return self.passing(queryset, value)

    def passing(self, queryset: Any, value: str) -> Any:
        raise NotImplementedError

    def __init__(self, request: Any, params: Any, model: Any, model_admin: Any) -> None:
        self._admin = model_admin
        super().__init__(request, params, model, model_admin)


class LastEvent(Among):
    """By the last event of a delivery."""

    title, parameter_name = "last event", "last"

    def names(self) -> list[str]:
        return list(event_types.TYPES)

    def passing(self, queryset: Any, value: str) -> Any:
        return queryset.filter(last_event_type=value)


class InState(Among):
    """By the state that is stored with an open orphan."""

    title, parameter_name = "state", "is"

    def names(self) -> list[str]:
        return [*states.VERDICTS, states.UNSEEN]

    def passing(self, queryset: Any, value: str) -> Any:
        return queryset.filter(state__isnull=True) if value == states.UNSEEN else queryset.filter(state=value)


@admin.register(Delivery)
class DeliveryAdmin(LargeTableAdmin):
    """The newest deliveries."""

    list_display = ("id", "recipient", "last_event_type", "last_event_at", "sent_by", "tenant_id", "mailable")
    list_filter = (LastEvent,)
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
        return found("delivery", term)

    def get_changelist_instance(self, request: Any) -> Any:
        """Return the list, each delivery with the provider of its send, where its row has none."""
        changes = super().get_changelist_instance(request)
        with _reading() as tx:
            read = deliveries.read(tx, [str(delivery.pk) for delivery in changes.result_list])
        by_id = {delivery.delivery_id: delivery for delivery in read}
        for delivery in changes.result_list:
            delivery.shown = by_id.get(str(delivery.pk))
        return changes

    def get_object(self, request: Any, object_id: str, from_field: Any = None) -> Any:
        """Return a delivery with what is shown of it, or None."""
        delivery = super().get_object(request, object_id, from_field)
        if delivery is not None:
            with suppress(MailglassReconcileError), _reading() as tx:
                (delivery.shown,) = deliveries.read(tx, [str(delivery.pk)])
                delivery.timeline = deliveries.events(tx, [str(delivery.pk)], deliveries.LATEST)
        return delivery

    @admin.display(description="summary")
    def summary(self, delivery: Any) -> str:
        """Return what happened to it, in one sentence, and the command that shows more."""
        shown = getattr(delivery, "shown", None)
        return "-" if shown is None else ": ".join(filter(None, (shown.summary, shown.command)))

    @admin.display(description="provider")
    def sent_by(self, delivery: Any) -> Any:
        shown = getattr(delivery, "shown", None)
        return shown.provider if shown and shown.provider else "-"

    @admin.display(description="events")
    def timeline(self, delivery: Any) -> Any:
        """Return its latest events, the latest first; of those that were linked, the orphans."""
        rows = [
            (
                reverse(
                    "admin:mailglass_reconcile_event_change", args=(event.event_id,), current_app=self.admin_site.name
                ),
                event.type,
                _localized(event.occurred_at),
                f"linked {_localized(event.linked_at)}" if event.linked_at else "stored with the delivery",
            )
            for event in getattr(delivery, "timeline", ())
        ]
        return format_html_join(mark_safe("<br>"), '<a href="{}">{}</a> {}, {}', rows) or "-"

    def has_erase_permission(self, request: Any) -> bool:
        """Whether the user may erase a person: with the permission to delete deliveries, which allows nothing else."""
        return bool(request.user.has_perm("mailglass_reconcile.delete_delivery"))

    @admin.action(description="Erase the recipients of selected deliveries", permissions=["erase"])
    def erase_recipients(self, request: Any, queryset: Any) -> Any:
        """Ask, and then erase each recipient from the rows of its tenant."""
        selected = list(queryset.values_list("pk", "tenant_id", "recipient")[: MOST_ERASED + 1])
        people = sorted({(tenant, to) for _, tenant, to in selected if not to.endswith(addresses.ERASED)})
        if len(selected) > MOST_ERASED:
            self.message_user(request, f"Select at most {MOST_ERASED} deliveries.", messages.ERROR)
        elif not request.POST.get("confirmed"):
            context = {
                **self.admin_site.each_context(request),
                "title": "Erase recipients",
                "people": people,
                "selected": [pk for pk, _, _ in selected],
            }
            return TemplateResponse(request, "admin/mailglass_reconcile/erase.html", context)
        else:
            self._erase(request, people)
        return None

    def _erase(self, request: Any, people: list[tuple[str, str]]) -> None:
        for tenant, recipient in people:
            try:
                with database.connection() as lent:
                    erased = erase(lent, recipient=recipient, tenant_id=tenant)
            except MailglassReconcileError as error:
                self.message_user(request, f"An address was not erased: {error}.", messages.ERROR)
                continue
            self.message_user(request, f"Erased an address from {erased.rows}.", messages.SUCCESS)
            for place in erased.not_reached:
                self.message_user(request, f"Not reached: {place}.", messages.WARNING)


@admin.register(Event)
class EventAdmin(LargeTableAdmin):
    """The newest events."""

    list_display = ("id", "type", "occurred_at", "delivery_id", "tenant_id", "needs_reconciliation")
    ordering = ("-id",)
    search_help_text = "A recipient's address, a provider's message id, or an event's or a delivery's id."
    fields = readonly_fields = (
        "explanation",
        *("id", "tenant_id", "delivery", "type", "occurred_at", "idempotency_key", "reject_reason", "metadata"),
        "needs_reconciliation",
    )

    def search(self, term: str) -> list[UUID]:
        delivery_ids = [str(delivery_id) for delivery_id in found("delivery", term)]
        with _reading() as tx:
            events = deliveries.events(tx, delivery_ids, LIMIT)
        return [*(UUID(event.event_id) for event in events), *found("event", term), *filter(None, [_uuid(term)])]

    @admin.display(description="verdict")
    def explanation(self, event: Any) -> str:
        return _explained(event.pk)

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).defer("metadata")


@admin.register(OpenOrphan)
class OpenOrphanAdmin(LargeTableAdmin):
    """What arrived last and has no delivery yet."""

    list_display = ("event_id", "arrived_at", "state", "provider", "recipient", "tenant_id", "refused")
    list_filter = (InState,)
    fields = readonly_fields = (
        "explanation",
        *("event", "tenant_id", "arrived_at", "provider", "recipient", "state", "refused"),
    )
    ordering = (Stored("arrived_at").desc(), "-event_id")
    search_help_text = "A provider's message id, or an event's id."

    def search(self, term: str) -> list[UUID]:
        return found("event", term)

    @admin.display(description="verdict")
    def explanation(self, orphan: Any) -> str:
        """Return why it is not linked, judged now, and what has to change."""
        return _explained(orphan.pk)


@contextmanager
def _reading() -> Iterator[Transaction]:
    with database.connection() as lent, borrowed(lent, runtime.get_settings()) as tx:
        yield tx


def found(kind: str, text: str) -> list[UUID]:
    """Return the ids of the deliveries, or of the events, that the dashboard's search finds, at most `LIMIT`."""
    try:
        term = search.parse_term(text)
    except ValueError:
        return []
    runtime.load_imports(to_read=True)
    with _reading() as tx:
        results = search.find_within(tx, term, limit=LIMIT)
    return [UUID(hit.id) for hit in results.hits if hit.kind == kind]


def _localized(iso: str) -> str:
    """Return a time in ISO 8601 in the reader's zone and language."""
    try:
        return str(localize(template_localtime(dt.datetime.fromisoformat(iso))))
    except ValueError:  # Postgres knows infinity, and years that Python does not
        return iso


def _explained(event_id: UUID) -> str:
    try:
        runtime.load_imports(to_read=True)
        with _reading() as tx:
            found = explanation.explain_within(tx, event_id)
    except MailglassReconcileError as error:
        return str(error)
    remedy = f". To link it: {found.remedy}" if found.remedy else ""
    return f"{found.state}: {found.sentence}{remedy}"


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None
