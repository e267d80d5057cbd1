"""Every statement stands as a whole in one place, and those that ask for the same thing ask in the same words."""

import ast
import re
from pathlib import Path

import pytest

import mailglass_reconcile
from mailglass_reconcile.store import schema

PACKAGE = Path(mailglass_reconcile.__file__).parent

LINKED = """
r.idempotency_key = 'reconciled:' || {event_id} AND r.type = 'reconciled'
AND r.tenant_id IS NOT DISTINCT FROM {tenant_id}
"""
ORPHAN_ID = """
CASE WHEN {event}.type = 'reconciled'
AND {event}.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
THEN CAST(substr({event}.idempotency_key, 12) AS uuid) END
"""
PROVIDER_OF_SEND = """
coalesce(d.provider,
(SELECT CASE jsonb_typeof(e.metadata -> 'provider') WHEN 'string' THEN e.metadata ->> 'provider' END
FROM {schema}.mailglass_events AS e
WHERE e.delivery_id = d.id AND e.type IN ('dispatched', 'failed', 'rejected')
ORDER BY e.delivery_id, e.occurred_at LIMIT 1))
"""


def _one_line(sql):
    return " ".join(line for each in sql.split("\n") if (line := each.strip()) and not line.startswith("--"))


def _pattern(sql):
    """A regular expression for what a statement may have in the place of each `{name}` but the schema's."""
    whole = re.escape(" ".join(sql.split()))
    return re.compile(re.sub(r"\\{(?!schema)(\w*[a-z_]\w*)\\}", r"[\\w.]+", whole))


@pytest.fixture(scope="module")
def statements():
    """Each string of the package that names one of its tables with the schema, by the place where it stands."""
    found = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}": _one_line(node.value)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{schema}." in node.value
    }
    assert len(found) > 100
    return found


def test_only_the_schemas_name_is_put_into_a_statement(statements):
    """A reader sees the whole of it; `{8}` is a part of a regular expression, and `{}` is JSON or an empty array."""
    others = {where: set(re.findall(r"\{([a-z_]\w*)\}", sql)) - {"schema"} for where, sql in statements.items()}
    assert {where: names for where, names in others.items() if names} == {}


@pytest.mark.parametrize(
    ("mark", "whole"),
    [
        ("'reconciled:' ||", LINKED),
        ("THEN CAST(substr(", ORPHAN_ID),
        ("coalesce(d.provider,", PROVIDER_OF_SEND),
        ("pg_catalog.hashtextextended(", schema.RECIPIENT_KEY),
    ],
    ids=["what has linked an orphan", "the orphan of a link", "the provider of a send", "the index's recipient"],
)
def test_statements_that_ask_for_the_same_thing_ask_in_the_same_words(statements, mark, whole):
    """Each time that one of these begins, it stands there whole."""
    asking = {where: sql for where, sql in statements.items() if mark in sql}
    assert len(asking) > 1
    other = [where for where, sql in asking.items() if sql.count(mark) != len(_pattern(whole).findall(sql))]
    assert not other
