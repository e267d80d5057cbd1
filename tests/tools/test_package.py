"""The installed package: the wheel's contents, the top-level names, and imports."""

import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mailglass_reconcile

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]


def build(directory: Path, kind: str) -> Path:
    """Build a distribution from this checkout, with the installed build backend."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = directory.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_migrations(wheel):
    """It has what runs from an installed wheel, with types, templates and pictures, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for path in (ROOT / "mailglass_reconcile").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    package = {path.relative_to(ROOT).as_posix() for path in files}
    assert package <= set(names)
    assert "mailglass_reconcile/_alembic/env.py" in names
    for folder, pattern in (("versions", "*.py"), ("schema", "*.sql")):
        scripts = {
            f"mailglass_reconcile/_alembic/{folder}/{path.name}" for path in ROOT.glob(f"alembic/{folder}/{pattern}")
        }
        assert scripts
        assert scripts <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mailglass_reconcile"}
    assert "mailglass_reconcile/py.typed" in names
    assert [name for name in names if name.endswith("LICENSE")]
    assert not [name for name in names if name.endswith(".md")]


@pytest.mark.slow
def test_the_source_distribution_has_what_a_contributor_needs(tmp_path):
    """The commands of CONTRIBUTING.md run in it, but for those that need a clone."""
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "Makefile", "constraints.txt", "noxfile.py", "mkdocs.yml", "CONTRIBUTING.md", ".ci/run", ".ci/release.py",
        "hatch_build.py", "alembic/README.md", "docs/reference.py", "bench/__main__.py", "tests/conftest.py",
        "tests/faults/breaks.txt",
    }  # fmt: skip
    assert needed <= names
    assert not [name for name in names if name.startswith((".venv", ".git/"))]


@pytest.mark.slow
def test_an_installed_wheel_migrates(wheel, tmp_path, empty_database_url):
    """`migrate` finds its revisions within the wheel, far from any checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path)  # noqa: S202 - our own
    program = "import mailglass_reconcile, sys; from mailglass_reconcile.cli import main; "
    program += f"assert mailglass_reconcile.__file__.startswith({str(tmp_path)!r}); sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MAILGLASS_DATABASE_URL": empty_database_url}
    for arguments in (["migrate"], ["migrate", "--check"], ["migrate", "--grants"]):
        command = [sys.executable, "-c", program, *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)


def test_the_top_level_names_are_sorted_and_there():
    """`__all__` is the public API in order."""
    names = mailglass_reconcile.__all__
    assert list(names) == sorted(names)
    assert all(hasattr(mailglass_reconcile, name) for name in names)


APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.admin",
    "mailglass_reconcile.contrib.django",
]

IN_DJANGO = f"""
import django, importlib
from django.conf import settings
settings.configure(INSTALLED_APPS={APPS})
django.setup()
"""


@pytest.mark.slow
def test_no_import_connects_to_anything():
    """Importing every module leaves both servers alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        environment = {
            **os.environ,
            "MAILGLASS_DATABASE_URL": f"postgresql://127.0.0.1:{port}/none",
            "MAILGLASS_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        }
        program = IN_DJANGO + "\n".join(f"importlib.import_module({name!r})" for name in _modules())
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
        with pytest.raises(BlockingIOError):
            server.accept()


def _modules() -> list[str]:
    files = (ROOT / "mailglass_reconcile").rglob("*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name for name in names if not name.endswith("__main__") and "._alembic" not in name]
