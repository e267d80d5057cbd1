"""What the admin's pages read and do, with our own readers on Django's connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.text import capfirst

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import deliveries, explanation, search
from mailglass_reconcile.record.erasure import erase
from mailglass_reconcile.rules.humanize import escape_unprintable
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import Transaction

__all__ = ["database", "deliveries", "erase", "explain", "reading", "search_ids"]


@contextmanager
def reading() -> Iterator[Transaction]:
    """Begin a transaction in our scope on Django's connection."""
    with database.connection() as connection, use_caller_transaction(connection, runtime.get_settings()) as tx:
        yield tx


def search_ids(kind: str, text: str, limit: int) -> list[UUID]:
    """Return the ids of the deliveries, or of the events, that match a search of the dashboard."""
    try:
        term = search.parse_term(text)
    except ValueError:
        return []
    runtime.load_imports(only_warn=True)
    with reading() as tx:
        results = search.find_within(tx, term, limit=limit)
    return [UUID(hit.id) for hit in results.hits if hit.kind == kind]


def explain(event_id: UUID) -> str:
    """Return why an event is linked or not, matched now, and the remedy, as lines of HTML."""
    try:
        runtime.load_imports(only_warn=True)
        with reading() as tx:
            event = explanation.explain_within(tx, event_id)
    except MailglassReconcileError as error:
        return str(error)
    facts = sorted((*explanation.facts(event), *explanation.outlook(event)), key=lambda fact: not fact.is_remedy)
    lines = [
        f"{event.state}: {event.sentence}",
        *(capfirst(": ".join(filter(None, (fact.name, fact.plain_text)))) for fact in facts),
    ]
    html: str = format_html_join(mark_safe("<br>"), "{}", ((escape_unprintable(line),) for line in lines))
    return html
