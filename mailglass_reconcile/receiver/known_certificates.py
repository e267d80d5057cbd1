"""Certificates that have verified a webhook are known again after a restart.

Anyone who knows a topic's ARN can keep the receiver busy with certificates that do not exist, which delays those that
it does not know yet. Only an address that has verified a message is stored, so no stranger can add one.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.receiver.secret_store import Secrets
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store import certificates
from mailglass_reconcile.store.certificates import Address
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.webhooks import registry, sns
from mailglass_reconcile.webhooks.certificates import CertificateSource

logger = logging.getLogger(__name__)

TRIES = 10
"""How often the stored certificates are loaded while some cannot be; each pause is twice as long."""
FIRST_PAUSE_SECONDS = 1.0


class KnownCertificates:
    """Loads the stored certificates in the background, and stores the addresses of others."""

    def __init__(self, engine: sa.Engine, secrets: Secrets) -> None:
        """Serve the providers that may have one of the *secrets*; nothing connects yet."""
        self._database, self._secrets = Database(engine, runtime.get_settings()), secrets
        self._loading: Future[None] | None = None
        self._stored: set[str] = set()
        self._throttle = LogThrottle()

    def start(self) -> Future[None]:
        """Load in a thread of its own; the result is there when that was tried once."""
        if self._loading is None:
            self._loading = Future()
            if any(map(self._is_needed, registry.PROVIDERS)):
                thread = threading.Thread(target=self._load, args=[self._loading], daemon=True)
                thread.name = "mailglass-known-certificates"
                thread.start()
            else:
                self._loading.set_result(None)
        return self._loading

    def store(self, address: Address) -> None:
        """Store the address of a certificate that has verified a webhook; raises nothing that a database can cause."""
        if address.url in self._stored or address.url not in sns.certificates:
            return
        try:
            with self._database.writing() as tx:
                certificates.add(tx, address)
        except MailglassReconcileError as error:
            if self._throttle.allow("store"):
                logger.warning("the address of a certificate was not stored: %s", error)
        else:
            self._stored.add(address.url)

    def _load(self, tried: Future[None]) -> None:
        for number in range(TRIES):
            is_loaded = self._is_loaded()
            if not number:
                tried.set_result(None)
            if is_loaded:
                return
            time.sleep(FIRST_PAUSE_SECONDS * 2**number)

    def _is_loaded(self) -> bool:
        """Load what is stored and not known yet, and return whether everything is known now."""
        try:
            with self._database.reading() as tx:
                addresses = certificates.load(tx)
        except MailglassReconcileError as error:
            if self._throttle.allow("load"):
                logger.warning("the stored addresses of certificates cannot be read yet: %s", error)
            return False
        self._stored.update(address.url for address in addresses)
        missing = [source for source in map(self._source, addresses) if source and not self._is_fetched(source)]
        return not missing

    def _source(self, address: Address) -> CertificateSource | None:
        """Return a stored certificate, if its address is still one that its provider's may have."""
        if not self._is_needed(address.provider):
            return None
        service = registry.get_provider(address.provider).service
        return sns.certificate_source_at(address.url, service) if service else None

    def _is_fetched(self, source: CertificateSource) -> bool:
        try:
            sns.certificates.load(source)
        except MailglassReconcileError:
            return False
        return True

    def _is_needed(self, provider: str) -> bool:
        return (
            provider in registry.PROVIDERS
            and self._secrets.may_have(provider)
            and registry.get_provider(provider).service is not None
        )
