"""The command in a process of its own, on a test's database."""

import subprocess
import sys
from typing import Any


def run(db: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and more of an environment, and return what it did; it must succeed."""
    done = finished(db, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done


def finished(db: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and more of an environment, and return what it did, well or not."""
    redis_url = db.settings.redis_url.get_secret_value()
    return subprocess.run(
        [sys.executable, "-c", "from mailglass_reconcile.cli import main; main()", *arguments],
        env={**db.environment(redis_url), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
