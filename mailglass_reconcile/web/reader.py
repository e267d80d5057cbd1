"""What the pages read, once for all who look at the same; and the one place where a tenant's viewer is held to it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import explanation, messages, overview, page, status, tenants, timeline
from mailglass_reconcile.ops.explained import Explanation
from mailglass_reconcile.ops.overview import Overview
from mailglass_reconcile.ops.page import Page
from mailglass_reconcile.ops.timeline import Timeline
from mailglass_reconcile.web import metrics
from mailglass_reconcile.web.access import Viewer
from mailglass_reconcile.web.asked import ElsewhereError, Listing, Shown, UnusableError
from mailglass_reconcile.web.cache import Cache

PAGE_SIZE = 50
PROBE_SECONDS = 1.0
"""Several Prometheus servers at once cost what one does."""


class Reader:
    """Reads through one cache; what a tenant's viewer must not see is not there for them."""

    def __init__(self, engine: sa.Engine | None, seconds: float) -> None:
        """Read from *engine*, or the configured one, and keep what was read for so many *seconds*."""
        self._given = engine
        self._cache = Cache(seconds)
        # Machines that ask whether all is well do not wait behind slow pages.
        self._probes = Cache(PROBE_SECONDS)

    @property
    def _engine(self) -> sa.Engine:
        return self._given or runtime.get_engine()

    async def problems(self) -> list[str]:
        """Return what is wrong, as `status --check` says it."""
        return await self._probes.get("problems", lambda: status.check(self._engine))

    async def metrics(self) -> bytes:
        """Return what Prometheus is told."""
        return await self._probes.get("metrics", lambda: metrics.scrape(self._engine, runtime.get_settings()))

    async def overview(self, shown: Shown) -> Overview:
        """Return what is open, and what happened in the last hours."""
        seconds, tenant_id = shown.hours * 3_600, shown.tenant_id
        return await self._cache.get(
            ("overview", shown), lambda: overview.overview(self._engine, seconds=seconds, tenant_id=tenant_id)
        )

    async def page(self, viewer: Viewer, asked: Listing) -> Page:
        """Return a page of orphans.

        Raises:
            UnusableError: There is no event to begin after.
        """
        key = (asked.filters, asked.after, asked.newest_first)
        if asked.after is not None and viewer.tenant_id not in (None, await self._tenant_of(asked.after)):
            raise UnusableError("after: there is no such event")
        try:
            return await self._cache.get(("page", key), lambda: self._page(asked))
        except LookupError:
            raise UnusableError("after: there is no such event") from None

    def _page(self, asked: Listing) -> Page:
        after = None if asked.after is None else str(asked.after)
        return page.page(
            self._engine,
            asked.filters,
            limit=PAGE_SIZE,
            after=after,
            newest_first=asked.newest_first,
            quick=True,
        )

    async def _tenant_of(self, event_id: UUID) -> str | None:
        return await self._cache.get(("tenant", event_id), lambda: tenants.of_event(self._engine, event_id))

    async def event(self, viewer: Viewer, event_id: UUID) -> Explanation:
        """Return why an event is linked or not.

        Raises:
            ElsewhereError: The ledger has no such event, or it is another tenant's.
        """
        found = await self._cache.get(("event", event_id), lambda: explanation.explain(self._engine, event_id))
        if found.state == "unknown" or viewer.tenant_id not in (None, found.tenant_id):
            raise ElsewhereError
        return found if viewer.tenant_id is None else _own(found)

    async def delivery(self, viewer: Viewer, delivery_id: UUID) -> Timeline:
        """Return what happened to a delivery.

        Raises:
            ElsewhereError: There is no such delivery, or it is another tenant's.
        """
        found = await self._cache.get(("delivery", delivery_id), lambda: timeline.timeline(self._engine, delivery_id))
        if found is None or viewer.tenant_id not in (None, found.delivery["tenant_id"]):
            raise ElsewhereError
        return found

    async def deliveries_of(self, viewer: Viewer, message_id: str) -> list[UUID]:
        """Return the deliveries that carry a message's id."""
        whose = viewer.tenant_id
        return await self._cache.get(
            ("message", message_id, whose), lambda: messages.deliveries_of(self._engine, message_id, whose)
        )


def _own(found: Explanation) -> Explanation:
    """Leave out other tenants' deliveries, which an event's ids may name."""
    named = tuple(one for one in found.named if one["own"])
    tried = tuple(
        {**one, "deliveries": sum(each["candidate_id"] == one["id"] for each in named)} for one in found.tried
    )
    return replace(found, named=named, tried=tried)
