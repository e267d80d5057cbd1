"""The schema of each release, by its newest revision, in `released_steps.json`; and what a later one may not change.

`make freeze` runs this as a program, and `make release` runs it with `--check`.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import revision_files
from mailglass_reconcile.store.schema import revision, script
from mailglass_reconcile.store.schema.script import SchemaStep

PATH = Path(__file__).with_suffix(".json")
SCHEMA = "alembic/schema"
TABLES = "mailglass_reconcile/store/schema/revision.py"

Releases = Mapping[str, Mapping[str, str]]
"""What `describe` returns for the schema of each release, by its newest revision."""


class Schema(NamedTuple):
    """The schema of a checkout.

    Attributes:
        steps: What is repeatable.
        revisions: The texts of Alembic's revisions, by file name.
        tables: The columns of each table.
    """

    steps: tuple[SchemaStep, ...]
    revisions: Mapping[str, str]
    tables: Mapping[str, str]


def get_version(schema: Schema) -> str:
    """Return the id of the newest revision."""
    return revision_files.get_id(max(schema.revisions))


def load_releases() -> Releases:
    """Return the description of each release."""
    return json.loads(PATH.read_text())


def load_schema() -> Schema:
    """Return the schema of this checkout."""
    return Schema(script.steps(), revision_files.load(revision_files.REVISIONS), revision.TABLES)


def find_tables_before(releases: Releases, id_: str) -> dict[str, set[str]]:
    """Return the columns of each table that processes of the version before a revision use."""
    before = releases.get(max((release for release in releases if release < id_), default=""), {})
    tables = {name.split()[1]: columns for name, columns in before.items() if name.startswith("table ")}
    return {table: set(columns.split()) for table, columns in tables.items()}


def find_changes(releases: Releases, schema: Schema) -> Iterator[str]:
    """Yield a sentence for each change that an older process or database of a release cannot stand."""
    current, version = describe(schema), get_version(schema)
    released = {name: (id_, text) for id_ in sorted(releases) for name, text in releases[id_].items()}
    changed = {name: release for name, (release, text) in released.items() if current.get(name) != text}
    for name, release in changed.items():
        if name.startswith("revision "):
            path = f"{revision_files.REVISIONS}/{name.split()[1]}"
            yield f"{path} is not as it was released: restore it, and add a revision"
        elif re.search(r"_v\d+$", name):
            if release[0] == version[0]:
                change = "differs from" if name in current else "is gone since"
                yield f"{find_file(name)}: {name} {change} revision {release}, which calls it: restore it, add a _v2"
        elif release == version:
            yield f"{find_file(name)}: {name} is not as at revision {release}: add a revision, empty if need be"
    for name in sorted(current.keys() - releases.get(version, current).keys()):
        yield f"{find_file(name)}: {name} is not in revision {version}: add a revision, empty if need be"


def describe(schema: Schema) -> dict[str, str]:
    """Return the digests of steps and revisions, and the columns of tables, by name.

    A function may get other planner settings without another name: `{our_settings}` stands there as in its file. The
    types of events are filled in, because another type is another behaviour.
    """
    texts = {
        f"{step.kind} {step.name}": step.sql.replace(script.OUR_SETTINGS, "{our_settings}") for step in schema.steps
    }
    return {
        **{name: _digest(text) for name, text in texts.items()},
        **{f"revision {name}": _digest(text) for name, text in schema.revisions.items()},
        **{f"table {name}": columns for name, columns in schema.tables.items()},
    }


def find_file(name: str) -> str:
    """Return the file that has a step or the columns of a table; the folder, if none does."""
    if name.startswith("table "):
        return TABLES
    mark = f"-- step: {name}"
    files = (
        path for path in (script.find_folder() / "schema").glob("*.sql") if re.search(rf"{mark}\b", path.read_text())
    )
    return next((f"{SCHEMA}/{path.name}" for path in files), SCHEMA)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add_release() -> None:
    """Add the description of the newest revision, or end with exit code 1 if a released text has changed."""
    releases, schema = load_releases(), load_schema()
    if changes := list(find_changes(releases, schema)):
        sys.exit("\n".join(f"nothing was changed: {change}" for change in changes))
    added = {get_version(schema): describe(schema), **releases}
    PATH.write_text(json.dumps(added, indent=1, sort_keys=True) + "\n")


def check_release() -> None:
    """End with exit code 1 and a line if the newest revision has no digests, or if a released text has changed."""
    releases, schema = load_releases(), load_schema()
    if get_version(schema) not in releases:
        sys.exit(f"revision {get_version(schema)} has no digests: run `make freeze`")
    if changes := list(find_changes(releases, schema)):
        sys.exit("; ".join(changes))


if __name__ == "__main__":
    check_release() if sys.argv[1:] == ["--check"] else add_release()
