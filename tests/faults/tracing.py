"""Killing a process at one of its system calls, by strace."""

import shutil
import subprocess
from functools import cache


@cache
def may_trace() -> bool:
    """Whether strace is there and may trace."""
    path = shutil.which("strace")
    return path is not None and subprocess.run([path, "-f", "-o", "/dev/null", "true"], check=False).returncode == 0


def killed(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a sweep was killed, and did not end by itself."""
    assert done.returncode in (0, -9, 137), done.stderr
    return done.returncode != 0
