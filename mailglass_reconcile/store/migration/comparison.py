"""Compare the database's catalog with the schema, for `migrate` and `doctor`: one statement finds every fault.

A function and a trigger bear a stamp as their comment: a digest of the step that made them, and of what Postgres made
of it. So any change of a step or its object is a difference, and nothing has to understand SQL. A dump without comments
lacks the stamps: `migrate` makes functions and triggers again. A changed index has another name; the columns of primary
keys and of the two that ON CONFLICT needs are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction, column_arrays, in_schema
from mailglass_reconcile.store.schema import revision, script
from mailglass_reconcile.store.schema.ownership import WrongFunction
from mailglass_reconcile.store.schema.revision import Problem
from mailglass_reconcile.store.schema.script import SchemaStep
from mailglass_reconcile.store.tables import deliveries

MIGRATE = "run `mailglass-reconcile migrate`"
RESTORE = "restore it from a backup; or, with Mailglass, run its own migrations"
UNDO = "undo the migration that renamed or dropped this, or restore the table from a backup"

MISSING = "is missing"
SOMETHING_ELSE = "is something else with that name"
OTHER_COLUMNS = "is not unique, or has other columns"
DIFFERS = "differs from this version's: its comment does not have the digest that `migrate` stores there"
UNFILLED = "is new, and the open orphans are not filled from the ledger yet"

FAULTS = {
    "missing": MISSING,
    "something_else": SOMETHING_ELSE,
    "invalid": "is invalid",
    "disabled": "is disabled",
    "other_columns": OTHER_COLUMNS,
    "unfilled": UNFILLED,
    "differs": DIFFERS,
}
"""What the statement finds, as predicates."""

STAMPS = {
    "function": (
        "'mailglass-reconcile ' || md5({digest} || pg_get_functiondef({oid})"
        " || has_function_privilege('public', {oid}, 'EXECUTE'))"
    ),
    "trigger": "'mailglass-reconcile ' || md5({digest} || pg_get_triggerdef({oid}))",
}
"""The comment of an object of each kind that is as its step makes it, as SQL."""

# An aggregate has no definition.
_OBJECTS = r"""
WITH wanted AS (
  SELECT w.*, n.oid AS namespace, l.oid AS on_table, l.relkind AS table_kind
    FROM unnest(CAST(:kinds AS text[]), CAST(:names AS text[]), CAST(:tables AS text[]), CAST(:digests AS text[]),
                CAST(:columns AS text[])) WITH ORDINALITY AS w (kind, name, tab, digest, columns, place)
    JOIN pg_namespace AS n ON n.nspname = :schema
    LEFT JOIN pg_class AS l ON l.relname = w.tab AND l.relnamespace = n.oid AND l.relkind IN ('r', 'p')
)
SELECT w.kind, w.name, f.oid IS NOT NULL AS is_there, f.kind AS found_kind, f.owner, current_user AS role,
       f.oid, w.on_table IS NOT NULL AS has_table,
       w.table_kind = 'p' AS is_partitioned, w.table_kind = 'r' AND pg_relation_size(w.on_table) = 0 AS is_empty,
       CASE WHEN w.kind = 'table' AND f.kind = 'table'
            THEN ARRAY(SELECT c.name FROM unnest(string_to_array(w.columns, ' ')) AS c (name)
                        WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = f.oid AND a.attname = c.name
                                             AND NOT a.attisdropped)) END AS dropped_columns,
       CASE WHEN f.oid IS NULL AND w.name = 'mailglass_webhook_events_prune_idx'
                 -- Mailglass itself has one since 2.5.
                 AND EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
                              WHERE i.indrelid = w.on_table AND i.indisvalid
                                AND c.relname IN ('mailglass_webhook_events_status_age_id_idx')) THEN NULL
            WHEN f.oid IS NULL THEN 'missing'
            WHEN f.kind <> w.kind OR w.kind = 'index' AND f.on_table IS DISTINCT FROM w.on_table THEN 'something_else'
            WHEN NOT f.works THEN CASE w.kind WHEN 'index' THEN 'invalid' ELSE 'disabled' END
            WHEN w.kind = 'index' AND w.columns <> ''
                 -- The key of a partitioned table has the columns of its partitions, too.
                 AND NOT (w.table_kind = 'p' AND w.name LIKE '%\_pkey')
                 AND NOT EXISTS (
                   SELECT FROM pg_index AS i
                    WHERE i.indexrelid = f.oid AND i.indisunique
                      AND (SELECT string_agg(a.attname, ' ' ORDER BY k.place)
                             FROM unnest(CAST(i.indkey AS int2[])) WITH ORDINALITY AS k (number, place)
                             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
                            WHERE k.place <= i.indnkeyatts) = w.columns)
            THEN 'other_columns'
            WHEN f.comment = f.stamp || ' unfilled' THEN 'unfilled'
            WHEN w.kind IN ('function', 'trigger') AND f.comment IS DISTINCT FROM f.stamp THEN 'differs'
             END AS fault
  FROM wanted AS w
  LEFT JOIN LATERAL (
         SELECT c.oid, CASE WHEN c.relkind IN ('r', 'p') THEN 'table' WHEN c.relkind IN ('i', 'I') THEN 'index'
                            WHEN c.relkind = 'v' THEN 'view' ELSE 'relation' END AS kind,
                pg_get_userbyid(c.relowner) AS owner, i.indrelid AS on_table,
                coalesce(i.indisvalid AND i.indisready, true) AS works, NULL AS comment, NULL AS stamp
           FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
          WHERE w.kind IN ('table', 'index') AND c.relname = w.name AND c.relnamespace = w.namespace
          UNION ALL
         SELECT p.oid, w.kind, pg_get_userbyid(p.proowner), NULL, true, obj_description(p.oid, 'pg_proc'),
                CASE WHEN p.prokind IN ('f', 'p') THEN {function_stamp} END
           FROM pg_proc AS p WHERE w.kind = 'function' AND p.proname = w.name AND p.pronamespace = w.namespace
          UNION ALL
         SELECT t.oid, w.kind, pg_get_userbyid(p.proowner), t.tgrelid, t.tgenabled <> 'D',
                obj_description(t.oid, 'pg_trigger'), {trigger_stamp}
           FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
          WHERE w.kind = 'trigger' AND t.tgrelid = w.on_table AND t.tgname = w.name) AS f ON true
 ORDER BY w.place
