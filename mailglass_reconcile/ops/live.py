"""Eligible orphans by state, tenant and provider, counted now: what a sweep would find, without linking anything."""

from __future__ import annotations

from typing import Any

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.sweep import examination, windows
from mailglass_reconcile.sweep.census import Census


def count(tx: Transaction, settings: Settings, tenant_id: str | None = None) -> list[dict[str, Any]]:
    """Examine every eligible orphan by the sweep's own rule, which takes seconds if a million are open.

    Args:
        tx: A read-only transaction of one snapshot.
        settings: Grace and maximum age.
        tenant_id: Of this tenant only; None is all tenants.
    """
    window = windows.survey(tx, settings, *examination.marks(), tenant_id)
    census = Census(window.groups, window.marks.stale)
    parts = window.parts
    while parts:
        orphans, parts = windows.next_orphans(tx, window, parts)
        raw = window.survey.raw_webhooks
        census.examined(examination.examine(tx, orphans, raw_webhooks=raw, complain=lambda sentence: None))
    return census.as_groups()
