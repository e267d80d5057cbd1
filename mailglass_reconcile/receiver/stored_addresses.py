"""The addresses of certificates that have verified a webhook, in the database: they are fetched first after a restart.

Only an address that has verified a message is stored, so no stranger can add one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from mailglass_reconcile import runtime
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.certificates import CertificateSource
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store import certificates, engines
from mailglass_reconcile.store.certificates import CertificateAddress
from mailglass_reconcile.store.database import Database

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_throttle = LogThrottle()


class StoredAddresses:
    """The stored addresses of an engine's database, read and written on a connection of its own."""

    def __init__(self, engine: sa.Engine, provider: str = "") -> None:
        """Store new addresses as a provider's; nothing connects yet."""
        self._engine, self._provider = engine, provider

    def load(self) -> list[CertificateSource]:
        """Return the stored certificates' sources, the newest first; none if they cannot be read, which is logged."""

        def read(database: Database) -> list[CertificateAddress]:
            with database.reading() as tx:
                return certificates.load_addresses(tx)

        addresses = self._try("the stored addresses of certificates cannot be read", read) or []
        return [source for source in map(_source, addresses) if source]

    def add(self, url: str) -> bool:
        """Store an address; return False if that fails, which is logged."""

        def write(database: Database) -> bool:
            with database.writing() as tx:
                certificates.add_address(tx, CertificateAddress(self._provider, url))
            return True

        return self._try("the address of a certificate was not stored", write) or False

    def _try(self, failure: str, action: Callable[[Database], Result]) -> Result | None:
        try:

            def run() -> Result:
                with engines.temporary_engine(self._engine) as engine:
                    return action(Database(engine, runtime.get_settings()))

            return asyncio.run(greenlet_spawn(run)) if self._engine.dialect.is_async else run()
        except Exception as error:  # an application's engine may raise anything
            if _throttle.allow(failure):
                logger.warning("%s: %s", failure, failures.describe_error(error))
            return None


def _source(address: CertificateAddress) -> CertificateSource | None:
    """Return the source of a stored certificate, or None if its address is no longer one of the provider's."""
    if address.provider not in registry.PROVIDERS:
        return None
    service = registry.get_provider(address.provider).service
    return sns.certificate_source_at(address.url, service) if service else None
