"""The privileges of the documented roles, which `grants.sql` gives them, and with which `doctor` compares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import INSUFFICIENT_PRIVILEGE, DatabaseRefusedError, docs_url, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import OpenConnection, Transaction, array_literal, column_arrays

SWEEPER = "mailglass_sweeper"
FOREIGN = ("mailglass_writer", "mailglass_viewer")
"""Roles of other programs' statements, from which a policy may hide rows."""

_GRANT = re.compile(
    r"^(?:\\if :(?P<condition>made_by_\w+)\n)?"
    r"GRANT (?P<privileges>[^;]+?)\s+ON (?:FUNCTION )?(?P<object>[^;]+?)\s+TO (?P<role>\w+);",
    re.MULTILINE,
)
_PRIVILEGE = re.compile(r"(\w+)(?: \(([^)]*)\))?")


class RequiredPrivilege(NamedTuple):
    """A privilege of a documented role on a table or a function.

    Attributes:
        role: The name of the role.
        object: The name of the table, or the signature of the function.
        privilege: The privilege, such as `UPDATE`.
        columns: The columns; none means the whole table.
        condition: `made_by_migrate` or `made_by_mailglass` if only such tables need it; else empty.
    """

    role: str
    object: str
    privilege: str
    columns: tuple[str, ...]
    condition: str

    def __str__(self) -> str:
        return f"{self.privilege} ({', '.join(self.columns)})" if self.columns else self.privilege


def load_script(schema_name: str) -> str:
    """Return `grants.sql` for the tables of a schema; psql runs it."""
    return _read_script().replace("\\set schema public\n", f"\\set schema {schema_name}\n")


def _read_script() -> str:
    return files("mailglass_reconcile.store.migration").joinpath("grants.sql").read_text(encoding="utf-8")


@cache
def documented_privileges() -> tuple[RequiredPrivilege, ...]:
    """Return the privileges that `grants.sql` gives to the documented roles."""
    return tuple(
        RequiredPrivilege(
            grant["role"], grant["object"], privilege, tuple(re.findall(r"\w+", columns)), grant["condition"] or ""
        )
        for grant in _GRANT.finditer(_read_script())
        for privilege, columns in _PRIVILEGE.findall(grant["privileges"])
    )


def documented_roles() -> tuple[str, ...]:
    """Return the names of the documented roles."""
    return tuple(dict.fromkeys(required.role for required in documented_privileges()))


class ComparedRole(NamedTuple):
    """An existing role, and the documented role whose privileges it needs.

    Attributes:
        oid: The oid.
        name: The quoted name.
        documented: The documented role whose privileges it needs; None if it needs those of none.
        grantee: The quoted name of the role to grant to: the documented role if this one is its member.
        is_current: True if this session runs with it.
    """

    oid: int
    name: str
    documented: str | None
    grantee: str
    is_current: bool


# A role is used here if something was granted to it by name. A role of another name that may delete rows must be a
# sweeper: no other documented role may delete any.
_ROLES_TO_COMPARE = r"""
WITH relations AS (
  SELECT c.oid, c.relname, c.relacl FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
   WHERE n.nspname = :schema AND c.relname LIKE 'mailglass\_%' AND c.relkind IN ('r', 'p')
), grantees AS (
  SELECT a.grantee FROM relations AS r CROSS JOIN LATERAL aclexplode(r.relacl) AS a
   UNION
  SELECT a.grantee FROM relations AS r JOIN pg_attribute AS t ON t.attrelid = r.oid AND t.attacl IS NOT NULL
   CROSS JOIN LATERAL aclexplode(t.attacl) AS a
)
SELECT r.oid, quote_ident(r.rolname) AS name,
       CASE WHEN r.rolname = ANY (CAST(:documented AS text[])) THEN r.rolname::text
            WHEN s.oid IS NOT NULL OR NOT EXISTS (SELECT FROM relations)
                 OR EXISTS (SELECT FROM relations AS t WHERE has_table_privilege(r.oid, t.oid, 'DELETE'))
            THEN :sweeper END AS documented,
       quote_ident(coalesce(s.rolname, r.rolname)) AS grantee, r.rolname = current_user AS is_current
  FROM pg_roles AS r
  LEFT JOIN pg_roles AS s ON s.rolname = :sweeper AND s.oid <> r.oid AND NOT r.rolsuper
                         AND pg_has_role(r.oid, s.oid, 'USAGE')
 WHERE r.rolname = current_user
    OR r.rolname = ANY (CAST(:documented AS text[])) AND r.oid IN (SELECT g.grantee FROM grantees AS g)
 ORDER BY r.rolname
"""

