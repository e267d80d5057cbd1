"""Work that tests interrupt: its rows, how it runs, and what holds afterwards and once another run has finished it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal

import sqlalchemy as sa
from pydantic import SecretStr

import backdating
import factories
import mailglass_reconcile
import processes
from database import Database
from django_project import databases_name
from faults import killable
from faults.proxy import Fault
from handling import effects, handle_all, leaving, make_due, states
from mailglass_reconcile import DatabaseUnavailableError, MailglassReconcileError
from mailglass_reconcile.store import engines
from personal import raw
from processes import Process

Outcome = Literal[".", "F", "R"]
"""Of a run whose connection was lost: it ended, it ended and says that something failed, or it raised an error."""

KILLED = -9


class Killable:
    """A process of `faults.killable`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def begin(self, **variables: object) -> None:
        """Let a child begin to work."""
        self._process.write_line(json.dumps({name: str(value) for name, value in variables.items()}))

    def end(self) -> tuple[int, list[str]]:
        """Wait for the child; return its exit code, or minus the signal's number, and the lines that it printed."""
        lines = []
        while not (line := self._process.read_line()).startswith("exit "):
            lines.append(line)
        return int(line.removeprefix("exit ")), lines

    def run(self, **variables: object) -> int:
        """Let a child work; return its exit code: 0, or `KILLED`."""
        self.begin(**variables)
        code, _ = self.end()
        assert code in (0, KILLED), self._process.output
        return code


@contextmanager
def killable_process(db: Any, redis_url: str, name: str, **variables: str) -> Iterator[Killable]:
    """Run a process that does the work *name* on demand."""
    environment = {**db.environment(redis_url), "PYTHONPATH": "tests:tests/support:.", **variables}
    with processes.start(["-m", "faults.killable", name], environment, stdin=True, exit_code=0) as process:
        yield Killable(process)


class Work:
    """Work on a database that may be interrupted anywhere, and that another run finishes.

    Attributes:
        name: Of `killable.WORK`.
        settings: Of a run in this process.
        variables: Of a run in a process of its own.
        fixtures: What a run in this process needs.
        calls_repeated: How many calls of handlers were repeated.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, object]] = {"batch_size": 2}
    variables: ClassVar[Mapping[str, str]] = {"MAILGLASS_BATCH_SIZE": "2"}
    fixtures: ClassVar[tuple[str, ...]] = ()
    calls_repeated = 0

    def __init__(self, db: Database) -> None:
        self.db = db
        self.configure(db.engine)

    def configure(self, engine: sa.Engine) -> None:
        """Let runs in this process use an engine."""
        settings = self.db.settings.model_copy(update=dict(self.settings))
        mailglass_reconcile.configure(engine=engine, settings=settings)

    @contextmanager
    def connected_to(self, url: str) -> Iterator[None]:
        """Let runs in this process connect to a URL."""
        engine = engines.create_engine(self.db.settings.model_copy(update={"database_url": SecretStr(url)}))
        self.configure(engine)
        yield
        engine.dispose()
        self.configure(self.db.engine)

    def plant(self, run: Callable[[], object]) -> None:
        """Insert rows to work on; *run* does the work once."""
        raise NotImplementedError

    def count_remaining(self) -> int:
        """Return the number of rows that are still to be worked on."""
        raise NotImplementedError

    def run(self) -> object:
        """Work once, in this process."""
        return killable.WORK[self.name]()

    def attempt(self, fault: Fault) -> Outcome:
        """Work once, in this process, while the connection is lost, and check what this says."""
        try:
            self.run()
        except MailglassReconcileError:
            return "R"
        except AssertionError:
            return "F"
        return "."

    def check(self) -> None:
        """Check what holds after any interruption."""

    def finish(self, run: Callable[[], object]) -> None:
        """Let *run* work once more, and check that everything is done, once."""
        run()
        assert self.count_remaining() == 0


class Sweep(Work):
    """Five orphans with a delivery each, in batches of two."""

    name = "sweep"
    orphans = 5

    def plant(self, run: Callable[[], object], **columns: object) -> None:
        """Insert the pairs."""
        self.links = self.db.count_links()
        factories.insert_pairs(self.db, self.orphans, **columns)

    def count_remaining(self) -> int:
        """Return the number of open orphans."""
        return int(self.db.value("SELECT count(*) FROM mailglass_open_orphans"))

    def run(self) -> mailglass_reconcile.SweepResult:
        """Sweep."""
        return mailglass_reconcile.reconcile()

    def attempt(self, fault: Fault) -> Outcome:
        """Sweep, and check the counts: links whose COMMIT was not answered are there, and count as held."""
        try:
            result = self.run()
        except MailglassReconcileError:
            assert self.db.count_links() == self.links, "nothing may be swept where the sweep raises"
            return "R"
        unanswered = self.db.count_links() - self.links - result.linked
        assert unanswered == 0 or (fault == "after" and 0 < unanswered <= result.skipped_held)
        assert result.published == 2 * result.linked
        if result.status == "ok":
            assert result.linked + unanswered == result.scanned
            return "."
        assert result.status == "failed"
        return "F"

    def finish(self, run: Callable[[], object]) -> None:
        """Sweep once more."""
        super().finish(run)
        assert self.db.count_links() == self.links + self.orphans


class Follow(Sweep):
    """The same pairs, for recent sweeps in a loop that never ends."""

    name = "follow"

    def plant(self, run: Callable[[], object], **columns: object) -> None:
        """Insert them so far ahead of the database's clock that each recent sweep of the next minutes checks them."""
        super().plant(run, age_seconds=-240, **columns)

    def finish(self, run: Callable[[], object]) -> None:
        """Sweep as its next tick does."""
        super().finish(mailglass_reconcile.reconcile_recent)


