"""The commands of an operator and a monitor: the dashboard's overview, and `status --check`."""

from __future__ import annotations

import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from bench.testbed import Testbed

REFRESH_SECONDS = 5.5
"""Longer than the dashboard caches an answer."""
TOKEN = secrets.token_urlsafe(24)
AUTHORIZATION = {"authorization": f"Bearer {TOKEN}"}
HAS_PROBLEMS = 1
"""The exit code of `status --check` if there are problems."""


def measure_overview(testbed: Testbed, url: str) -> float:
    """Return the median seconds of the overview, without answers from the cache."""
    with (
        _serving(testbed, url) as address,
        httpx.Client(base_url=address, headers=AUTHORIZATION, timeout=240) as client,
    ):
        client.get("").raise_for_status()  # compiles the templates
        durations = []
        for _ in range(testbed.rounds):
            time.sleep(REFRESH_SECONDS / testbed.scale)
            began = time.monotonic()
            client.get("").raise_for_status()
            durations.append(time.monotonic() - began)
    return statistics.median(durations)


def measure_status_check(testbed: Testbed, url: str) -> float:
    """Return the median seconds of `status --check`, including the start of Python."""
    durations = []
    for _ in range(testbed.rounds):
        began = time.monotonic()
        command = [sys.executable, "-m", "mailglass_reconcile", "status", "--check"]
        process_ = subprocess.run(command, env=testbed.environment(url), capture_output=True, text=True, check=False)
        durations.append(time.monotonic() - began)
        if process_.returncode not in (0, HAS_PROBLEMS):
            raise SystemExit(f"status --check: {process_.stderr}")
    return statistics.median(durations)


@contextmanager
def _serving(testbed: Testbed, url: str) -> Iterator[str]:
    """Serve the dashboard while the block runs, and yield its address."""
    command = [sys.executable, "-m", "mailglass_reconcile", "serve", "--port", "0"]
    environment = {**testbed.environment(url), "MAILGLASS_WEB_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            yield re.findall(r"http://\S+/", line)[0]
        finally:
            process.terminate()
