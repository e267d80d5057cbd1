"""When modules are imported, which wing loads which, and what works without Celery."""

import ast
import json
import os
import re
import tomllib
from pathlib import Path

import pytest

import mailglass_reconcile.webhooks
import processes
from factories import insert_pairs
from marking import nightly_unless

pytestmark = pytest.mark.python_dependent

WITHOUT_CELERY = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("celery", "celery_singleton", "kombu", "billiard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

SWEEP_AND_PRUNE = (
    WITHOUT_CELERY
    + """
import json
import mailglass_reconcile
swept = mailglass_reconcile.reconcile()
pruned = mailglass_reconcile.prune()
print(json.dumps([mailglass_reconcile.available(), swept.linked, pruned.as_dict()]))
"""
)

COMMAND = WITHOUT_CELERY + "from mailglass_reconcile.cli import main; main()"

IMPORT_ALONE = """
import socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen"):
        raise SystemExit(f"connected at import: {event}")

sys.addaudithook(refuse)
import mailglass_reconcile
mailglass_reconcile.configure()
print([name for name in ("celery", "celery_singleton", "alembic", "click", "rich") if name in sys.modules])
"""


def python(code, *arguments, env=None):
    """Run code in a Python of its own, and return the result."""
    return processes.run(["-W", "error::ImportWarning", "-c", code, *arguments], env)


@pytest.mark.slow
def test_sweep_and_prune_work_where_celery_cannot_be_imported(db, redis_url):
    """Python calls work; `available()` returns False."""
    insert_pairs(db, ["one"])
    result = python(SWEEP_AND_PRUNE, env=db.environment(redis_url))
    assert result.returncode == 0, result.stderr
    available, linked, pruned = json.loads(result.stdout)
    assert (available, linked) == (False, 1)
    assert set(pruned) >= {"succeeded", "dead", "failed"}


@pytest.mark.slow
def test_the_command_sweeps_and_prunes_where_celery_cannot_be_imported(db, redis_url):
    """An operator's own cron runs it."""
    insert_pairs(db, ["one"])
    for command, field, value in (("sweep", "linked", 1), ("prune", "failed", 0)):
        process = python(COMMAND, command, "--json", env=db.environment(redis_url))
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)[field] == value


def test_celery_is_available_where_it_can_be_imported():
    """It is installed here, because it is a dependency."""
    assert mailglass_reconcile.available()


def test_importing_connects_to_nothing_and_needs_no_setting():
    """There is no socket and no process; modules that only commands need are not loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    process = python(IMPORT_ALONE, env={**environment, "MAILGLASS_DATABASE_URL": "nonsense"})
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "[]\n"


HEAVY = ("sqlalchemy", "celery", "alembic", "redis", "rich", "psycopg")


@pytest.mark.parametrize("option", [pytest.param("--version", marks=pytest.mark.slow), "--help"])
def test_the_help_of_the_command_loads_no_library_of_its_subcommands(option):
    """They take half a second."""
    code = "from mailglass_reconcile.cli import main\ntry:\n    main()\nfinally:\n    import sys\n"
    process = python(code + f"    print([name for name in {HEAVY} if name in sys.modules])", option)
    assert (process.returncode, process.stdout.splitlines()[-1]) == (0, "[]")


def test_status_loads_no_mapper_and_no_metrics():
    """They take a sixth of `status --check`, which a monitor calls each minute."""
    unneeded = ("sqlalchemy.orm", "opentelemetry.metrics", "redis")
    result = python(f"import sys, mailglass_reconcile.cli.status; print([n for n in {unneeded} if n in sys.modules])")
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


@pytest.mark.slow
def test_redis_is_loaded_by_what_connects_to_it():
    """It takes a tenth of a second, and most commands need no Redis."""
    modules = "record.sends", "record.webhooks", "sweep.reconciler", "cli.status", "cli.migrate", "handlers.dispatcher"
    names = ", ".join(f"mailglass_reconcile.{name}" for name in modules)
    loaded = "print('redis' in sys.modules)"
    code = f"import sys, {names}\n{loaded}\nmailglass_reconcile.runtime.get_redis()\n{loaded}"
    process = python(code)
    assert (process.returncode, process.stdout.split(), process.stderr) == (0, ["False", "True"], "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", nightly_unless(("parse", "webhook_app").__contains__, mailglass_reconcile.webhooks.__all__)
)
def test_each_public_name_of_webhooks_can_be_the_first_that_is_imported(name):
    """Each process imports one name: the receiver imports the package that loads it."""
    process = python(f"from mailglass_reconcile.webhooks import {name}; print({name}.__name__)")
    assert (process.returncode, process.stdout, process.stderr) == (0, f"{name}\n", "")


def test_reading_and_verifying_a_webhook_loads_no_database_library():
    """Settings are not loaded either: a queue's consumer may need nothing else."""
    code = """
import sys
from mailglass_reconcile.webhooks import SignatureError, parse, verify
parse("postmark", b'{"RecordType": "Open", "MessageID": "m-1"}')
try:
    verify("postmark", b"{}", {}, secret="user:password")
except SignatureError:
    print([name for name in ("sqlalchemy", "pydantic", "opentelemetry") if name in sys.modules])
"""
    process = python(code)
    assert (process.returncode, process.stdout, process.stderr) == (0, "[]\n", "")


PACKAGE = Path(mailglass_reconcile.__path__[0])


def wings_from_top() -> dict[str, int]:
    """Return the level of each wing in import-linter's contract, 0 for the highest."""
    contracts = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract.get("containers") == ["mailglass_reconcile"])
    assert "ignore_imports" not in contract
    return {wing: level for level, layer in enumerate(contract["layers"]) for wing in re.findall(r"\w+", layer)}


def modules_loaded_by_name(path: Path) -> set[str]:
    """Return the modules of ours whose names are texts of a file that loads modules by their names."""
    code = path.read_text()
    if "import_module(" not in code:
        return set()
    texts = (node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant))
    return {match[1] for text in texts if (match := re.match(r"mailglass_reconcile\.([a-z_.]*\w)", str(text)))}


def test_only_the_rules_load_a_higher_wing_by_its_name():
    """import-linter holds the import statements; it cannot see names."""
    levels = wings_from_top()
    upward = {
        (wing, name)
        for path in PACKAGE.rglob("*.py")
        for wing in [path.relative_to(PACKAGE).with_suffix("").parts[0]]
        for name in modules_loaded_by_name(path)
        if levels[name.partition(".")[0]] < levels[wing]
    }
    assert upward == {("rules", "providers.builtin")}
