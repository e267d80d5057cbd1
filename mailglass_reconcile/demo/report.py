"""The demo's last table, and its promises."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.table import Table

from mailglass_reconcile.demo.story import AMBIGUOUS, NO_DELIVERY, NO_ID, OTHER_TENANT
from mailglass_reconcile.demo.verdict import Verdict

REASONS = {
    NO_DELIVERY: "no delivery has its id: mail of other software, or rolled back",
    AMBIGUOUS: "one id, two deliveries, and nothing that tells which",
    NO_ID: "nothing in it that could be an id: a relay's suffix alone",
    OTHER_TENANT: "its delivery belongs to another tenant than the webhook says",
}

WAYS = {
    "recent": "within a second of the webhook or of the commit",
    "full": "the safety net, for all that waited longer",
}


def write(console: Console, verdict: Verdict) -> None:
    """Write the table, and a line for each promise."""
    console.print()
    console.print(_table(verdict))
    for promise, kept in verdict.promises.items():
        console.print(f"  {'PASS' if kept else 'FAIL'}  {promise}", style="green" if kept else "bold red")


def _table(verdict: Verdict) -> Table:
    table = Table(title="Result", title_justify="left", title_style="bold", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("orphans", str(verdict.orphans), "webhooks that arrived before their delivery had committed")
    table.add_row("linked", str(verdict.linked), "one `reconciled` event each")
    for way, what in WAYS.items():
        table.add_row(f"  by {way} sweeps", str(verdict.linked_by[way]), what)
    table.add_row("still open", str(verdict.still_open.total()), "")
    for state, orphans in sorted(verdict.still_open.items()):
        table.add_row(f"  {state}", str(orphans), REASONS.get(state, ""))
    table.add_row("from commit to link", *_times(verdict))
    table.add_row("broadcasts heard", str(verdict.broadcasts), "two per link: the tenant's channel and the delivery's")
    table.add_row("orphan rows changed", str(verdict.changed), "by their MD5 before and after")
    return table


def _times(verdict: Verdict) -> tuple[str, str]:
    times = verdict.seconds_to_link
    if not times:
        return "none", ""
    return f"{median(times):.2f} s", f"median; the shortest {min(times):.2f} s, the longest {max(times):.2f} s"
