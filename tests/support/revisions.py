"""Ids of revisions that this version does not have, whatever its own is; and what a revision may not do."""

import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations

from mailglass_reconcile.store.schema.revision import MAILGLASS_TABLES, VERSION

HEAD = VERSION[:4]
"""The newest revision of this checkout, once it is frozen."""
NEXT, LATER = (f"{int(HEAD) + number:04d}" for number in (1, 2))
"""The revisions of a later release of the same major version."""
UNRELEASED = "0001a"
"""The revision of a checkout before the first release."""
README = (Path(__file__).parents[2] / "alembic" / "README.md").read_text()
(RECIPE,) = re.findall(r"```python\n(BACKFILL = .*?)```", README, re.DOTALL)
"""The recipe for a revision that fills rows."""

_LATER = "take it out of TABLES now, and drop it a version later"
_LOCKS_TABLE = re.compile(
    r"\b(ALTER\s+TABLE|(CREATE|DROP)\s+(UNIQUE\s+)?INDEX|DROP\s+TABLE|TRUNCATE|LOCK)\b", re.IGNORECASE
)
_CHANGES_ROWS = re.compile(r"\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|COPY)\b", re.IGNORECASE)
_CHANGES_MAILGLASS = re.compile(
    r"\b(TABLE|INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE|COPY|(INDEX|TRIGGER)\b[^;]*\sON)\s+((IF\s+EXISTS|ONLY)\s+)*"
    rf'("?\w+"?\.)?"?({"|".join(sorted(MAILGLASS_TABLES))})\b',
    re.IGNORECASE,
)

_ALTER_TABLE = re.compile(
    r'\bALTER\s+TABLE\s+(?:(?:IF\s+EXISTS|ONLY)\s+)*(?:"?\w+"?\.)?"?(\w+)"?\s+([^;]*)', re.IGNORECASE
)
_DROP_TABLE = re.compile(r'\bDROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:"?\w+"?\.)?"?(\w+)', re.IGNORECASE)
_DROPS = re.compile(r'\b(?:DROP|RENAME)\s+(?:COLUMN\s+)?(?:IF\s+EXISTS\s+)?"?(\w+)', re.IGNORECASE)
_SETS_NOT_NULL = re.compile(r'\bALTER\s+(?:COLUMN\s+)?"?(\w+)"?\s+SET\s+NOT\s+NULL', re.IGNORECASE)
_ADDS_NOT_NULL = re.compile(r'\bADD\s+(?:COLUMN\s+)?(?:IF\s+NOT\s+EXISTS\s+)?"?(\w+).*\bNOT\s+NULL', re.IGNORECASE)
_HAS_VALUE = re.compile(r"\b(DEFAULT|GENERATED)\b", re.IGNORECASE)
_BETWEEN_ACTIONS = re.compile(r",(?![^(]*\))")


def render(upgrade: Callable[[], None]) -> str:
    """Return the statements of a revision, as `--sql` prints them."""
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output, "version_table_schema": "public"}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with Operations.context(context), context.begin_transaction():
        upgrade()
    return output.getvalue()


def find_faults(statements: str, tables_before: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield a sentence for each thing that a revision may not do, beside processes that use *tables_before*."""
    if _LOCKS_TABLE.search(statements) and _CHANGES_ROWS.search(statements):
        yield "it changes a table and rows, for which writers would wait: make two revisions of it"
    if table := _CHANGES_MAILGLASS.search(statements):
        yield f"it changes {table[6]}: `migrate --remove` would not take that back"
    for table in _DROP_TABLE.findall(statements):
        if table in tables_before:
            yield f"it drops {table}, which the version before uses: {_LATER}"
    for table, actions in _ALTER_TABLE.findall(statements):
        for action in _BETWEEN_ACTIONS.split(actions):
            yield from _find_faults_of_action(table, action.strip(), tables_before.get(table, ()))


def _find_faults_of_action(table: str, action: str, columns_before: Collection[str]) -> Iterator[str]:
    """Yield what the version before could not stand of a change of a table, of which it uses *columns_before*."""
    words = " ".join(action.split()[:2]).upper()
    if columns_before and words in ("RENAME TO", "SET SCHEMA"):
        yield f"it renames {table}, which the version before uses: add a table, and drop this one a version later"
    for column in _DROPS.findall(action):
        if column in columns_before:
            yield f"it drops or renames {table}.{column}, which the version before uses: {_LATER}"
    for column in _SETS_NOT_NULL.findall(action) + _ADDS_NOT_NULL.findall(action):
        if column not in columns_before and not _HAS_VALUE.search(action):
            yield f"it makes {table}.{column} NOT NULL, which the version before leaves out: give it a default"