class Dispatch(Work):
    """Two jobs of each of three events."""

    name = "dispatch"
    variables: ClassVar[Mapping[str, str]] = {"MAILGLASS_IMPORTS": "faults.handled"}
    events = 0

    def plant(self, run: Callable[[], object]) -> None:
        """Link three orphans."""
        link_orphans(self.db, 3)
        self.events += 3

    def count_remaining(self) -> int:
        """Return the number of jobs that are not done."""
        return sum(states(self.db).values()) - states(self.db).get("done", 0)

    def finish(self, run: Callable[[], object]) -> None:
        """Dispatch until no job waits: each effect has happened once."""
        while self.count_remaining():
            make_due(self.db)
            run()
        assert states(self.db) == {"done": 2 * self.events}
        assert set(effects(self.db).values()) == {self.events}


class NewJobs(Dispatch):
    """Jobs of handlers of another process, of which one fails first."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        handle_all(db, "steady", "flaky")


class FailedJobs(NewJobs):
    """The one job that has failed once; the others are done."""

    def plant(self, run: Callable[[], object]) -> None:
        """Dispatch once."""
        super().plant(run)
        run()
        make_due(self.db)


class HandlersOnEngine(Dispatch):
    """Jobs of handlers of this process."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.calls = [leaving(name, "bounced") for name in ("effect", "other")]

    @property
    def calls_repeated(self) -> int:  # type: ignore[override]
        """How many calls of handlers were repeated."""
        return sum(map(len, self.calls)) - 2 * self.events

    def attempt(self, fault: Fault) -> Outcome:
        """Dispatch; one handler at most has failed, and only if its COMMIT did not reach the server."""
        try:
            result = mailglass_reconcile.dispatch()
        except DatabaseUnavailableError:
            return "R"
        assert (result.handled, result.failed) in ((6, 0), (5, 1))
        return "F" if result.failed else "."


class HandlersOnDjango(HandlersOnEngine):
    """Jobs of handlers of this process, on Django's connection."""

    fixtures = ("app",)

    def configure(self, engine: sa.Engine) -> None:
        """Leave Django's connection as it is."""

    def connected_to(self, url: str) -> AbstractContextManager[None]:
        """Let Django connect to a URL."""
        return databases_name(url)


class Prune(Work):
    """Old deliveries with their events, which a retention deletes in batches of two."""

    name = "prune"
    settings: ClassVar[Mapping[str, object]] = {"retention_events_days": 30, "retention_deliveries_days": 30}
    variables: ClassVar[Mapping[str, str]] = {
        f"MAILGLASS_{name.upper()}": str(value) for name, value in settings.items()
    }

    def plant(self, run: Callable[[], object]) -> None:
        """Insert five deliveries of forty days ago."""
        self.filled = backdating.fill(self.db, 5)

    def count_remaining(self) -> int:
        """Return the number of rows that a prune would still delete."""
        return int(self.db.value(REMAINING))

    def check(self) -> None:
        """Check that each delivery has all of its events or none."""
        backdating.check(self.db, self.filled)


class Erase(Work):
    """A person's deliveries and raw webhooks, which are erased in batches of two."""

    name = "erase"
    rows = 5

    def plant(self, run: Callable[[], object]) -> None:
        """Insert five of each; an erasure would read the raw webhooks of earlier ones again."""
        self.db.run("DELETE FROM mailglass_webhook_events")
        recipient = {"recipient": killable.ADDRESS, "recipient_domain": "example.com"}
        factories.insert(self.db, [factories.delivery_row(**recipient) for _ in range(self.rows)])
        self.db.run(
            """UPDATE mailglass_deliveries SET metadata = '{"order": 1}' WHERE recipient = :address""",
            address=killable.ADDRESS,
        )
        for _ in range(self.rows):
            raw(self.db, {"to": killable.ADDRESS})

    def count_remaining(self) -> int:
        """Return the number of rows that still have the address."""
        return int(self.db.value(ROWS_WITH_ADDRESS, address=killable.ADDRESS))

    def check(self) -> None:
        """Check that each delivery is erased in all of its columns or in none."""
        assert not self.db.rows(HALF_ERASED, address=killable.ADDRESS)


REMAINING = "SELECT (SELECT count(*) FROM mailglass_events) + (SELECT count(*) FROM mailglass_deliveries)"
ROWS_WITH_ADDRESS = """
SELECT (SELECT count(*) FROM mailglass_deliveries WHERE recipient = :address)
       + (SELECT count(*) FROM mailglass_open_orphans WHERE recipient = :address)
       + (SELECT count(*) FROM mailglass_webhook_events WHERE raw_payload::text LIKE '%' || :address || '%')
"""
HALF_ERASED = """
SELECT FROM mailglass_deliveries
 WHERE (recipient = :address) <> (recipient_domain = 'example.com') OR (recipient = :address) <> (metadata <> '{}')
"""


def link_orphans(db: Database, number: int) -> None:
    """Link *number* new orphans by a sweep, one to each delivery."""
    db.run("UPDATE mailglass_deliveries SET provider_message_id = NULL WHERE provider_message_id IS NOT NULL")
    factories.insert_pairs(db, [f"m-{n}" for n in range(number)], type="bounced")
    assert mailglass_reconcile.reconcile().linked == number
