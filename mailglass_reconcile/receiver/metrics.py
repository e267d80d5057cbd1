"""The counters of a receiver's process for Prometheus; needs the extra `webhooks`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from mailglass_reconcile import exposition, telemetry

CONTENT_TYPE = exposition.CONTENT_TYPE


def scrape() -> bytes:
    """Return the counters in Prometheus's text format."""
    return exposition.render(families())


def families() -> Iterator[Metric]:
    """Yield each metric."""
    help_ = (
        "POST requests to this receiver, by `provider` (`unknown` for any other name) and `result`: `received`"
        " (answered with 200), `refused` (wrong signature, a body that cannot be read, 404 without a secret), `failed`"
        " (the provider was asked to send it again)"
    )
    results = sorted(telemetry.counts_of_providers("webhooks").items())
    yield exposition.make_counter("webhooks", help_, ("provider", "result"), results)
    help_ = (
        "Webhook events with neither a message id nor a recipient, by `provider` and `type`: the provider has changed"
        " its format"
    )
    warnings = sorted(telemetry.counts_of_providers("format_warnings").items())
    yield exposition.make_counter("webhook_format_warnings", help_, ("provider", "type"), warnings)
    help_ = "Sends and webhooks that this process could not record, by `cause`, the class of the error"
    failures = exposition.samples_by_label(telemetry.counts("recording_failures"))
    yield exposition.make_counter("recording_failures", help_, ("cause",), failures)
    help_ = "Broadcasts of this process, by `outcome`: `published`, or `failed` if Redis did not take them"
    yield exposition.make_counter(
        "messages", help_, ("outcome",), exposition.samples_by_label(telemetry.counts("messages"))
    )
