"""The Makefile's treatment of the reader's environment."""

import os
import shutil
import subprocess
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path) -> Path:
    """A reader's `.venv` with the newest pip and a package that is not installed here."""
    folder = tmp_path / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for part in Path(sysconfig.get_path("purelib")).glob("pip*"):
        (site / part.name).symlink_to(part)
    (folder / "bin" / "pip").touch(0o755)
    (site / "readers_own.py").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "constraints.txt").write_text(f"pip=={version('pip')}\n")
    return folder


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """Run make without a package index, and without the variables of a make that runs this test."""
    items = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}
    variables = {**items, "PIP_NO_INDEX": "1"}
    return subprocess.run(["make", *targets], cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_environment_that_the_reader_made_is_used_and_not_cleared(environment):
    """Its packages stay; the stamp is made, so the next target does not touch it again."""
    result = make(environment.parent, ".venv/venv.stamp")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Making" not in result.stdout
    assert list((environment / "lib").glob("python*/site-packages/readers_own.py"))
    assert (environment / "venv.stamp").exists()
