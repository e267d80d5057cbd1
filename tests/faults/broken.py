"""`python -m faults.broken [--jobs N] [words]`: break copies of the package, and write which test notices each break.

With *words*, only the breaks whose names hold them. N breaks are tried at once, by default one per core. A break is
tried with the test that noticed it before, then with the quick tests of its folders. The exit code is 1 if no test
notices a break.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from faults.breaks import BREAKS, Break

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).with_name("breaks.txt")
HEAD = "# The quick test that notices each break of breaks.py. `make broken` writes this file.\n"
NOT_RUN, SURVIVES = "not run", "SURVIVES"
BUDGET_MINUTES = 45
"""For all breaks, on two idle cores."""
PYTEST = (
    *("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "faults.unshrunk", "--timeout=120"),
    *("-m", "not slow or guard"),
    "--ignore=tests/faults/test_breaks.py",  # A broken copy always fails it, because the break applies no more.
)
FAILED, NOT_FOUND, NONE_SELECTED = 1, 4, 5
"""Exit codes of pytest."""


def read_results() -> dict[str, tuple[str, str]]:
    """Return the digest and the result of each break, by its name."""
    rows = re.findall(r"^(\w{8}) (.+): (.+)$", RESULTS.read_text(), re.MULTILINE)
    return {name: (digest, result) for digest, name, result in rows}


def write_results(results: Mapping[str, str]) -> None:
    """Write the results by the names of the breaks; a break that is missing was not run."""
    rows = (f"{broken.digest} {broken.name}: {results.get(broken.name, NOT_RUN)}\n" for broken in BREAKS)
    RESULTS.write_text(HEAD + "".join(rows))


def occurs_once(broken: Break) -> bool:
    """Return True if the text of a break occurs once in its file."""
    return (ROOT / broken.file).read_text().count(broken.old) == 1


def find_failing_test(broken: Break, known: str | None) -> str | None:
    """Apply a break to a copy, and return the test that fails, without its parameters; None if none does."""
    with tempfile.TemporaryDirectory(prefix="mailglass-broken-") as directory:
        copy = Path(directory)
        copy.chmod(0o755)
        _copy_to(copy)
        file = copy / broken.file
        file.write_text(file.read_text().replace(broken.old, broken.new))
        test = (known and _run(copy, known)) or _run(copy, *broken.folders)
    if test and test != known and _run(ROOT, test):
        raise RuntimeError(f"{test} fails without this break too")
    return test


def _copy_to(copy: Path) -> None:
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)


def _run(root: Path, *tests: str) -> str | None:
    """Run the quick ones of some tests of a tree, and return the first that fails."""
    run = subprocess.run(
        [sys.executable, *PYTEST, *(f"tests/{test}" for test in tests)],
        cwd=root,
        # The tree comes before the installed package, also in processes that a test starts.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests", root / "tests" / "support")))},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode in (0, NOT_FOUND, NONE_SELECTED):
        return None
    failed = re.search(r"^(?:FAILED|ERROR) tests/([^\s\[]+::[^\s\[]+)", run.stdout, re.MULTILINE)
    if run.returncode != FAILED or failed is None:
        raise RuntimeError(run.stdout + run.stderr)
    return failed[1]


def main(words: str, jobs: int) -> int:
    """Try the breaks, and write the results as they come."""
    chosen = [broken for broken in BREAKS if words in broken.name]
    outdated = [broken.name for broken in chosen if not occurs_once(broken)]
    assert not outdated, f"these breaks do not apply: {outdated}"
    digests, written = {broken.name: broken.digest for broken in BREAKS}, read_results()
    results = {name: result for name, (digest, result) in written.items() if digests.get(name) == digest}
    known = {name: result for name, (_, result) in written.items() if "::" in result}
    write_results(results)
    unnoticed = 0
    started_at = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        tried = {pool.submit(find_failing_test, broken, known.get(broken.name)): broken.name for broken in chosen}
        for future in as_completed(tried):
            name, error = tried[future], future.exception()
            results[name] = NOT_RUN if error else future.result() or SURVIVES
            unnoticed += "::" not in results[name]
            write_results(results)
            print(f"{name}: {error or results[name]}", flush=True)
    minutes = (time.monotonic() - started_at) / 60
    print(f"{len(chosen)} of {len(BREAKS)} breaks, {unnoticed} not noticed; {minutes:.1f} min", end=" ")
    print(f"(budget for all, on two idle cores: {BUDGET_MINUTES} min)")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="faults.broken")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    sys.exit(main(" ".join(arguments.words), arguments.jobs))
