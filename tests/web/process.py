"""`mailglass-reconcile serve` as a process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(url: str, redis_url: str, *arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Serve a database on a free port while the block runs; yields the process and its address."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mailglass_reconcile", "serve", "--port", "0", *arguments],
        env={**others, "MAILGLASS_DATABASE_URL": url, "MAILGLASS_REDIS_URL": redis_url, **more},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        said = re.fullmatch(r"serving on (http://\S+/); press Ctrl-C to stop\n", line)
        assert said, line + process.stderr.read()
        yield process, said[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
