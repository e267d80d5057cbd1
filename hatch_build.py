"""What the package's metadata takes from the owner's markers in pyproject.toml, `[tool.hatch.metadata.hooks.custom]`.

The README's relative links and pictures work in the repository and in the built site. A package index needs whole
addresses, of this version's tag. While a marker is empty, the build goes on without it; `make release` refuses.
"""

from __future__ import annotations

import re
from email.utils import parseaddr
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class OwnersMarkers(MetadataHookInterface):
    """Makes `readme`, `urls` and `maintainers` of the project's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the three."""
        root = Path(self.root)
        address = self.config.get("address", "").rstrip("/")
        version = read_version(root)
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": addressed(text, address, version)}
        metadata["urls"] = urls(address, version)
        people = map(parseaddr, self.config.get("maintainers", []))
        metadata["maintainers"] = [{"name": name, "email": email} for name, email in people]


def read_version(root: Path) -> str:
    """Return the package's version, without importing it."""
    text = (root / "mailglass_reconcile" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.M)
    if match is None:
        raise ValueError("mailglass_reconcile/__init__.py has no __version__")
    return match[1]


def urls(address: str, version: str) -> dict[str, str]:
    """Return the links of the metadata, by name; none without an address."""
    tag = f"{address}/blob/v{version}"
    pages = {"Source": address, "Documentation": f"{tag}/README.md", "Changes": f"{tag}/CHANGELOG.md"}
    return pages if address else {}


def addressed(text: str, address: str, version: str) -> str:
    """Return a README whose relative links lead to the files of a version's tag; pictures need the file itself."""
    if not address:
        return text

    def complete(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}{address}/{kind}/v{version}/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)]+)\)", complete, text)
