"""Load the fixtures, which are in `support/`, and choose how many tests run at a time, where, and in which order."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

import marking
import revision_files

FIXTURES = (
    "mailglass_reconcile.testing.plugin",
    "real_servers",
    "shapes",
    "installation",
    "handling",
    "observing",
    "django_project",
    "locks",
    "drivers",
    "open_set",
    "snapshots",
)
"""Plugins; of two fixtures with the same name, the later one counts."""


MEMORY = "/dev/shm"  # noqa: S108 - the servers make folders of their own in it


def find_memory() -> str | None:
    """Return a folder in memory for temporary files, if 8 GB are free and programs may run there.

    Tests make some thousand databases, each in a fifth of the time.
    """
    try:
        volume = os.statvfs(MEMORY)
    except OSError:
        return None
    is_usable = volume.f_bavail * volume.f_frsize > 8_000_000_000 and not volume.f_flag & os.ST_NOEXEC
    return MEMORY if is_usable else None


if "TMPDIR" not in os.environ and (memory := find_memory()):
    os.environ["TMPDIR"] = memory
# Workers, and the many Pythons that tests start, load bytecode that another process has compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start two workers for each core, because tests wait; none with an external Redis, whose channels are global.

    On two idle cores, `make test` took 137 s with two workers, 102 to 122 with three, and 100 to 108 with four; each
    time it took 184 to 191 s of CPU.
    """
    return 0 if os.environ.get("MAILGLASS_TEST_REDIS_URL") else 2 * (os.cpu_count() or 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes outputs instead of comparing them."""
    parser.addoption("--update-snapshots", action="store_true", help="write outputs to the folders `snapshots`")


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, but not in the process that only hands tests to workers: they start a second sooner.

    With a revision whose id differs from its file's name, every test of a database would fail for lack of a function.
    """
    if sentences := list(revision_files.find_misnamed(*map(revision_files.load, revision_files.FOLDERS))):
        raise pytest.UsageError("\n".join(sentences))
    if config.getoption("dist", "no") == "no":
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave the slow variants of a `guard` test out of `make test`, and let workers run long tests first.

    A quick variant checks the same promise. With the long tests first, no worker waits for one at the end, and one
    worker creates the fixtures that a module of them shares. What is `nightly` is `slow` too.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and any(mark.name in ("slow", "nightly") for mark in callspec.marks):
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "guard"]
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")
    config.stash[marking.COLLECTED] = list(items)
    yield
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


gc.disable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while modules and tests are loaded, which stay until the end, and rarely afterwards.

    It would take a quarter of the time of the collection. Objects are still freed with their last reference; only
    reference cycles wait.
    """
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()
