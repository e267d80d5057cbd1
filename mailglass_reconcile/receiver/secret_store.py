"""Secrets of providers' webhooks: those of a caller, of its tenants, or of `MAILGLASS_WEBHOOK_SECRETS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules import providers
from mailglass_reconcile.settings import Settings, read_secret_file
from mailglass_reconcile.webhooks import registry

Some = str | Sequence[str]
"""A secret, or several while one is replaced by another; all are accepted."""
OfProviders = Mapping[str, Some]
Function = Callable[[str, str], Some | None]
Given = OfProviders | Mapping[str, OfProviders] | Function
"""By provider; or by tenant and provider; or a function of a provider's canonical name and a tenant."""

SETTING = "MAILGLASS_WEBHOOK_SECRETS"


class Secrets(Protocol):
    """Finds the secrets that a webhook may be signed with."""

    of_tenants: bool
    """Whether they depend on the tenant, which then has to be known before a signature is checked."""

    def may_have(self, provider: str) -> bool:
        """Whether there may be a secret for this provider, without asking anybody."""

    def of(self, provider: str, tenant: str) -> Sequence[str]:
        """Return a provider's secrets; none if it is not known, or not to this tenant."""


class Shared:
    """The secrets of each provider, the same for all tenants."""

    of_tenants = False

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Keep *pairs* of a provider's name, in any known spelling, and a secret; each secret is tried."""
        self._of: dict[str, list[str]] = {}
        for provider, secret in pairs:
            load_reader(provider)
            usable = registry.validate_secret(provider, secret)
            self._of.setdefault(providers.canonical(provider), []).append(usable)

    def may_have(self, provider: str) -> bool:
        return providers.canonical(provider) in self._of

    def of(self, provider: str, tenant: str = "") -> Sequence[str]:
        """Return a provider's secrets; none if the provider is not known."""
        return self._of.get(providers.canonical(provider), ())


class OfTenants:
    """Secrets of tenants that have accounts of their own."""

    of_tenants = True

    def __init__(self, given: Mapping[str, OfProviders]) -> None:
        self._of = {tenant: Shared(_pairs(secrets)) for tenant, secrets in given.items()}

    def may_have(self, provider: str) -> bool:
        return any(secrets.may_have(provider) for secrets in self._of.values())

    def of(self, provider: str, tenant: str) -> Sequence[str]:
        """Return a tenant's secrets for a provider; none if the tenant is not known."""
        return self._of[tenant].of(provider) if tenant in self._of else ()


class Asked:
    """Secrets that an application's function returns for each webhook."""

    of_tenants = True

    def __init__(self, function: Function) -> None:
        self._function = function
        runtime.load_imports()  # now: a stranger's request for a name that is no provider must not import anything

    def may_have(self, provider: str) -> bool:
        return registry.is_known(provider)

    def of(self, provider: str, tenant: str) -> Sequence[str]:
        found = self._function(providers.canonical(provider), tenant)
        return [registry.validate_secret(provider, secret) for secret in _listed(found)]


def given(secrets: Given | None, settings: Settings) -> Secrets:
    """Return a caller's secrets, or, if they are None, those of the setting."""
    if secrets is None:
        return of_setting(settings)
    if callable(secrets):
        return Asked(secrets)
    by_tenant = {tenant: one for tenant, one in secrets.items() if isinstance(one, Mapping)}
    if not any(by_tenant.values()) and len(by_tenant) == len(secrets):
        raise ConfigurationError("no webhook can be received without a provider's secret")
    if not by_tenant:
        return Shared(_pairs(cast("OfProviders", secrets)))
    if len(by_tenant) < len(secrets):
        raise ConfigurationError("secrets must be a mapping of providers, or of tenants to such mappings, not of both")
    return OfTenants(by_tenant)


def of_setting(settings: Settings) -> Shared:
    """Return the secrets of `MAILGLASS_WEBHOOK_SECRETS`."""
    value = settings.webhook_secrets.get_secret_value().strip() if settings.webhook_secrets else ""
    lines = _lines(value.removeprefix("@")) if value.startswith("@") else value.split(",")
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise ConfigurationError(f"{SETTING} is not set; set it to provider=secret, or to @FILE with one on each line")
    pairs = [(provider.strip(), secret.strip()) for provider, _, secret in (entry.partition("=") for entry in entries)]
    try:
        return Shared(pairs)
    except ConfigurationError as error:
        raise ConfigurationError(f"{SETTING}: {error}") from None


def load_reader(provider: str) -> None:
    """Import the application's modules if one of them may have the reader of this provider."""
    if not registry.is_known(provider):
        runtime.load_imports()


def _pairs(secrets: OfProviders) -> Iterable[tuple[str, object]]:
    """Yield each provider with each of its secrets; one without any gets None, which cannot be used."""
    return ((provider, secret) for provider, some in secrets.items() for secret in _listed(some) or [None])


def _listed(some: object) -> Sequence[object]:
    return some if isinstance(some, list | tuple) else [] if some is None else [some]


def _lines(path: str) -> list[str]:
    try:
        return read_secret_file(path).splitlines()
    except ConfigurationError as error:
        raise ConfigurationError(f"{SETTING}: {error}") from None
