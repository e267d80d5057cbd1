"""The functions, triggers and indexes of the schema: the marked steps of the SQL files in `alembic/schema/`.

They are repeatable: `migrate` runs a step whenever its object is missing or differs. Tables are made by revisions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple, cast

from mailglass_reconcile.rules import event_types

ObjectKind = Literal["table", "index", "function", "trigger"]

RECIPIENT_KEY = "{recipient_key}"
"""Stands for the expression in `recipient_key.sql`, in the steps and in statements."""

SCOPE = {
    "search_path": "pg_catalog, pg_temp",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "row_security": "off",
    "array_nulls": "on",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
"""The settings under which every statement runs: in functions of the schema, in our transactions and in a caller's."""

OUR_SETTINGS = " ".join(
    f'SET "{name}" = {value if name == "search_path" else repr(value)}'
    for name, value in {**SCOPE, "plan_cache_mode": "force_generic_plan"}.items()
)
"""The text for `{our_settings}`: the settings of a function."""

MADE_HERE = "made here"
"""Steps for databases in which `migrate` made Mailglass's tables."""

_MARK = re.compile(r"^-- step: (index|function|trigger) (\w+)(?: \[([^\]]+)\])?\n", re.MULTILINE)
_COLUMNS = re.compile(r"\(([\w, ]+)\)")
_TABLE = re.compile(r" ON \{schema\}\.(\w+)")


class SchemaStep(NamedTuple):
    """A step: one object of the schema, and the statements that make it.

    Attributes:
        kind: The kind of the object.
        name: The name of the object.
        only_on: The kind of database that needs it, such as `MADE_HERE`; empty for all.
        sql: The statements; `{schema}` stands for the quoted schema. A table has none: a revision makes it.
    """

    kind: ObjectKind
    name: str
    only_on: str = ""
    sql: str = ""

    @property
    def digest(self) -> str:
        """A digest of the statements, with which the object is stamped."""
        return hashlib.md5(self.sql.encode(), usedforsecurity=False).hexdigest()

    @property
    def table(self) -> str:
        """The table of an index or a trigger."""
        return _TABLE.findall(self.sql)[0] if self.kind in ("index", "trigger") else ""

    @property
    def concurrently(self) -> str:
        """The statement that builds an index without blocking writers."""
        return self.sql[self.sql.index("CREATE") :].replace(" INDEX ", " INDEX CONCURRENTLY ", 1)

    @property
    def is_public(self) -> bool:
        """Return True if every role may execute a function."""
        return self.kind == "function" and "REVOKE ALL" not in self.sql

    @property
    def is_trigger_function(self) -> bool:
        """Return True for a trigger function."""
        return self.kind == "function" and "RETURNS trigger" in self.sql

    @property
    def is_unique(self) -> bool:
        """Return True for a unique index."""
        return self.kind == "index" and "CREATE UNIQUE INDEX" in self.sql

    @property
    def key_columns(self) -> str:
        """The columns of a primary key's index, as in `event_id position`; empty for other objects."""
        is_key = self.kind == "index" and self.name.endswith("_pkey")
        return " ".join(_COLUMNS.findall(self.sql)[0].split(", ")) if is_key else ""

    @property
    def fills(self) -> bool:
        """Return True if orphans may have been missed while the object was missing."""
        return self.kind == "trigger" and not self.only_on


def find_folder() -> Path:
    """Return Alembic's folder: inside the installed package, or at the top level of a checkout."""
    installed = Path(str(files("mailglass_reconcile"))) / "_alembic"
    return installed if installed.is_dir() else installed.parent.parent / "alembic"


def revision_ids() -> tuple[str, ...]:
    """Return the ids of the revisions, with which the names of their files begin, in order."""
    return tuple(sorted(path.name.partition("_")[0] for path in (find_folder() / "versions").glob("*.py")))


@cache
def fragment(name: str) -> str:
    """Return the text that stands for `{name}`: that of the file of this name, without its comments."""
    lines = (find_folder() / "schema" / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))


def recipient_key() -> str:
    """Return the expression for the coarse key of a recipient."""
    return fragment("recipient_key")


@cache
def _placeholders() -> Mapping[str, str]:
    """Return what the steps share, by placeholder: an expression, parts of functions, and the order of event types."""
    return {
        RECIPIENT_KEY: recipient_key(),
        "{our_settings}": OUR_SETTINGS,
        "{catch_failure}": fragment("catch_failure"),
        "{enqueued}": fragment("enqueued"),
        "{event_types}": ",".join(event_types.TYPES),
        "{final_types}": ",".join(event_types.FINAL_TYPES),
        "{sender_types}": str(len(event_types.SENDER_TYPES)),
    }


def _fill_in(sql: str) -> str:
    """Return the text of a file with its placeholders filled in, except for the schema."""
    for placeholder, text in _placeholders().items():
        sql = sql.replace(placeholder, text)
    return sql


@cache
def steps() -> tuple[SchemaStep, ...]:
    """Return all steps, in the order of the files."""
    all_steps = []
    for path in sorted((find_folder() / "schema").glob("*.sql")):
        sql = _fill_in(path.read_text(encoding="utf-8"))
        parts = _MARK.split(sql)[1:]
        for kind, name, only_on, sql in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            all_steps.append(SchemaStep(cast("ObjectKind", kind), name, only_on or "", sql.strip()))
    return tuple(all_steps)


def steps_of_kind(kind: ObjectKind, only_on: str = "") -> Mapping[str, SchemaStep]:
    """Return the steps of one kind that are needed on the same databases, by name."""
    return {step.name: step for step in steps() if step.kind == kind and step.only_on == only_on}
