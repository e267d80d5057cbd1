"""Prometheus's text format, for the metrics of the dashboard and of the receiver; needs an extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "mailglass_reconcile_"

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Pairs of label values and a value."""
Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def render(families: Iterable[Metric]) -> bytes:
    """Return metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_StaticCollector(families))
    return generate_latest(registry)


def make_counter(name: str, help_: str, labels: tuple[str, ...], samples: Samples) -> CounterMetricFamily:
    return _add_samples(CounterMetricFamily(PREFIX + name, help_, labels=labels), samples)


def make_gauge(name: str, help_: str, labels: tuple[str, ...], samples: Samples) -> GaugeMetricFamily:
    return _add_samples(GaugeMetricFamily(PREFIX + name, help_, labels=labels), samples)


def samples_by_label(values: Mapping[str, float]) -> Samples:
    """Return samples with one label each."""
    return [((key,), value) for key, value in values.items()]


def _add_samples(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


class _StaticCollector(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
