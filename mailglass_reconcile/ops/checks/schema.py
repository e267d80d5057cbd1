"""Whether the database has what recording and linking rely on, and whether this role may use it."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.checks.check import Finding, Look, check, error, ok, warning
from mailglass_reconcile.store import privileges, schema, wrong_schema
from mailglass_reconcile.store.catalog import MIGRATE, Kind
from mailglass_reconcile.store.migration import state
from mailglass_reconcile.store.retention import DELIVERIES, EVENTS, unusable


@check("rights", cheap=True)
def rights(look: Look) -> Iterator[Finding]:
    """This role may sweep and prune, and no row is hidden from it; only a worker has to write."""
    lacks = privileges.lacking(look.tx)
    if lacks is None or not (look.thorough or lacks.sweeps):
        yield ok("this role only reads" if lacks else "there is no such schema")
        return
    if lacks.rights or not lacks.usage:
        named = [] if lacks.usage else [f"USAGE on schema {lacks.schema}"]
        named += [f"{right} on {table}" for table, right in lacks.rights]
        more = "" if lacks.sweeps else " (a role that only reads needs less: run this as the worker's role)"
        yield error(f"role {lacks.role} cannot sweep and prune: it lacks {'; '.join(named)}{more}", lacks.grants())
    if lacks.hidden:
        yield error(
            f"row level security of {', '.join(lacks.hidden)} would hide rows from role {lacks.role}, so every sweep is"
            " refused",
            f"ALTER ROLE {lacks.role} BYPASSRLS",
        )
    if not (lacks.rights or lacks.hidden) and lacks.usage:
        yield from _retention(look)


def _retention(look: Look) -> Iterator[Finding]:
    """If a retention is set, this role may delete old events and deliveries; the first reason is enough."""
    functions = {EVENTS: look.tx.settings.retention_events_days, DELIVERIES: look.tx.settings.retention_deliveries_days}
    for (function, days), rows in zip(functions.items(), ("events", "deliveries"), strict=True):
        if days is not None and (wrong := unusable(look.tx, function)):
            level = warning if schema.made_by_mailglass(look.tx) else error
            yield level(f"the prune cannot delete old {rows}: {wrong.message}", wrong.remedy)
            return
    yield ok("this role may sweep and prune")


@check("schema", cheap=True)
def revision(look: Look) -> Iterator[Finding]:
    """The schema is there, at this version's revision, with all tables."""
    tx = look.tx
    found = wrong_schema.ledgers(tx)
    if not wrong_schema.is_there(tx):
        to_others = f" to {' or '.join(found.others)}" if found.others else ""
        step = f"set MAILGLASS_DATABASE_SCHEMA{to_others}, or create the schema"
        yield error(f"there is no schema {tx.schema} in this database", step)
        return
    version = state.version(tx)
    if stopped := wrong_schema.without_ledger(tx, found) or wrong_schema.elsewhere(tx, found):
        yield error(*stopped)
    elif version != schema.VERSION:
        newer = version is not None and version > schema.VERSION
        now = f"at revision {version}" if version else "not migrated"
        step = "install the newer mailglass-reconcile here" if newer else MIGRATE
        yield error(f"schema {tx.schema} is {now}, this version needs {schema.VERSION}", step)
    else:
        second = wrong_schema.second_set(tx, found)
        faults = [*_faults(look, "schema"), *([warning(*second)] if second else [])]
        yield from faults or [ok(f"schema {tx.schema} is at revision {version}")]


def _faults(look: Look, kind: Kind) -> list[Finding]:
    found = [one for one in look.faults if one.kind == kind]
    return [(error if one.grave else warning)(one.message, one.remedy(look.tx)) for one in found]


@check("indexes", cheap=True)
def indexes(look: Look) -> Iterator[Finding]:
    """The indexes that ON CONFLICT and sweeps rely on are there and valid, Mailglass's too."""
    yield from _faults(look, "indexes") or [ok("all indexes that are needed exist and are valid")]


@check("triggers", cheap=True)
def triggers(look: Look) -> Iterator[Finding]:
    """The triggers on the ledger are at work; without them, new orphans are not noticed until the prune."""
    yield from _faults(look, "triggers") or [ok("all triggers on mailglass_events are enabled")]


@check("functions", cheap=True)
def functions(look: Look) -> Iterator[Finding]:
    """The statements that the database keeps as functions are there."""
    yield from _faults(look, "functions") or [ok("all functions that are needed exist")]
