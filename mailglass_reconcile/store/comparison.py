"""Compare the database's catalog with the steps of the schema, for `migrate` and `doctor`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from mailglass_reconcile.store import schema, script
from mailglass_reconcile.store.database import Transaction, column_arrays, in_schema
from mailglass_reconcile.store.script import SchemaStep

MIGRATE = "run `mailglass-reconcile migrate`"
RESTORE = "restore it from a backup; or, with Mailglass, run its own migrations"

UNFILLED = "mailglass-reconcile: not filled from the ledger yet"
"""The comment on the table of open orphans while a migration fills it, by which an interrupted run is noticed."""

UNIQUE = ("mailglass_events_idempotency_key_idx", "mailglass_deliveries_provider_msg_id_idx")
"""Mailglass's indexes that ON CONFLICT needs, under any name."""

# One row for each object of a name; an overloaded function has several.
_OBJECTS = """
WITH wanted AS (
  SELECT w.kind, w.name, w.tab, n.oid AS namespace, n.nspname
    FROM unnest(CAST(:kinds AS text[]), CAST(:names AS text[]), CAST(:tables AS text[])) AS w (kind, name, tab)
    JOIN pg_namespace AS n ON n.nspname = :schema
)
SELECT w.kind, w.name, quote_ident(w.nspname) AS schema, coalesce(c.oid, f.oid, t.oid) IS NOT NULL AS is_there,
       CASE w.kind WHEN 'table' THEN c.relkind IN ('r', 'p')
                   WHEN 'index' THEN c.relkind IN ('i', 'I') AND i.indrelid = l.oid
                   ELSE true END AS has_kind,
       CASE c.relkind WHEN 'v' THEN 'view' WHEN 'i' THEN 'index' WHEN 'r' THEN 'table' ELSE w.kind END AS found_kind,
       CASE w.kind WHEN 'index' THEN i.indisvalid WHEN 'trigger' THEN t.tgenabled <> 'D' ELSE true END AS works,
       CASE w.kind WHEN 'table' THEN (SELECT string_agg(a.attname, ' ') FROM pg_attribute AS a
                                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
                   WHEN 'index' THEN pg_get_indexdef(i.indexrelid)
                   WHEN 'function' THEN f.prosrc
                   ELSE pg_get_triggerdef(t.oid) END AS definition,
       pg_get_userbyid(coalesce(c.relowner, f.proowner, g.proowner)) AS owner, current_user AS role,
       obj_description(c.oid, 'pg_class') AS comment, has_function_privilege('public', f.oid, 'EXECUTE') AS is_public,
       l.relkind = 'p' AS is_partitioned, l.oid IS NOT NULL AS has_table,
       CASE WHEN w.kind = 'index' AND c.oid IS NULL
            THEN ARRAY(SELECT pg_get_indexdef(o.indexrelid) FROM pg_index AS o
                        WHERE o.indrelid = l.oid AND o.indisvalid) END AS others
  FROM wanted AS w
  LEFT JOIN pg_class AS c ON w.kind IN ('table', 'index') AND c.relname = w.name AND c.relnamespace = w.namespace
  LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
  LEFT JOIN pg_class AS l ON l.relname = w.tab AND l.relnamespace = w.namespace AND l.relkind IN ('r', 'p')
  LEFT JOIN pg_trigger AS t ON w.kind = 'trigger' AND t.tgrelid = l.oid AND t.tgname = w.name
  LEFT JOIN pg_proc AS g ON g.oid = t.tgfoid
  LEFT JOIN pg_proc AS f ON w.kind = 'function' AND f.proname = w.name AND f.pronamespace = w.namespace
"""


_VERSION_TABLE = SchemaStep("table", schema.VERSION_TABLE, "", "")
"""Alembic makes this table, so only its owner is compared."""


