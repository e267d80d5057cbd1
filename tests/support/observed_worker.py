"""The bundled Celery app with OpenTelemetry, as docs/monitoring.md says: `celery -A observed_worker worker`.

Each process of the pool writes into files of its own in the folder OBSERVED, after each task.
"""

import os
from pathlib import Path

from celery.signals import task_postrun, worker_process_init
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from mailglass_reconcile.celery import app  # noqa: F401 - Celery looks for it here

folder = Path(os.environ["OBSERVED"])


@worker_process_init.connect(weak=False)
def observe(**unused: object) -> None:
    """Set up the providers in the child, because those made before the fork would export the parent's counts again."""
    files = {kind: (folder / f"{kind}.{os.getpid()}").open("a") for kind in ("spans", "metrics")}
    tracers = TracerProvider()
    tracers.add_span_processor(
        BatchSpanProcessor(
            ConsoleSpanExporter(out=files["spans"], formatter=lambda span: span.to_json(indent=None) + "\n")
        )
    )
    trace.set_tracer_provider(tracers)
    exporter = ConsoleMetricExporter(
        out=files["metrics"], formatter=lambda data: data.to_json(indent=None).replace("\n", "") + "\n"
    )
    meters = MeterProvider(metric_readers=[PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)])
    metrics.set_meter_provider(meters)
    CeleryInstrumentor().instrument()

    def flush(**unused: object) -> None:
        meters.force_flush()
        tracers.force_flush()  # last, so that a test that waits for a task's span finds everything

    task_postrun.connect(flush, weak=False)
