"""E-mail addresses: how a recipient is stored, how two are compared, and which texts look like one."""

from __future__ import annotations

import re

_IN_BRACKETS = re.compile(r"<([^<>]*)>\s*\Z")
_ADDRESS = re.compile(r"\S(?:@|%40)\S")


def bare(recipient: str) -> str:
    """Return a recipient as our writers store it: without display name and surrounding blanks."""
    text = recipient.strip()
    inner = _IN_BRACKETS.search(text) if text.endswith(">") else None
    return inner[1].strip() if inner else text


def address(recipient: str) -> str:
    """Return a recipient as it is compared: without display name, case and surrounding blanks."""
    return bare(recipient).lower()


def holds_address(text: str) -> bool:
    """Whether *text* looks like an e-mail address, or holds one."""
    return _ADDRESS.search(text) is not None
