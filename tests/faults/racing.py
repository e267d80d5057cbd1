"""Orphans and the deliveries that they are of, and the statement around which their links are lost."""

import uuid

import factories
from database import Database

ORPHANS = 5
COMMIT = b"COMMIT\0"
"""The simple query as libpq sends it; `BEGIN ISOLATION LEVEL READ COMMITTED` does not hold it."""


def raced(db: Database, orphans: int = ORPHANS) -> None:
    """Insert orphans and the deliveries that they are of."""
    texts = [uuid.uuid4().hex for _ in range(orphans)]
    factories.insert(
        db,
        deliveries=[factories.delivery_row(text) for text in texts],
        events=[factories.orphan_row(factories.postmark(text)) for text in texts],
    )
