"""The privileges of the documented roles, from which `docs/grants.sql` is made, and with which `doctor` compares."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import INSUFFICIENT_PRIVILEGE, DatabaseRefusedError, docs_url, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import OpenConnection, Transaction, array_literal, column_arrays

Condition = Literal["everywhere", "tables made by migrate", "retention", "tables made by Mailglass"]


WIDTH = 120


def _wrap(text: str, first_indent: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first_indent, subsequent_indent=indent, break_on_hyphens=False)


class Grant(NamedTuple):
    """A role's privileges on a table or a function.

    Attributes:
        purpose: Why the role needs them.
        object: The name of the table, or the signature of the function.
        privileges: Each privilege with its columns, separated by blanks; an empty string means all columns.
        where: The databases on which the role needs them.
    """

    purpose: str
    object: str
    privileges: Mapping[str, str]
    condition: Condition = "everywhere"

    def statement(self, role: str) -> str:
        """Return the GRANT statement."""
        privileges = [_privilege(name, attributes.split()) for name, attributes in self.privileges.items()]
        kind = "FUNCTION " if "EXECUTE" in self.privileges else ""
        line = f"GRANT {', '.join(privileges)} ON {kind}{self.object} TO {role};"
        if len(line) <= WIDTH:
            return line
        parts = ",\n".join(_wrap(privilege, "      ", "              ") for privilege in privileges)
        return f"GRANT {parts.lstrip()}\n{_wrap(f'ON {kind}{self.object} TO {role};', '   ', '      ')}"


class Role(NamedTuple):
    """A documented role.

    Attributes:
        name: The name of the role.
        runs: The programs that run with it.
        grants: The privileges.
        is_foreign: True if other programs use it, so that a policy may hide rows from their statements.
    """

    name: str
    runs: str
    grants: tuple[Grant, ...]
    is_foreign: bool = False


WHOLE = ""
_PROJECTION = "last_event_type last_event_at terminal dispatched_at delivered_at bounced_at complained_at suppressed_at"
_NEW_JOB = "event_id handler delivery_id type next_at inserted_at"
_CLOSE = Grant(
    "close orphans that have their `reconciled` event",
    "mailglass_reconcile_close_v1(uuid[])",
    {"EXECUTE": WHOLE},
)
_STORED_KEYS = "provider recipient recipient_lost rank ids state refused"

WRITER = Role(
    "mailglass_writer",
    "Mailglass itself, or any program that inserts events",
    (Grant("append events", "mailglass_events", {"INSERT": WHOLE}),),
    is_foreign=True,
)

RECORDER = Role(
    "mailglass_recorder",
    "`receive`, or a program that calls record_webhook() and record_send()",
    (
        Grant("refuse a database of another version", "mailglass_reconcile_version", {"SELECT": WHOLE}),
        Grant(
            "append events, and find those that were recorded before",
            "mailglass_events",
            {
                "INSERT": WHOLE,
                "SELECT": "id tenant_id delivery_id type occurred_at idempotency_key metadata normalized_payload",
            },
        ),
        Grant(
            "store deliveries, find those of an event, and project the event onto them",
            "mailglass_deliveries",
            {
                "SELECT": (
                    f"id tenant_id recipient provider provider_message_id {_PROJECTION} lock_version updated_at"
                ),
                "UPDATE": f"{_PROJECTION} lock_version updated_at",
                "INSERT": (
                    "id tenant_id mailable stream recipient recipient_domain provider provider_message_id"
                    " last_event_type last_event_at dispatched_at terminal metadata inserted_at updated_at"
                ),
            },
        ),
        Grant(
            "store orphans with their keys; the ledger's trigger closes them",
            "mailglass_open_orphans",
            {
                "SELECT": WHOLE,
                "INSERT": "event_id tenant_id arrived_at provider recipient recipient_lost rank ids state",
                "UPDATE": _STORED_KEYS,
            },
        ),
        Grant("store their candidate ids", "mailglass_open_orphan_ids", {"SELECT": WHOLE, "INSERT": WHOLE}),
        _CLOSE,
        Grant("enqueue jobs of handlers", "mailglass_handler_outbox", {"INSERT": _NEW_JOB}),
        Grant("see which handlers there are", "mailglass_handled_types", {"SELECT": WHOLE}),
        Grant(
            "know the certificates of Amazon SES and Scaleway after a restart",
            "mailglass_webhook_certificates",
            {"SELECT": WHOLE, "INSERT": WHOLE, "DELETE": WHOLE},
        ),
    ),
)

SWEEPER = Role(
    "mailglass_sweeper",
    "`sweep`, `follow`, `prune`, `rekey`, `link` and `doctor`, by command, Python or Celery",
    (
        Grant("refuse a database of another version", "mailglass_reconcile_version", {"SELECT": WHOLE}),
        Grant("read orphans, and append `reconciled` events", "mailglass_events", {"SELECT": WHOLE, "INSERT": WHOLE}),
        Grant(
            "match deliveries, and project events onto them",
            "mailglass_deliveries",
            {
                "SELECT": (
                    "id tenant_id mailable stream recipient provider provider_message_id lock_version updated_at"
                    f" inserted_at xmax {_PROJECTION}"
                ),
                "UPDATE": f"{_PROJECTION} lock_version updated_at",
            },
        ),
        Grant(
            "claim, close and repair open orphans, and store their keys",
            "mailglass_open_orphans",
            {"SELECT": WHOLE, "INSERT": "event_id tenant_id arrived_at", "UPDATE": _STORED_KEYS, "DELETE": WHOLE},
        ),
        Grant(
            "replace their candidate ids",
            "mailglass_open_orphan_ids",
            {"SELECT": WHOLE, "INSERT": WHOLE, "DELETE": WHOLE},
        ),
        _CLOSE,
        Grant(
            "prune raw webhooks; UPDATE (id) only locks rows",
            "mailglass_webhook_events",
            {"SELECT": "id status inserted_at", "UPDATE": "id", "DELETE": WHOLE},
        ),
        Grant(
            "enqueue jobs of handlers, and prune those that are done or dead; UPDATE (error) only locks rows",
            "mailglass_handler_outbox",
            {"SELECT": WHOLE, "INSERT": _NEW_JOB, "UPDATE": "error", "DELETE": WHOLE},
        ),
        Grant("see which handlers there are", "mailglass_handled_types", {"SELECT": WHOLE}),
        Grant(
            "record runs, which `status` reads",
            "mailglass_reconcile_runs",
            {"SELECT": WHOLE, "INSERT": WHOLE, "UPDATE": WHOLE, "DELETE": WHOLE},
        ),
        Grant(
            "know the ages at which the owner of the tables lets it delete rows",
            "mailglass_reconcile_retention",
            {"SELECT": WHOLE},
        ),
        Grant(
            "delete old events, if a retention is set, on tables that `migrate` made",
            "mailglass_prune_events(integer, integer, uuid)",
            {"EXECUTE": WHOLE},
            "retention",
        ),
        Grant(
            "delete old deliveries, as above",
            "mailglass_prune_deliveries(integer, integer, text, text, timestamp, uuid)",
            {"EXECUTE": WHOLE},
            "retention",
        ),
        Grant(
            "read recipients from raw webhooks, on tables that Mailglass made",
            "mailglass_webhook_events",
            {"SELECT": "id tenant_id provider provider_event_id raw_payload status inserted_at"},
            "tables made by Mailglass",
        ),
    ),
)

DISPATCHER = Role(
    "mailglass_dispatcher",
    "`dispatch`",
    (
        Grant("refuse a database of another version", "mailglass_reconcile_version", {"SELECT": WHOLE}),
        Grant(
            "claim jobs, and store their results",
            "mailglass_handler_outbox",
            {"SELECT": WHOLE, "UPDATE": "state attempts next_at error finished_at"},
        ),
        Grant(
            "read the event that a handler is given, and count what a new one missed",
            "mailglass_events",
            {
                "SELECT": (
                    "id tenant_id delivery_id type occurred_at idempotency_key reject_reason metadata"
                    " normalized_payload"
                )
            },
        ),
        Grant(
            "read its delivery",
            "mailglass_deliveries",
            {"SELECT": "id tenant_id recipient provider provider_message_id"},
        ),
        Grant(
            "register handlers",
            "mailglass_handled_types",
            {"SELECT": WHOLE, "INSERT": "type handler seen_at seen_by", "UPDATE": "seen_at seen_by"},
        ),
        Grant("record runs", "mailglass_reconcile_runs", {"SELECT": WHOLE, "INSERT": WHOLE, "UPDATE": WHOLE}),
    ),
)

ERASER = Role(
    "mailglass_eraser",
    "`erase`",
    (
        Grant("refuse a database of another version", "mailglass_reconcile_version", {"SELECT": WHOLE}),
        Grant(
            "erase addresses from deliveries",
            "mailglass_deliveries",
            {
                "SELECT": "id tenant_id recipient lock_version",
                "UPDATE": "recipient recipient_domain metadata last_error lock_version updated_at",
            },
        ),
        Grant(
            "erase addresses from open orphans",
            "mailglass_open_orphans",
            {"SELECT": "event_id tenant_id recipient", "UPDATE": "recipient recipient_lost"},
        ),
        Grant(
            "erase addresses from raw webhooks, on tables that `migrate` made",
            "mailglass_webhook_events",
            {
                "SELECT": "id tenant_id provider_event_id raw_payload",
                "UPDATE": "raw_payload provider_event_id updated_at",
            },
            "tables made by migrate",
        ),
    ),
)

READER = Role(
    "mailglass_reader",
    "`status`, `orphans`, `find`, `explain`, `sweep --dry-run`, `prune --dry-run`, `migrate --check` and `serve`",
    (
        Grant("refuse a database of another version", "mailglass_reconcile_version", {"SELECT": WHOLE}),
        Grant("show events", "mailglass_events", {"SELECT": WHOLE}),
        Grant("show open orphans", "mailglass_open_orphans", {"SELECT": WHOLE}),
        Grant("search open orphans by message id", "mailglass_open_orphan_ids", {"SELECT": WHOLE}),
        Grant("show jobs", "mailglass_handler_outbox", {"SELECT": WHOLE}),
        Grant("see which handlers there are", "mailglass_handled_types", {"SELECT": WHOLE}),
        Grant("show runs", "mailglass_reconcile_runs", {"SELECT": WHOLE}),
        Grant(
            "count the raw webhooks that a prune would delete",
            "mailglass_webhook_events",
            {"SELECT": "status inserted_at"},
        ),
        Grant(
            "show deliveries, and which session has locked one (`xmax`)",
            "mailglass_deliveries",
            {
                "SELECT": "id tenant_id mailable stream recipient provider provider_message_id inserted_at xmax"
                f" {_PROJECTION}"
            },
        ),
    ),
)

ROLES = (WRITER, RECORDER, SWEEPER, DISPATCHER, ERASER, READER)

_HEADER = """\
-- The privileges of each role. Run this as the owner of the tables, after `mailglass-reconcile migrate`:
--   psql "$MAILGLASS_DATABASE_URL" -f grants.sql
-- Create the roles that you need first: psql skips a role that does not exist.
-- `mailglass-reconcile migrate --grants` prints this file for the schema of MAILGLASS_DATABASE_SCHEMA.
\\set ON_ERROR_STOP on
"""

CHOOSE_TABLES = """\
SELECT to_regproc('mailglass_prune_events') IS NOT NULL AS made_by_migrate,
       to_regproc('mailglass_prune_events') IS NULL AS made_by_mailglass \\gset
