"""`/metrics`: the figures for Prometheus, read from the database when it scrapes; needs the extra `web`.

This process sweeps nothing, so it has no counters of its own: the history of runs outlives the workers and the prune.
Times are timestamps, so that an age still grows when no sweep runs any more.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.exposition import PREFIX, make_counter, make_gauge, render, samples_by_label
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.metrics import MetricsSnapshot, collect
from mailglass_reconcile.ops.runs import count_by_state
from mailglass_reconcile.rules.states import OUTCOMES, RUN_STATUSES
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables.runs import KINDS
from mailglass_reconcile.sweep.result import REASONS

logger = logging.getLogger(__name__)

SECONDS = 2.0
"""Prometheus gives up after some seconds; a database that does not answer is reported in time."""

LEVELS = (checks.ERROR, checks.WARNING)


def scrape(database: Database) -> bytes:
    """Return all metrics in Prometheus's text format; no error of the database is raised.

    If the database is down or not migrated, `mailglass_reconcile_up` is 0, and nothing else is there.
    """
    try:
        return render(families(collect(database)))
    except MailglassReconcileError as error:
        return report_down(error)


def report_down(reason: object) -> bytes:
    """Log why there are no metrics, and return `mailglass_reconcile_up` as 0."""
    logger.warning("no metrics: %s", reason)
    return render(families(None))


def families(snapshot: MetricsSnapshot | None) -> Iterator[Metric]:
    """Yield each metric; without a snapshot only `up`."""
    up = "1 if the database can be read; 0 if it is down, slow (over 2 s) or not migrated, then without other metrics"
    yield GaugeMetricFamily(PREFIX + "up", up, float(snapshot is not None))
    if snapshot is not None:
        yield from _history(snapshot)
        yield from _backlog(snapshot)
        yield from _surroundings(snapshot)


def _history(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    runs: dict[tuple[str, str], int] = {(kind, status): 0 for kind in KINDS for status in RUN_STATUSES}
    milliseconds: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    orphans, messages = dict.fromkeys(map(str, OUTCOMES), 0), {"published": 0, "failed": 0}
    unchecked = 0
    expired = {"found": 0, "none": 0}
    for kind, status, counts in snapshot.totals:
        runs[kind, status] = counts["runs"]
        milliseconds[kind] += counts["duration_ms"]
        if kind == "prune":
            expired["none"] += counts["unmatched"]
            expired["found"] += counts["expired"] - counts["unmatched"]
            continue
        for state in OUTCOMES:
            orphans[state] += counts[state]
        unchecked += counts["linked_unchecked"]
        messages["published"] += counts["published"]
        messages["failed"] += counts["publish_failed"]
    help_ = "Sweeps, prunes and dispatches of handlers that have ended, by `kind` and `status`"
    yield make_counter("runs", help_, ("kind", "status"), runs.items())
    seconds = {kind: duration_ms / 1000 for kind, duration_ms in milliseconds.items()}
    help_ = "Seconds that sweeps, prunes and dispatches of handlers have taken, by `kind`"
    yield make_counter("run_seconds", help_, ("kind",), samples_by_label(seconds))
    help_ = "Webhook events checked by sweeps, by `outcome`; an event that stays open is counted by each sweep"
    yield make_counter("orphans", help_, ("outcome",), samples_by_label(orphans))
    help_ = "Webhook events linked by their message id alone, because their recipient could not be read"
    yield make_counter("linked_unchecked", help_, (), [((), unchecked)])
    help_ = (
        "Webhook events that expired without a link, by `delivery`: `found` if a delivery has one of their ids, else"
        " `none`, such as for mail of other software"
    )
    yield make_counter("expired_orphans", help_, ("delivery",), samples_by_label(expired))
    help_ = "Broadcasts of sweeps, by `outcome`: `published`, or `failed` if Redis did not take them"
    yield make_counter("messages", help_, ("outcome",), samples_by_label(messages))
    help_ = "Unix time in seconds when a run last ended well, by `kind`; 0 for `full` if no full sweep ever has"
    last_success = snapshot.history.last_success
    success = {"full": 0.0, **{kind: _epoch(time) for kind, time in last_success.items()}}
    yield make_gauge("last_success_timestamp_seconds", help_, ("kind",), samples_by_label(success))


def _backlog(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    history = snapshot.history
    states = {**dict.fromkeys(("unmatched", *REASONS), 0), **count_by_state(history.groups or [])}
    help_ = "Webhook events without a link past their grace period, as of the last full sweep, by `state`"
    yield make_gauge("open_orphans", help_, ("state",), samples_by_label(states))
    help_ = f"Unix time in seconds when a full sweep last counted {PREFIX}open_orphans; NaN if none ever has"
    counted_at = None if history.counted_at is None else _epoch(history.counted_at)
    yield _single("open_orphans_counted_timestamp_seconds", help_, counted_at)
    help_ = "Webhook events without a link that arrived after the last full sweep; at most 100,000 are counted"
    yield _single("newer_orphans", help_, snapshot.newer.orphans)
    help_ = (
        "Unix time in seconds since when the oldest open event could have been linked: its delivery exists, or no sweep"
        " has checked it since its grace period; NaN without such an event"
    )
    linkable_since = _epoch(history.now) - snapshot.lag_seconds if snapshot.lag_seconds else None
    yield _single("linkable_since_timestamp_seconds", help_, linkable_since)


def _surroundings(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    help_ = "Problems found by the doctor's fast checks, by `check` and `status`: `error` or `warning`"
    names = [check.name for check in checks.CHECKS if check.is_fast]
    findings = dict.fromkeys(((name, status) for name in names for status in LEVELS), 0)
    for finding in snapshot.findings:
        findings[finding.check, finding.status] += 1
    yield make_gauge("findings", help_, ("check", "status"), findings.items())
    help_ = "1 if the triggers on mailglass_events that store open events exist and are enabled, else 0"
    yield _single("triggers_present", help_, snapshot.triggers)
    jobs = {"waiting": snapshot.outbox.waiting, "failing": snapshot.outbox.failing, "dead": snapshot.outbox.dead}
    help_ = (
        "Jobs, one for each handler and event, by `state`: `waiting`, `failing` (for the third time or more), `dead`"
    )
    yield make_gauge("handler_jobs", help_, ("state",), samples_by_label(jobs))
    help_ = "Seconds for which the oldest waiting job of a handler has been due; 0 without one"
    yield _single("handler_overdue_seconds", help_, max(0.0, snapshot.outbox.overdue_seconds))


def _epoch(time: str) -> float:
    """Return a time in seconds since 1970."""
    return dt.datetime.fromisoformat(time).timestamp()


def _single(name: str, help_: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, help_, math.nan if value is None else float(value))
