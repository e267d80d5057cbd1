"""Ids of revisions that this version does not have, whatever its own is; and what a revision may not do."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations

from mailglass_reconcile.store.schema.revision import MAILGLASS_TABLES, VERSION

NEXT, LATER = (f"{int(VERSION[:4]) + number:04d}" for number in (1, 2))
"""The revisions of a later release of the same major version."""
UNRELEASED = "0001a"
"""The revision of a checkout before the first release."""
README = (Path(__file__).parents[2] / "alembic" / "README.md").read_text()
(RECIPE,) = re.findall(r"```python\n(BACKFILL = .*?)```", README, re.DOTALL)
"""The recipe for a revision that fills rows."""

_LOCKS_TABLE = re.compile(
    r"\b(ALTER\s+TABLE|(CREATE|DROP)\s+(UNIQUE\s+)?INDEX|DROP\s+TABLE|TRUNCATE|LOCK)\b", re.IGNORECASE
)
_CHANGES_ROWS = re.compile(r"\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|COPY)\b", re.IGNORECASE)
_CHANGES_MAILGLASS = re.compile(
    r"\b(TABLE|INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE|COPY|(INDEX|TRIGGER)\b[^;]*\sON)\s+((IF\s+EXISTS|ONLY)\s+)*"
    rf'("?\w+"?\.)?"?({"|".join(sorted(MAILGLASS_TABLES))})\b',
    re.IGNORECASE,
)


def render(upgrade: Callable[[], None]) -> str:
    """Return the statements of a revision, as `--sql` prints them."""
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output, "version_table_schema": "public"}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with Operations.context(context), context.begin_transaction():
        upgrade()
    return output.getvalue()


def find_faults(statements: str) -> Iterator[str]:
    """Yield a sentence for each thing that a revision after the first may not do."""
    if _LOCKS_TABLE.search(statements) and _CHANGES_ROWS.search(statements):
        yield "it changes a table and rows, for which writers would wait: make two revisions of it"
    if table := _CHANGES_MAILGLASS.search(statements):
        yield f"it changes {table[6]}: `migrate --remove` would not take that back"
