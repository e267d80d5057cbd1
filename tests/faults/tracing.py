"""Killing a process at one of its system calls by strace."""

import shutil
import subprocess
from functools import cache


@cache
def may_trace() -> bool:
    """Return True if strace exists and may trace."""
    path = shutil.which("strace")
    return path is not None and subprocess.run([path, "-f", "-o", "/dev/null", "true"], check=False).returncode == 0


def was_killed(result: subprocess.CompletedProcess[str]) -> bool:
    """Return True if a sweep was killed."""
    assert result.returncode in (0, -9, 137), result.stderr
    return result.returncode != 0
