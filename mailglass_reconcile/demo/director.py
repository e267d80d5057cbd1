"""Plays the three acts: opens, overtakes and commits at the right moments, and tells what happens meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from mailglass_reconcile.demo.interruption import Interruption
from mailglass_reconcile.demo.listener import Listener
from mailglass_reconcile.demo.screen import Screen
from mailglass_reconcile.demo.story import Act, Mail
from mailglass_reconcile.demo.sweeper import Sweeper
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.sweep.reconciler import reconcile
from mailglass_reconcile.sweep.result import SweepResult

TICK_SECONDS = 0.02
LINE_SECONDS = 0.1
PATIENCE_SECONDS = 40.0

PROVIDERS = {"postmark": "Postmark", "sendgrid": "SendGrid"}


class Director:
    """Runs the traffic, and watches sweeps and broadcasts meanwhile; `linked_by` counts the links of each kind."""

    def __init__(self, screen: Screen, traffic: Traffic, listener: Listener, interruption: Interruption) -> None:
        self._screen = screen
        self._traffic = traffic
        self._listener = listener
        self._interruption = interruption
        self.linked_by: Counter[str] = Counter()

    def race(self, act: Act) -> None:
        """Webhooks overtake the commits, and the rows do not learn what happened to the mail."""
        self._overtake(act)
        self._screen.note("No committed row has the id that they name: they are orphans.")
        self._settle(act)
        self._screen.note("No webhook comes twice: without a sweep, they stay like that.")

    def sweep(self, act: Act) -> None:
        """A full sweep links what *act* left."""
        self._full_sweep()
        self._screen.tell("app", self._rows(act))
        self._hear()

    def link(self, act: Act, sweeper: Sweeper) -> None:
        """With a worker, a recent sweep links what waits for a row, as soon as the row is committed."""
        self._until(lambda: any(True for _ in sweeper.poll()))
        self._overtake(act)
        self._settle(act)
        committed, wanted = time.monotonic(), self.linked_by.total() + len(act.webhooks)
        if self._until(lambda: self._linked_now(sweeper, committed) >= wanted):
            self._screen.tell("app", self._rows(act))
            self._hear()

    def stay_open(self, act: Act, sweeper: Sweeper) -> bool:
        """Play *act*, of which no sweep may link anything; return whether a last one did nothing."""
        self._overtake(act)
        self._settle(act)
        result = self._full_sweep()
        self._linked_now(sweeper, time.monotonic())
        self._listener.poll()
        return not (result.linked or result.published)

    def _full_sweep(self) -> SweepResult:
        result = reconcile()
        self.linked_by["full"] += result.linked
        self._screen.tell("sweep", f"a full sweep linked {result.linked} of {result.scanned} orphans")
        return result

    def _overtake(self, act: Act) -> None:
        """Send, and let the webhooks come while the transactions are open."""
        for mail in act.mails:
            self._traffic.send(mail)
        self._screen.tell("app", f"sends {_names(act.mails)}: not committed yet")
        mails = {webhook.id: mail for mail in act.mails for webhook in mail.webhooks}
        for webhook in act.webhooks:
            self._pause()
            self._traffic.receive(webhook, mails.get(webhook.id))
            self._screen.tell(PROVIDERS[webhook.provider], f"{webhook.about}: {webhook.type}")

    def _settle(self, act: Act) -> None:
        """Commit, or roll back what the plot rolls back."""
        self._pause()
        for mail in act.mails:
            self._traffic.settle(mail)
        lost = [mail for mail in act.mails if not mail.commits]
        then = f"rolls {_names(lost)} back" if lost else self._rows(act)
        self._screen.tell("app", f"commits; {then}")

    def _rows(self, act: Act) -> str:
        """Say what the deliveries of *act* show."""
        said = self._traffic.last_events(act.mails)
        if len(set(said.values())) > 1:
            return "the rows say: " + ", ".join(f"{name} {type_}" for name, type_ in said.items())
        return f"{'all rows say' if len(said) > 1 else 'its row says'} {next(iter(said.values()))}"

    def _hear(self) -> None:
        """Wait for the broadcasts of what is linked by now, and say how many came."""
        before = len(self._listener.heard)

        def all_heard() -> bool:
            self._listener.poll()
            return len(self._listener.heard) >= 2 * self.linked_by.total()

        self._until(all_heard)
        heard = len(self._listener.heard) - before
        self._screen.tell("redis", f"{heard} messages: two channels per link, tenant's and delivery's")

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait until *condition* holds; return False if patience ends before."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > ends:
                return False
            self._interruption.check()
            time.sleep(TICK_SECONDS)
        return True

    def _pause(self) -> None:
        """Give a reader the time to follow."""
        self._interruption.check()
        time.sleep(LINE_SECONDS)

    def _linked_now(self, sweeper: Sweeper, since: float) -> int:
        """Report the recent sweeps that linked something, and return how many are linked by now."""
        for swept in sweeper.poll():
            linked = swept.result.linked
            self.linked_by[swept.way] += linked
            if linked:
                late = f"{time.monotonic() - since:.1f} s after the commit"
                self._screen.tell(swept.way, f"a {swept.way} sweep linked {linked} of {swept.result.scanned}, {late}")
        return self.linked_by.total()


def _names(mails: Sequence[Mail]) -> str:
    return ", ".join(mail.name for mail in mails)
