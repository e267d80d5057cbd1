"""The statements of docs/grants.sql by role."""

import re
from pathlib import Path

GRANTS = (Path(__file__).parents[2] / "docs" / "grants.sql").read_text()

(RAW_WEBHOOKS,) = re.findall(r"^\\if :made_by_mailglass\n-- .*\n(GRANT [^;]*;\n)", GRANTS, re.MULTILINE)
"""What the sweeper needs only on tables that Mailglass made."""

STATEMENTS: dict[str, list[str]] = {}
for _statement, _role in re.findall(r"^(GRANT [^;]* TO (\w+);\n)", GRANTS.replace(RAW_WEBHOOKS, ""), re.MULTILINE):
    STATEMENTS.setdefault(_role, []).append(_statement)
