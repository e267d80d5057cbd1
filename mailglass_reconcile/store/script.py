"""The definition of the schema: the marked steps of the SQL files in `alembic/schema/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple, cast

Kind = Literal["table", "index", "function", "trigger"]

_MARK = re.compile(r"^-- step: (table|index|function|trigger) (\w+)(?: \[([^\]]+)\])?\n", re.MULTILINE)
RECIPIENT_KEY = "{recipient_key}"
"""Stands for the expression in `recipient_key.sql`, in the steps and in statements."""

_CREATE = re.compile(r"^CREATE .*?(?:;$|\Z)", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r" ON \{schema\}\.(\w+)")

_PRIMARY_KEY = re.compile(r"^  (\w+) [^,\n]*PRIMARY KEY|^  PRIMARY KEY \(([^)]*)\)", re.MULTILINE)

MADE_HERE = "made here"
"""Steps for databases in which `migrate` made Mailglass's tables."""
_COLUMN = re.compile(r"^  ([a-z]\w*) ", re.MULTILINE)


class SchemaStep(NamedTuple):
    """A step: one object of the schema, and the statements that make it.

    Attributes:
        kind: The kind of the object.
        name: The name of the object.
        only_on: The kind of database that needs it, such as `MADE_HERE`; empty for all.
        sql: The statements; `{schema}` stands for the quoted schema.
    """

    kind: Kind
    name: str
    only_on: str
    sql: str

    @property
    def statement(self) -> str:
        """The last statement that creates an object, without comments."""
        statements = _CREATE.findall(self.sql)
        return str(statements[-1]) if statements else ""

    @property
    def concurrently(self) -> str:
        """The statement that builds an index without blocking writers."""
        return self.statement.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)

    @property
    def table(self) -> str:
        """The table of an index or a trigger."""
        return _TABLE.findall(self.statement)[0] if self.kind in ("index", "trigger") else ""

    @property
    def columns(self) -> list[str]:
        """The columns of a table."""
        return _COLUMN.findall(self.statement)

    @property
    def primary_key(self) -> list[SchemaStep]:
        """The step that builds the index of a table's primary key again, which the table itself makes first."""
        columns = _PRIMARY_KEY.findall(self.statement) if self.kind == "table" else []
        name = f"{self.name}_pkey"
        return [
            SchemaStep(
                "index",
                name,
                self.only_on,
                f"CREATE UNIQUE INDEX {name} ON {{schema}}.{self.name} ({column or several});",
            )
            for column, several in columns
        ]

    @property
    def body(self) -> str:
        """The text of a function that Postgres stores."""
        return self.sql.partition(" $$")[2].rpartition("$$")[0]

    @property
    def is_public(self) -> bool:
        """Return True if everybody may execute a function."""
        return self.kind == "function" and "REVOKE ALL" not in self.sql and not self.is_trigger_function

    @property
    def is_trigger_function(self) -> bool:
        """Return True for a trigger function."""
        return self.kind == "function" and "RETURNS trigger" in self.sql

    @property
    def is_unique(self) -> bool:
        """Return True for a unique index."""
        return "CREATE UNIQUE INDEX" in self.sql

    @property
    def indexed(self) -> str:
        """The columns and the condition of an index, as SQL."""
        return self.statement.partition(f" ON {{schema}}.{self.table} ")[2].removesuffix(";")


def find_folder() -> Path:
    """Return Alembic's folder: inside the installed package, or at the top level of a checkout."""
    installed = Path(str(files("mailglass_reconcile"))) / "_alembic"
    return installed if installed.is_dir() else installed.parent.parent / "alembic"


@cache
def recipient_key() -> str:
    """Return the expression for the coarse key of a recipient, without its comments."""
    lines = (find_folder() / "schema" / "recipient_key.sql").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))


@cache
def steps() -> tuple[SchemaStep, ...]:
    """Return all steps, in the order of the files."""
    all_steps = []
    for path in sorted((find_folder() / "schema").glob("*.sql")):
        sql = path.read_text(encoding="utf-8").replace(RECIPIENT_KEY, recipient_key())
        parts = _MARK.split(sql)[1:]
        for kind, name, only_on, sql in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            step = SchemaStep(cast("Kind", kind), name, only_on or "", sql.strip())
            all_steps += [step, *step.primary_key]
    return tuple(all_steps)


def steps_of_kind(kind: Kind, only_on: str = "") -> Mapping[str, SchemaStep]:
    """Return the steps of one kind that are needed on the same databases, by name."""
    return {step.name: step for step in steps() if step.kind == kind and step.only_on == only_on}
