"""A copy of this checkout, frozen by `make freeze`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mailglass_reconcile

ROOT = Path(__file__).parents[2]
VERSION = mailglass_reconcile.__version__
IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")


def copy_checkout(folder: Path) -> None:
    """Copy the files of this checkout into a clean repository in *folder*."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no Git repository")
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(("git", "init", "--quiet"), cwd=folder, check=True)
    commit(folder)


def commit(folder: Path) -> None:
    """Commit everything in a copy."""
    for arguments in (("add", "--all"), (*IDENTITY, "commit", "--quiet", "--message", "A copy")):
        subprocess.run(("git", *arguments), cwd=folder, check=True)


def freeze(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what `make freeze` runs."""
    return subprocess.run(
        (sys.executable, ".ci/freeze.py", VERSION),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def is_frozen(folder: Path) -> bool:
    """Return True if a checkout was frozen for its version."""
    return f"\n## {VERSION} (to be released)\n" not in (folder / "CHANGELOG.md").read_text()
