"""Who else may put objects into the schema, and so might take the place of ours."""

from __future__ import annotations

from mailglass_reconcile.store.database import Transaction

# The owners of the schema, of the ledger and of our tables are trusted with them anyway.
_OTHERS_WHO_MAY_CREATE = """
SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
  FROM pg_namespace AS n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
 WHERE n.nspname = :schema AND a.privilege_type = 'CREATE'
   AND a.grantee NOT IN (SELECT n.nspowner
                          UNION ALL SELECT oid FROM pg_roles WHERE rolname = current_user
                          UNION ALL SELECT relowner FROM pg_class
                                     WHERE oid IN (to_regclass(:events), to_regclass(:open_orphans)))
 ORDER BY 1
"""


def warning(tx: Transaction) -> str | None:
    """Return a line that names the roles that may create objects in the schema but own nothing in it, or None."""
    names = {
        "schema": tx.schema,
        "events": tx.name_of("mailglass_events"),
        "open_orphans": tx.name_of("mailglass_open_orphans"),
    }
    others = tx.execute(_OTHERS_WHO_MAY_CREATE, names).scalars().all()
    if not others:
        return None
    roles = ", ".join(others)
    return f"{roles} may create objects in schema {tx.schema}: REVOKE CREATE ON SCHEMA {tx.schema} FROM {roles}"
