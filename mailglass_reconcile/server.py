"""An ASGI application as a process of its own; needs uvicorn, which comes with an extra."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn

from mailglass_reconcile.errors import ConfigurationError

PATIENCE_SECONDS = 1
"""How long answers under way may take at the end."""


def run(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT.

    Args:
        app: An ASGI application.
        host: A name or an address of this machine.
        port: Its port; 0 is any that is free.

    Raises:
        ConfigurationError: It cannot listen there, or a setting cannot be used.
        SystemExit: With 0, after SIGTERM.
    """
    with _listening(host, port) as listener:
        # uvicorn ends first, then it raises the signal once more.
        signal.signal(signal.SIGTERM, _leave)
        config = uvicorn.Config(
            app,
            access_log=False,  # addresses of pages hold message ids
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=PATIENCE_SECONDS,
            ws="none",
        )
        print(f"serving on {_address(listener)}; press Ctrl-C to stop", file=sys.stderr, flush=True)  # noqa: T201
        _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # An answer that is cut off at the end is not an error and needs no traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError):
        raise ConfigurationError(f"cannot listen on {host}: the name of the host is not known") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host}, port {port}: {_reason(error)}") from None
    return listener


def _reason(error: OSError) -> str:
    reasons: dict[Any, str] = {
        errno.EADDRINUSE: "another process listens there; choose another --port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "only root may use this port; choose one above 1023",
    }
    return reasons.get(error.errno, type(error).__name__)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
