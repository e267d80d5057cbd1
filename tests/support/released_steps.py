"""The digests of the schema's repeatable steps in each release, in `released_steps.json`; run this at a release."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mailglass_reconcile.store import revision, script
from mailglass_reconcile.store.script import SchemaStep

PATH = Path(__file__).with_suffix(".json")


def load_releases() -> dict[str, dict[str, str]]:
    """Return the digests of the steps by name, of each released revision."""
    return json.loads(PATH.read_text())


def find_changes(releases: Mapping[str, Mapping[str, str]], version: str, steps: Iterable[SchemaStep]) -> Iterable[str]:
    """Yield a sentence for each change of a step that needs another name, or a revision of its own."""
    digests = _digests(steps)
    for release, released in releases.items():
        for name in released.keys() & digests.keys():
            if re.search(r"_v\d+$", name) and digests[name] != released[name]:
                yield f"{name} has another text than at revision {release}, which still calls it: add a new version"
    if version in releases and digests != releases[version]:
        yield f"a step differs from the release of revision {version}: add a revision, empty if need be"


def _digests(steps: Iterable[SchemaStep]) -> dict[str, str]:
    return {f"{step.kind} {step.name}": step.digest for step in steps}


if __name__ == "__main__":
    releases = {**load_releases(), revision.VERSION: _digests(script.steps())}
    PATH.write_text(json.dumps(releases, indent=1, sort_keys=True) + "\n")
