"""What a receiver has counted, in Prometheus's text format.

The format has few rules (https://prometheus.io/docs/instrumenting/exposition_formats), and the receiver's packages have
no library for it, so it is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mailglass_reconcile import telemetry
from mailglass_reconcile.webhooks import formats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Counts = Mapping[tuple[str, str], int]


def exposition(results: Counts) -> str:
    """Return what this process has counted since it started."""
    described = "Events of a known type with neither a message id nor a recipient"
    failed = "Sends and webhooks that were not recorded, by cause"
    messages = "Broadcasts of this process that Redis took, and those that it did not"
    lines = [
        *_counter("webhooks", "Webhooks, by provider and result", ("provider", "result"), results),
        *_counter("webhook_format_warnings", described, ("provider", "type"), formats.counts()),
        *_counter("recording_failures", failed, ("cause",), _keyed(telemetry.counts("recording_failures"))),
        *_counter("messages", messages, ("outcome",), _keyed(telemetry.counts("messages"))),
    ]
    return "\n".join(lines)


def _keyed(counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(value,): number for value, number in counts.items()}


def _counter(name: str, description: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> Iterator[str]:
    """Yield the lines of a counter; its values are names of providers and words of ours, which need no escaping."""
    full = f"{telemetry.NAME}_{name}_total"
    yield f"# HELP {full} {description}"
    yield f"# TYPE {full} counter"
    for values, number in sorted(counts.items()):
        pairs = ",".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
        yield f"{full}{{{pairs}}} {number}"
