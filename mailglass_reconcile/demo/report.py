"""The end of the demo: why orphans are open, which promises were kept, and what to do next."""

from __future__ import annotations

from collections import Counter

from mailglass_reconcile.demo.screen import Screen
from mailglass_reconcile.demo.verdict import Verdict
from mailglass_reconcile.rules.matching import AMBIGUOUS, TENANT_MISMATCH, UNMATCHABLE, UNMATCHED

REASONS = {
    UNMATCHED: "no row has the id: not our mail, or rolled back",
    AMBIGUOUS: "two rows have the id, and nothing tells which",
    UNMATCHABLE: "a relay's suffix is no id",
    TENANT_MISMATCH: "the row with the id is another tenant's",
}

NEXT = """\
next: set MAILGLASS_DATABASE_URL and MAILGLASS_REDIS_URL to your own servers,
      and run `mailglass-reconcile migrate`, then `mailglass-reconcile doctor`"""


def write(screen: Screen, verdict: Verdict, linked_by: Counter[str]) -> None:
    """Write the reasons, the promises, and what to do next."""
    for state, number in sorted(verdict.still_open.items()):
        screen.say(f"{'':10}{number} {state:<16} {REASONS.get(state, '')}")
    screen.title("Result")
    ways = ", ".join(f"{number} by a {way} sweep" for way, number in sorted(linked_by.items()) if number)
    screen.say(f"  {verdict.linked} linked ({ways or 'by no sweep'}), {verdict.still_open.total()} open")
    for promise, kept in verdict.promises.items():
        screen.say(f"  {'PASS' if kept else 'FAIL'}  {promise}", "green" if kept else "bold red")
    for line in NEXT.splitlines():
        screen.say(line)
