"""Post a sample webhook, to try an installation without a provider's account."""

from __future__ import annotations

import base64
import socket
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.providers.signatures import SignedRequest

TIMEOUT_SECONDS = 30
MAX_RESPONSE_CHARACTERS = 200


def post(url: str, signed: SignedRequest, option: str) -> tuple[int, str]:
    """Post a webhook, and return the response's status and the beginning of its text. No redirect is followed.

    Args:
        url: The address, which may contain a user name and a password.
        signed: The webhook.
        option: The option that gave the address, for error messages.

    Raises:
        ValueError: *url* is no address of HTTP.
        MailglassReconcileError: The host cannot be resolved, or nothing answers there.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of HTTP")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    host, headers = parts.hostname, {**_credentials(parts), **signed.headers}
    if parts.scheme == "http" and host.endswith(".localhost"):  # RFC 6761: this machine, which not every resolver knows
        host, headers = "127.0.0.1", {"Host": parts.netloc.rpartition("@")[2], **headers}
    connection = connect(host, parts.port, timeout=TIMEOUT_SECONDS)
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        connection.request("POST", path, signed.body, headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_RESPONSE_CHARACTERS).decode(errors="replace").strip()
    except socket.gaierror:
        raise MailglassReconcileError(f"cannot resolve the host {parts.hostname} of {option}") from None
    except (OSError, HTTPException) as error:
        raise MailglassReconcileError(f"nothing answers at the address of {option} ({type(error).__name__})") from None
    finally:
        connection.close()


def _credentials(parts: SplitResult) -> dict[str, str]:
    """Return the `Authorization` header for the user name and the password of an address."""
    if parts.username is None:
        return {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