class Difference(NamedTuple):
    """An object of the schema that differs from its step.

    Attributes:
        step: The step that makes it.
        fault: The difference, as a predicate: `is missing`.
        is_mailglass: True if it is Mailglass's, so that `migrate` does not change it.
        is_partitioned: True if it is an index of a partitioned table.
    """

    step: SchemaStep
    fault: str
    is_mailglass: bool = False
    is_partitioned: bool = False

    @property
    def subject(self) -> str:
        """The doctor's check that reports it."""
        if self.step.is_trigger_function:
            return "triggers"
        return {"table": "schema", "index": "indexes", "function": "functions", "trigger": "triggers"}[self.step.kind]

    @property
    def is_grave(self) -> bool:
        """Return True if recording or linking fails or is late because of it."""
        if self.step.kind == "index":
            return self.step.is_unique or not self.step.only_on
        return self.step.kind == "table" or not self.step.only_on

    @property
    def is_curable(self) -> bool:
        """Return True if running its step repairs it."""
        return not (self.is_mailglass or self.fault in (ANOTHER_INDEX, SOMETHING_ELSE) or self.fault.startswith(LACKS))

    @property
    def message(self) -> str:
        """The difference and its effect, as a sentence."""
        where = f" on {self.step.table}" if self.step.kind == "trigger" else ""
        return f"{self.step.kind} {self.step.name}{where} {self.fault}{self._effect()}"

    def _effect(self) -> str:
        if self.step.name in schema.RETENTION:
            return ", so the prune cannot delete old rows"
        if self.step.name == schema.GUARD:
            return ", so TRUNCATE would empty the ledger"
        if self.subject == "triggers":
            return ", so the ledger can be changed" if self.step.only_on else ", so new orphans are not noticed"
        if self.step.kind == "index" and not self.step.is_unique:
            return ", so statements read whole tables"
        return "" if self.step.kind == "table" else ", so nothing can be recorded or linked"

    def remedy(self, tx: Transaction) -> str:
        """Return the command or statement that cures it."""
        if self.is_curable:
            return MIGRATE
        if self.fault == ANOTHER_INDEX and not self.is_mailglass:
            return f"run DROP INDEX CONCURRENTLY {tx.name_of(self.step.name)}, then `mailglass-reconcile migrate`"
        if self.step.kind == "index":
            drop = "" if self.fault == MISSING else f"DROP INDEX CONCURRENTLY {tx.name_of(self.step.name)}; "
            create = " ".join(in_schema(self.step.concurrently, tx.schema).removesuffix(";").split())
            return drop + create
        if self.fault == SOMETHING_ELSE:
            return f"drop or rename it, then {MIGRATE}"
        if self.fault.startswith(LACKS):
            return "run `mailglass-reconcile migrate --remove`, then `mailglass-reconcile migrate`"
        return RESTORE


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        differences: The objects that differ, the gravest first.
        foreign: A phrase for each object with one of our names that belongs to another role, or is something else.
        role: The role that compares.
        owner: The other role that owns all of our objects; None if there is none, or several.
    """

    differences: list[Difference]
    foreign: list[str]
    role: str
    owner: str | None


def compare(tx: Transaction, *, guard: bool = False) -> Comparison:
    """Compare the database with the steps of the schema.

    With *guard*, tables that Mailglass made need the guard against TRUNCATE too.
    """
    mailglass_tables = schema.is_made_by_mailglass(tx)
    is_migrated = tx.revision() is not None
    steps = [step for step in script.steps() if _is_compared(step, mailglass_tables=mailglass_tables)]
    steps.append(_VERSION_TABLE)
    names = column_arrays(("kinds", "names", "tables"), [(step.kind, step.name, step.table) for step in steps])
    rows: dict[tuple[str, str], list[Any]] = {}
    for row in tx.execute(_OBJECTS, {**names, "schema": tx.schema}):
        rows.setdefault((row.kind, row.name), []).append(row)
    differences, foreign, owners, role = [], [], set(), ""
    for step in steps:
        is_mailglass = (mailglass_tables and step.only_on == script.MADE_HERE) or (
            is_migrated and step.kind == "table" and step.name in schema.MAILGLASS_TABLES
        )
        objects = rows.get((step.kind, step.name), [])
        faults = [_find_fault(step, row, tx.schema) for row in objects]
        is_ignored = step.name == schema.GUARD and mailglass_tables and not guard
        if (
            objects
            and None not in faults
            and not is_ignored
            and not _is_not_ours(step, objects[0], is_mailglass=is_mailglass)
        ):
            differences.append(Difference(step, str(faults[0]), is_mailglass, bool(objects[0].is_partitioned)))
        for row in objects:
            role = row.role
            if row.is_there and step.name not in schema.MAILGLASS_TABLES and not is_mailglass:
                foreign += [phrase for phrase in [_describe_foreign(step, row)] if phrase]
                owners |= {row.owner} if step.kind != "index" else set()
    owner = owners.pop() if len(owners) == 1 else None
    grave_first = sorted(differences, key=lambda difference: not difference.is_grave)
    return Comparison(grave_first, foreign, role, owner if owner != role else None)


def _is_compared(step: SchemaStep, *, mailglass_tables: bool) -> bool:
    """Return True if a step is compared; on Mailglass's tables, its tables and unique indexes are, and our objects."""
    if not step.only_on or not mailglass_tables or step.name == schema.GUARD:
        return True
    return step.only_on == script.MADE_HERE and (step.kind == "table" or step.name in UNIQUE)


