"""The version that `make freeze` and `make release` get, and whether a checkout is of it."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path


def add_version_argument(parser: argparse.ArgumentParser) -> None:
    """Let a command take a version."""
    parser.add_argument("version", type=_parse_version, help="the version to release, such as 0.1.0; its tag is v0.1.0")


def _parse_version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: set VERSION=0.1.0")
    return text


def find_other_version(root: Path, version: str) -> Iterator[str]:
    """Yield a sentence if a checkout is not of a version."""
    if f'\n__version__ = "{version}"\n' not in (root / "mailglass_reconcile" / "__init__.py").read_text():
        yield f"__version__ in mailglass_reconcile/__init__.py is not {version}"
