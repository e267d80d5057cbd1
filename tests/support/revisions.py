"""Ids of revisions that this version does not have, whatever its own is."""

from mailglass_reconcile.store.revision import VERSION

NEXT = f"{int(VERSION[:4]) + 1:04d}"
"""The revision of a later release of the same major version."""
UNRELEASED = "0001a"
"""The revision of a checkout before the first release."""
