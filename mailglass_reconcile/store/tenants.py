"""The tenants of a table: each is found by one probe of an index, where a DISTINCT would read every row."""

from __future__ import annotations


def walk(table: str, only: str = "true", start: str = "true") -> str:
    """Return `WITH RECURSIVE tenants (tenant_id) AS (…` for the beginning of a statement, which closes the parenthesis.

    They come in the order of their names; the last one is NULL. An index of the table begins with `tenant_id`; *only*
    is a condition on its rows, as that index has it, and *start* one on the first tenant.
    """
    return f"""WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT tenant_id FROM {{schema}}.{table} WHERE {only} AND {start} ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT tenant_id FROM {{schema}}.{table} WHERE {only} AND tenant_id > t.tenant_id ORDER BY tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL"""  # noqa: S608 - names and conditions of this package
