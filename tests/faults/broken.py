"""`python -m faults.broken [--jobs N] [words]`: breaks a copy of the package, and shows whether the break's test fails.

With *words*, only the breaks whose names hold them; N breaks are tried at once, by default one per core. The exit code
is 1 if a break was not caught.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.breaks import BREAKS, Break

ROOT = Path(__file__).parent.parent.parent
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "faults.unshrunk", "--timeout=120")
COPIED = (
    ".ci",
    "alembic",
    "docs",
    "examples",
    "mailglass_reconcile",
    "tests",
    ".dockerignore",
    ".gitignore",
    "docker-compose.yml",
    "Dockerfile",
    "hatch_build.py",
    "pyproject.toml",
    "README.md",
)


def find_outdated_files(broken: Break) -> list[str]:
    """Return the files in which the text of this break does not occur exactly once."""
    return [file for file, old, _ in broken.edits if (ROOT / file).read_text().count(old) != 1]


def caught_by(broken: Break) -> str | None:
    """Break a copy, run the test that should fail, and return it with its parameters if it did."""
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
            (copy / file).write_text(text.replace(old, new))
        path = (copy, copy / "tests", copy / "tests" / "support")
        run = subprocess.run(
            [sys.executable, *PYTEST, f"tests/{broken.test}"],
            cwd=copy,
            # The copy comes before the installed package, also in processes that a test starts.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "MAILGLASS_SCHEDULES": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        match = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
        assert (run.returncode == 0) == (match is None), run.stdout
        assert "Timeout (>" not in run.stdout, f"{broken.name}: a test hangs instead of failing\n{run.stdout}"
        return match and match[1]


def main(words: str, jobs: int) -> int:
    """Print the table, each line as soon as it and those before it are known."""
    chosen = [broken for broken in BREAKS if words in broken.name]
    stale = [broken.name for broken in chosen if find_outdated_files(broken)]
    assert not stale, f"these breaks do not match the code: {stale}"
    print("| broken on purpose | caught by |\n|---|---|")
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for broken, test in zip(chosen, pool.map(caught_by, chosen), strict=True):
            missed += test is None
            print(f"| {broken.name} | {f'`{test}`' if test else '**not caught**'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="faults.broken")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    sys.exit(main(" ".join(arguments.words), arguments.jobs))
