"""A process with a Django project that uses Anymail, with our app or without it; prints its figures as JSON.

Requests go to Django's own WSGI and ASGI applications, without a server in front of them.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import io
import json
import os
import statistics
import time
import uuid
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import sqlalchemy as sa
from anymail.backends.test import EmailBackend
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.mail import EmailMessage
from django.core.wsgi import get_wsgi_application

from bench.parts.receiving import sign
from mailglass_reconcile.webhooks import registry

SECRET = "user:password"  # noqa: S105 - Anymail wants one
BATCHES = 3
KEY = ec.generate_private_key(ec.SECP256R1())
"""SendGrid's signing key."""


class Backend(EmailBackend):
    """Anymail's backend for tests, with a provider's name and ids."""

    esp_name = "Postmark"

    def get_esp_message_id(self, message: object) -> str:
        """Return an id in the form that Postmark uses."""
        return str(uuid.uuid4())


def configure(url: str, *, with_app: bool) -> None:
    """Set Django up, with connections that stay open."""
    warnings.filterwarnings("ignore", "django-anymail has dropped official support for SendGrid")
    parsed_url = sa.make_url(url)
    database = {
        "NAME": parsed_url.database,
        "USER": parsed_url.username or "",
        "HOST": parsed_url.query.get("host") or parsed_url.host,
    }
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ANYMAIL={"WEBHOOK_SECRET": SECRET},
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": None, **database}},
        EMAIL_BACKEND="bench.django_process.Backend",
        INSTALLED_APPS=["anymail", *["mailglass_reconcile.contrib.django"] * with_app],
        LOGGING_CONFIG=None,
        MAILGLASS_TENANT="acme",
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF="bench.django_urls" if with_app else "anymail.urls",
        SECRET_KEY=SECRET,
        USE_TZ=True,
    )


AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


AUTHORIZED = {"Authorization": f"Basic {b64encode(SECRET.encode()).decode()}"}


def postmark_request(id_: str) -> Request:
    """Return a webhook of Postmark about a message, to Anymail's address."""
    body = registry.get_provider("postmark").samples(id_, f"{id_}@example.com", AT)["delivered"]
    return "/postmark/tracking/", body, AUTHORIZED


def sendgrid_body(ids: Iterable[str]) -> bytes:
    """Return the body of a SendGrid batch."""
    record = registry.get_provider("sendgrid")
    batch = [record.table.make_sample("delivered", id_, f"{id_}@example.com", AT) | {"anymail_id": id_} for id_ in ids]
    return record.bodies(batch)[0]


Request = tuple[str, bytes, dict[str, str]]
"""A path, a body and headers."""


def wsgi_client() -> Callable[[Request], None]:
    """Return a function that posts a request to the WSGI application."""
    application = get_wsgi_application()

    def post(request: Request) -> None:
        path, body, headers = request
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": path,
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            **{f"HTTP_{name.replace('-', '_').upper()}": value for name, value in headers.items()},
            "wsgi.input": io.BytesIO(body),
        }
        statuses: list[str] = []
        response = application(environ, lambda status, headers, error=None: statuses.append(status))
        b"".join(response)
        response.close()
        if statuses != ["200 OK"]:
            raise SystemExit(f"the webhook was answered with {statuses}")

    return post


@contextmanager
def asgi_client() -> Iterator[Callable[[Request], None]]:
    """Yield a function that posts a request to the ASGI application, in one event loop."""
    application = get_asgi_application()

    async def call(request: Request) -> None:
        path, body, own_headers = request
        headers = [(b"content-type", b"application/json"), (b"host", b"shop")]
        headers += [(name.lower().encode(), value.encode()) for name, value in own_headers.items()]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
        address = {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers}
        requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": body, "more_body": False})
        statuses: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await application({**scope, **address}, requests.get, send)
        if statuses != [200]:
            raise SystemExit(f"the webhook was answered with {statuses}")

    with asyncio.Runner() as runner:
        yield lambda request: runner.run(call(request))


def median_milliseconds(call: Callable[[str], object], ids: list[str], warm: int) -> float:
    """Return the milliseconds of one call: the median of blocks of ten, after *warm* calls."""
    for id_ in ids[:warm]:
        call(id_)
    blocks = []
    for start in range(warm, len(ids), 10):
        block = ids[start : start + 10]
        began = time.perf_counter()
        for id_ in block:
            call(id_)
        blocks.append(1000 * (time.perf_counter() - began) / len(block))
    return statistics.median(blocks)


def measure_single_requests(calls: int) -> dict[str, float]:
    """Measure webhooks by WSGI and sends outside a request, in milliseconds."""
    post = wsgi_client()

    def send(id_: str) -> None:
        EmailMessage("Hello", "Hello", "shop@example.com", [f"{id_}@example.com"]).send()

    return {
        kind: median_milliseconds(call, [f"{kind}-{number}" for number in range(calls)], warm=15)
        for kind, call in {
            "webhook": lambda id_: post(postmark_request(id_)),
            "early": lambda id_: post(postmark_request(id_)),
            "send": send,
        }.items()
    }


def measure_batches(size: int) -> dict[str, float]:
    """Measure batches of SendGrid, in events a second; each event has its delivery."""
    numbers = iter(range(1, 4 * BATCHES + 1))

    def rate(post: Callable[[Request], None], path: str) -> float:
        rates = []
        for _ in range(BATCHES):
            start = next(numbers) * size
            body = sendgrid_body(f"batch-{number}" for number in range(start, start + size))
            request = path, body, AUTHORIZED | sign(KEY, body)
            began = time.perf_counter()
            post(request)
            rates.append(size / (time.perf_counter() - began))
        return statistics.median(rates)

    def rates(interface: str, post: Callable[[Request], None]) -> dict[str, float]:
        paths = {"our address": "/webhooks/sendgrid", "Anymail's address": "/sendgrid/tracking/"}
        return {f"{name}, {interface}": rate(post, path) for name, path in paths.items()}

    with asgi_client() as post:
        return rates("WSGI", wsgi_client()) | rates("ASGI", post)


def main() -> None:
    """Set Django up, measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.django_process")
    parser.add_argument("--without-app", action="store_true")
    parser.add_argument("--calls", type=int, help="number of single webhooks and sends, warm-up included")
    parser.add_argument("--batch", type=int, help="events in a batch")
    options = parser.parse_args()
    public = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    os.environ["MAILGLASS_WEBHOOK_SECRETS"] = f"sendgrid={b64encode(public).decode()}"
    configure(os.environ["MAILGLASS_DATABASE_URL"], with_app=not options.without_app)
    print(
        json.dumps(measure_batches(options.batch) if options.batch else measure_single_requests(options.calls)),
        flush=True,
    )


if __name__ == "__main__":
    main()
