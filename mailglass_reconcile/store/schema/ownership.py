"""Whose the tables and functions with our names are: what another role has planted is refused, not read and not called.

Reading a view runs its owner's code, and so does planning a statement about a table with an index on an expression, in
READ ONLY too. So the catalog is asked in a statement of its own, before any statement that names a table of ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.errors import DatabaseRefusedError, SchemaOutdatedError
from mailglass_reconcile.store.schema import revision, script

# The third statement of the message that begins a transaction, under our search_path. Only the first result of such a
# message is read, so it fails with 22012 if a relation with one of our names must not be read; `FIND` then tells which.
REFUSE = """
SELECT 1 / CASE WHEN count(*) = 0 THEN 1 ELSE 0 END
  FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
  LEFT JOIN pg_class AS l ON l.relnamespace = n.oid AND l.relname = 'mailglass_events' AND l.relkind IN ('r', 'p')
 WHERE n.nspname = '{schema}' AND c.relname = ANY ('{tables}')
   AND NOT (c.relkind IN ('r', 'p')
            AND pg_has_role(c.relowner, coalesce(l.relowner, CAST(quote_ident(current_user) AS regrole)), 'MEMBER'))
"""

# A caller's session has its own search_path: every function, operator and type is named with its schema. Without a
# ledger, a table must belong to a role that could act as this one.
FIND = """
WITH ledger AS (
  SELECT l.relowner
    FROM pg_catalog.pg_class AS l
   WHERE l.relname OPERATOR(pg_catalog.=) CAST('mailglass_events' AS pg_catalog.name)
     AND l.relnamespace OPERATOR(pg_catalog.=) (
           SELECT n.oid FROM pg_catalog.pg_namespace AS n
            WHERE n.nspname OPERATOR(pg_catalog.=) CAST(:schema AS pg_catalog.name))
     AND l.relkind OPERATOR(pg_catalog.=) ANY (CAST('{r,p}' AS pg_catalog."char"[]))
-- The relations with our names.
), named AS (
  SELECT c.relname, c.relkind, c.relowner,
         c.relkind OPERATOR(pg_catalog.=) ANY (CAST('{r,p}' AS pg_catalog."char"[]))
         AND pg_catalog.pg_has_role(
               c.relowner,
               coalesce((SELECT g.relowner FROM ledger AS g),
                        (SELECT r.oid FROM pg_catalog.pg_roles AS r
                          WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER)),
               CAST('MEMBER' AS pg_catalog.text)) AS is_ours
    FROM pg_catalog.pg_class AS c
   WHERE c.relname OPERATOR(pg_catalog.=) ANY (CAST(:tables AS pg_catalog.name[]))
     AND c.relnamespace OPERATOR(pg_catalog.=) (
           SELECT n.oid FROM pg_catalog.pg_namespace AS n
            WHERE n.nspname OPERATOR(pg_catalog.=) CAST(:schema AS pg_catalog.name))
)
SELECT EXISTS (SELECT FROM ledger) AS has_ledger,
       pg_catalog.array_agg(CAST(t.relname AS pg_catalog.text)) FILTER (WHERE t.is_ours) AS tables,
       CAST(pg_catalog.json_agg(pg_catalog.json_build_array(
              t.relkind, t.relname, pg_catalog.pg_get_userbyid(t.relowner))) FILTER (WHERE NOT t.is_ours)
            AS pg_catalog.text) AS foreign_relations
  FROM named AS t
"""

# The functions with our names that another role owns, and those with other arguments that `migrate` has not stamped.
# Those of other roles come first. It runs where `FIND` does.
FIND_FUNCTIONS = """
SELECT p.oid, CAST(CAST(p.oid AS pg_catalog.regprocedure) AS pg_catalog.text) AS function,
       CAST(pg_catalog.pg_get_userbyid(p.proowner) AS pg_catalog.text) AS owner, p.is_foreign, p.is_overloaded,
       p.has_ours
  FROM (SELECT f.*,
               pg_catalog.count(*) OVER (PARTITION BY f.proname) OPERATOR(pg_catalog.>) 1 AS is_overloaded,
               NOT pg_catalog.bool_and(f.is_foreign) OVER (PARTITION BY f.proname) AS has_ours
          FROM (SELECT c.oid, c.proname, c.proowner,
                       NOT pg_catalog.pg_has_role(
                             c.proowner,
                             coalesce(l.relowner, (SELECT r.oid FROM pg_catalog.pg_roles AS r
                                                    WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER)),
                             CAST('MEMBER' AS pg_catalog.text)) AS is_foreign
                  FROM pg_catalog.pg_namespace AS n
                  JOIN pg_catalog.pg_proc AS c ON c.pronamespace OPERATOR(pg_catalog.=) n.oid
                  LEFT JOIN pg_catalog.pg_class AS l
                    ON l.relnamespace OPERATOR(pg_catalog.=) n.oid
                   AND l.relname OPERATOR(pg_catalog.=) CAST('mailglass_events' AS pg_catalog.name)
                   AND l.relkind OPERATOR(pg_catalog.=) ANY (CAST('{r,p}' AS pg_catalog."char"[]))
                 WHERE n.nspname OPERATOR(pg_catalog.=) CAST(:schema AS pg_catalog.name)
                   AND c.proname OPERATOR(pg_catalog.=) ANY (CAST(:functions AS pg_catalog.name[]))) AS f) AS p
 WHERE p.is_foreign
    OR p.is_overloaded
       AND pg_catalog.starts_with(pg_catalog.obj_description(p.oid, CAST('pg_proc' AS pg_catalog.name)),
                                  CAST('mailglass-reconcile ' AS pg_catalog.text)) IS NOT TRUE
 ORDER BY p.is_foreign DESC, function
