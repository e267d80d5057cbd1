"""Posting a webhook, to try an installation without a provider's account."""

from __future__ import annotations

import base64
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.webhooks.wire import Signed

TIMEOUT_SECONDS = 30
SHOWN_CHARACTERS = 200


def post(url: str, signed: Signed, option: str) -> tuple[int, str]:
    """Post a webhook, and return the status of the answer and the beginning of its text.

    The address may have a user name and a password; if it is no address of HTTP, a ValueError says so. No redirect is
    followed. *option* says where the address comes from, for an error.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of HTTP")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        connection.request("POST", path, signed.body, {**_credentials(parts), **signed.headers})
        answer = connection.getresponse()
        return answer.status, answer.read(SHOWN_CHARACTERS).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise MailglassReconcileError(f"nothing answers at the address of {option} ({type(error).__name__})") from None
    finally:
        connection.close()


def _credentials(parts: SplitResult) -> dict[str, str]:
    """Return the header for a user name and a password in an address."""
    if parts.username is None:
        return {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
