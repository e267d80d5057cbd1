"""The pages, and the two answers for machines that ask whether all is well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops.curve import Sample
from mailglass_reconcile.ops.health import MAX_LAG_SECONDS
from mailglass_reconcile.ops.overview import BUCKETS
from mailglass_reconcile.rules.states import OPEN_STATES
from mailglass_reconcile.web import asked, chart, metrics
from mailglass_reconcile.web.asked import ElsewhereError, Shown, UnusableError
from mailglass_reconcile.web.entrance import Entrance, viewer_of
from mailglass_reconcile.web.reader import PAGE_SIZE, Reader
from mailglass_reconcile.web.screen import render

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
        shown = asked.shown(request.query_params, viewer_of(request))
        found = await self._reader.overview(shown)
        ended = dt.datetime.fromisoformat(found.now).timestamp()
        return self._show(
            request,
            "overview.html",
            found=found,
            shown=shown,
            hours=asked.HOURS,
            groups_shown=GROUPS,
            began=ended - shown.hours * 3_600,
            ended=ended,
            threshold=MAX_LAG_SECONDS,
            **_pictures(found.samples, shown, ended),
        )

    @_page
    async def orphans(self, request: Request) -> Response:
        """Show a page of open or expired orphans."""
        viewer = viewer_of(request)
        wanted = asked.listing(request.query_params, viewer)
        found = await self._reader.page(viewer, wanted)
        tenant = "" if viewer.tenant_id else wanted.filters.tenant_id or ""
        kept = {**wanted.given, "tenant": tenant, "order": "newest" if wanted.newest_first else ""}
        return self._show(
            request, "orphans.html", found=found, wanted=wanted, kept=kept, states=OPEN_STATES, page_size=PAGE_SIZE
        )

    @_page
    async def event(self, request: Request) -> Response:
        """Show why an event is linked or not."""
        event_id = asked.id_of(request.path_params["event_id"])
        return self._show(request, "event.html", found=await self._reader.event(viewer_of(request), event_id))

    @_page
    async def delivery(self, request: Request) -> Response:
        """Show a delivery and its events."""
        delivery_id = asked.id_of(request.path_params["delivery_id"])
        found = await self._reader.delivery(viewer_of(request), delivery_id)
        return self._show(request, "delivery.html", delivery=found.delivery, found=found)

    @_page
    async def find(self, request: Request) -> Response:
        """Lead to an event, a delivery, or the deliveries of a message; or say that there are none."""
        viewer, text = viewer_of(request), asked.sought(request.query_params)
        for place, look in (("events", self._reader.event), ("deliveries", self._reader.delivery)):
            try:
                await look(viewer, asked.id_of(text))
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
        pictures["threshold_at"] = chart.height(MAX_LAG_SECONDS, pictures["lag"].top)
    return pictures
