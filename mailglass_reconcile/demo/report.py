"""The demo's result, read from the tables: the open orphans, the links, and whether every promise was kept."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

from mailglass_reconcile import attempt_link, events_channel, find_orphans, runtime
from mailglass_reconcile.demo.environment import LAST_EVENTS, ROWS, Demo, print_line
from mailglass_reconcile.demo.scenario import CALLS, LINK, OPEN, RACE
from mailglass_reconcile.errors import docs_url

REASONS = {
    "unmatched": "no row has the id: not our mail, or rolled back",
    "ambiguous": "two rows have the id, so none can be chosen",
    "unmatchable": "a relay's suffix is no id",
    "tenant_mismatch": "the row with the id is another tenant's",
}

WAYS = {"full": "a full sweep", "recent": "a recent sweep", "record_send": "record_send"}

# The delivery of each `reconciled` event, and the type of its orphan.
LINKS = sa.text("""
SELECT coalesce(d.recipient, ''), coalesce(o.type, ''), r.id::text, r.tenant_id, r.delivery_id::text
  FROM mailglass_events AS r
  LEFT JOIN mailglass_events AS o ON r.idempotency_key = 'reconciled:' || o.id AND r.tenant_id = o.tenant_id
  LEFT JOIN mailglass_deliveries AS d ON d.id = r.delivery_id AND d.tenant_id = o.tenant_id
 WHERE r.type = 'reconciled'
""")
NAMES = "SELECT id::text, metadata -> 'tags' ->> 0 FROM mailglass_events"


def print_report(environment: Demo) -> bool:
    """Print why orphans are open and which promises were kept; return True if all were."""
    mails, names = [CALLS, *RACE, *LINK, *OPEN], environment.read(NAMES)
    with runtime.get_engine().connect() as connection:
        links = connection.execute(LINKS).all()
        states = {names[str(o.event_id)]: attempt_link(connection, o).state for o in find_orphans(connection)}
    linkable_mails = [mail for mail in mails if mail.sent and not mail.state]
    linked = sorted((mail.address, type_) for mail in linkable_mails for type_ in mail.types)
    last = {mail.address: ("dispatched", *mail.types)[-1] for mail in linkable_mails}
    messages = [
        (events_channel(row.tenant_id, delivery_id), row.id) for row in links for delivery_id in (None, row.delivery_id)
    ]
    promises = {
        "each webhook came before its delivery could be seen": len(environment.rows)
        == sum(len(m.types) for m in mails),
        "what can be linked is linked, once, and to its own delivery": sorted(row[:2] for row in links) == linked,
        "each link was broadcast once on each of its two channels": sorted(environment.heard) == sorted(messages),
        "each delivery shows what its latest event says": environment.read(LAST_EVENTS) == last,
        "what is open is open for the right reason": states == {m.name: m.state for m in mails if m.state},
        "no row of an orphan has changed, compared by MD5": environment.read(ROWS) == environment.rows,
        "a last sweep found nothing to link, and broadcast nothing": not (
            environment.last.linked or environment.last.published
        ),
    }
    for state, number in sorted(Counter(states.values()).items()):
        print_line(f"{'':10}{number} {state:<16} {REASONS.get(state, '')}")
    print_line("\nResult", "bold")
    ways = ", ".join(f"{number} by {WAYS[way]}" for way, number in sorted(environment.linked_by.items()) if number)
    print_line(f"  {len(links)} linked ({ways or 'by no sweep'}), {len(states)} open")
    for promise, is_kept in promises.items():
        print_line(f"  {'PASS' if is_kept else 'FAIL'}  {promise}", "green" if is_kept else "bold red")
    print_line("next: make test    (in the clone)")
    print_line(f"      {_command()} demo --keep    (servers for the README)")
    print_line(f"      {_command()} serve          (beside those: a dashboard)")
    print_line(f"      {docs_url('celery.md')}    (for your Celery app)")
    return all(promises.values())


def _command() -> str:
    """Return the command for this shell: its name if it is on the PATH, else its path, as after `make demo`."""
    name = "mailglass-reconcile"
    script = Path(sys.executable).with_name(name)
    on_path = shutil.which(name)
    return name if on_path and Path(on_path).resolve() == script.resolve() else os.path.relpath(script)