""".replace("{function_stamp}", STAMPS["function"].format(digest="w.digest", oid="p.oid")).replace(
    "{trigger_stamp}", STAMPS["trigger"].format(digest="w.digest", oid="t.oid")
)


class Difference(NamedTuple):
    """An object of the schema that differs from its step.

    Attributes:
        step: The step that makes it; a table's is empty.
        fault: The difference, as a predicate: `is missing`.
        is_mailglass: True if it is Mailglass's, so that `migrate` does not change it.
        is_on_empty: True if it is an index of a table without rows, or of one that does not exist yet.
        is_on_partitioned: True if it is an index of a partitioned table, which cannot be built concurrently.
    """

    step: SchemaStep
    fault: str
    is_mailglass: bool = False
    is_on_empty: bool = False
    is_on_partitioned: bool = False

    @property
    def subject(self) -> str:
        """The doctor's check that reports it."""
        if self.step.is_trigger_function:
            return "triggers"
        return {"table": "schema", "index": "indexes", "function": "functions", "trigger": "triggers"}[self.step.kind]

    @property
    def is_grave(self) -> bool:
        """Return True if recording or linking fails or is late because of it."""
        return self.step.kind == "table" or self.step.is_unique or not self.step.only_on or self.fault == DIFFERS

    @property
    def is_curable(self) -> bool:
        """Return True if running its step repairs it."""
        return not (
            self.is_mailglass or self.step.kind == "table" or self.fault == SOMETHING_ELSE or self._is_other_key
        )

    @property
    def _is_other_key(self) -> bool:
        return bool(self.step.key_columns) and self.fault == OTHER_COLUMNS

    @property
    def message(self) -> str:
        """The difference and its effect, as a sentence."""
        where = f" on {self.step.table}" if self.step.kind == "trigger" else ""
        return f"{self.step.kind} {self.step.name}{where} {self.fault}{self._effect()}"

    def _effect(self) -> str:
        if self.fault in (UNFILLED, DIFFERS):
            return ""
        if self.step.kind == "function" and self.step.only_on and not self.step.is_trigger_function:
            return ", so the prune cannot delete old rows"
        if self.step.name == installed.GUARD:
            return ", so TRUNCATE would empty the ledger"
        if self.subject == "triggers":
            return ", so the ledger can be changed" if self.step.only_on else ", so new events are not noticed"
        if self.step.kind == "index" and not self.step.is_unique:
            return ", so no sweep runs" if self.step.name == deliveries.INDEX else ", so statements read whole tables"
        return "" if self.step.kind == "table" else ", so nothing can be recorded or linked"

    def remedy(self, tx: Transaction) -> str:
        """Return the command or statement that cures it."""
        if self.is_curable:
            return MIGRATE
        if self.fault == SOMETHING_ELSE:
            return f"drop or rename it, then {MIGRATE}"
        if self.step.kind == "table":
            return revision.MAKE_AGAIN if not self.is_mailglass else RESTORE if self.fault == MISSING else UNDO
        if self._is_other_key:
            return (
                f"ALTER TABLE {tx.name_of(self.step.table)} DROP CONSTRAINT {self.step.name},"
                f" ADD CONSTRAINT {self.step.name} PRIMARY KEY ({self.step.key_columns.replace(' ', ', ')})"
            )
        drop = "" if self.fault == MISSING else f"DROP INDEX CONCURRENTLY {tx.name_of(self.step.name)}; "
        return drop + " ".join(in_schema(self.step.concurrently, tx.schema).removesuffix(";").split())


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        differences: The objects that differ, the gravest first.
        foreign: A phrase for each object with one of our names that belongs to another role, or is something else.
        strangers: Those of them that are relations of a role which could not own the ledger.
        functions: The functions with our names that are not ours.
        version: The revision.
        tables: Our tables that exist.
        role: The role that compares.
        owner: The other role that owns all of our objects; None if there is none, or several.
    """

    differences: list[Difference]
    foreign: list[str]
    strangers: list[str]
    functions: list[WrongFunction]
    version: str | None
    tables: list[str]
    role: str
    owner: str | None

    @property
    def curable(self) -> list[Difference]:
        """The differences that `migrate` repairs."""
        return [difference for difference in self.differences if difference.is_curable]

    @property
    def lost_revision(self) -> Problem | None:
        """Tables of ours without a revision: nobody knows which one they are of. None if there is one, or no table."""
        if not self.tables or self.version is not None:
            return None
        return Problem(
            f"{', '.join(self.tables)} exist, but the database has no revision",
            f"restore {revision.VERSION_TABLE} from a backup, or run `mailglass-reconcile migrate --remove`, then"
            " `mailglass-reconcile migrate`",
        )


def compare(tx: Transaction, *, made_here: bool = False) -> Comparison:
    """Compare the database with the schema; with *made_here*, this run made Mailglass's tables."""
    mailglass_tables = not made_here and installed.is_made_by_mailglass(tx)
    owned, functions = tx.find_owned(), tx.find_wrong_functions()
    version = tx.revision(owned)
    steps = _expected_steps(mailglass_tables=mailglass_tables)
    strangers = owned.foreign if owned.has_ledger else []
    overloads = {function.oid: str(function) for function in functions if function.is_overloaded}
    differences, foreign, tables, owners, role = [], [*strangers, *overloads.values()], [], set(), ""
    for row in tx.execute(_OBJECTS, {**_step_arrays(steps.values()), "schema": tx.schema}):
        if row.kind == "function" and row.oid in overloads:
            continue
        step, role = steps[row.kind, row.name], row.role
        is_mailglass = step.name in revision.MAILGLASS_TABLES or (mailglass_tables and step.only_on == script.MADE_HERE)
        is_on_empty = bool(row.is_empty) or not row.has_table
        difference = Difference(step, _describe_fault(row), is_mailglass, is_on_empty, bool(row.is_partitioned))
        if difference.fault and not _is_ignored(difference, version, has_table=row.has_table):
            differences.append(difference)
        if row.is_there and not is_mailglass:
            foreign += _describe_foreign(step, row)
            tables += [step.name] if step.name in revision.TABLES else []
            owners |= {row.owner} if step.kind != "index" else set()
    owner = owners.pop() if len(owners) == 1 else None
    return Comparison(
        sorted(differences, key=lambda difference: not difference.is_grave),
        list(dict.fromkeys(foreign)),
        strangers,
        functions,
        version,
        tables,
        role,
        owner if owner != role else None,
    )


