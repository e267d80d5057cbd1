"""Freeze the schema for a release: `make freeze VERSION=0.1.0` in a clean checkout; commit what it changes.

It gives the first revision the id 0001, writes the digests of the schema and of its revisions, after which a test
refuses to change them, dates the changelog, and names the release for the tests beside the version before.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from version_argument import add_version_argument, find_other_version

ROOT = Path(__file__).resolve().parents[1]
FIRST = re.compile(r"0001[a-z]")
"""The id of the first revision, until it is frozen."""


def main() -> None:
    """Freeze this checkout, or end with exit code 1 and a line for each reason why not."""
    parser = argparse.ArgumentParser(prog="make freeze", description=__doc__)
    add_version_argument(parser)
    version = parser.parse_args().version
    if problems := list(find_problems(ROOT, version)):
        sys.exit("\n".join(f"nothing was changed: {problem}" for problem in problems))
    for old, new in list(rename_first_revision(ROOT)):
        print(f"renamed: {old.relative_to(ROOT)} to {new.name}")
    write_digests(ROOT)
    date_changelog(ROOT, version)
    (ROOT / "tests" / "support" / "last_release").write_text(f"v{version}\n")
    print(f"frozen for {version}: commit what `git status` lists, then run `make release VERSION={version}`")


def find_problems(root: Path, version: str) -> Iterator[str]:
    """Yield what keeps a checkout from being frozen as a version, a sentence each."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if status.returncode or status.stdout:
        yield "the checkout is not clean: commit or stash what `git status` lists"
    yield from find_other_version(root, version)
    if f"\n## {version} (to be released)\n" not in (root / "CHANGELOG.md").read_text():
        yield f"CHANGELOG.md has no section `## {version} (to be released)`"


def rename_first_revision(root: Path) -> Iterator[tuple[Path, Path]]:
    """Give the first revision of Alembic and Django its final id and name; yield the old and the new paths."""
    for folder in ("alembic/versions", "mailglass_reconcile/contrib/django/migrations"):
        for path in (root / folder).glob("0001[a-z]_*.py"):
            renamed = path.with_name("0001_initial.py")
            path.rename(renamed)
            renamed.write_text(FIRST.sub("0001", renamed.read_text()))
            yield path, renamed


def write_digests(root: Path) -> None:
    """Add the digests of the newest revision to those of the releases, unless a released text has changed."""
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests' / 'support'}"}
    command = [sys.executable, "tests/support/released_steps.py"]
    if subprocess.run(command, cwd=root, env=environment, check=False).returncode:
        sys.exit(1)


def date_changelog(root: Path, version: str) -> None:
    """Write today's date into the title of the version's section."""
    path = root / "CHANGELOG.md"
    today = datetime.datetime.now(datetime.UTC).date()
    path.write_text(path.read_text().replace(f"\n## {version} (to be released)\n", f"\n## {version} ({today})\n"))


if __name__ == "__main__":
    main()
