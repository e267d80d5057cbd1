"""The addresses of certificates that have verified a webhook."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction

MAX_ADDRESSES = 32

_LOAD = "SELECT provider, url FROM {schema}.mailglass_webhook_certificates ORDER BY verified_at DESC, url"

_ADD = """
INSERT INTO {schema}.mailglass_webhook_certificates (url, provider, verified_at)
VALUES (:url, :provider, now()::timestamp)
    ON CONFLICT DO NOTHING
"""

_TRIM = """
DELETE FROM {schema}.mailglass_webhook_certificates
 WHERE url NOT IN (SELECT url FROM {schema}.mailglass_webhook_certificates
                    ORDER BY verified_at DESC, url LIMIT :size)
"""


class Address(NamedTuple):
    """Where a certificate is, and whose it is."""

    provider: str
    url: str


def load(tx: Transaction) -> list[Address]:
    """Return the stored addresses, the newest first."""
    return [Address(row.provider, row.url) for row in tx.execute(_LOAD)]


def add(tx: Transaction, address: Address) -> None:
    """Store an address; beyond `MAX_ADDRESSES`, the oldest is deleted."""
    if tx.execute(_ADD, address._asdict()).rowcount:
        tx.execute(_TRIM, {"size": MAX_ADDRESSES})
