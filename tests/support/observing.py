"""OpenTelemetry's SDK for tests: in memory for this process, in files for a worker's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from mailglass_reconcile import telemetry


class Observed:
    """The telemetry of this process."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider(metric_readers=[self._reader]))

    def spans(self) -> list[ReadableSpan]:
        """Return the spans that have ended."""
        return list(self._exporter.get_finished_spans())

    def span_attributes(self) -> list[dict[str, Any]]:
        """Return the attributes of each of our spans."""
        return [dict(span.attributes or {}) for span in self.spans() if span.name.startswith(telemetry.NAME)]

    def metrics(self) -> dict[str, Any]:
        """Return all metrics by name, with units and points."""
        data = json.loads(text) if (text := self._metrics()) else {"resource_metrics": []}
        scopes = [scope for resource in data["resource_metrics"] for scope in resource["scope_metrics"]]
        return {metric["name"]: metric for scope in scopes for metric in scope["metrics"]}

    def counts(self, name: str) -> dict[str, int]:
        """Return a counter's values by its only attribute."""
        metric = self.metrics().get(f"{telemetry.NAME}.{name}")
        return values(metric["data"]["data_points"]) if metric else {}

    def text(self) -> str:
        """Return all telemetry as one text."""
        return "\n".join([*(span.to_json() for span in self.spans()), self._metrics() or ""])

    def _metrics(self) -> str | None:
        data = self._reader.get_metrics_data()
        return None if data is None else data.to_json()


def values(points: list[dict[str, Any]]) -> dict[str, int]:
    """Return the values of a counter's points by their only attribute."""
    return {attribute: point["value"] for point in points for attribute in point["attributes"].values()}


def read_exports(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return what the processes of `observed_worker` have exported: `spans`, or the last `metrics` of each."""
    documents: list[dict[str, Any]] = []
    for file in folder.glob(f"{kind}.*"):
        text = file.read_text().rpartition("\n")[0]  # the last line may be incomplete
        lines = [json.loads(line) for line in text.splitlines()]
        documents += lines if kind == "spans" else lines[-1:]
    return documents


def tasks(folder: Path) -> set[str]:
    """Return the ids of the spans of tasks that have been exported."""
    return {span["context"]["span_id"] for span in read_exports(folder, "spans") if span["name"].startswith("run/")}


@pytest.fixture
def observed() -> Iterator[Observed]:
    """Set up the SDK as an application does, for this test only."""
    _forget()
    yield Observed()
    _forget()


def _forget() -> None:
    """Reset the globals that OpenTelemetry sets once per process."""
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
    metrics_internal._METER_PROVIDER, metrics_internal._METER_PROVIDER_SET_ONCE = None, Once()
    metrics_internal._PROXY_METER_PROVIDER = metrics_internal._ProxyMeterProvider()
    telemetry._tracer.cache_clear()
    telemetry._instruments.cache_clear()
