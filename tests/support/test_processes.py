"""A forked process behaves like one that is started."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

import processes
from marking import slow_unless
from waiting import wait_until

pytestmark = pytest.mark.version_independent

PROBE = """
import json, os, signal, sys, threading, time
import celery.app.builtins
from celery import _state
handlers = {number: str(signal.getsignal(number)).partition(" at ")[0] for number in signal.valid_signals()}
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
package_modules = {name for name in sys.modules if name.startswith("mailglass_reconcile.")}
print(json.dumps({
    "working directory": os.getcwd(), "environment": dict(os.environ), "path": sys.path, "arguments": sys.argv,
    "signals": handlers, "blocked": sorted(blocked), "files": sorted(os.listdir("/proc/self/fd")),
    "leads a session": os.getsid(0) == os.getpid(), "leads a group": os.getpgid(0) == os.getpid(),
    "threads": threading.active_count(), "apps": len(list(_state._get_active_apps())),
    "current app": repr(_state._tls.current_app), "tasks": "mailglass_reconcile.tasks" in package_modules,
    "made when apps are": len(_state._on_app_finalizers), "umask": os.umask(0o22), "name": __name__,
    "time zone": time.tzname,
}, default=str))
app = celery.Celery("probe")
raise SystemExit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("option", "session"), [("-c", False), ("-m", True)])
def test_a_forked_process_is_what_a_started_one_is(tmp_path, option, session) -> None:
    """Folder, environment, time zone, path, arguments, signals, files and session agree; Celery has no app or task
    yet.
    """
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}tests", "ONE": "more", "TZ": "Asia/Tokyo"}
    arguments = [option, "probe" if option == "-m" else PROBE, "--some", "arguments"]
    reports = []
    for forked in (False, True):
        with processes.start(arguments, environment, cwd=tmp_path, session=session, forked=forked) as process:
            assert process.wait() == process.poll() == 3
        reports.append(json.loads(process.output))
    assert reports[0] == reports[1]


@pytest.fixture
def terminal() -> dict[str, str]:
    """The environment of a shell whose commands are forked."""
    return {**os.environ, "PATH": f"{processes.forker().commands}{os.pathsep}{os.defpath}"}


SCRIPTS = Path(sys.executable).parent
BLOCKING = f"""{sys.executable} -c '
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.execvp(sys.argv[1], sys.argv[1:])
'"""
"""Runs a command with a blocked signal, which it inherits."""


