"""Checks of the schema, and of the privileges of the roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import in_schema
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.migration.comparison import MIGRATE
from mailglass_reconcile.store.migration.privileges import MissingPrivileges
from mailglass_reconcile.store.schema import location
from mailglass_reconcile.store.schema.revision import find_mismatch, is_newer
from mailglass_reconcile.store.tables.retention import DELIVERIES, EVENTS, find_problem


@check("roles", fast=True)
def roles(context: CheckContext) -> Iterator[Finding]:
    """The documented roles that are used here have the privileges that `migrate --grants` gives them."""
    other_roles = [role for role in context.roles if not role.is_current and role.name != context.current_role.grantee]
    missing_privileges = privileges.find_missing(context.tx, other_roles)
    yield from _describe_missing(missing_privileges)
    if not missing_privileges:
        names = ", ".join(role.name for role in other_roles)
        yield ok(f"{names} can do their work" if other_roles else "no other documented role is used here")


def _describe_missing(missing_privileges: list[MissingPrivileges]) -> Iterator[Finding]:
    for missing in missing_privileges:
        if missing.privileges:
            yield error(f"role {missing.role.name} lacks {'; '.join(missing.privileges)}", missing.grants)
        if missing.hidden_tables:
            yield error(
                f"row-level security of {', '.join(missing.hidden_tables)} would hide rows from role"
                f" {missing.role.name}, so Postgres refuses its statements",
                f"ALTER ROLE {missing.role.name} BYPASSRLS",  # which its members do not inherit
            )


@check("privileges", fast=True)
def role_privileges(context: CheckContext) -> Iterator[Finding]:
    """This role has the privileges of its documented role, and no row is hidden from it; doctor needs the sweeper's."""
    role = context.current_role
    missing_privileges = privileges.find_missing(context.tx, [role])
    yield from _describe_missing(missing_privileges)
    if not missing_privileges and role.documented == privileges.SWEEPER:
        yield from _retention(context)
    elif not missing_privileges:
        yield ok(f"role {role.name} has the privileges that it needs")


@check("privileges")
def readable(context: CheckContext) -> Iterator[Finding]:
    """Doctor has the sweeper's privileges: with others it could read only a part."""
    role = context.current_role
    if role.documented != privileges.SWEEPER:
        yield error(
            f"doctor needs the privileges of {privileges.SWEEPER}, and role {role.name} has others:"
            " nothing else of the database was checked",
            "run `mailglass-reconcile doctor` as the role of the worker, or as the owner of the tables",
        )


def _retention(context: CheckContext) -> Iterator[Finding]:
    """If a retention is set, this role may delete old events and deliveries; the first reason is enough."""
    functions = {
        EVENTS: context.tx.settings.retention_events_days,
        DELIVERIES: context.tx.settings.retention_deliveries_days,
    }
    for (function, days), rows in zip(functions.items(), ("events", "deliveries"), strict=True):
        if days is not None and (problem := find_problem(context.tx, function, days)):
            level = warning if context.is_made_by_mailglass else error
            yield level(f"the prune cannot delete old {rows}: {problem.message}", problem.remedy)
            return
    yield ok("this role may sweep and prune")


@check("schema", fast=True)
def revision(context: CheckContext) -> Iterator[Finding]:
    """The schema exists, at this version's revision, with all tables."""
    tx = context.tx
    schemas = tx.load_schemas()
    ledgers = {row.name: row.is_mailglass_s for row in schemas if row.has_ledger}
    other_names = [name for name in ledgers if name != tx.schema]
    elsewhere = f"set MAILGLASS_DATABASE_SCHEMA to {' or '.join(other_names)}"
    version = context.comparison.version
    if not installed.schema_exists(tx):
        step = f"{elsewhere if other_names else 'set MAILGLASS_DATABASE_SCHEMA'}, or create the schema"
        yield error(f"there is no schema {tx.schema} in this database", step)
    elif relocation := location.find_relocation(schemas, tx.schema):
        yield error(*relocation)
    elif tx.schema not in ledgers and version:
        yield error(
            f"schema {tx.schema} has our tables but no mailglass_events",
            "run Mailglass's own migrations, then `mailglass-reconcile migrate`; or remove our tables with"
            " `mailglass-reconcile migrate --remove`",
        )
    elif tx.schema not in ledgers and other_names:
        yield error(f"schema {tx.schema} has no mailglass_events, but schema {', '.join(other_names)} has", elsewhere)
    elif problem := context.comparison.lost_revision or find_mismatch(version):
        yield (warning if is_newer(version) else error)(*problem)
    else:
        findings = _differences(context, "schema")
        if second := _second_ledger(context, ledgers, other_names):
            findings.append(second)
        yield from findings or [ok(f"schema {tx.schema} is at revision {version}")]


def _second_ledger(context: CheckContext, ledgers: Mapping[str, bool], other_names: Sequence[str]) -> Finding | None:
    """Return a warning if another schema has a ledger that may be the intended one."""
    is_unset = "database_schema" not in context.tx.settings.model_fields_set
    mailglass_s = [name for name in other_names if ledgers[name] and not ledgers[context.tx.schema]]
    if not mailglass_s and not (other_names and is_unset):
        return None
    return warning(
        f"schema {', '.join(mailglass_s or other_names)} has a mailglass_events too, which is not used",
        f"set MAILGLASS_DATABASE_SCHEMA to {' or '.join(mailglass_s or other_names)} to use it,"
        f" or to {context.tx.schema}",
    )


def _differences(context: CheckContext, subject: str) -> list[Finding]:
    return [
        (error if difference.is_grave else warning)(difference.message, difference.remedy(context.tx))
        for difference in context.differences
        if difference.subject == subject
    ]


@check("names", fast=True)
def names(context: CheckContext) -> Iterator[Finding]:
    """Nobody but the owner has functions with our names in the schema, nor may create any."""
    tx, findings = context.tx, list[Finding]()
    for function in context.comparison.functions:
        remedy = f"DROP FUNCTION {function.function}" + ("" if function.has_ours else f"; then {MIGRATE}")
        findings.append((error if function.is_foreign else warning)(str(function), remedy))
    # Only in the doctor: it is not urgent.
    if context.is_full and (roles := ", ".join(tx.find_creators())):
        message = f"{roles} may create objects in schema {tx.schema}, also with our names"
        findings.append(warning(message, in_schema(f"REVOKE CREATE ON SCHEMA {{schema}} FROM {roles}", tx.schema)))
    yield from findings or [ok(f"no other role has functions with our names in schema {tx.schema}")]


@check("indexes", fast=True)
def indexes(context: CheckContext) -> Iterator[Finding]:
    """The indexes that ON CONFLICT and sweeps rely on exist and are valid, Mailglass's too."""
    yield from _differences(context, "indexes") or [ok("all indexes that are needed exist and are valid")]


@check("triggers", fast=True)
def triggers(context: CheckContext) -> Iterator[Finding]:
    """The triggers on the ledger are enabled; without them, new orphans are not noticed until the prune."""
    yield from _differences(context, "triggers") or [ok("all triggers on mailglass_events are enabled")]


@check("functions", fast=True)
def functions(context: CheckContext) -> Iterator[Finding]:
    """The functions of the schema exist."""
    yield from _differences(context, "functions") or [ok("all functions that are needed exist")]