# From the catalog, because a regclass needs USAGE on the schema.
_MISSING = """
WITH compared AS (
  SELECT * FROM unnest(CAST(:oids AS oid[]), CAST(:documented AS text[])) AS c (oid, documented)
), wanted AS (
  SELECT c.oid, w.*
    FROM compared AS c
    JOIN unnest(CAST(:roles AS text[]), CAST(:objects AS text[]), CAST(:privileges AS text[]), CAST(:columns AS text[]))
         WITH ORDINALITY AS w (role, object, privilege, attribute, number) ON w.role = c.documented
)
SELECT w.oid, w.object, w.privilege, w.attribute, w.number, quote_ident(n.nspname) AS schema
  FROM wanted AS w
  JOIN pg_namespace AS n ON n.nspname = :schema
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.object AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = w.attribute AND NOT a.attisdropped
 WHERE w.privilege NOT IN ('USAGE', 'EXECUTE')
   AND CASE WHEN w.attribute = '' THEN NOT has_table_privilege(w.oid, c.oid, w.privilege)
            ELSE a.attnum IS NOT NULL AND NOT has_column_privilege(w.oid, c.oid, a.attnum, w.privilege) END
 UNION ALL
SELECT w.oid, w.object, w.privilege, '', w.number, quote_ident(n.nspname)
  FROM wanted AS w
  JOIN pg_namespace AS n ON n.nspname = :schema
  JOIN pg_proc AS p
    ON p.pronamespace = n.oid AND p.proname = split_part(w.object, '(', 1)
   AND w.object = p.proname || '(' || replace(oidvectortypes(p.proargtypes), ' without time zone', '') || ')'
 WHERE w.privilege = 'EXECUTE' AND NOT has_function_privilege(w.oid, p.oid, 'EXECUTE')
 UNION ALL
SELECT w.oid, '', w.privilege, '', w.number, quote_ident(n.nspname)
  FROM wanted AS w JOIN pg_namespace AS n ON n.nspname = :schema
 WHERE w.privilege = 'USAGE' AND NOT has_schema_privilege(w.oid, n.oid, 'USAGE')
-- A table's owner bypasses its policies, unless the table forces them.
 UNION ALL
SELECT DISTINCT w.oid, w.object, 'BYPASSRLS', '', 0, quote_ident(n.nspname)
  FROM wanted AS w
  JOIN pg_namespace AS n ON n.nspname = :schema
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.object AND c.relkind IN ('r', 'p')
  JOIN pg_roles AS r ON r.oid = w.oid
 WHERE c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls AND w.role <> ALL (CAST(:foreign AS text[]))
   AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
 ORDER BY 1, 5
"""


class MissingPrivileges(NamedTuple):
    """The privileges that a role lacks.

    Attributes:
        role: The role.
        privileges: A phrase for each privilege, such as `UPDATE (terminal) on mailglass_deliveries`.
        grants: The GRANT statements, in one line.
        hidden: The tables whose row-level security would hide rows from it.
    """

    role: ComparedRole
    privileges: tuple[str, ...]
    grants: str
    hidden_tables: tuple[str, ...]