@pytest.mark.parametrize(
    "command",
    slow_unless("python -m probe".__eq__, ["python -c", "python -P -c", "python -m probe", "python probe.py"]),
)
def test_a_command_of_a_shell_that_is_forked_is_what_a_started_one_is(tmp_path, terminal, command) -> None:
    """It runs code, a module or a script, with the same `sys.path`, environment, blocked signals and exit code."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['SITE'] = 'customized'")
    code = PROBE if command.endswith("-c") else ""
    reports = []
    for path in (f"{SCRIPTS}{os.pathsep}{os.defpath}", terminal["PATH"]):
        environment = {**terminal, "PATH": path, "PYTHONPATH": str(tmp_path)}
        script = f"cd {tmp_path} && {BLOCKING} {command} {shlex.quote(code) if code else ''} --some arguments"
        result = processes.run(["bash", "-c", script], environment)
        assert result.returncode == 3, result.stderr
        reports.append(json.loads(result.stdout))
        for name in ("PATH", "_"):  # a shell's `_` is the path of the command
            del reports[-1]["environment"][name]
    assert reports[0]["environment"]["SITE"] == "customized"
    assert reports[0]["blocked"] == [signal.SIGTERM]
    assert reports[0] == reports[1]


def test_a_command_of_a_shell_is_forked_from_what_has_been_imported(terminal) -> None:
    """Otherwise forking it would save nothing."""
    code = "import sys; print('celery.apps.worker' in sys.modules)"
    assert processes.run(["sh", "-c", f'python -c "{code}"'], terminal).stdout == "True\n"
    result = processes.run(["sh", "-c", "mailglass-reconcile --version; celery --version"], terminal)
    assert result.stdout.startswith("mailglass-reconcile, version")
    assert result.returncode == 0
    environment = {**terminal, "PYTHONUTF8": "0"}  # no fork could follow
    assert processes.run(["sh", "-c", f'python -c "{code}"'], environment).stdout == "False\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGUSR1, -signal.SIGUSR1)])
def test_a_signal_to_a_command_of_a_shell_reaches_the_forked_process(terminal, number, code) -> None:
    waiting = "import signal, time; signal.signal(15, lambda *_: exit(5)); print('ready', flush=True); time.sleep(90)"
    with processes.start(["sh", "-c", f'exec python -c "{waiting}"'], terminal, until="ready") as process:
        assert len(process.family()) == 1
        assert process.stop(number) == code


def test_a_command_of_a_shell_is_killed_at_the_end_of_the_block(terminal) -> None:
    code = "import os; os.fork(); print('ready', flush=True); __import__('time').sleep(90)"
    with processes.start(["sh", "-c", f'python -c "{code}"; true'], terminal, until="ready") as process:
        process.wait_for(lambda: len(process.family()) == 3)
        family = process.family()
    assert not any(processes._runs(member) for member in family)
    code = "print('ready', flush=True); __import__('time').sleep(90)"
    with processes.start(["sh", "-c", f'exec python -c "{code}"'], terminal, until="ready") as process:
        (forked,) = process.family()
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not processes._runs(forked))


def test_a_process_with_other_interpreter_options_is_started() -> None:
    """A fork cannot change the interpreter's options."""
    result = processes.run(["-c", "import sys; print(sys.flags.utf8_mode)"], {**os.environ, "PYTHONUTF8": "0"})
    assert result.stdout == "0\n"


def test_a_process_is_killed_with_its_children_at_the_end_of_the_block() -> None:
    """Its output can still be read."""
    code = "import subprocess, sys; print('there', flush=True); subprocess.run([sys.executable, '-c', 'input()'])"
    with processes.start(["-c", code], until=re.compile("the(re)"), stdin=True) as process:
        process.wait_for(lambda: len(process.family()) == 2)
        family = process.family()
        assert process.poll() is None
    assert process.poll() == -9
    assert not any(member.is_running() and member.status() != "zombie" for member in family)
    assert process.output == "there\n"


def test_a_process_that_ends_before_the_condition_holds_fails_with_its_output() -> None:
    """It does not wait for the condition's timeout."""
    starting = processes.start(["-c", "print('why'); raise SystemExit(2)"], until="ready")
    with pytest.raises(AssertionError, match="ended with 2\nwhy"), starting:
        pass


def test_a_process_must_exit_with_the_given_code_on_sigterm() -> None:
    """A process that ends earlier gets no signal."""
    starting = processes.start(["-c", "__import__('time').sleep(90)"], exit_code=0)
    with pytest.raises(AssertionError, match="-15"), starting:
        pass
    with processes.start(["-c", ""], exit_code=5) as process:
        assert process.wait() == 0


def test_lines_are_sent_and_read_and_the_end_of_its_input_ends_a_process() -> None:
    code = "for line in open(0): print(line + line, end='', flush=True)"
    with processes.start(["-c", code], exit_code=0, stdin=True) as process:
        for word in ("a", "b"):
            process.write_line(word)
            assert [process.read_line() for _ in range(2)] == [word, word]


def test_a_log_of_several_processes_is_read_from_the_start_of_each(tmp_path) -> None:
    """The output of an earlier process does not count as a sign of readiness."""
    log = tmp_path / "log"
    assert processes.run(["sh", "-c", f"echo ready > {log}"]).returncode == 0
    with processes.start(["sh", "-c", "echo now; sleep 90"], log=log, until="now") as process:
        assert process.output == "now\n"
    assert log.read_text() == "ready\nnow\n"


def test_a_module_that_is_run_has_not_been_imported() -> None:
    """Python would print a warning."""
    for module in ("celery", "mailglass_reconcile"):
        result = processes.run(["-m", module, "--version"])
        assert (result.returncode, result.stderr) == (0, "")
