"""The command `follow` as a process, and what it has said so far."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import factories
from commands import conforming
from waiting import wait_until

PATIENCE = 30


class Following:
    """A running `follow --json`."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes]) -> None:
        """Read its output from files."""
        self.process = process
        self._out = out
        self._err = err

    @property
    def swept(self) -> list[dict[str, Any]]:
        """The sweeps that did something."""
        return conforming("sweep", "\n".join(_lines(self._out)))

    @property
    def said(self) -> list[str]:
        """The lines on standard error."""
        return _lines(self._err)

    def linked(self) -> int:
        """How many orphans it says it has linked."""
        return sum(one["linked"] for one in self.swept)

    def says(self, words: str, times: int = 1) -> None:
        """Wait until that many lines on standard error have these words."""
        wait_until(lambda: len([line for line in self.said if words in line]) == times, PATIENCE)

    def ends(self, number: int | None = None) -> int:
        """Send it a signal, if one is given, and return its exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def following(
    environment: Mapping[str, str], *options: str, program: str | None = None, cwd: Path | None = None
) -> Iterator[Following]:
    """Run `follow --json` while the block does; SIGTERM ends it, and it must have ended cleanly."""
    command = ["-m", program] if program else ["-P", "-m", "mailglass_reconcile", "follow", "--json", *options]
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read after the block, too
    # A child inherits SIG_IGN, which a background process may have.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, *command], env=dict(environment), stdout=out, stderr=err, cwd=cwd)
    signal.signal(signal.SIGINT, before)
    try:
        made = Following(process, out, err)
        yield made
        if process.poll() is None:
            code = made.ends(signal.SIGTERM)
            assert code == 0, (code, made.said)
    finally:
        process.kill()
        process.wait()


def _lines(file: IO[bytes]) -> list[str]:
    """Return the whole lines that a process has written; the place at which it writes is not moved."""
    return os.pread(file.fileno(), 1 << 24, 0).decode().rpartition("\n")[0].splitlines()


def new_pairs(db: Any, orphans: int, *, age_seconds: float = 0) -> None:
    """Insert orphans that have just arrived, and their deliveries, in one transaction."""
    ids = [factories.new_id() for _ in range(orphans)]
    factories.insert(
        db,
        [factories.delivery_row(one) for one in ids],
        [factories.orphan_row(factories.postmark(one), age_seconds=age_seconds) for one in ids],
    )