def _is_not_ours(step: SchemaStep, row: Any, *, is_mailglass: bool) -> bool:
    """Return True if a difference is not reported: Alembic's table, or an index whose table is missing too."""
    return step is _VERSION_TABLE or (is_mailglass and step.kind == "index" and not row.has_table)


def _describe_foreign(step: SchemaStep, row: Any) -> str | None:
    """Return a phrase about a foreign object with the name of a step, or None.

    An index belongs to the owner of its table.
    """
    if step.kind == "table" and row.has_kind and step.columns and step.columns[0] not in (row.definition or "").split():
        return f"table {step.name} is not ours, because it lacks {step.columns[0]}"
    if row.owner == row.role or (row.has_kind and step.kind == "index"):
        return None
    return f"{row.found_kind} {step.name} belongs to role {row.owner}"


MISSING = "is missing"
INVALID = "is invalid"
LACKS = "lacks "
SOMETHING_ELSE = "is something else with that name"
ANOTHER = "is another one than this version's"
ANOTHER_INDEX = "has another definition than this version's"
NOT_FILLED = "is not filled from the ledger yet"


def _find_fault(step: SchemaStep, row: Any, schema_name: str) -> str | None:
    """Return the difference between an object and its step, or None."""
    if not row.is_there:
        has_other = step.kind == "index" and any(_is_equivalent(step, other, row.schema) for other in row.others)
        return None if has_other else MISSING
    if not row.has_kind:
        return SOMETHING_ELSE
    if not row.works:
        return INVALID if step.kind == "index" else "is disabled"
    return _find_definition_fault(step, row, schema_name)


def _find_definition_fault(step: SchemaStep, row: Any, schema_name: str) -> str | None:
    if step.kind == "table":
        existing = (row.definition or "").split()
        missing = [column for column in step.columns if column not in existing]
        if missing and step.name not in schema.MAILGLASS_TABLES:  # we do not use all of their columns
            return LACKS + ", ".join(missing)
        return NOT_FILLED if row.comment == UNFILLED else None
    if step.kind == "function":
        if row.definition != in_schema(step.body, schema_name):
            return ANOTHER
        return None if row.is_public or not step.is_public else "cannot be executed by every role"
    if _tokens(row.definition, row.schema) != _tokens(step.statement, row.schema):
        return ANOTHER_INDEX if step.kind == "index" else ANOTHER
    return None


def _is_equivalent(step: SchemaStep, definition: str, quoted_schema: str) -> bool:
    """Return True if an index of another name can replace a step's; one that is not unique may have more columns."""
    tokens = _tokens(step.statement.replace(f" {step.name}", "", 1), quoted_schema)
    other_tokens = _tokens(re.sub(r"INDEX (\S+) ON", "INDEX ON", definition, count=1), quoted_schema)
    if step.is_unique:
        index, _, condition = " ".join(tokens).partition(" where ")
        other_text = re.sub(r" include [^ ]+( , [^ ]+)*", "", " ".join(other_tokens))
        other_index, _, other_condition = other_text.partition(" where ")
        return other_index == index and other_condition in ("", condition)
    return other_tokens[: len(tokens)] == tokens and "where" not in other_tokens[len(tokens) :]


_TOKEN = re.compile(
    r"(E?'(?:[^'\\]|''|\\.)*'(?:\s*\n\s*'(?:[^'\\]|''|\\.)*')*)"
    r"|::(?:character varying|timestamp without time zone|\w+)(?:\(\d+\))?(?:\[\])?"
    r"|([\w.]+)|([^\s()\"])"
)
_NOISE = frozenset({"using", "btree", "only", "concurrently"})


@lru_cache(maxsize=1_000)
def _tokens(sql: str, quoted_schema: str) -> tuple[str, ...]:
    """Return the tokens of a definition, which are the same whether Postgres or a person wrote it.

    Casts, brackets, quotes of names and the schema are left out; Postgres writes substring(a FROM b) with a comma.
    """
    text = sql.replace("{schema}.", "").replace(f"{quoted_schema}.", "").replace("CREATE OR REPLACE", "CREATE")
    words = []
    for literal, word, other in _TOKEN.findall(text):
        if literal:
            words.append(_unquote(literal))
        elif word and word.lower() not in _NOISE and word != "pg_catalog.":
            words.append("," if word == "FROM" else word.removeprefix("pg_catalog.").lower())
        elif other and other != ";":
            words.append(other)
    return tuple(words)


def _unquote(literal: str) -> str:
    """Return the value of a string literal."""
    parts = re.findall(r"'((?:[^'\\]|''|\\.)*)'", literal)
    text = "".join(parts).replace("''", "'")
    return text.encode("ascii", "backslashreplace").decode("unicode_escape") if literal.startswith("E") else text
