"""The Makefile, where it touches what is the reader's."""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path) -> Path:
    """A checkout's `.venv` as the README's reader has made it, with the newest pip and a package that it lacks here."""
    made = tmp_path / ".venv"
    venv.create(made, with_pip=False, symlinks=True)
    (site,) = (made / "lib").glob("python*/site-packages")
    for part in Path(sysconfig.get_path("purelib")).glob("pip*"):
        (site / part.name).symlink_to(part)
    (made / "bin" / "pip").touch(0o755)
    (site / "readers_own.py").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    return made


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """Run make, without a package index, and without what a make that runs this test was given."""
    items = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}
    variables = {**items, "PIP_NO_INDEX": "1"}
    return subprocess.run(["make", *targets], cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_environment_that_the_reader_made_is_used_and_not_cleared(environment):
    """What was installed there stays; the stamp is made, so the next target does not touch it again."""
    result = make(environment.parent, ".venv/venv.stamp")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Making" not in result.stdout
    assert list((environment / "lib").glob("python*/site-packages/readers_own.py"))
    assert (environment / "venv.stamp").exists()