"""

# Neither superusers nor members of the schema's owner count, nor those of the ledger's.
FIND_CREATORS = """
SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
  FROM pg_namespace AS n
 CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
  LEFT JOIN pg_class AS l
    ON l.relnamespace = n.oid AND l.relname = 'mailglass_events' AND l.relkind IN ('r', 'p')
 WHERE n.nspname = :schema AND a.privilege_type = 'CREATE'
   AND (a.grantee = 0
        OR NOT (pg_has_role(a.grantee, n.nspowner, 'MEMBER')
                OR pg_has_role(a.grantee, coalesce(l.relowner, n.nspowner), 'MEMBER')))
 ORDER BY 1
"""

TABLES = (*revision.TABLES, revision.VERSION_TABLE, *sorted(revision.MAILGLASS_TABLES))
FUNCTIONS = tuple(step.name for step in script.steps() if step.kind == "function")

_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}


class Owned(NamedTuple):
    """What the catalog says about the relations with our names.

    Attributes:
        has_ledger: The schema has a `mailglass_events`.
        tables: The ordinary tables whose owner could own the ledger.
        foreign: A phrase for each other relation: `view mailglass_reconcile_runs belongs to role mallory`.
    """

    has_ledger: bool
    tables: frozenset[str]
    foreign: list[str]

    def refuse_foreign(self, schema: str) -> None:
        """Raise an error if there is a relation that must not be read."""
        if self.foreign and not self.has_ledger:
            raise SchemaOutdatedError(
                f"the database is not migrated, and schema {schema} has no mailglass_events:"
                f" run `mailglass-reconcile migrate` ({'; '.join(self.foreign)})"
            )
        refuse(schema, self.foreign)

    def require_migrated(self, schema: str) -> None:
        """Raise an error if there is a relation that must not be read, or if there are no tables of ours."""
        self.refuse_foreign(schema)
        if not self.has_ledger or revision.VERSION_TABLE not in self.tables:
            raise SchemaOutdatedError(
                f"{revision.find_mismatch(None)} (tables outside the schema `public` need MAILGLASS_DATABASE_SCHEMA)"
            )


class WrongFunction(NamedTuple):
    """A function with one of our names that is not ours.

    Attributes:
        oid: Its oid.
        function: The function with its arguments, quoted.
        owner: Its owner.
        is_foreign: True if its owner could not own the ledger.
        is_overloaded: True if there is another one with its name.
        has_ours: True if one of those is ours; calls of ours match its arguments exactly.
    """

    oid: int
    function: str
    owner: str
    is_foreign: bool
    is_overloaded: bool
    has_ours: bool

    def __str__(self) -> str:
        """Return it as a phrase."""
        fault = "exists with other arguments, owned by" if self.is_overloaded else "belongs to role"
        return f"FUNCTION {self.function} {fault} {self.owner}"


def read(row: Any) -> Owned:
    """Return the result of `FIND`."""
    foreign = json.loads(row.foreign_relations or "[]")
    phrases = [f"{_KINDS.get(kind, kind)} {name} belongs to role {owner}" for kind, name, owner in foreign]
    return Owned(row.has_ledger, frozenset(row.tables or ()), phrases)


def refuse(schema: str, foreign: Sequence[str]) -> None:
    """Raise an error that names what must not be read or called, if there is anything."""
    if foreign:
        raise DatabaseRefusedError(
            f"nothing was read or changed: in schema {schema}, {'; '.join(foreign)}, which could not own"
            " mailglass_events. The name is reserved: drop or rename the object, or give it to the owner of"
            " mailglass_events if it is ours"
        )
