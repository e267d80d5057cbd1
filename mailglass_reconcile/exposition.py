"""Prometheus's text format: what the dashboard's metrics and the receiver's share; needs an extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "mailglass_reconcile_"

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values, each with its labels' values."""
Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def text(families: Iterable[Metric]) -> bytes:
    """Return some metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry)


def counter(name: str, help_: str, labels: tuple[str, ...], samples: Samples) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(PREFIX + name, help_, labels=labels), samples)


def gauge(name: str, help_: str, labels: tuple[str, ...], samples: Samples, prefix: str = PREFIX) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(prefix + name, help_, labels=labels), samples)


def keyed(values: Mapping[str, float]) -> Samples:
    """Return samples with one label each."""
    return [((key,), value) for key, value in values.items()]


def _filled(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
