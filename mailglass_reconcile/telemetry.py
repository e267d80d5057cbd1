"""Spans and metrics: what a sweep and a dispatch report to OpenTelemetry, if the application has set it up.

Only the names listed here are reported, with numbers, ids of tenants and words of our own: no value of a row, no text
of an error. Without an SDK a sweep pays some microseconds for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from opentelemetry import metrics, trace

from mailglass_reconcile import __version__, errors
from mailglass_reconcile.rules import states

NAME = "mailglass_reconcile"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.30.0"

SPAN_ATTRIBUTES = frozenset(
    {
        "tenant_id",
        "scanned_count",
        "linked_count",
        "remaining_orphan_count",
        "status",
        "kind",
        "handled_count",
        "failed_count",
        "dead_count",
        "error.type",
    }
)
METRIC_ATTRIBUTES = {
    "orphans": ("outcome", frozenset({*states.OUTCOMES, "expired"})),
    "messages": ("outcome", frozenset({"published", "failed"})),
    "sweeps": ("status", frozenset(states.RUN_STATUSES)),
    "recording_failures": ("cause", frozenset(name for name in vars(errors) if name.endswith("Error"))),
}
"""The only attribute of each counter, and its values; anything else is not counted."""

DURATION_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0)
LAG_SECONDS = (0.1, 0.5, 1.0, 5.0, 60.0, 120.0, 300.0, 360.0, 600.0, 900.0, 1_800.0, 3_600.0, 86_400.0, 604_800.0)

Span = trace.Span

_lock = threading.Lock()
_counted: Counter[tuple[str, str]] = Counter()
Value = str | int | None


class _Instruments(NamedTuple):
    orphans: metrics.Counter
    sweeps: metrics.Counter
    messages: metrics.Counter
    recording_failures: metrics.Counter
    format_warnings: metrics.Counter
    duration: metrics.Histogram
    lag: metrics.Histogram


@cache
def _tracer() -> trace.Tracer:
    return trace.get_tracer(NAME, __version__, schema_url=SCHEMA_URL)


@cache
def _instruments() -> _Instruments:
    meter = metrics.get_meter(NAME, __version__, schema_url=SCHEMA_URL)
    return _Instruments(
        orphans=meter.create_counter(
            f"{NAME}.orphans", "{orphan}", "Orphans that sweeps checked or the prune removed, by outcome"
        ),
        sweeps=meter.create_counter(f"{NAME}.sweeps", "{sweep}", "Sweeps, by how they ended"),
        messages=meter.create_counter(f"{NAME}.messages", "{message}", "Messages that Redis took, and that it did not"),
        recording_failures=meter.create_counter(
            f"{NAME}.recording_failures", "{failure}", "Sends and webhooks that were not recorded, by cause"
        ),
        format_warnings=meter.create_counter(
            f"{NAME}.webhook_format_warnings", "{event}", "Webhook events of a known type without an id and a recipient"
        ),
        duration=meter.create_histogram(
            f"{NAME}.sweep.duration",
            "s",
            "How long sweeps took",
            explicit_bucket_boundaries_advisory=DURATION_SECONDS,
        ),
        lag=meter.create_histogram(
            f"{NAME}.link.lag",
            "s",
            "From an orphan's arrival to its link by a sweep",
            explicit_bucket_boundaries_advisory=LAG_SECONDS,
        ),
    )


@contextmanager
def span(name: str, start_time: int | None = None) -> Iterator[Span]:
    """Run the block in the span `mailglass_reconcile.<name>`; of an error, only the class is reported."""
    with _tracer().start_as_current_span(
        f"{NAME}.{name}", start_time=start_time, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            describe(current, {}, error=type(error).__name__)
            raise


def describe(current: Span, attributes: Mapping[str, Value], error: str | None = None) -> None:
    """Set those of *attributes* that are allowed and not None; *error*, a class's name, makes the span a failed one."""
    if not current.is_recording():
        return
    named = {**attributes, "error.type": error}
    current.set_attributes(
        {name: value for name, value in named.items() if name in SPAN_ATTRIBUTES and value is not None}
    )
    if error is not None:
        current.set_status(trace.StatusCode.ERROR)


def count_orphans(outcomes: Mapping[str, int]) -> None:
    _count("orphans", outcomes)


def count_messages(outcomes: Mapping[str, int]) -> None:
    _count("messages", outcomes)


def count_recording_failure(cause: str) -> None:
    """Count a send or a webhook that was not recorded; *cause* is the name of an error of ours."""
    _count("recording_failures", {cause: 1})


def counts(name: str) -> dict[str, int]:
    """Return what this process has counted since it started, under each value that the counter's attribute may have."""
    with _lock:
        return {value: _counted[name, value] for value in sorted(METRIC_ATTRIBUTES[name][1])}


def count_sweep(status: str, duration_ms: int | None = None) -> None:
    """Count a sweep by how it ended, and note how long it took, if it began."""
    _count("sweeps", {status: 1})
    if duration_ms is not None:
        _instruments().duration.record(duration_ms / 1000)


def count_format_warning(provider: str, type_: str) -> None:
    """Count an event whose provider seems to have changed its format."""
    _instruments().format_warnings.add(1, {"provider": provider, "type": type_})


def note_lags(seconds: Iterable[float]) -> None:
    """Note for each link how many seconds after its orphan's arrival it was made."""
    lag = _instruments().lag
    for each in seconds:
        lag.record(max(0.0, each))


def _count(name: str, numbers: Mapping[str, int]) -> None:
    counter: metrics.Counter = getattr(_instruments(), name)
    attribute, values = METRIC_ATTRIBUTES[name]
    for value, number in numbers.items():
        if number and value in values:
            counter.add(number, {attribute: value})
            with _lock:
                _counted[name, value] += number
