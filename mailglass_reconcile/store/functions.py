"""The statements that the database keeps as functions: how they are made, and whether it has this version's."""

from __future__ import annotations

import hashlib

from mailglass_reconcile.store import deliveries, open_orphans, projection, sends
from mailglass_reconcile.store.borrowing import CALL_SCOPE
from mailglass_reconcile.store.database import PARAMETER, Kept, Transaction, array_literal

KEPT = (deliveries.OF_IDS, projection.APPEND, projection.APPEND_AND_PROJECT, sends.STORE, open_orphans.AFTER_COMMIT)
NAMES = tuple(kept.name for kept in KEPT)

# Replaced in place, because processes of the version before may still call it; with other arguments or columns it needs
# another name. It has its caller's rights, so anybody may execute it. The digest tells one version's from another's.
_CREATE = """
CREATE OR REPLACE FUNCTION {schema}.{name}({arguments}) RETURNS TABLE ({columns}) LANGUAGE plpgsql
{settings} AS $mailglass_reconcile$
#variable_conflict use_column
-- {digest}
BEGIN
RETURN QUERY{body};
END
$mailglass_reconcile$;
DO $$
BEGIN
  IF NOT has_function_privilege('public', $name${schema}.{name}({arguments})$name$, 'EXECUTE') THEN
    GRANT EXECUTE ON FUNCTION {schema}.{name}({arguments}) TO PUBLIC;
  END IF;
END
$$;
"""

_FAULTS = """
SELECT w.name, CASE WHEN p.oid IS NULL THEN 'is missing' ELSE 'is that of another version' END
  FROM unnest(CAST(:names AS text[]), CAST(:digests AS text[])) AS w (name, digest)
  LEFT JOIN pg_namespace AS n ON n.nspname = :schema
  LEFT JOIN pg_proc AS p ON p.pronamespace = n.oid AND p.proname = w.name
 WHERE p.oid IS NULL OR strpos(p.prosrc, w.digest) = 0
"""


def creating() -> str:
    """Return the SQL that makes all functions."""
    return "".join(map(_creating, KEPT))


def dropping() -> str:
    """Return the SQL that drops them."""
    return "".join(f"DROP FUNCTION IF EXISTS {{schema}}.{name};\n" for name in NAMES)


def _creating(kept: Kept) -> str:
    values = {
        "name": kept.name,
        "arguments": ", ".join("text" for _ in kept.parameters),
        "columns": kept.columns,
        "settings": "\n".join(f"  SET {name} = {value}" for name, value in CALL_SCOPE.items()),
        "digest": _digest(kept),
        "body": PARAMETER.sub(lambda found: f"${kept.parameters.index(found[1]) + 1}", kept.text),
    }
    sql = _CREATE
    for name, value in values.items():
        sql = sql.replace(f"{{{name}}}", value)
    return sql


def _digest(kept: Kept) -> str:
    return hashlib.sha256(repr((kept, CALL_SCOPE, _CREATE)).encode()).hexdigest()


def faults(tx: Transaction) -> dict[str, str]:
    """Return what is wrong with the functions, by name, such as `is missing`."""
    wanted = {"schema": tx.schema, "names": array_literal(NAMES), "digests": array_literal(map(_digest, KEPT))}
    return dict(map(tuple, tx.execute(_FAULTS, wanted)))