"""
"""Lets psql know who made the tables of its search path."""
_CONDITIONS: Mapping[Condition, str] = {
    "tables made by migrate": "made_by_migrate",
    "retention": "made_by_migrate",
    "tables made by Mailglass": "made_by_mailglass",
}
"""The variable of psql that tells whether a role needs a privilege on these tables."""


_REQUIRE_USAGE = """\
-- Only the owner of a schema and superusers can grant USAGE on it.
DO $$
DECLARE
  roles CONSTANT text := (
    SELECT string_agg(quote_ident(rolname), ', ')
      FROM pg_roles
     WHERE NOT has_schema_privilege(oid, current_schema(), 'USAGE')
       AND rolname IN ({roles}));
BEGIN
  IF roles IS NOT NULL THEN
    RAISE EXCEPTION 'run first, as a superuser: GRANT USAGE ON SCHEMA % TO %', quote_ident(current_schema()), roles;
  END IF;
END;
$$;
"""


def format_grants(schema_name: str) -> str:
    """Return the statements that grant every documented role its privileges, as SQL for psql.

    psql skips roles that do not exist, and what a role needs only on tables made by Mailglass, or only by `migrate`.
    """
    blocks = [f"{_HEADER}SET search_path TO {_identifier(schema_name)};\n{CHOOSE_TABLES}"]
    for role in ROLES:
        lines = [
            _wrap(f"{role.name}: {role.runs}.", "-- ", "-- "),
            f"SELECT to_regrole('{role.name}') IS NOT NULL AS role_exists \\gset",
            "\\if :role_exists",
            f"SELECT NOT has_schema_privilege('{role.name}', current_schema(), 'USAGE') AS lacks_usage \\gset",
            "\\if :lacks_usage",
            f"GRANT USAGE ON SCHEMA {_identifier(schema_name)} TO {role.name};",
            "\\endif",
        ]
        lines += statements(role, with_purposes=True)
        blocks.append("\n".join([*lines, "\\endif"]) + "\n")
    roles = _wrap(", ".join(f"'{role.name}'" for role in ROLES), "", " " * 24)
    blocks.append(_REQUIRE_USAGE.replace("{roles}", roles))
    return "\n".join(blocks)


def statements(role: Role, *, with_purposes: bool) -> Iterator[str]:
    """Yield the GRANT statements of a role for psql, in the blocks of the condition under which it needs them."""
    for condition, grants in groupby(role.grants, lambda grant: _CONDITIONS.get(grant.condition)):
        if condition:
            yield f"\\if :{condition}"
        for grant in grants:
            if with_purposes:
                yield f"-- {grant.purpose}"
            yield grant.statement(role.name)
        if condition:
            yield "\\endif"


def _identifier(name: str) -> str:
    return name if name.isascii() and name.isidentifier() and name.islower() else f'"{name}"'


def _privilege(name: str, attributes: Sequence[str]) -> str:
    return f"{name} ({', '.join(attributes)})" if attributes else name


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
# sweeper: of the other documented roles, only the recorder may delete any, which are addresses of certificates.
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
                 OR EXISTS (SELECT FROM relations AS t WHERE t.relname <> 'mailglass_webhook_certificates'
                               AND has_table_privilege(r.oid, t.oid, 'DELETE'))
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
  JOIN pg_proc AS p ON p.pronamespace = n.oid AND p.proname = split_part(w.object, '(', 1)
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
        "documented": array_literal(role.name for role in ROLES),
        "sweeper": SWEEPER.name,
    }
    return [ComparedRole(*row) for row in tx.execute(_ROLES_TO_COMPARE, parameters)]


def find_missing(tx: Transaction, roles: Sequence[ComparedRole]) -> list[MissingPrivileges]:
    """Return the missing privileges of each of *roles* that lacks any, on the objects that exist."""
    required = _required_privileges(tx.settings, made_by_mailglass=schema.is_made_by_mailglass(tx))
    parameters = {
        "schema": tx.schema,
        "oids": array_literal(str(role.oid) for role in roles),
        "documented": array_literal(role.documented for role in roles),
        "foreign": array_literal(role.name for role in ROLES if role.is_foreign),
        **column_arrays(("roles", "objects", "privileges", "columns"), required),
    }
    rows = tx.execute(_MISSING, parameters).all()
    by_role = [(role, [row for row in rows if row.oid == role.oid]) for role in roles]
    return [_describe_missing(role, missing) for role, missing in by_role if missing]


def _required_privileges(settings: Settings, *, made_by_mailglass: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield role, object, privilege and column of each privilege that this database requires."""
    has_retention = settings.retention_events_days is not None or settings.retention_deliveries_days is not None
    applies = {
        "everywhere": True,
        "tables made by migrate": not made_by_mailglass,
        "retention": not made_by_mailglass and has_retention,
        "tables made by Mailglass": False,
    }
    for role in ROLES:
        yield role.name, "", "USAGE", ""
        for grant in role.grants:
            if applies[grant.condition]:
                for privilege, attributes in grant.privileges.items():
                    for column in attributes.split() or [""]:
                        yield role.name, grant.object, privilege, column


def _describe_missing(role: ComparedRole, rows: Sequence[Any]) -> MissingPrivileges:
    attributes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        attributes.setdefault((row.object, row.privilege), []).extend(filter(None, [row.attribute]))
    hidden_tables = [name for name, privilege in attributes if privilege == "BYPASSRLS"]
    phrases, statements = [], []
    for (name, privilege), names in attributes.items():
        columns = _privilege(privilege, names)
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
        if current.documented not in (None, SWEEPER.name):
            raise DatabaseRefusedError(
                f"role {current.name} may not sweep or prune (SQLSTATE 42501): run this with the privileges of"
                f" {SWEEPER.name}, see {docs_url('roles.md')}"
            )
        missing = find_missing(tx, [current._replace(documented=SWEEPER.name)])
    for lack in missing:
        if lack.privileges:
            raise DatabaseRefusedError(f"role {current.name} lacks a privilege (SQLSTATE 42501): run {lack.grants}")
        raise DatabaseRefusedError(
            f"row level security of {', '.join(lack.hidden_tables)} hides rows from role {current.name}"
            f" (SQLSTATE 42501): run ALTER ROLE {current.grantee} BYPASSRLS"
        )
