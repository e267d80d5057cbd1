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


class CertificateAddress(NamedTuple):
    """The address of a certificate, and its provider."""

    provider: str
    url: str


def load_addresses(tx: Transaction) -> list[CertificateAddress]:
    """Return the stored addresses, the newest first."""
    return [CertificateAddress(row.provider, row.url) for row in tx.execute(_LOAD)]


def add_address(tx: Transaction, address: CertificateAddress) -> None:
    """Store an address; at more than `MAX_ADDRESSES`, delete the oldest."""
    if tx.execute(_ADD, address._asdict()).rowcount:
        tx.execute(_TRIM, {"size": MAX_ADDRESSES})
