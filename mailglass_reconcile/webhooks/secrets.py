"""Secrets of providers' webhooks: those of a caller, or of `MAILGLASS_WEBHOOK_SECRETS`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mailglass_reconcile.errors import ConfigurationError, SignatureError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.webhooks import registry
from mailglass_reconcile.webhooks.wire import Request

Given = Mapping[str, str | Sequence[str]]
"""A secret for each provider, or several while one is replaced by another."""

SETTING = "MAILGLASS_WEBHOOK_SECRETS"


class Secrets:
    """The secrets of each provider, by its canonical name; all are accepted."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Keep *pairs* of a provider's name, in any known spelling, and a secret; each secret is tried.

        Raises:
            ConfigurationError: A provider is not known, or a secret is empty or of another kind.
        """
        self._of: dict[str, list[str]] = {}
        for provider, secret in pairs:
            found = registry.module(provider)
            try:
                registry.check(found, Request(b"", {}), secret, dt.datetime.now(dt.UTC))
            except SignatureError:  # an empty request has no signature; the secret could be used
                self._of.setdefault(registry.name(provider), []).append(secret)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._of)

    def of(self, provider: str) -> Sequence[str]:
        """Return a provider's secrets; none if the provider is not known."""
        return self._of.get(registry.name(provider), ())


def given(secrets: Given | None, settings: Settings) -> Secrets:
    """Return a caller's secrets, or, if they are None, those of the setting.

    Raises:
        ConfigurationError: There are none, or one cannot be used.
    """
    if secrets is None:
        return of_setting(settings)
    found = Secrets(
        (provider, secret)
        for provider, some in secrets.items()
        for secret in ([some] if isinstance(some, str) else some)
    )
    if not found:
        raise ConfigurationError("no webhook can be received without a provider's secret")
    return found


def of_setting(settings: Settings) -> Secrets:
    """Return the secrets of `MAILGLASS_WEBHOOK_SECRETS`.

    Raises:
        ConfigurationError: There are none, or one cannot be used; the message repeats none of them.
    """
    value = settings.webhook_secrets.get_secret_value().strip() if settings.webhook_secrets else ""
    lines = _lines(value.removeprefix("@")) if value.startswith("@") else value.split(",")
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise ConfigurationError(f"{SETTING} is not set; set it to provider=secret, or to @FILE with one on each line")
    pairs = [(provider.strip(), secret.strip()) for provider, _, secret in (entry.partition("=") for entry in entries)]
    try:
        return Secrets(pairs)
    except ConfigurationError as error:
        raise ConfigurationError(f"{SETTING}: {error}") from None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{SETTING}: cannot read its file ({type(error).__name__})") from None
