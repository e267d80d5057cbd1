"""The statements of `grants.sql` by role."""

import re

from mailglass_reconcile.store.migration import privileges

SCRIPT = privileges.load_script("public")

(RAW_WEBHOOKS,) = re.findall(r"^\\if :made_by_mailglass\n(GRANT [^;]*;\n)", SCRIPT, re.MULTILINE)
"""What the sweeper needs only on tables that Mailglass made."""

STATEMENTS = {role: [f"GRANT USAGE ON SCHEMA public TO {role};\n"] for role in privileges.documented_roles()}
for _statement, _role in re.findall(r"^(GRANT [^;]* TO (\w+);\n)", SCRIPT.replace(RAW_WEBHOOKS, ""), re.MULTILINE):
    STATEMENTS[_role].append(_statement)


def for_roles(script: str, suffix: str) -> str:
    """Return the script for roles whose names have a suffix."""
    return re.sub(rf"\b({'|'.join(STATEMENTS)})\b", rf"\1{suffix}", script)
