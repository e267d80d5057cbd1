"""The statements of docs/grants.sql, by role."""

import re
from pathlib import Path

GRANTS = (Path(__file__).parents[2] / "docs" / "grants.sql").read_text()

STATEMENTS: dict[str, list[str]] = {}
for _statement, _role in re.findall(r"^(GRANT [^;]* TO (\w+);\n)", GRANTS, re.MULTILINE):
    STATEMENTS.setdefault(_role, []).append(_statement)

RAW_WEBHOOKS = re.search(r"^-- GRANT (.|\n-- )*;", GRANTS, re.MULTILINE)[0].replace("-- ", "")
"""What the sweeper needs only on tables that Mailglass made."""
