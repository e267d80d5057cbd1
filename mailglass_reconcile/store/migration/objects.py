"""Make the functions, triggers and indexes that are missing or differ, and fill the table of open orphans.

Each step is one transaction; an index of a table with rows is built concurrently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mailglass_reconcile.store.database import in_schema
from mailglass_reconcile.store.migration.comparison import MISSING, STAMPS, UNFILLED, Difference
from mailglass_reconcile.store.migration.session import IMPATIENT, PATIENT, Session
from mailglass_reconcile.store.schema import revision
from mailglass_reconcile.store.schema.script import SchemaStep
from mailglass_reconcile.store.tables import repair

logger = logging.getLogger(__name__)

MOST_TOLD = 5
"""A run with more steps tells their number; their names are logged at DEBUG."""

# A GRANT that repeats the default privilege would be missing from a dump.
_STAMP_FUNCTION = """
DO $$
DECLARE
  made CONSTANT regprocedure := '{schema}.NAME'::regproc;
BEGIN
  IF IS_PUBLIC AND NOT has_function_privilege('public', made, 'EXECUTE') THEN
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', made);
  END IF;
  EXECUTE format('COMMENT ON FUNCTION %s IS %L', made, STAMP);
END;
$$;
"""
_STAMP_TRIGGER = """
DO $$
BEGIN
  EXECUTE (SELECT format('COMMENT ON TRIGGER NAME ON {schema}.TABLE IS %L', STAMP)
             FROM pg_trigger AS t WHERE t.tgrelid = '{schema}.TABLE'::regclass AND t.tgname = 'NAME');
END;
$$;
"""


class Step(NamedTuple):
    """What is run at once: a transaction, or statements that cannot be in one."""

    title: str
    statements: tuple[str, ...]
    is_alone: bool = False


def steps_for(differences: Iterable[Difference], least_days: str) -> Iterable[Step | None]:
    """Yield the steps that cure the differences, and the one that stores the retention's least ages.

    None stands for filling the table of open orphans.

    Functions come first, because triggers need them, and indexes of tables with rows last. The stamp of a trigger that
    adds open orphans says so until the table is filled, so that the run after an interrupted one fills it.
    """
    ordered = sorted(differences, key=_rank)
    for difference in ordered:
        step = difference.step
        if step.kind == "index":
            yield _make_index(difference)
        elif difference.fault != UNFILLED:
            yield Step(_title(step), (step.sql + _stamp(step, " unfilled" if step.fills else ""),))
    filling = [difference.step for difference in ordered if difference.step.fills]
    if filling:
        yield None
        yield Step("record that the open orphans are filled", ("\n".join(_stamp(step).strip() for step in filling),))
    if least_days:
        yield Step("store the retention as the least age at which rows may be deleted", (least_days,))


def run(session: Session, differences: Iterable[Difference], least_days: str, tell: Callable[[str], None]) -> None:
    """Run the steps; tell each one that may take long, and the others if they are few."""
    steps = list(steps_for(differences, least_days))
    number = sum(step is not None and not step.is_alone for step in steps)
    tell_short: Callable[[str], None] = tell if number <= MOST_TOLD else logger.debug
    if number > MOST_TOLD:
        tell(f"creating {number} functions, indexes and triggers")
    for step in steps:
        if step is None:
            tell(f"fill the open orphans from the ledger, {session.connected.limits.batch_rows} in a transaction")
            added = repair.add_missing(session.connected)
            settled = repair.remove_closed(session.connected)
            if added or settled:
                tell(f"{added} open orphans were added, {settled} closed ones removed")
        elif step.is_alone:
            tell(step.title)
            session.run_alone(step.title, *step.statements)
        else:
            tell_short(step.title)
            session.run(step.title, *step.statements)


def format_plan(session: Session, differences: Iterable[Difference], least_days: str) -> Iterable[str]:
    """Yield the steps as SQL for psql."""
    for step in steps_for(differences, least_days):
        if step is None:
            yield "-- fill the open orphans from the ledger"
            yield repair.format_script(session.settings)
            continue
        texts = [in_schema(sql, session.settings.database_schema).strip().removesuffix(";") for sql in step.statements]
        yield f"-- {step.title}"
        yield from (
            f"{text};" for text in ([PATIENT, *texts, IMPATIENT] if step.is_alone else ["BEGIN", *texts, "COMMIT"])
        )


def _make_index(difference: Difference) -> Step:
    step, verb = difference.step, "build" if difference.fault == MISSING else "build again"
    if difference.is_on_empty and difference.fault == MISSING:
        return Step(f"create index {step.name}", (step.sql.replace(" INDEX ", " INDEX IF NOT EXISTS ", 1),))
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS {{schema}}.{step.name}"  # an interrupted build leaves one
    return Step(f"{verb} the index {step.name} concurrently", (drop, step.concurrently), is_alone=True)


def _title(step: SchemaStep) -> str:
    return f"create {step.kind} {step.name}" + (f" on {step.table}" if step.kind == "trigger" else "")


def _stamp(step: SchemaStep, more: str = "") -> str:
    """Return the statements that stamp an object which its step has made."""
    is_function = step.kind == "function"
    stamp = STAMPS[step.kind].format(digest=f"'{step.digest}'", oid="made" if is_function else "t.oid")
    text = (_STAMP_FUNCTION if is_function else _STAMP_TRIGGER).replace("NAME", step.name).replace("TABLE", step.table)
    return text.replace("STAMP", f"{stamp} || '{more}'").replace("IS_PUBLIC", str(step.is_public).lower())


def _rank(difference: Difference) -> int:
    step = difference.step
    is_on_ours = step.table in revision.TABLES or difference.is_on_empty
    return {"function": 0, "trigger": 2}.get(step.kind, 1 if is_on_ours else 3)
