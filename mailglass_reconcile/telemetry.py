"""Spans and metrics that sweeps, dispatches and recordings report to OpenTelemetry, if the application has set it up.

Only the attributes listed here are reported, with numbers, tenant ids and our own constants, but no values of rows and
no texts of errors. Without an SDK this costs a sweep some microseconds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace

from mailglass_reconcile import __version__, errors
from mailglass_reconcile.rules import states

if TYPE_CHECKING:
    from opentelemetry import metrics

NAME = "mailglass_reconcile"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.30.0"

SPAN_ATTRIBUTES = frozenset(
    {
        "mailglass.tenant_id",
        "mailglass.scanned_count",
        "mailglass.linked_count",
        "mailglass.remaining_orphan_count",
        "mailglass.status",
        "mailglass.kind",
        "mailglass.handled_count",
        "mailglass.failed_count",
        "mailglass.dead_count",
        "error.type",
    }
)
METRIC_ATTRIBUTES = {
    "orphans": ("outcome", frozenset({*states.OUTCOMES, "expired"})),
    "messages": ("outcome", frozenset({"published", "failed"})),
    "sweeps": ("status", frozenset(states.RUN_STATUSES)),
    "recording_failures": ("cause", frozenset(name for name in vars(errors) if name.endswith("Error"))),
}
"""The only attribute of each counter, and its allowed values; others are not counted."""

DURATION_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0)
LAG_SECONDS = (0.1, 0.5, 1.0, 5.0, 60.0, 120.0, 300.0, 360.0, 600.0, 900.0, 1_800.0, 3_600.0, 86_400.0, 604_800.0)

Span = trace.Span

_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()
_counts_of_providers: dict[str, Counter[tuple[str, str]]] = {"format_warnings": Counter(), "webhooks": Counter()}
Value = str | int | None


class _Instruments(NamedTuple):
    orphans: metrics.Counter
    sweeps: metrics.Counter
    messages: metrics.Counter
    recording_failures: metrics.Counter
    format_warnings: metrics.Counter
    webhooks: metrics.Counter
    duration: metrics.Histogram
    lag: metrics.Histogram


@cache
def _tracer() -> trace.Tracer:
    return trace.get_tracer(NAME, __version__, schema_url=SCHEMA_URL)


@cache
def _instruments() -> _Instruments:
    from opentelemetry import metrics  # noqa: PLC0415 - loading it takes 30 ms, and most commands count nothing

    return make_instruments(metrics.get_meter(NAME, __version__, schema_url=SCHEMA_URL))


def make_instruments(meter: metrics.Meter) -> _Instruments:
    """Create each instrument."""
    return _Instruments(
        orphans=meter.create_counter(
            f"{NAME}.orphans",
            "{orphan}",
            "Events by `outcome`: the result of a sweep, or `expired` by the prune; one that stays open is counted by"
            " each sweep",
        ),
        sweeps=meter.create_counter(
            f"{NAME}.sweeps", "{sweep}", "Sweeps by `status`: `ok`, `partial`, `failed`, `duplicate`"
        ),
        messages=meter.create_counter(
            f"{NAME}.messages",
            "{message}",
            "Broadcasts by `outcome`: `published`, or `failed` if Redis did not take them",
        ),
        recording_failures=meter.create_counter(
            f"{NAME}.recording_failures",
            "{failure}",
            "Sends and webhooks that were not recorded, in any process, by `cause`",
        ),
        format_warnings=meter.create_counter(
            f"{NAME}.webhook_format_warnings",
            "{event}",
            "Events of a known type with neither a message id nor a recipient, by `provider` and `type`: the provider"
            " has changed its format",
        ),
        webhooks=meter.create_counter(
            f"{NAME}.webhooks",
            "{webhook}",
            "POST requests by `provider`, `unknown` for any other name, and `result`: `received`, `refused`, `failed`"
            " (the provider was asked to send it again)",
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
            "From an event's arrival to its link by a sweep",
            explicit_bucket_boundaries_advisory=LAG_SECONDS,
        ),
    )


@contextmanager
def span(name: str, start_time: int | None = None) -> Iterator[Span]:
    """Run the block in the span `mailglass_reconcile.<name>`; an error is reported by its class only."""
    with _tracer().start_as_current_span(
        f"{NAME}.{name}", start_time=start_time, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            set_attributes(current, {}, error=type(error).__name__)
            raise


def set_attributes(current: Span, attributes: Mapping[str, Value], error: str | None = None) -> None:
    """Set a span's attributes, named without their namespace, that are allowed and not None.

    With *error*, the name of a class, mark the span as failed.
    """
    if not current.is_recording():
        return
    values = {**{f"mailglass.{name}": value for name, value in attributes.items()}, "error.type": error}
    current.set_attributes(
        {name: value for name, value in values.items() if name in SPAN_ATTRIBUTES and value is not None}
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
    """Return a counter's value since the start of this process, for each value of its attribute."""
    with _lock:
        return {value: _counts[name, value] for value in sorted(METRIC_ATTRIBUTES[name][1])}


def count_sweep(status: str, duration_ms: int | None = None) -> None:
    """Count a sweep by its status, and record its duration if it started."""
    _count("sweeps", {status: 1})
    if duration_ms is not None:
        _instruments().duration.record(duration_ms / 1000)


def count_format_warning(provider: str, type_: str) -> None:
    """Count an event in a format that its provider seems to have changed."""
    _count_of_provider("format_warnings", provider, "type", type_)


def count_webhook(provider: str, result: str) -> None:
    """Count a webhook by its provider, or `unknown`, and its result: `received`, `refused` or `failed`."""
    _count_of_provider("webhooks", provider, "result", result)


def counts_of_providers(name: str) -> dict[tuple[str, str], int]:
    """Return a counter's values since the start of this process, by provider and the other attribute."""
    with _lock:
        return dict(_counts_of_providers[name])


def record_lags(seconds: Iterable[float]) -> None:
    """Record the lag of each link: the seconds between its orphan's arrival and the link."""
    histogram = _instruments().lag
    for lag in seconds:
        histogram.record(max(0.0, lag))


def _count(name: str, numbers: Mapping[str, int]) -> None:
    counter: metrics.Counter = getattr(_instruments(), name)
    attribute, values = METRIC_ATTRIBUTES[name]
    for value, number in numbers.items():
        if number and value in values:
            counter.add(number, {attribute: value})
            with _lock:
                _counts[name, value] += number


def _count_of_provider(name: str, provider: str, attribute: str, value: str) -> None:
    counter: metrics.Counter = getattr(_instruments(), name)
    counter.add(1, {"provider": provider, attribute: value})
    with _lock:
        _counts_of_providers[name][provider, value] += 1
