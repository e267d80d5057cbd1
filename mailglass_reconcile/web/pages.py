"""The pages, and the two answers for machines that ask whether all is well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import explanation, messages, orphans, overview, status, tenants, timeline
from mailglass_reconcile.ops.curve import Sample
from mailglass_reconcile.ops.explanation import Explanation
from mailglass_reconcile.ops.orphans import Page
from mailglass_reconcile.ops.overview import BUCKETS, Overview
from mailglass_reconcile.ops.timeline import Timeline
from mailglass_reconcile.rules.states import OPEN_STATES
from mailglass_reconcile.schedule import LATE_SECONDS
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.web import chart, metrics, parameters
from mailglass_reconcile.web.access import Entrance, Viewer, viewer_of
from mailglass_reconcile.web.cache import Cache
from mailglass_reconcile.web.parameters import ElsewhereError, Listing, Shown, UnusableError
from mailglass_reconcile.web.rendering import render

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
    def _database(self) -> Database:
        return Database(self._given, runtime.get_settings()) if self._given else runtime.database()

    async def problems(self) -> list[str]:
        """Return what is wrong, as `status --check` says it."""
        return await self._probes.get("problems", lambda: status.check(self._database))

    async def metrics(self) -> bytes:
        """Return what Prometheus is told."""
        return await self._probes.get("metrics", lambda: metrics.scrape(self._database))

    async def overview(self, shown: Shown) -> Overview:
        """Return what is open, and what happened in the last hours."""
        seconds, tenant_id = shown.hours * 3_600, shown.tenant_id
        return await self._cache.get(
            ("overview", shown), lambda: overview.overview(self._database, seconds=seconds, tenant_id=tenant_id)
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
        return orphans.page(
            self._database,
            asked.filters,
            limit=PAGE_SIZE,
            after=after,
            newest_first=asked.newest_first,
            quick=True,
        )

    async def _tenant_of(self, event_id: UUID) -> str | None:
        return await self._cache.get(("tenant", event_id), lambda: tenants.of_event(self._database, event_id))

    async def event(self, viewer: Viewer, event_id: UUID) -> Explanation:
        """Return why an event is linked or not.

        Raises:
            ElsewhereError: The ledger has no such event, or it is another tenant's.
        """
        found = await self._cache.get(("event", event_id), lambda: explanation.explain(self._database, event_id))
        if found.state == "unknown" or viewer.tenant_id not in (None, found.tenant_id):
            raise ElsewhereError
        return found if viewer.tenant_id is None else _own(found)

    async def delivery(self, viewer: Viewer, delivery_id: UUID) -> Timeline:
        """Return what happened to a delivery.

        Raises:
            ElsewhereError: There is no such delivery, or it is another tenant's.
        """
        found = await self._cache.get(("delivery", delivery_id), lambda: timeline.timeline(self._database, delivery_id))
        if found is None or viewer.tenant_id not in (None, found.delivery["tenant_id"]):
            raise ElsewhereError
        return found

    async def deliveries_of(self, viewer: Viewer, message_id: str) -> list[UUID]:
        """Return the deliveries that carry a message's id."""
        whose = viewer.tenant_id
        return await self._cache.get(
            ("message", message_id, whose), lambda: messages.deliveries_of(self._database, message_id, whose)
        )


def _own(found: Explanation) -> Explanation:
    """Leave out other tenants' deliveries, which an event's ids may name."""
    named = tuple(one for one in found.named if one["own"])
    tried = tuple(
        {**one, "deliveries": sum(each["candidate_id"] == one["id"] for each in named)} for one in found.tried
    )
    return replace(found, named=named, tried=tried)


Handler = Callable[..., Awaitable[Response]]

GROUPS = 12
_UNAVAILABLE = 503
NOWHERE = "There is nothing here, or nothing that you may see."
NOT_NOW = "The database cannot be read at the moment. The page tries again by itself."


def _page(handler: Handler) -> Handler:
    """Turn what can go wrong into a page."""

    @wraps(handler)
    async def safe(self: Pages, request: Request) -> Response:
        try:
            return await handler(self, request)
        except ElsewhereError:
            return self._problem(request, 404, "Not found", NOWHERE)
        except UnusableError as error:
            return self._problem(request, 400, "This address cannot be used", f"{error}.")
        except MailglassReconcileError as error:
            whole = viewer_of(request).tenant_id is None
            return self._problem(request, _UNAVAILABLE, "No answer from the database", str(error) if whole else NOT_NOW)

    return safe


