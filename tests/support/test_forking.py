"""A process that is forked is what one that is started would be."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

import forking

PROBE = """
import json, os, signal, sys, threading, time
import celery.app.builtins
from celery import _state
handlers = {one: str(signal.getsignal(one)).partition(" at ")[0] for one in signal.valid_signals()}
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
ours = {name for name in sys.modules if name.startswith("mailglass_reconcile.")}
print(json.dumps({
    "working directory": os.getcwd(), "environment": dict(os.environ), "path": sys.path, "arguments": sys.argv,
    "signals": handlers, "blocked": sorted(blocked), "files": sorted(os.listdir("/proc/self/fd")),
    "leads a session": os.getsid(0) == os.getpid(), "leads a group": os.getpgid(0) == os.getpid(),
    "threads": threading.active_count(), "apps": len(list(_state._get_active_apps())),
    "current app": repr(_state._tls.current_app), "tasks": "mailglass_reconcile.tasks" in ours,
    "made when apps are": len(_state._on_app_finalizers), "umask": os.umask(0o22), "name": __name__,
    "time zone": time.tzname,
}, default=str))
app = celery.Celery("probe")
raise SystemExit(3)
"""


@pytest.mark.parametrize(("option", "session"), [("-c", False), ("-m", True)])
def test_a_forked_process_is_what_a_started_one_is(tmp_path, option, session) -> None:
    """Folder, environment, time zone, path, arguments, signals, files, session; Celery has neither app nor task yet."""
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}tests", "ONE": "more", "TZ": "Asia/Tokyo"}
    what = [option, "probe" if option == "-m" else PROBE, "--some", "arguments"]
    found = []
    for forked in (False, True):
        with tempfile.TemporaryFile() as output, Path(os.devnull).open() as nothing:
            files = (nothing.fileno(), output.fileno(), output.fileno())
            process = forking.start(environment, *what, files=files, directory=tmp_path, session=session, forked=forked)
            assert process.wait(forking.SECONDS) == process.poll() == 3
            output.seek(0)
            found.append(json.loads(output.read()))
    assert isinstance(process, forking.Forked)
    assert found[0] == found[1]


def test_one_whose_interpreter_is_set_up_otherwise_is_started() -> None:
    """No fork could follow."""
    done = forking.python({**os.environ, "PYTHONUTF8": "0"}, "-c", "import sys; print(sys.flags.utf8_mode)")
    assert done.stdout == "0\n"


def test_a_forked_process_can_be_waited_for_asked_and_killed() -> None:
    """As one of `subprocess` can."""
    given, other = os.pipe()
    with os.fdopen(given) as never, os.fdopen(other, "w") as nothing:
        files = (never.fileno(), nothing.fileno(), nothing.fileno())
        process = forking.start(os.environ, "-c", "input()", files=files)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait(forking.SECONDS) == process.poll() == -9
        process.kill()


def test_a_module_that_is_run_is_not_there_already() -> None:
    """Python would warn of it, in every log."""
    for module in ("celery", "mailglass_reconcile"):
        done = forking.python(os.environ, "-m", module, "--version")
        assert (done.returncode, done.stderr) == (0, "")
