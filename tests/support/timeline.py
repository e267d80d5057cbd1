"""Scrapes as a history over which promtool evaluates the alert rules."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

import scraping
from mailglass_reconcile.exposition import PREFIX
from waiting import PATIENCE

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = MONITORING / "alerts.yml"
FIRING = 'group by (alertname) (ALERTS{alertstate="firing"})'
LONG_AGO = -1e9
NO_SAMPLES: dict[Any, float] = {}

has_promtool = shutil.which("promtool") is not None
needs_promtool = pytest.mark.skipif(not has_promtool, reason="needs promtool (apt-get install promtool)")


def promtool(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run promtool, and return its result."""
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


class Timeline:
    """Scrapes of a running system, each of which holds until the next, minute by minute.

    Promtool's time begins at 0. Times in a scrape keep their age in the minute in which it was taken, and then stand
    still, as they do in a database in which nothing happens.
    """

    def __init__(self, db: Any, folder: Path) -> None:
        self._db, self._folder = db, folder
        self._minutes: list[dict[Any, float]] = []

    def scrape(self, minutes: int = 5) -> dict[Any, float]:
        """Scrape, let the samples hold for some minutes, and return them."""
        samples = scraping.scrape(self._db)
        self.add(samples, minutes)
        return samples

    def add(self, samples: dict[Any, float], minutes: int) -> None:
        """Let a new scrape hold for some minutes; an empty one is a target that is down."""
        shift = len(self._minutes) * 60 - time.time()
        moved = {(name, labels): _shift_timestamp(name, value, shift) for (name, labels), value in samples.items()}
        self._minutes += [moved] * minutes

    def hold(self, minutes: int) -> None:
        """Let some minutes pass in which nothing changes."""
        self._minutes += self._minutes[-1:] * minutes

    def check_alerts(self, *alerts: str, perhaps: str = "") -> None:
        """Check that exactly these alerts, by the end of their names, fire at the end, and *perhaps* another."""
        expected = [{"labels": f'{{alertname="MailglassReconcile{name}"}}', "value": 1} for name in sorted(alerts)]
        last = f"{len(self._minutes) - 1}m"
        firing = FIRING.replace("}", f', alertname!="MailglassReconcile{perhaps}"}}')
        test = {"expr": firing, "eval_time": last, "exp_samples": expected}
        file = self._folder / "test.json"  # JSON is YAML, too
        file.write_text(
            json.dumps(
                {
                    "rule_files": [str(RULES)],
                    "evaluation_interval": "1m",
                    "tests": [{"interval": "1m", "input_series": self._series(), "promql_expr_test": [test]}],
                }
            )
        )
        result = promtool("test", "rules", str(file))
        assert result.returncode == 0, result.stdout + result.stderr

    def _series(self) -> list[dict[str, str]]:
        keys = {key: None for scrape in self._minutes for key in scrape}
        return [
            {
                "series": f"{PREFIX}{name}{{{_labels((*labels, ('instance', 'web'), ('job', 'mailglass')))}}}",
                "values": " ".join(_number(scrape.get((name, labels))) for scrape in self._minutes),
            }
            for name, labels in keys
        ]


def _shift_timestamp(name: str, value: float, shift: float) -> float:
    if not name.endswith("_timestamp_seconds"):
        return value
    return LONG_AGO if value == 0 else value + shift


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels)


def _number(value: float | None) -> str:
    if value is None:
        return "stale"
    return "NaN" if math.isnan(value) else repr(float(value))


def rules() -> list[dict[str, Any]]:
    """Return the rules of the file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
