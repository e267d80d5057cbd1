"""Who may see what: the operator's token, a tenant's token, or, without any token, this machine alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import NamedTuple

from starlette.requests import HTTPConnection

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import Settings

COOKIE = "mailglass_web"
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_SEALED = b"mailglass-reconcile serve"


class Viewer(NamedTuple):
    """Somebody who may look: at one tenant, or, with None, at all."""

    tenant_id: str | None


class _Known(NamedTuple):
    token: bytes
    seal: str
    viewer: Viewer


class Tokens:
    """The tokens of an installation; none of them is kept in the clear by a browser."""

    def __init__(self, settings: Settings) -> None:
        """Take the tokens of *settings*.

        Raises:
            ConfigurationError: One is empty, or has two meanings.
        """
        self._known: list[_Known] = []
        if settings.web_token:
            self._add("MAILGLASS_WEB_TOKEN", None, settings.web_token.get_secret_value())
        if settings.web_tenant_tokens:
            self._add_tenants("MAILGLASS_WEB_TENANT_TOKENS", settings.web_tenant_tokens.get_secret_value())

    def _add_tenants(self, setting: str, pairs: str) -> None:
        for pair in filter(None, (part.strip() for part in pairs.split(","))):
            tenant_id, equals, token = pair.partition("=")
            if not (equals and tenant_id.strip()):
                raise ConfigurationError(f"{setting}: write tenant=token, with a comma between two of them")
            self._add(setting, tenant_id.strip(), token)

    def _add(self, setting: str, tenant_id: str | None, token: str) -> None:
        shown = token.strip().encode()
        if not shown:
            raise ConfigurationError(f"{setting}: a token is empty")
        if self.viewer(shown) is not None:
            raise ConfigurationError(f"{setting}: a token is there twice; give everybody another one")
        self._known.append(_Known(_digest(shown), seal(shown), Viewer(tenant_id)))

    def __bool__(self) -> bool:
        """Whether there is any token, without which nobody sees anything."""
        return bool(self._known)

    def viewer(self, token: bytes) -> Viewer | None:
        """Return whose token this is."""
        shown = _digest(token)
        found = [one.viewer for one in self._known if hmac.compare_digest(one.token, shown)]
        return found[0] if found else None

    def viewer_of(self, request: HTTPConnection) -> Viewer | None:
        """Return who asks, by the bearer's token or by the cookie; a token in the address counts for nothing."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.viewer(token.strip().encode("latin-1"))
        seal = request.cookies.get(COOKIE, "").encode()
        found = [one.viewer for one in self._known if hmac.compare_digest(one.seal.encode(), seal)]
        return found[0] if found else None


def seal(token: bytes) -> str:
    """Return what the cookie holds instead of the token."""
    return hmac.new(token, _SEALED, hashlib.sha256).hexdigest()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_from_here(request: HTTPConnection) -> bool:
    """Whether this machine asks, and by a name of its own: a page of another site may not reach us by its own name."""
    client = request.client
    hosts = request.headers.getlist("host")
    return (
        client is not None
        and is_loopback(client.host)
        and len(hosts) == 1
        and is_loopback(_name(hosts[0]))
        and not any(name in request.headers for name in FORWARDED)
    )


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
