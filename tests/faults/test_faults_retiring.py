"""A killed prune or erasure leaves no delivery half done; the next one does the rest."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

import pytest

import factories
import processes
from backdating import check, fill, prune
from database import Database
from faults.runs import FULL
from faults.tracing import may_trace, was_killed
from personal import erase_person, raw

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
ADA = "ada@example.com"
ROWS = 5
CALLS = ("sendto", "recvfrom")
RETENTION = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}

_REMAINING = "SELECT (SELECT count(*) FROM mailglass_events) + (SELECT count(*) FROM mailglass_deliveries)"
_ROWS_WITH_ADDRESS = """
SELECT (SELECT count(*) FROM mailglass_deliveries WHERE recipient = :address)
       + (SELECT count(*) FROM mailglass_open_orphans WHERE recipient = :address)
       + (SELECT count(*) FROM mailglass_webhook_events WHERE raw_payload::text LIKE '%' || :address || '%')
"""
_HALF_ERASED = """
SELECT FROM mailglass_deliveries
 WHERE (recipient = :address) <> (recipient_domain = 'example.com') OR (recipient = :address) <> (metadata <> '{}')
"""


class Prune:
    """Old deliveries with their events, which a retention deletes."""

    arguments = ("prune",)

    def __init__(self, db: Database) -> None:
        self.db = db
        self.known = fill(db, ROWS)
        self.rows = self.remaining

    @property
    def remaining(self) -> int:
        """Return the number of rows that a prune would still delete."""
        return int(self.db.value(_REMAINING))

    def check(self) -> None:
        """Check that each delivery has all of its events or none."""
        check(self.db, self.known)

    def finish(self) -> None:
        """Prune once more, to the end."""
        assert prune(self.db, 30, 30).failures == {}


class Erase:
    """A person's deliveries, open orphans and raw webhooks."""

    arguments = ("erase", ADA)

    def __init__(self, db: Database) -> None:
        self.db = db
        rows = [factories.delivery_row(recipient=ADA, recipient_domain="example.com") for _ in range(ROWS)]
        factories.insert(db, rows)
        db.run("""UPDATE mailglass_deliveries SET metadata = '{"order": 1}' WHERE recipient = :address""", address=ADA)
        for _ in range(ROWS):
            raw(db, {"to": ADA})
        self.rows = self.remaining

    @property
    def remaining(self) -> int:
        """Return the number of rows that still have the address."""
        return int(self.db.value(_ROWS_WITH_ADDRESS, address=ADA))

    def check(self) -> None:
        """Check that each delivery is erased in all of its columns or in none."""
        assert not self.db.rows(_HALF_ERASED, address=ADA)

    def finish(self) -> None:
        """Erase once more, to the end."""
        erase_person(self.db, ADA)


def retire_in_process(work: Prune | Erase, redis_url: str, *before: str, dies_at: int = 0) -> bool:
    """Do the work in a process of its own, under the command *before*; return True if it was killed."""
    environment = {**work.db.environment(redis_url), **RETENTION, "PYTHONPATH": "tests"}
    command = (
        [*before, sys.executable, "-m", "faults.retirer", *work.arguments]
        if before
        else ["-m", "faults.retirer", *work.arguments]
    )
    return was_killed(processes.run(command, {**environment, "RETIRER_DIES_AT": str(dies_at)}))


def kill_and_finish(db: Database, begin: type[Prune | Erase], run: Callable[..., bool], numbers: Iterable[int]) -> int:
    """Kill the work at each of *numbers*, and finish it each time; return how often it was half done."""
    middle = 0
    for number in numbers:
        work = begin(db)
        hit = run(work, number)
        db.wait_until_alone()
        work.check()
        middle += 0 < work.remaining < work.rows
        work.finish()
        assert work.remaining == 0
        if not hit:
            break
    assert middle, "never killed in the middle"
    return middle


def sockets(work: Prune | Erase, redis_url: str, call: str, log: Path) -> Iterator[int]:
    """Return the numbers of the system calls to die at: all since the first on a socket, or three of them."""
    assert not retire_in_process(work, redis_url, "strace", "-f", "-qq", "-y", "-e", f"trace={call}", "-o", str(log))
    lines = log.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if "socket:[" in line)
    step = 1 if FULL else max(1, (len(lines) - first) // 4)
    return iter(range(first if FULL else first + step, len(lines), step))


@pytest.mark.skipif(not may_trace(), reason="strace is missing or may not trace")
@pytest.mark.parametrize(
    ("begin", "call"), [*product([Prune, Erase], CALLS)] if FULL else [*zip([Prune, Erase], CALLS, strict=True)]
)
def test_work_killed_at_a_call_to_the_server_is_finished_by_the_next(
    db: Database, redis_url: str, begin: type[Prune | Erase], call: str, tmp_path: Path, record_property: Record
) -> None:
    """A statement has not been sent, or its response has not arrived; each is tried for one of the two in the
    selection.
    """

    def run(work: Prune | Erase, number: int) -> bool:
        inject = f"inject={call}:signal=KILL:when={number}"
        return retire_in_process(
            work, redis_url, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject
        )

    middle = kill_and_finish(db, begin, run, sockets(begin(db), redis_url, call, tmp_path / "log"))
    record_property("fault", (f"{begin.__name__.lower()} killed at {call}", middle))


@pytest.mark.parametrize("begin", [Prune, Erase])
def test_work_killed_at_a_fail_point_is_finished_by_the_next(
    db: Database, redis_url: str, begin: type[Prune | Erase], record_property: Record
) -> None:
    """Fail points are around statements and COMMITs; this needs no strace."""

    def run(work: Prune | Erase, number: int) -> bool:
        return retire_in_process(work, redis_url, dies_at=number)

    middle = kill_and_finish(db, begin, run, range(1, 1_000, 1 if FULL else 23))
    record_property("fault", (f"{begin.__name__.lower()} killed at a fail point", middle))
