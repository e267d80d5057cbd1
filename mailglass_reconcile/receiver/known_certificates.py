"""Store the addresses of certificates that have verified a webhook, and fetch them again after a restart.

Anybody who knows a topic's ARN can keep the receiver busy with certificates that do not exist, which delays new ones.
Only an address that has verified a message is stored, so no stranger can add one.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.certificates import CertificateSource
from mailglass_reconcile.receiver.secret_store import SecretStore
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store import certificates
from mailglass_reconcile.store.certificates import CertificateAddress
from mailglass_reconcile.store.database import Database

logger = logging.getLogger(__name__)

TRIES = 10
"""Attempts to load the stored certificates while some cannot be fetched; the pause doubles each time."""
FIRST_PAUSE_SECONDS = 1.0


class KnownCertificates:
    """Loads the stored certificates in the background, and stores the addresses of new ones."""

    def __init__(self, engine: sa.Engine, secrets: SecretStore) -> None:
        """Handle the providers that may have one of the *secrets*; nothing connects yet."""
        self._database, self._secrets = Database(engine, runtime.get_settings()), secrets
        self._loading: Future[None] | None = None
        self._stored: set[str] = set()
        self._throttle = LogThrottle()

    def start(self) -> Future[None]:
        """Load the stored certificates in a thread; the future is done after the first attempt."""
        if self._loading is None:
            first_attempt: Future[None] = Future()
            if any(map(self._is_needed, registry.PROVIDERS)):
                thread = threading.Thread(target=self._load, args=[first_attempt], daemon=True)
                thread.name = "mailglass-known-certificates"
                thread.start()
            else:
                first_attempt.set_result(None)
            self._loading = first_attempt  # not before the thread runs, which may not start
        return self._loading

    def store(self, address: CertificateAddress) -> None:
        """Store the address of a certificate that has verified a webhook; an error of the database is only logged."""
        if address.url in self._stored or address.url not in sns.certificates:
            return
        try:
            with self._database.writing() as tx:
                certificates.add_address(tx, address)
        except MailglassReconcileError as error:
            if self._throttle.allow("store"):
                logger.warning("the address of a certificate was not stored: %s", error)
        else:
            self._stored.add(address.url)

    def _load(self, first_attempt: Future[None]) -> None:
        for number in range(TRIES):
            try:
                is_complete = self._load_once()
            finally:
                if not number:
                    first_attempt.set_result(None)
            if is_complete:
                return
            time.sleep(FIRST_PAUSE_SECONDS * 2**number)

    def _load_once(self) -> bool:
        """Fetch the stored certificates that are missing; return True if none is missing any more."""
        try:
            with self._database.reading() as tx:
                addresses = certificates.load_addresses(tx)
        except Exception as error:  # an application's engine may raise anything
            if self._throttle.allow("load"):
                cause = failures.describe_error(error)
                logger.warning("the stored addresses of certificates cannot be read yet: %s", cause)
            return False
        self._stored.update(address.url for address in addresses)
        missing = [source for source in map(self._source, addresses) if source and not self._fetch(source)]
        return not missing

    def _source(self, address: CertificateAddress) -> CertificateSource | None:
        """Return the source of a stored certificate, or None if its address is no longer one of the provider's."""
        if not self._is_needed(address.provider):
            return None
        service = registry.get_provider(address.provider).service
        return sns.certificate_source_at(address.url, service) if service else None

    def _fetch(self, source: CertificateSource) -> bool:
        """Fetch a certificate; return False if it cannot be fetched."""
        try:
            sns.certificates.load(source)
        except Exception:  # an application's `sns.fetch` may raise anything
            return False
        return True

    def _is_needed(self, provider: str) -> bool:
        return (
            provider in registry.PROVIDERS
            and self._secrets.may_have(provider)
            and registry.get_provider(provider).service is not None
        )
