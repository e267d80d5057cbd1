"""The digests of each release's revisions and repeatable steps, in `released_steps.json`.

`make freeze` runs this as a program, and `make release` runs it with `--check`.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mailglass_reconcile.store.schema import revision, script
from mailglass_reconcile.store.schema.script import SchemaStep

PATH = Path(__file__).with_suffix(".json")


def load_releases() -> dict[str, dict[str, str]]:
    """Return the digests of the revisions and steps by name, of each released revision."""
    return json.loads(PATH.read_text())


def load_revisions() -> dict[str, str]:
    """Return the text of each revision's file, by its id."""
    files = (script.find_folder() / "versions").glob("*.py")
    return {path.name.partition("_")[0]: path.read_text() for path in files}


def find_changes(
    releases: Mapping[str, Mapping[str, str]],
    version: str,
    steps: Iterable[SchemaStep],
    revisions: Mapping[str, str],
) -> Iterable[str]:
    """Yield a sentence for each change that an older process or database of a release cannot stand."""
    digests = digests_of(steps, revisions)
    for release, released in releases.items():
        for name, digest in released.items():
            if name.startswith("revision ") and digests.get(name) != digest:
                yield f"{name} is not as it was released: databases that have it do not run it again, add another one"
            elif re.search(r"_v\d+$", name) and release[0] == version[0] and digests.get(name) != digest:
                change = "has another text than" if name in digests else "is gone, which was there"
                yield f"{name} {change} at revision {release}, which still calls it: add a new version, and keep it"
    steps_of = {name: digest for name, digest in digests.items() if not name.startswith("revision ")}
    if version in releases and not steps_of.items() <= releases[version].items():
        yield f"a step differs from the release of revision {version}: add a revision, empty if need be"
    elif version in releases and releases[version].keys() != digests.keys():
        yield f"a step of the release of revision {version} is gone: add a revision, which drops its object"


def digests_of(steps: Iterable[SchemaStep], revisions: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of steps and revisions by name.

    A function may get other planner settings without another name: `{our_settings}` stands there as in its file. The
    types of events are filled in, because another type is another behaviour.
    """
    return {
        **{
            f"{step.kind} {step.name}": _digest(step.sql.replace(script.OUR_SETTINGS, "{our_settings}"))
            for step in steps
        },
        **{f"revision {id_}": _digest(text) for id_, text in revisions.items()},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add_release() -> None:
    """Add the digests of the newest revision, or end with exit code 1 if a released text has changed."""
    releases, revisions = load_releases(), load_revisions()
    if changes := list(find_changes(releases, revision.VERSION, script.steps(), revisions)):
        sys.exit("\n".join(f"nothing was changed: {change}" for change in changes))
    releases.setdefault(revision.VERSION, digests_of(script.steps(), revisions))
    PATH.write_text(json.dumps(releases, indent=1, sort_keys=True) + "\n")


def check_release() -> None:
    """End with exit code 1 and a line if the newest revision has no digests, or if a released text has changed."""
    releases = load_releases()
    if revision.VERSION not in releases:
        sys.exit(f"revision {revision.VERSION} has no digests: run `make freeze`")
    if changes := list(find_changes(releases, revision.VERSION, script.steps(), load_revisions())):
        sys.exit("; ".join(changes))


if __name__ == "__main__":
    check_release() if sys.argv[1:] == ["--check"] else add_release()
