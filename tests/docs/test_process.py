"""production.md, "What it touches in your process": each row, in a process that records, receives and sweeps."""

import json
import re
import sys

import pytest

import pages
import processes

pytestmark = pytest.mark.version_independent

TABLE = (pages.ROOT / "docs/production.md").read_text().partition("## What it touches in your process")[2]
ROWS = dict(re.findall(r"^\| ([A-Z][^|]*) \| ([^|]*) \|$", TABLE.partition("\n## ")[0], re.M))


def words(row: str) -> set[str]:
    """Return the names in a row."""
    return set(re.findall(r"`([^`]+)`", ROWS[row]))


@pytest.fixture
def observed(db, redis_url):
    """What changed in a process, by area."""
    program = str(pages.ROOT / "tests/support/observed_process.py")
    result = processes.run(
        [sys.executable, program], {**db.environment(redis_url), "MAILGLASS_GRACE_SECONDS": "0"}, forked=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_each_row_of_the_page_is_what_the_package_changes_in_a_process(observed):
    """Nothing else is changed of loggers, signals, listeners, threads, exits, time zone, collector and environment."""
    changes = observed["changes"]
    assert (changes["loggers"], observed["own loggers"]) == ({}, [])
    assert words("Loggers") == {"mailglass_reconcile.*"}
    assert (changes["signals"], observed["application"]["signals"]) == ({}, [])
    assert set(observed["worker"]["signals"]) == words("Signals of the system")
    assert set(changes["celery"]) == words("Signals of Celery")
    assert (changes["sessions"], "Sessions with which you record" in ROWS["SQLAlchemy's events"]) == ({}, True)
    assert {tuple(hook) for hook in observed["hooks"]} == {("after_in_child",)}
    assert "os.register_at_fork" in words("Forks")
    assert set(changes["threads"]) <= words("Threads")
    assert set(changes["threads"].values()) <= {"True"}, "they are daemons"
    assert changes["exits"] != {}
    assert words("Exit") == {"atexit"}
    assert (changes["zone"], observed["session"], ROWS["Time zone"][:4]) == ({}, True, "None")
    assert (changes["collector"], changes["process"]) == ({}, {})
    assert "5,000" in ROWS["Garbage collector"]
    assert observed["worker"]["collector"] != observed["application"]["collector"] != [5_000]
