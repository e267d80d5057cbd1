"""Every command, for tests of what must never happen whatever is run."""

import uuid

IDS = {name: str(uuid.UUID(int=number)) for number, name in enumerate(("orphan", "delivery", "lone"), 1)}
"""The ids of an orphan with a delivery, of its delivery, and of an orphan without one."""

COMMANDS = (
    ("status", 0),
    ("status --check", 1),
    ("status --tenant acme --json", 0),
    ("orphans", 0),
    ("orphans --expired", 0),
    ("orphans --message-id m-2 --recipient ada@example.com", 0),
    (f"explain {IDS['lone']}", 0),
    ("explain --message-id m-1", 0),
    ("find m-1", 0),
    ("find ada@example.com", 0),
    (f"link {IDS['lone']} {IDS['delivery']} --reason ticket --dry-run", 0),
    ("sweep --dry-run --verbose", 0),
    (f"sweep --yes --event {IDS['orphan']}", 0),
    ("sweep --yes", 0),
    (f"explain {IDS['orphan']}", 0),
    (f"link {IDS['lone']} {IDS['delivery']} --reason ticket --yes", 0),
    ("dispatch --waiting", 0),
    ("dispatch --dead", 0),
    ("dispatch --replay delivered --since 7d --yes", 0),
    ("dispatch", 0),
    ("dispatch --retry", 0),
    ("rekey", 0),
    ("prune --dry-run", 0),
    ("prune", 0),
    ("doctor --verbose", 0),
    ("doctor --repair", 0),
    ("erase ada@example.com --dry-run", 0),
    ("erase ada@example.com --yes", 0),
    ("dispatch --forget --handler old --yes", 0),
    ("migrate --check", 0),
    ("migrate --plan", 0),
    ("migrate --grants", 0),
    ("migrate", 0),
    ("migrate --remove --yes", 0),
    ("migrate", 0),
    ("migrate --remove --tables --yes", 0),
    ("migrate", 0),
)
"""Each command, in ways that send different statements, and its exit code for a superuser."""
ELSEWHERE = {"demo", "follow", "listen", "receive", "serve", "trigger"}
"""Commands on a server of their own, without a database, and those that a test below starts."""
