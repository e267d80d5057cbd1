"""The demo's environment: an application that sends, its providers' webhooks, and a subscriber to the broadcasts."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import redis
import sqlalchemy as sa
from rich.console import Console

from mailglass_reconcile import Sent, SweepResult, broadcast, reconcile, record_send, runtime
from mailglass_reconcile.demo.scenario import Mail
from mailglass_reconcile.rules.humanize import escape_unprintable
from mailglass_reconcile.testing.processes import ENDING_SIGNALS, Process

LINE_SECONDS = 0.1
TICK_SECONDS = 0.02
PATIENCE_SECONDS = 40.0
BEGAN = time.monotonic()

# The channels of broadcasts, and those on which Celery's Redis backend publishes the results of recent sweeps.
PATTERNS = ("mailglass:events:*", "celery-task-meta-*")
STYLES = {"app": "cyan", "Postmark": "yellow", "SendGrid": "yellow", "worker": "green", "redis": "magenta"}
STYLES |= dict.fromkeys(("sweep", "recent"), "bold green")
ROWS = "SELECT id::text, md5(e::text) FROM mailglass_events AS e WHERE needs_reconciliation"
LAST_EVENTS = "SELECT recipient, last_event_type FROM mailglass_deliveries"


def print_line(text: str, style: str | None = None) -> None:
    """Print a text, in colours on a terminal."""
    Console(highlight=False).print(text, style=style, markup=False, soft_wrap=True)


def print_event(who: str, text: str) -> None:
    """Print one escaped line, with the seconds since the demo started."""
    print_line(escape_unprintable(f"{time.monotonic() - BEGAN:5.1f} s  {who:<9} {text}"), STYLES.get(who))


def exit_on_signal(worker: Process | None = None) -> None:
    """Exit if a signal is pending; raise an error if the worker has ended."""
    if pending := signal.sigpending() & set(ENDING_SIGNALS):
        print_line("stopping the worker and both servers; it may take some seconds")
        sys.exit(128 + max(pending))
    if worker:
        worker.require()


class Demo:
    """An application, its providers and a subscriber, on the configured database.

    `rows` is the MD5 of each orphan's row at its arrival, by event id; `heard` the channel and the event id of each
    broadcast; `linked_by` the number of links by call and kind of sweep; `last` the result of the last full sweep.
    """

    def __init__(
        self, redis_url: str, post: Callable[[Mail, str], None], *, line_seconds: float = LINE_SECONDS
    ) -> None:
        self._post = post
        self._line_seconds = line_seconds
        self.worker: Process | None = None
        self._pubsub = redis.Redis.from_url(redis_url, decode_responses=True).pubsub()
        self._pubsub.psubscribe(*PATTERNS)
        for _ in PATTERNS:
            self._pubsub.get_message(timeout=PATIENCE_SECONDS)
        self.rows: dict[str, str] = {}
        self.heard: list[tuple[str, str]] = []
        self.linked_by: Counter[str] = Counter()
        self.last, self.recent_sweeps = SweepResult(), 0
        self._committed, self._shown = 0.0, 0

    def call(self, mail: Mail) -> None:
        """Receive the webhooks of *mail*, and then record its send, which links them."""
        for type_ in mail.types:
            self._receive(mail, type_)
        print_line(f"{'':19}record_webhook keeps the event: no row has its id yet.")
        with runtime.get_engine().begin() as connection:
            sent = [Sent(recipient=mail.address, message_id=mail.message_id)]
            recorded = record_send(connection, tenant_id=mail.tenant_id, provider=mail.provider, sent=sent)
        broadcast(recorded)
        self.linked_by["record_send"] += recorded[0].linked
        print_event("app", f"record_send, commit, broadcast: {recorded[0].linked} event linked")
        self.show_links([mail])

    def overtake(self, mails: Sequence[Mail], note: str = "") -> None:
        """Send in a transaction that stays open while the webhooks arrive; lost sends have a second transaction."""
        sent, engine = [mail for mail in mails if mail.sent], runtime.get_engine()
        with engine.connect() as committing, engine.connect() as losing:
            for message_id, call in groupby(sent, lambda mail: mail.message_id):
                mail, *more_mails = call
                recipients = [
                    Sent(recipient=recipient_mail.address, message_id=message_id)
                    for recipient_mail in (mail, *more_mails)
                ]
                connection = losing if mail.state else committing
                record_send(connection, tenant_id=mail.tenant_id, provider=mail.provider, sent=recipients)
            print_event("app", f"sends {', '.join(mail.name for mail in sent)}: not committed yet")
            for mail in mails:
                for type_ in mail.types:
                    time.sleep(self._line_seconds)  # so that people can read along
                    self._receive(mail, type_)
            if note:
                print_line(note)
            time.sleep(5 * self._line_seconds)  # until the receiver has looked again: a sweep is to link
            committing.commit()
        self._committed = time.monotonic()
        lost = ", ".join(mail.name for mail in sent if mail.state)
        print_event("app", f"commits; rolls {lost} back" if lost else f"commits; {self._last_events(sent)}")

    def _receive(self, mail: Mail, type_: str) -> None:
        exit_on_signal(self.worker)
        self._post(mail, type_)
        self.rows = self.read(ROWS) | self.rows
        print_event(mail.provider, f"{mail.name}: {type_}")

    def sweep(self) -> None:
        self.last = reconcile()
        self.linked_by["full"] += self.last.linked
        print_event("sweep", f"a full sweep linked {self.last.linked} of {self.last.scanned} orphans")

    def show_links(self, mails: Sequence[Mail]) -> None:
        """Wait until all orphans are linked; show the rows of *mails*, and the number of new broadcasts."""
        self.until(lambda: self.linked_by.total() >= len(self.rows) and len(self.heard) >= 2 * len(self.rows))
        print_event("app", self._last_events(mails))
        print_event(
            "redis", f"{len(self.heard) - self._shown} messages: two channels per link, tenant's and delivery's"
        )
        self._shown = len(self.heard)

    def read(self, query: str) -> dict[str, str]:
        """Return the rows of a query that selects a key and a value."""
        with runtime.get_engine().connect() as connection:
            return {row[0]: row[1] for row in connection.execute(sa.text(query))}

    def _last_events(self, mails: Sequence[Mail]) -> str:
        last = self.read(LAST_EVENTS)
        types = {mail.name: last[mail.address] for mail in mails}
        if len(set(types.values())) > 1:
            return "the rows say: " + ", ".join(f"{name} {type_}" for name, type_ in types.items())
        return f"{'all rows say' if len(types) > 1 else 'its row says'} {next(iter(types.values()))}"

    def until(self, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not condition() and time.monotonic() < ends:
            exit_on_signal(self.worker)
            self.poll()

    def poll(self) -> None:
        """Read new messages from Redis: broadcasts, and the results of recent sweeps."""
        while (message := self._pubsub.get_message(timeout=TICK_SECONDS)) is not None:
            body = json.loads(message["data"])
            if message["pattern"] == PATTERNS[0]:
                self.heard.append((message["channel"], body["meta"]["event_id"]))
                continue
            self.recent_sweeps += 1
            swept = body["result"]
            if body["status"] == "SUCCESS" and swept["linked"]:
                self.linked_by["recent"] += swept["linked"]
                late = f"{time.monotonic() - self._committed:.1f} s after the commit"
                print_event("recent", f"a recent sweep linked {swept['linked']} of {swept['scanned']}, {late}")