def _expected_steps(*, mailglass_tables: bool) -> dict[tuple[str, str], SchemaStep]:
    """Return the steps to compare, by kind and name; of Mailglass's indexes, keys and those that ON CONFLICT needs."""
    steps = [
        step
        for step in script.steps()
        if not (step.only_on and mailglass_tables) or step.key_columns or step.name in installed.CONFLICT_INDEXES
    ]
    table_names = [*revision.TABLES, *revision.MAILGLASS_TABLES, revision.VERSION_TABLE]
    return {(step.kind, step.name): step for step in [*steps, *(SchemaStep("table", name) for name in table_names)]}


def _step_arrays(steps: Iterable[SchemaStep]) -> dict[str, str]:
    columns = {**revision.TABLES, **revision.MAILGLASS_TABLES, **installed.CONFLICT_INDEXES}
    return column_arrays(
        ("kinds", "names", "tables", "digests", "columns"),
        [(s.kind, s.name, s.table, s.digest, s.key_columns or columns.get(s.name, "")) for s in steps],
    )


def _describe_fault(row: Any) -> str:
    if row.fault:
        return FAULTS[row.fault]
    return f"lacks {', '.join(row.dropped_columns)}" if row.dropped_columns else ""


def _is_ignored(difference: Difference, version: str | None, *, has_table: bool) -> bool:
    """Return True if a difference is expected on this revision, or in Mailglass's tables."""
    step, fault = difference.step, difference.fault
    return (
        revision.is_newer(version)  # a newer version knows what must be there
        # A revision will make it.
        or (step.kind == "table" and fault != SOMETHING_ELSE and version != revision.VERSION)
        # The table is missing, and `migrate` does not make it again.
        or (step.kind == "index" and not has_table and (difference.is_mailglass or version == revision.VERSION))
        # Mailglass may give its key another name.
        or (bool(step.key_columns) and difference.is_mailglass and fault == MISSING)
    )


def _describe_foreign(step: SchemaStep, row: Any) -> list[str]:
    """Return a phrase about an object that has one of our names, and is not ours."""
    column = revision.TABLES.get(step.name, "").partition(" ")[0]
    if column in (row.dropped_columns or ()):
        return [f"table {step.name} is not ours, because it lacks {column}"]
    if row.owner == row.role or (step.kind == "index" and _describe_fault(row) != SOMETHING_ELSE):
        return []  # an index belongs to the owner of its table
    return [f"{row.found_kind} {step.name} belongs to role {row.owner}"]
