"""Whether the database has what recording and linking rely on, and whether this role may use it."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.checks.check import Finding, Look, check, error, ok, warning
from mailglass_reconcile.store import privileges, schema, wrong_schema
from mailglass_reconcile.store.catalog import Kind
from mailglass_reconcile.store.migration import state
from mailglass_reconcile.store.privileges import Missing
from mailglass_reconcile.store.retention import DELIVERIES, EVENTS, unusable
from mailglass_reconcile.store.revision import outdated


@check("roles", cheap=True)
def roles(look: Look) -> Iterator[Finding]:
    """The documented roles that are used here have the privileges that docs/grants.md gives them."""
    others = [role for role in look.roles if not role.is_current and role.name != look.current_role.grantee]
    found = privileges.missing(look.tx, others)
    yield from _lacking(found)
    if not found:
        names = ", ".join(role.name for role in others)
        yield ok(f"{names} can do their work" if others else "no other documented role is used here")


def _lacking(found: list[Missing]) -> Iterator[Finding]:
    for lacks in found:
        if lacks.privileges:
            yield error(f"role {lacks.role.name} lacks {'; '.join(lacks.privileges)}", lacks.grants)
        if lacks.hidden:
            yield error(
                f"row-level security of {', '.join(lacks.hidden)} would hide rows from role {lacks.role.name}, so"
                " Postgres refuses its statements",
                f"ALTER ROLE {lacks.role.grantee} BYPASSRLS",
            )


@check("rights", cheap=True)
def rights(look: Look) -> Iterator[Finding]:
    """This role has the privileges of its documented role, and no row is hidden from it; doctor needs the sweeper's."""
    role = look.current_role
    found = privileges.missing(look.tx, [role])
    yield from _lacking(found)
    if not found and role.documented == privileges.SWEEPER.name:
        yield from _retention(look)
    elif not found:
        yield ok(f"role {role.name} has the privileges that it needs")


@check("rights")
def readable(look: Look) -> Iterator[Finding]:
    """Doctor has the sweeper's privileges: with others it could read only a part."""
    role = look.current_role
    if role.documented != privileges.SWEEPER.name:
        yield error(
            f"doctor needs the privileges of {privileges.SWEEPER.name}, and role {role.name} has others:"
            " nothing else of the database was checked",
            "run `mailglass-reconcile doctor` as the role of the worker, or as the owner of the tables",
        )


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
    elif wrong := outdated(version):
        yield error(*wrong)
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
