"""`python -m faults.broken [words]`: breaks a copy of the package on purpose, and tells which test caught it.

With *words*, only the breaks whose names hold them. The exit code is 1 where a break was not caught.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults.breaks import BREAKS, Break

ROOT = Path(__file__).parent.parent.parent
COPIED = ("alembic", "examples", "mailglass_reconcile", "tests", "pyproject.toml", "README.md")


def caught_by(broken: Break) -> str | None:
    """Break a copy, run the tests that are to notice, and return the first that failed, or None."""
    with tempfile.TemporaryDirectory(prefix="mailglass-broken-") as directory:
        copy = Path(directory)
        copy.chmod(0o755)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        for file, old, new in broken.edits:
            text = (copy / file).read_text()
            assert text.count(old) == 1, f"{broken.name}: what is to be broken does not stand in {file} once"
            (copy / file).write_text(text.replace(old, new))
        tests = [f"tests/{test}" for test in broken.tests]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=120", *tests],
            cwd=copy,
            env={**os.environ, "MAILGLASS_SCHEDULES": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
        assert (run.returncode == 0) == (found is None), run.stdout
        return found and found[1]


def main(words: str) -> int:
    """Print the table, a line as soon as it is known."""
    print("| broken on purpose | caught by |\n|---|---|")
    missed = 0
    for broken in BREAKS:
        if words in broken.name:
            test = caught_by(broken)
            missed += test is None
            print(f"| {broken.name} | {f'`{test}`' if test else '**not caught**'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
