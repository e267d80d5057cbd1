"""The secrets of providers' webhooks, from a caller's argument or `MAILGLASS_WEBHOOK_SECRETS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Protocol, cast

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.settings import Settings, read_secret_file

OneOrMany = str | Sequence[str]
"""A secret, or several while it is rotated; all are accepted."""
ProviderSecrets = Mapping[str, OneOrMany]
SecretsFunction = Callable[[str, str], OneOrMany | None]
SecretsArgument = ProviderSecrets | Mapping[str, ProviderSecrets] | SecretsFunction
"""Secrets by provider; or by tenant and provider; or a function of a provider's canonical name and a tenant."""

SETTING = "MAILGLASS_WEBHOOK_SECRETS"
NO_SECRET = f"no secret is configured for this provider ({SETTING})"


class SecretStore(Protocol):
    """Finds the secrets with which a webhook may be signed."""

    depends_on_tenant: bool
    """True if the tenant has to be known before a signature is verified."""

    def get(self, provider: str, tenant: str) -> Sequence[str]:
        """Return the secrets of a provider for a tenant; none if either is not known."""


class SharedSecrets:
    """The secrets of each provider, the same for all tenants."""

    depends_on_tenant = False

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Store *pairs* of a provider's name, in any known spelling, and a secret; each secret is validated."""
        self._by_provider: dict[str, list[str]] = {}
        for provider, secret in pairs:
            valid_secret = registry.validate_secret(provider, secret)
            self._by_provider.setdefault(provider_rules.canonical(provider), []).append(valid_secret)

    def get(self, provider: str, tenant: str = "") -> Sequence[str]:
        """Return a provider's secrets; none if the provider is not known."""
        return self._by_provider.get(provider_rules.canonical(provider), ())


class TenantSecrets:
    """Secrets of tenants with their own accounts."""

    depends_on_tenant = True

    def __init__(self, by_tenant: Mapping[str, ProviderSecrets]) -> None:
        self._by_tenant = {tenant: SharedSecrets(_pairs(secrets)) for tenant, secrets in by_tenant.items()}

    def get(self, provider: str, tenant: str) -> Sequence[str]:
        """Return a tenant's secrets for a provider; none if the tenant is not known."""
        return self._by_tenant[tenant].get(provider) if tenant in self._by_tenant else ()


class CallableSecrets:
    """Secrets that an application's function returns for each webhook."""

    depends_on_tenant = True

    def __init__(self, function: SecretsFunction) -> None:
        self._function = function
        runtime.load_imports_once()  # now, as a stranger's request for an unknown provider must import nothing

    def get(self, provider: str, tenant: str) -> Sequence[str]:
        secrets = self._function(provider_rules.canonical(provider), tenant)
        return [registry.validate_secret(provider, secret) for secret in _as_list(secrets)]


def from_argument(secrets: SecretsArgument | None, settings: Settings) -> SecretStore:
    """Return the store for a caller's argument, or for the setting if that is None."""
    if secrets is None:
        return from_setting(settings)
    if callable(secrets):
        return CallableSecrets(secrets)
    if not isinstance(secrets, Mapping):  # such as the text of the setting
        raise ConfigurationError("secrets must be a mapping of providers to secrets, or a function that returns them")
    by_tenant = {tenant: value for tenant, value in secrets.items() if isinstance(value, Mapping)}
    if not any(by_tenant.values()) and len(by_tenant) == len(secrets):
        raise ConfigurationError("no webhook can be received without a provider's secret")
    if not by_tenant:
        return SharedSecrets(_pairs(cast("ProviderSecrets", secrets)))
    if len(by_tenant) < len(secrets):
        raise ConfigurationError("secrets must be a mapping of providers, or of tenants to such mappings, not of both")
    return TenantSecrets(by_tenant)


@runtime.cleared_with_settings
@cache
def from_setting(settings: Settings) -> SharedSecrets:
    """Return the store for `MAILGLASS_WEBHOOK_SECRETS`, whose file is read once per process, unless that fails."""
    try:
        pairs = _parse(settings.webhook_secrets.get_secret_value().strip() if settings.webhook_secrets else "")
        if pairs:
            return SharedSecrets(pairs)
    except ConfigurationError as error:
        raise ConfigurationError(f"{SETTING}: {error}") from None
    raise ConfigurationError(f"{SETTING} is not set; set it to provider=secret, or to @FILE with one on each line")


def _parse(value: str) -> list[tuple[str, object]]:
    if value.startswith("{"):
        with suppress(ValueError):
            return list(_pairs(json.loads(value)))
    lines = read_secret_file(value.removeprefix("@")).splitlines() if value.startswith("@") else value.split(",")
    entries = (line.partition("=") for line in lines if line.strip())
    return [(provider.strip(), secret) for provider, _, secret in entries]


def _pairs(secrets: ProviderSecrets) -> Iterable[tuple[str, object]]:
    """Yield each provider with each of its secrets; a provider without any yields None, which is invalid."""
    return ((provider, secret) for provider, value in secrets.items() for secret in _as_list(value) or [None])


def _as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]
