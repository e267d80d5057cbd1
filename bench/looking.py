"""What an operator and a monitor open: the overview of the page, and `status --check`, in processes of their own."""

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

from bench.machine import Machine

REFRESH_SECONDS = 5.5
"""Longer than the page keeps an answer."""
TOKEN = secrets.token_urlsafe(24)
SIGNED_IN = {"authorization": f"Bearer {TOKEN}"}
HAS_PROBLEMS = 1
"""What `status --check` ends with if something needs a person."""


def overview(machine: Machine, url: str) -> float:
    """Return the seconds that the overview takes, the median of some that are not kept from the one before."""
    with (
        _serving(machine, url) as address,
        httpx.Client(base_url=address, headers=SIGNED_IN, timeout=240) as client,
    ):
        client.get("").raise_for_status()  # compiles the templates
        taken = []
        for _ in range(machine.rounds):
            time.sleep(REFRESH_SECONDS / machine.scale)
            began = time.monotonic()
            client.get("").raise_for_status()
            taken.append(time.monotonic() - began)
    return statistics.median(taken)


def check(machine: Machine, url: str) -> float:
    """Return the seconds that `status --check` takes, the start of Python included."""
    taken = []
    for _ in range(machine.rounds):
        began = time.monotonic()
        command = [sys.executable, "-m", "mailglass_reconcile", "status", "--check"]
        done = subprocess.run(command, env=machine.environment(url), capture_output=True, text=True, check=False)
        taken.append(time.monotonic() - began)
        if done.returncode not in (0, HAS_PROBLEMS):
            raise SystemExit(f"status --check: {done.stderr}")
    return statistics.median(taken)


@contextmanager
def _serving(machine: Machine, url: str) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address."""
    command = [sys.executable, "-m", "mailglass_reconcile", "serve", "--port", "0"]
    environment = {**machine.environment(url), "MAILGLASS_WEB_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            yield re.findall(r"http://\S+/", line)[0]
        finally:
            process.terminate()
