"""Serve an ASGI application with uvicorn, which comes with an extra.

Providers call https addresses, so there is a proxy with TLS in front, which limits connections, heads and slow clients,
and passes on whole requests.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mailglass_reconcile.errors import ConfigurationError

SHUTDOWN_SECONDS = 1
"""Timeout for responses in flight after SIGTERM."""
MAX_HEAD_BYTES = 16_384
"""Greatest size of a request's line and headers."""


def run(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT."""
    # uvicorn shuts down first, then it raises the signal again.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    config = uvicorn.Config(
        app,
        access_log=False,  # the dashboard's URLs contain message ids
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        http=_Protocol,
        lifespan="off",
        log_level="error",  # a line for each malformed request would fill the disk
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ws="none",
    )
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(candidates, key=lambda candidate: candidate[0] != socket.AF_INET)
        listener = socket.create_server(address, family=family)
    except UnicodeError:  # a label of the name is empty or too long
        raise ConfigurationError(f"cannot listen on {host}: it is not the name of a host") from None
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    with listener:
        host, port = listener.getsockname()[:2]
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"serving on http://{netloc}/; press Ctrl-C to stop", file=sys.stderr, flush=True)  # noqa: T201
        _Server(config).run(sockets=[listener])


class _Protocol(H11Protocol):
    def send_400_response(self, msg: str) -> None:
        """Respond to a malformed request; uvicorn's own method raises, or the application's task does afterwards."""
        with suppress(h11.LocalProtocolError):  # a response has begun, or it is one to HEAD
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A response that the shutdown interrupts is not an error and needs no traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)