def roles_to_compare(tx: Transaction) -> list[ComparedRole]:
    """Return this session's role, and the documented roles with a grant in our schema."""
    parameters = {
        "schema": tx.schema,
        "documented": array_literal(documented_roles()),
        "sweeper": SWEEPER,
    }
    return [ComparedRole(*row) for row in tx.execute(_ROLES_TO_COMPARE, parameters)]


def find_missing(tx: Transaction, roles: Sequence[ComparedRole]) -> list[MissingPrivileges]:
    """Return the missing privileges of each of *roles* that lacks any, on the objects that exist."""
    required = _required_privileges(tx.settings, made_by_mailglass=installed.is_made_by_mailglass(tx))
    parameters = {
        "schema": tx.schema,
        "oids": array_literal(str(role.oid) for role in roles),
        "documented": array_literal(role.documented for role in roles),
        "foreign": array_literal(FOREIGN),
        **column_arrays(("roles", "objects", "privileges", "columns"), required),
    }
    rows = tx.execute(_MISSING, parameters).all()
    by_role = [(role, [row for row in rows if row.oid == role.oid]) for role in roles]
    return [_describe_missing(role, missing) for role, missing in by_role if missing]


def _required_privileges(settings: Settings, *, made_by_mailglass: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield role, object, privilege and column of each privilege that this database requires.

    Whether the sweeper reads recipients from Mailglass's raw webhooks is a check of its own.
    """
    has_retention = settings.retention_events_days is not None or settings.retention_deliveries_days is not None
    conditions = ("",) if made_by_mailglass else ("", "made_by_migrate")
    for role in documented_roles():
        yield role, "", "USAGE", ""
    for required in documented_privileges():
        is_retention = required.object.startswith("mailglass_reconcile_prune_")
        if required.condition in conditions and (has_retention or not is_retention):
            for column in required.columns or ("",):
                yield required.role, required.object, required.privilege, column


def _describe_missing(role: ComparedRole, rows: Sequence[Any]) -> MissingPrivileges:
    attributes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        attributes.setdefault((row.object, row.privilege), []).extend(filter(None, [row.attribute]))
    hidden_tables = [name for name, privilege in attributes if privilege == "BYPASSRLS"]
    phrases, statements = [], []
    for (name, privilege), names in attributes.items():
        columns = f"{privilege} ({', '.join(names)})" if names else privilege
        if privilege == "USAGE":
            phrases.append(f"USAGE on schema {rows[0].schema}")
            statements.append(f"GRANT USAGE ON SCHEMA {rows[0].schema} TO {role.grantee}")
        elif privilege != "BYPASSRLS":
            kind = "FUNCTION " if privilege == "EXECUTE" else ""
            phrases.append(f"{columns} on {name}")
            statements.append(f"GRANT {columns} ON {kind}{rows[0].schema}.{name} TO {role.grantee}")
    return MissingPrivileges(role, tuple(phrases), "; ".join(statements), tuple(hidden_tables))


def require_privileges(connected: OpenConnection, error: DBAPIError) -> None:
    """Raise `DatabaseRefusedError` if this role lacks a sweeper's privilege that caused *error*; else return.

    Triggers and policies may refuse single rows.
    """
    if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
        return
    with connected.reading() as tx:
        [current] = [role for role in roles_to_compare(tx) if role.is_current]
        if current.documented not in (None, SWEEPER):
            raise DatabaseRefusedError(
                f"role {current.name} may not sweep or prune (SQLSTATE 42501): run this with the privileges of"
                f" {SWEEPER}, see {docs_url('roles.md')}"
            )
        missing = find_missing(tx, [current._replace(documented=SWEEPER)])
    for lack in missing:
        if lack.privileges:
            raise DatabaseRefusedError(f"role {current.name} lacks a privilege (SQLSTATE 42501): run {lack.grants}")
        raise DatabaseRefusedError(
            f"row level security of {', '.join(lack.hidden_tables)} hides rows from role {current.name}"
            f" (SQLSTATE 42501): run ALTER ROLE {current.name} BYPASSRLS"
        )
