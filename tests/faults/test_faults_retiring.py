"""A killed prune or erasure leaves no delivery half done; the next one does the rest."""

from collections.abc import Callable

import pytest

import factories
import processes
from backdating import check, fill, prune
from database import Database
from faults.runs import FULL
from faults.tracing import was_killed
from personal import erase_person, raw

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
ADA = "ada@example.com"
ROWS = 5
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
    selection = range(90, 130, 10)

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
    selection = range(30, 110, 20)

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


def retire_in_process(work: Prune | Erase, redis_url: str, dies_at: int) -> bool:
    """Do the work in a process of its own; return True if it was killed."""
    more = {**RETENTION, "PYTHONPATH": "tests", "RETIRER_DIES_AT": str(dies_at)}
    command = ["-m", "faults.retirer", *work.arguments]
    return was_killed(processes.run(command, {**work.db.environment(redis_url), **more}))


@pytest.mark.parametrize("begin", [Prune, Erase])
def test_work_killed_at_a_fail_point_is_finished_by_the_next(
    db: Database, redis_url: str, begin: type[Prune | Erase], record_property: Record
) -> None:
    """Fail points are around statements and COMMITs; the selected ones are amid the work."""
    middle = 0
    for number in range(1, 1_000) if FULL else begin.selection:
        work = begin(db)
        is_killed = retire_in_process(work, redis_url, number)
        db.wait_until_alone()
        work.check()
        middle += 0 < work.remaining < work.rows
        work.finish()
        assert work.remaining == 0
        if not is_killed:
            break
    assert middle, "never killed in the middle"
    record_property("fault", (f"{begin.__name__.lower()} killed at a fail point", middle))
