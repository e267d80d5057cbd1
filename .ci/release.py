"""Check that a commit can be released, and try the release of a clean clone without publishing anything.

`make release VERSION=0.1.0 ADDRESS=https://github.com/OWNER/NAME` runs all of it. The workflow release.yml runs the
first part on the pushed tag: `python .ci/release.py 0.1.0 --only-check`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from version_argument import add_version_argument, find_other_version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import hatch_build  # noqa: E402 - it stands at the top, where the build finds it

PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
EXTRAS = "[demo,django,testing,web,webhooks]"


def main() -> None:
    """Check, and unless only that is asked for, build, install and try what would be published."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    add_version_argument(parser)
    parser.add_argument("--address", help="the repository's address, until pyproject.toml has it")
    parser.add_argument("--only-check", action="store_true", help="check the working tree, and build nothing")
    parser.add_argument("--notes", action="store_true", help="print the version's section of the changelog")
    arguments = parser.parse_args()
    if arguments.notes:
        print(format_notes(ROOT, arguments.version))
    elif arguments.only_check:
        stop_on_problems(ROOT, arguments.version)
    else:
        try_release(arguments.version, arguments.address)


def stop_on_problems(root: Path, version: str) -> None:
    """End with exit code 1, and a line for each problem of a checkout."""
    problems = list(find_problems(root, version))
    for problem in problems:
        print(f"not released: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


def find_problems(root: Path, version: str) -> Iterator[str]:
    """Yield what keeps a checkout from being released as a version, a sentence each."""
    yield from find_other_version(root, version)
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text(), re.M):
        yield f"CHANGELOG.md has no section `## {version} (YYYY-MM-DD)`"
    project = tomllib.loads((root / "pyproject.toml").read_text())
    markers = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    for name in (name for name, value in markers.items() if not value):
        yield f"fill in {name} in pyproject.toml, [tool.hatch.metadata.hooks.custom]; run `python docs/reference.py`"
    names = sorted(path.name for path in (root / "alembic" / "versions").glob("[0-9]*.py"))
    if unreleased := [name for name in names if not re.match(r"\d{4}_", name)]:
        yield f"{', '.join(unreleased)} is not frozen: run `make freeze VERSION={version}`"
        return
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests' / 'support'}"}
    command = [sys.executable, "tests/support/released_steps.py", "--check"]
    checked = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if checked.returncode:
        yield checked.stderr.strip().splitlines()[-1]


def format_notes(root: Path, version: str) -> str:
    """Return a version's section of the changelog, with links to the files of its tag."""
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.M)
    (section,) = (text for text in sections if text.startswith(f"{version} "))
    markers = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    return hatch_build.addressed(section.partition("\n")[2].strip(), markers["address"].rstrip("/"), version)


def try_release(version: str, address: str | None) -> None:
    """Build a clean clone of HEAD, install it into new environments, and print the commands that publish it."""
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103, PTH101 - the demo's servers run as another user, and read its wheels there
        clone, dist = Path(folder) / "clone", Path(folder) / "dist"
        run("git", "clone", "--quiet", str(ROOT), str(clone))
        if address:
            fill_in_address(clone, address)
        stop_on_problems(clone, version)
        run(sys.executable, "-m", "build", "--outdir", str(dist), str(clone))
        run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
        (wheel,) = dist.glob("*.whl")
        stop_on_relative_links(wheel)
        for python in find_pythons():
            try_wheel(python, wheel, Path(folder) / python)
    print(f"""
{version} can be released. What a person runs:

  git tag --sign v{version} --message v{version}
  git push origin v{version}        # release.yml checks, builds, attests and publishes it
  python .ci/release.py {version} --notes | gh release create v{version} --verify-tag --notes-file -
""")


def fill_in_address(clone: Path, address: str) -> None:
    """Write the repository's address into a clone, and into the pages that show it."""
    file = clone / "pyproject.toml"
    file.write_text(re.sub(r'^address = ""', f"address = {json.dumps(address)}", file.read_text(), flags=re.M))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    subprocess.run([sys.executable, "docs/reference.py"], cwd=clone, env=environment, check=True)


def stop_on_relative_links(wheel: Path) -> None:
    """End with exit code 1 if the description in a wheel's metadata has relative links, broken on an index."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        description = archive.read(name).decode()
    if links := re.findall(r"\]\(((?![a-z]+:|#)[^)]+)\)", description):
        sys.exit(f"not released: {len(links)} relative links in the package's description: {', '.join(links)}")


def find_pythons() -> Iterable[str]:
    """Return the interpreters that are here, of those that the package supports."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    for name in PYTHONS:
        if shutil.which(name):
            result = subprocess.run([name, "-c", script], capture_output=True, text=True, check=False)
            if result.stdout.strip() == name.removeprefix("python"):
                yield name


def try_wheel(python: str, wheel: Path, folder: Path) -> None:
    """Install a wheel bare and with all extras into new environments, and run the demo from it."""
    for extras, command in (("", ["--version"]), (EXTRAS, ["demo"])):
        environment = folder / ("all" if extras else "bare")
        run(python, "-m", "venv", str(environment))
        run(str(environment / "bin" / "pip"), "install", "--quiet", f"{wheel}{extras}")
        run(str(environment / "bin" / "pip"), "check")
        run(str(environment / "bin" / "mailglass-reconcile"), *command, cwd=folder)


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command that must succeed, and show it."""
    print("$", " ".join(command), flush=True)
    result = subprocess.run(command, cwd=cwd, check=False)
    if result.returncode:
        sys.exit(f"not released: {command[0]} ended with exit code {result.returncode}")


if __name__ == "__main__":
    main()
