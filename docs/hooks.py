"""What the site has beyond the files of docs/: the README as first page, and the changelog."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from mailglass_reconcile import __version__

ROOT = Path(__file__).parents[1]
GENERATED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
LOADED = re.compile(r"""<(?:script|img|iframe|link rel="stylesheet")[^>]* (?:src|href)="(?:https?:)?//[^"]*""")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose files stand outside docs/, with links as from docs/."""
    for page, file in GENERATED.items():
        text = re.sub(r"\]\((?:\.\./)*docs/", "](", (ROOT / file).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_kwargs: Any) -> str:
    """Return a page whose links to the files outside docs/ lead to the pages made of them."""
    for page, file in GENERATED.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({page}", markdown)
    return markdown


def addressed(rules: str, address: str) -> str:
    """Return alert rules whose `runbook_url` lead to this version's tag, if the project has an address."""
    full_address = f"runbook_url: {address.rstrip('/')}/blob/v{__version__}/docs/"
    return rules.replace("runbook_url: docs/", full_address) if address else rules


def on_post_build(config: Any) -> None:
    """Give the alert rules the project's address, and refuse a site whose pages load something over the network.

    Raises:
        PluginError: A page does; the message names page and address.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    address = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["address"]
    rules = Path(config.site_dir) / "monitoring" / "alerts.yml"
    rules.write_text(addressed(rules.read_text(), address))
    for page in Path(config.site_dir).rglob("*.html"):
        for element in LOADED.findall(page.read_text()):
            raise PluginError(f"{page.name} loads something over the network: {element}")
