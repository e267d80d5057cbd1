"""The pages, `/metrics`, and the probes `/healthz` (the process is alive) and `/readyz` (linking is healthy)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial, wraps
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from mailglass_reconcile import exposition, runtime
from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    MailglassReconcileError,
    SchemaOutdatedError,
)
from mailglass_reconcile.ops import (
    deliveries,
    explanation,
    handler_jobs,
    orphans,
    runs,
    search,
    status,
)
from mailglass_reconcile.ops.deliveries import DeliverySummary, TimelineEvent
from mailglass_reconcile.ops.orphans import OrphanPage
from mailglass_reconcile.ops.search import SearchResults, SearchTerm
from mailglass_reconcile.ops.status import Health, load_health, load_overview
from mailglass_reconcile.ops.unknown_tenants import describe_unknown
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.states import OPEN_STATES, RUN_STATUSES
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries.orphan_lists import ListedEvent
from mailglass_reconcile.store.tables import ledger
from mailglass_reconcile.store.tables.handler_jobs import FAILING_ATTEMPTS, MOST_ATTEMPTS
from mailglass_reconcile.store.tables.runs import KINDS
from mailglass_reconcile.web import chart, metrics, parameters
from mailglass_reconcile.web.access import Access, is_cross_site, read_form
from mailglass_reconcile.web.cache import Cache
from mailglass_reconcile.web.parameters import InvalidParameterError, ListParameters, NotFoundError
from mailglass_reconcile.web.rendering import STATIC, STATIC_TYPES, query_string, render

Handler = Callable[..., Awaitable[Response]]

PAGE_SIZE = 50
LIST_TIMEOUT_MS = 10_000
GROUPS = 8
EVENTS = 20
PROBE_SECONDS = 1.0
"""Seconds for which answers to probes are cached, so that several Prometheus servers cost no more than one."""
STUCK = ("tenant_mismatch", "recipient_mismatch", "ambiguous", "unmatchable")
"""States of orphans that stay open until a person changes something."""
_FULL_SWEEPS = ("runs?kind=full", "Last full sweeps")
_HANDLERS = ("handlers", "Handlers")
FINDING_PAGES = {
    "sweeps": _FULL_SWEEPS,
    "beat": _FULL_SWEEPS,
    "linking": _FULL_SWEEPS,
    "tenants": ("orphans?state=tenant_mismatch", "These orphans"),
    "handlers": _HANDLERS,
    "handled_types": _HANDLERS,
    "nothing_links": ("orphans?state=unmatched", "These events"),
    "key_rules": ("orphans", "Open orphans"),
    "broadcasts": ("runs", "Runs"),
    "prune": ("runs?kind=prune", "Last prunes"),
}
"""By check: the page that shows more about its findings, and the words of its link."""
_UNAVAILABLE = 503
_TITLES = (
    (SchemaOutdatedError, "The database needs another revision"),
    (DatabaseRefusedError, "The database refuses"),
    (ConfigurationError, "A setting cannot be used"),
)


def _with_error_pages(handler: Handler) -> Handler:
    """Show an error of the handler as a page."""

    @wraps(handler)
    async def handle_errors(self: Pages, request: Request) -> Response:
        try:
            return await handler(self, request)
        except NotFoundError:
            return _error_page(request, 404, "Not found", "No event, delivery or page has this address.")
        except InvalidParameterError as error:
            return _error_page(request, 400, "This address cannot be used", f"{error}.")
        except MailglassReconcileError as error:
            title = next((words for kind, words in _TITLES if isinstance(error, kind)), "No answer from the database")
            return _error_page(request, _UNAVAILABLE, title, f"{str(error).removesuffix('.')}.")

    return handle_errors


class Pages:
    """The pages of one application; the data are cached for a few seconds, for all users."""

    def __init__(self, engine: sa.Engine | None, access: Access, refresh_seconds: float) -> None:
        self._engine, self._access = engine, access
        self._cache = Cache(refresh_seconds)
        # Probes do not wait behind slow pages.
        self._probes = Cache(PROBE_SECONDS)

    @property
    def _database(self) -> Database:
        return Database(self._engine, runtime.get_settings()) if self._engine else runtime.database()

    async def _show(
        self, request: Request, template: str, *, status: int = 200, health: Health | None = None, **values: Any
    ) -> Response:
        """Return a page, with the number of problems: those of *health*, or loaded now."""
        with suppress(MailglassReconcileError):  # the page itself could be read
            health = health or await self._cache.get("health", partial(load_health, self._database))
        return render(request, template, status=status, health=health, **values)

    @_with_error_pages
    async def overview(self, request: Request) -> Response:
        hours = parameters.parse_hours(request.query_params)
        seconds = hours * 3_600
        load = partial(load_overview, self._database, seconds=seconds)
        overview = await self._cache.get(("overview", hours), load)
        lag = chart.draw_lag(overview.series)
        return await self._show(
            request,
            "overview.html",
            health=overview.health,
            finding_pages=FINDING_PAGES,
            overview=overview,
            stuck_states=STUCK,
            hours=hours,
            spans=parameters.HOURS,
            groups_shown=GROUPS,
            newest_events=ledger.NEWEST_EVENTS,
            threshold=LATE_SECONDS,
            threshold_at=chart.y_position(LATE_SECONDS, lag.top),
            backlog=chart.draw_backlog(overview.series),
            left=chart.draw_matched(overview.series),
            lag=lag,
        )

    @_with_error_pages
    async def orphans(self, request: Request) -> Response:
        if parameters.has_empty(request.query_params):
            return _redirect(f"orphans{query_string(**request.query_params)}")
        listing = parameters.parse_listing(request.query_params)
        key = ("page", listing.filters, listing.after)
        page = await self._cache.get(key, lambda: self._load_page(listing))
        tenant, unknown = listing.filters.tenant_id, None
        if tenant is not None and not page.orphans and not page.after:
            unknown = await self._describe_unknown(tenant)
        return await self._show(
            request,
            "orphans.html",
            page=page,
            listing=listing,
            fields=listing.fields,
            states=OPEN_STATES,
            causes_shown=GROUPS,
            unknown_tenant=unknown,
        )

    def _load_page(self, listing: ListParameters) -> OrphanPage:
        after = None if listing.after is None else str(listing.after)
        try:
            return orphans.load_page(
                self._database,
                listing.filters,
                limit=PAGE_SIZE,
                after=after,
                with_counts=True,
                timeout_ms=LIST_TIMEOUT_MS,
            )
        except LookupError:
            raise InvalidParameterError("after: there is no such event") from None

    @_with_error_pages
    async def runs(self, request: Request) -> Response:
        """Show the history of runs, and who holds the lock of sweeps."""
        if parameters.has_empty(request.query_params):
            return _redirect(f"runs{query_string(**request.query_params)}")
        filters, before = parameters.parse_runs(request.query_params)
        page = await self._cache.get(
            ("runs", filters, before), partial(runs.load_page, self._database, filters, before=before)
        )
        return await self._show(
            request,
            "runs.html",
            page=page,
            before=before,
            fields={"kind": filters.kind, "status": filters.status, "idle": "yes" if filters.idle else ""},
            kinds=KINDS,
            statuses=RUN_STATUSES,
            lock=await self._cache.get("lock", runs.load_sweep_lock),
            last_success=await self._cache.get("last success", partial(runs.load_last_success, self._database)),
        )

    @_with_error_pages
    async def handlers(self, request: Request) -> Response:
        return await self._show(
            request,
            "handlers.html",
            facts=await self._cache.get("outbox", lambda: handler_jobs.load_facts(self._database)),
            waiting=await self._cache.get("waiting", lambda: handler_jobs.load_jobs(self._database, "waiting")),
            dead=await self._cache.get("dead", lambda: handler_jobs.load_jobs(self._database, "dead")),
            jobs_shown=EVENTS,
            failing_attempts=FAILING_ATTEMPTS,
            most_attempts=MOST_ATTEMPTS,
        )

    @_with_error_pages
    async def event(self, request: Request) -> Response:
        event_id = parameters.parse_id(request.path_params["event_id"])
        explain = partial(explanation.explain, self._database, event_id)
        explained = await self._cache.get(("event", event_id), explain)
        if explained.state == "unknown":
            raise NotFoundError
        return await self._show(
            request,
            "event.html",
            event=explained,
            facts=[
                *explanation.facts(explained),
                *(fact for fact in explanation.outlook(explained) if not fact.is_remedy),
            ],
        )

    @_with_error_pages
    async def delivery(self, request: Request) -> Response:
        delivery_id = parameters.parse_id(request.path_params["delivery_id"])
        loaded = await self._cache.get(("delivery", delivery_id), lambda: self._load_delivery(delivery_id))
        if loaded is None:
            raise NotFoundError
        delivery, events = loaded
        named_by: list[ListedEvent] = []
        if message_id := delivery.message_id:
            read = partial(orphans.find_by_message, self._database, message_id, limit=EVENTS)
            named_by = (await self._cache.get(("message", message_id), read)).orphans
        return await self._show(
            request,
            "delivery.html",
            delivery=delivery,
            events=events[: deliveries.MAX_EVENTS],
            more=len(events) > deliveries.MAX_EVENTS,
            named_by=named_by,
            named_shown=EVENTS,
        )

    def _load_delivery(self, delivery_id: UUID) -> tuple[DeliverySummary, list[TimelineEvent]] | None:
        with self._database.reading(LIST_TIMEOUT_MS) as tx:
            for delivery in deliveries.load_deliveries(tx, [str(delivery_id)]):
                return delivery, deliveries.load_events(tx, [str(delivery_id)], deliveries.MAX_EVENTS + 1)
            return None

    @_with_error_pages
    async def find(self, request: Request) -> Response:
        """Show the deliveries and events of an address or an id. An address is read only from a form, never shown."""
        posted = request.method == "POST"
        if posted and is_cross_site(request):
            return PlainTextResponse("search from the dashboard itself\n", 403)
        fields = await read_form(request) if posted else dict(request.query_params)
        typed, tenant = fields.get("q", "").strip(), parameters.read_text(fields, "tenant")
        page_values: dict[str, Any] = {
            "tenant": tenant,
            "posted": posted,
            "wrong": None,
            "unknown_tenant": None,
        }
        if not typed:
            return await self._show(request, "found.html", typed="", results=None, address=False, **page_values)
        try:
            term = search.parse_term(typed, tenant or None)
        except ValueError as error:
            page_values["wrong"] = str(error)
            return await self._show(
                request, "found.html", status=400, typed="", results=None, address=False, **page_values
            )
        if posted and not term.address:
            return _redirect(f"find{query_string(q=term.text, tenant=tenant)}")
        if not posted:
            term = term._replace(address=None)
        results = await self._search(term)
        hit = next((hit for hit in results.hits if term.id is not None and hit.id == str(term.id)), None)
        if hit or (len(results.hits) == 1 and not posted):
            hit = hit or results.hits[0]
            return _redirect(f"{'events' if hit.kind == 'event' else 'deliveries'}/{hit.id}")
        if tenant and not results.hits:
            page_values["unknown_tenant"] = await self._describe_unknown(tenant)
        typed_id = "" if posted or contains_address(typed) else typed
        return await self._show(
            request, "found.html", typed=typed_id, results=results, address=not typed_id, **page_values
        )

    async def _search(self, term: SearchTerm) -> SearchResults:
        # The cache's key does not hold the address either.
        digest = hashlib.sha256(repr((term.text, term.address, term.tenant_id)).encode()).digest()
        return await self._cache.get(("find", digest), lambda: search.find(self._database, term))

    async def _describe_unknown(self, tenant: str) -> str | None:
        return await self._cache.get(("tenant", tenant), lambda: describe_unknown(self._database, tenant))

    @_with_error_pages
    async def metrics(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(metrics.SECONDS):
                scraped = await self._probes.get("metrics", partial(metrics.scrape, self._database))
        except TimeoutError:  # the read goes on, and the next request waits for the same one
            scraped = metrics.report_down(f"the database has not answered within {metrics.SECONDS:.0f} seconds")
        return Response(scraped, media_type=exposition.CONTENT_TYPE)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 404."""
        answer = _error_page(Request(scope, receive), 404, "Not found", "No event, delivery or page has this address.")
        await answer(scope, receive, send)

    async def static(self, request: Request) -> Response:
        """Return the style, the script or the icon; their address changes with the content."""
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not found\n", 404)
        kind = STATIC_TYPES[name.rpartition(".")[2]]
        return Response(STATIC[name], media_type=kind, headers={"cache-control": "public, max-age=86400"})

    async def healthz(self, request: Request) -> Response:
        """Answer that this process is alive, without reading anything."""
        return PlainTextResponse("alive\n")

    async def readyz(self, request: Request) -> Response:
        """Answer with the line of `status --check`; only requests with the token get the reasons."""
        try:
            problems = await self._probes.get("problems", partial(status.load_problems, self._database))
        except MailglassReconcileError as error:
            problems = [str(error)]
        line = "unhealthy" if problems else "healthy"
        if problems and self._access.has_access(request):
            line = f"unhealthy: {'; '.join(problems)}"
        return PlainTextResponse(f"{line}\n", _UNAVAILABLE if problems else 200)


def _error_page(request: Request, code: int, title: str, sentence: str) -> Response:
    retries = code == _UNAVAILABLE
    return render(request, "problem.html", status=code, title=title, sentence=sentence, retries=retries)


def _redirect(location: str) -> Response:
    return Response(status_code=303, headers={"location": location})