class Pages:
    """The pages of one application."""

    def __init__(self, reader: Reader, entrance: Entrance) -> None:
        """Show what *reader* reads to whom *entrance* has let in."""
        self._reader, self._entrance = reader, entrance

    def _show(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        return render(
            request,
            template,
            status=status,
            scope=viewer_of(request).tenant_id,
            **values,
        )

    def _problem(self, request: Request, status: int, title: str, sentence: str) -> Response:
        retries = status == _UNAVAILABLE
        return self._show(request, "problem.html", status=status, title=title, sentence=sentence, retries=retries)

    @_page
    async def overview(self, request: Request) -> Response:
        """Show how linking is going."""
        shown = parameters.shown(request.query_params, viewer_of(request))
        found = await self._reader.overview(shown)
        ended = dt.datetime.fromisoformat(found.now).timestamp()
        return self._show(
            request,
            "overview.html",
            found=found,
            shown=shown,
            hours=parameters.HOURS,
            groups_shown=GROUPS,
            began=ended - shown.hours * 3_600,
            ended=ended,
            threshold=LATE_SECONDS,
            **_pictures(found.samples, shown, ended),
        )

    @_page
    async def orphans(self, request: Request) -> Response:
        """Show a page of open or expired orphans."""
        viewer = viewer_of(request)
        wanted = parameters.listing(request.query_params, viewer)
        found = await self._reader.page(viewer, wanted)
        tenant = "" if viewer.tenant_id else wanted.filters.tenant_id or ""
        kept = {**wanted.given, "tenant": tenant, "order": "newest" if wanted.newest_first else ""}
        return self._show(
            request, "orphans.html", found=found, wanted=wanted, kept=kept, states=OPEN_STATES, page_size=PAGE_SIZE
        )

    @_page
    async def event(self, request: Request) -> Response:
        """Show why an event is linked or not."""
        event_id = parameters.id_of(request.path_params["event_id"])
        return self._show(request, "event.html", found=await self._reader.event(viewer_of(request), event_id))

    @_page
    async def delivery(self, request: Request) -> Response:
        """Show a delivery and its events."""
        delivery_id = parameters.id_of(request.path_params["delivery_id"])
        found = await self._reader.delivery(viewer_of(request), delivery_id)
        return self._show(request, "delivery.html", delivery=found.delivery, found=found)

    @_page
    async def find(self, request: Request) -> Response:
        """Lead to an event, a delivery, or the deliveries of a message; or say that there are none."""
        viewer, text = viewer_of(request), parameters.sought(request.query_params)
        for place, look in (("events", self._reader.event), ("deliveries", self._reader.delivery)):
            try:
                await look(viewer, parameters.id_of(text))
            except ElsewhereError:
                continue
            return _to(f"{place}/{UUID(text)}")
        found = await self._reader.deliveries_of(viewer, text) if text else []
        if len(found) == 1:
            return _to(f"deliveries/{found[0]}")
        return self._show(request, "found.html", found=found, text=text)

    @_page
    async def metrics(self, request: Request) -> Response:
        """Answer Prometheus; the figures are those of all tenants, so for the token of one there are none."""
        if viewer_of(request).tenant_id is not None:
            raise ElsewhereError
        return Response(await self._reader.metrics(), media_type=metrics.CONTENT_TYPE)

    async def missing(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say that there is no such page."""
        request = Request(scope, receive)
        await self._problem(request, 404, "Not found", NOWHERE)(scope, receive, send)

    async def healthz(self, request: Request) -> Response:
        """Say that this process is alive; nothing is asked for."""
        return PlainTextResponse("alive\n")

    async def readyz(self, request: Request) -> Response:
        """Say in one line what `status --check` says; what is wrong hears only who may see all tenants."""
        try:
            problems = await self._reader.problems()
        except MailglassReconcileError as error:
            problems = [str(error)]
        viewer = self._entrance.admitted(request)
        line = "unhealthy" if problems else "healthy"
        if problems and viewer is not None and viewer.tenant_id is None:
            line = f"unhealthy: {'; '.join(problems)}"
        return PlainTextResponse(f"{line}\n", 503 if problems else 200)


def _to(place: str) -> Response:
    return Response(status_code=303, headers={"location": place})


def _pictures(samples: list[Sample], shown: Shown, ended: float) -> dict[str, Any]:
    began, bucket = ended - shown.hours * 3_600, shown.hours * 3_600 / BUCKETS
    pictures: dict[str, Any] = {"backlog": chart.backlog(samples, began, ended, bucket), "lag": None}
    if shown.tenant_id is None:
        pictures["lag"] = chart.lag(samples, began, ended, bucket)
        pictures["threshold_at"] = chart.height(LATE_SECONDS, pictures["lag"].top)
    return pictures
