"""The samples of `/metrics`."""

import uuid
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from factories import delivery_row
from mailglass_reconcile import exposition
from mailglass_reconcile.web import metrics

Labels = tuple[tuple[str, str], ...]


def scrape(db: Any) -> dict[tuple[str, Labels], float]:
    """Return all samples by name, without its prefix, and labels."""
    return parse_samples(metrics.scrape(db.database))


def parse_samples(text: bytes) -> dict[tuple[str, Labels], float]:
    """Return the samples of a text."""
    return {
        (sample.name.removeprefix(exposition.PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    """Return one sample."""
    return samples[name, tuple(sorted(labels.items()))]


def delivery_of(db: Any, message_id: str, minutes_ago: float, **columns: Any) -> dict[str, Any]:
    """Return a delivery whose id was generated *minutes_ago* by the database's clock."""
    now_ms = db.value("SELECT (extract(epoch FROM now()) * 1000)::bigint")
    milliseconds = f"{int(now_ms - minutes_ago * 60_000):012x}"
    delivery_id = str(uuid.UUID(milliseconds + "7" + uuid.uuid4().hex[13:]))
    return delivery_row(message_id, id=delivery_id, **columns)
