"""The README and the links of the package's metadata, as a package index shows them.

Links of the README into docs/ and examples/ work in the repository and in the built site. An index needs whole
addresses: the project's is set once, in pyproject.toml, `[tool.hatch.metadata.hooks.custom] address`. While it is
empty, the links stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    """Makes `readme` and `urls` of the project's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both."""
        address = self.config.get("address", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": addressed(text, address)}
        metadata["urls"] = {"Source": address, "Changes": f"{address}/blob/main/CHANGELOG.md"} if address else {}


def addressed(text: str, address: str) -> str:
    """Return a README whose links into docs/ and examples/ are whole addresses; pictures need the file itself."""
    if not address:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(docs/[^)]+\))", rf"\1{address}/raw/main/\2", text)
    return re.sub(r"(\]\()((?:docs|examples)/[^)]+\))", rf"\1{address}/blob/main/\2", text)
