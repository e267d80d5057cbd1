"""Plays the plot: opens, overtakes and commits at the right moments, and tells what happens meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from mailglass_reconcile.demo import view
from mailglass_reconcile.demo.listener import Listener
from mailglass_reconcile.demo.screen import Screen, short
from mailglass_reconcile.demo.story import AMBIGUOUS, NO_DELIVERY, NO_ID, OTHER_TENANT, Mail, Wave, Webhook
from mailglass_reconcile.demo.sweeper import Sweeper, Swept
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.sweep.result import STATES, SweepResult

TICK_SECONDS = 0.05
BETWEEN_WEBHOOKS_SECONDS = 0.05
PATIENCE_SECONDS = 40.0

STRAYS = {
    NO_DELIVERY: "mail that other software sent",
    AMBIGUOUS: "a message that has two deliveries",
    NO_ID: "an id that is a relay's suffix only",
    OTHER_TENANT: "another tenant's delivery",
}


class Director:
    """Runs the traffic, and polls sweeper and listener while it waits."""

    def __init__(
        self, screen: Screen, connection: sa.Connection, traffic: Traffic, listener: Listener, sweeper: Sweeper
    ) -> None:
        """Take the cast; *connection* is in autocommit and reads what the screen shows."""
        self._screen = screen
        self._connection = connection
        self._traffic = traffic
        self._listener = listener
        self._sweeper = sweeper
        self._last: SweepResult | None = None
        self._idle = 0  # sweeps in a row that did nothing
        self.linked_by: Counter[str] = Counter()
        """How many orphans recent sweeps and full ones have linked."""
        self._linkable = 0  # of what has committed so far
        self._patience_ends = 0.0

    def play(self, plot: Sequence[Wave]) -> bool:
        """Play *plot* until all that can be linked is linked, and return whether a last sweep found nothing to do.

        Nothing waits for a time: a wave stays open until a sweep has looked for its deliveries in vain. A sweep that
        links more than it can, or sweeps that leave something, end the play at once.
        """
        self._patience_ends = time.monotonic() + PATIENCE_SECONDS
        if not self._until(lambda: self._last is not None):
            return False
        brief, plot = [wave for wave in plot if wave.brief], [wave for wave in plot if not wave.brief]
        for wave in brief:
            self._open(wave)
            if self._linked > self._linkable:
                return False
            self._settle(wave)
            if not self._until(lambda: self._linked == self._linkable):
                return False
        for earlier, wave in zip([None, *plot], plot, strict=False):
            self._open(wave)
            self._settle(earlier)
            if not self._until(self._all_looked_at):
                return False
        self._settle(plot[-1])
        return self._until(lambda: self._all_looked_at() and self._is_quiet()) and self._linked == self._linkable

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Watch until *condition* holds; return False if patience ends before, or too much is linked."""
        while not condition():
            if time.monotonic() > self._patience_ends or self._linked > self._linkable:
                return False
            self._watch(TICK_SECONDS)
        return True

    def _all_looked_at(self) -> bool:
        """Whether all that is open was past the grace for the last sweep, and stayed open."""
        return self._last is not None and self._last.remaining == view.read(self._connection).open

    def _is_quiet(self) -> bool:
        """Whether the last sweep did nothing: if something is missing, two, because one may have begun too early."""
        return self._idle >= (1 if self._linked == self._linkable else 2)

    def _open(self, wave: Wave) -> None:
        for mail in wave.mails:
            self._traffic.send(mail)
            self._screen.tell("sends", f"{mail.tenant_id}: delivery {short(mail.id)} inserted, not committed")
        for mail in wave.mails:
            for webhook in mail.webhooks:
                self._receive(webhook, mail)
        for webhook in wave.strays:
            self._receive(webhook, None)

    def _receive(self, webhook: Webhook, mail: Mail | None) -> None:
        self._traffic.receive(webhook, mail)
        about = f"delivery {short(mail.id)}" if mail else STRAYS[webhook.state or NO_DELIVERY]
        said = f"{webhook.tenant_id}: {webhook.provider} says {webhook.type} of {about}; orphan {short(webhook.id)}"
        self._screen.tell("webhook", said)
        self._watch(BETWEEN_WEBHOOKS_SECONDS)

    def _settle(self, wave: Wave | None) -> None:
        """Commit what *wave* left open, and forget the sweeps before."""
        for mail in wave.mails if wave else ():
            self._linkable += len(mail.webhooks) * mail.commits
            self._traffic.settle(mail)
            how = "committed" if mail.commits else "rolled back"
            self._screen.tell("commit", f"{mail.tenant_id}: delivery {short(mail.id)} {how}")
        self._last, self._idle = None, 0

    def _watch(self, seconds: float) -> None:
        """Show sweeps and broadcasts for *seconds*."""
        until = time.monotonic() + seconds
        while True:
            for swept in self._sweeper.poll():
                self._take(swept)
            for message in self._listener.poll():
                self._screen.tell("redis", f"{message.channel}: {message.type}")
            self._screen.show(view.read(self._connection))
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK_SECONDS, left))

    @property
    def _linked(self) -> int:
        return self.linked_by.total()

    def _take(self, swept: Swept) -> None:
        """Count a sweep, and report it; recent ones that did nothing are too many to report."""
        result, did_something = swept.result, bool(swept.result.linked or swept.result.published)
        self.linked_by[swept.way] += result.linked
        if swept.way == "full":
            self._last = result
            self._idle = 0 if did_something else self._idle + 1
        elif not did_something:
            return
        who = "sweep" if swept.way == "full" else "recent"
        self._screen.tell(who, f"task {short(swept.task_id)}: {_in_words(result)}")
        self._tell_of_tables(result.published)

    def _tell_of_tables(self, published: int) -> None:
        now = view.read(self._connection)
        told = f"; {published} messages published" if published else ""
        self._screen.tell(
            "ledger", f"{now.events} events, {now.reconciled} of them reconciled; {now.open} orphans open{told}"
        )


def _in_words(result: SweepResult) -> str:
    if result.status == "failed":
        return "failed"
    counts = (f"{getattr(result, state)} {state}" for state in STATES if getattr(result, state))
    found = ", ".join(counts) or "nothing past the grace"
    return f"{found} ({result.duration_ms} ms)"
