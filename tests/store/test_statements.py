"""Every statement is complete in one place."""

import ast
import re
from pathlib import Path

import pytest

import mailglass_reconcile

PACKAGE = Path(mailglass_reconcile.__file__).parent


def _join_lines(sql):
    return " ".join(line for word in sql.split("\n") if (line := word.strip()) and not line.startswith("--"))


@pytest.fixture(scope="module")
def statements():
    """Return each string of the package that has one of its tables with the schema, by its place."""
    result = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}": _join_lines(node.value)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{schema}." in node.value
    }
    assert len(result) > 100
    return result


def test_only_the_schemas_name_and_the_recipients_key_are_put_into_a_statement(statements):
    """A reader sees the whole statement; `{8}` is in a regular expression, `{}` is JSON or an empty array."""
    allowed = {"schema", "recipient_key"}
    placeholders = {where: set(re.findall(r"\{([a-z_]\w*)\}", sql)) - allowed for where, sql in statements.items()}
    assert {where: names for where, names in placeholders.items() if names} == {}


SENDERS = {
    "store/database.py": "a transaction, under our search_path or with what needs none",
    "store/migration/session.py": "a session whose first statement sets it",
    "store/tables/repair.py": "no connection: the statement is printed",
    "handlers/dispatcher.py": "SET TRANSACTION, which has no functions or operators",
    "contrib/django/database.py": "SET ROLE, likewise",
    "testing/databases.py": "CREATE DATABASE and DROP DATABASE, likewise",
    "demo/environment.py": "the demo's own server",
    "demo/report.py": "the demo's own server",
}
"""The modules that send statements to a driver or to SQLAlchemy by themselves, and why each may."""


def test_only_a_transaction_of_ours_sends_statements():
    """Any other would run under the session's search_path, where others may have planted functions and operators."""
    sending = re.compile(r"\bexec_driver_sql\(|\bsa\.text\(|connection_?\.execute\(|\bcursor\.execute\(")
    paths = sorted(PACKAGE.rglob("*.py"))
    senders = {str(path.relative_to(PACKAGE)) for path in paths if sending.search(path.read_text())}
    assert senders == set(SENDERS)
