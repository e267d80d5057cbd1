"""A mounted receiver of all providers, requests signed now, and certificates from a function of tests."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from django.test import Client, override_settings
from pydantic import SecretStr
from starlette.applications import Starlette

import mailglass_reconcile
import senders
import serving
from mailglass_reconcile.providers import sns
from mailglass_reconcile.providers.certificates import CertificateStore
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.webhooks import receive, refusal, webhook_app
from processes import Process
from senders import MANDRILL_URL, Posted, load_payloads, make_requests, secret_of

SECRETS = {provider: secret_of(provider) for provider in PROVIDERS}


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Let certificates come from a function of tests."""
    monkeypatch.setattr(sns, "fetch", senders.serve_certificate)
    monkeypatch.setattr(sns, "certificates", CertificateStore())


def now():
    """Return the time at which a request is signed."""
    return senders.dt.datetime.now(senders.dt.UTC)


def requests_of(provider: str) -> list[Posted]:
    """Return requests with all payloads of a provider's documentation, signed now."""
    return make_requests(provider, [event.payload for event in load_payloads(provider)], at=now())


def first(provider: str) -> Posted:
    """Return a request with the first payload, signed now."""
    return make_requests(provider, [load_payloads(provider)[0].payload], at=now())[0]


def mount_receiver(**arguments) -> Starlette:
    """Return an application that mounts the receiver, as a FastAPI one would."""
    shop = Starlette()
    shop.mount("/webhooks", webhook_app(**{"secrets": SECRETS, "url": MANDRILL_URL, **arguments}))
    return shop


def ask(application, talk: Callable[[httpx.AsyncClient], Awaitable]) -> object:
    """Run *talk* with a client of an ASGI application, and return its result."""

    async def run():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return await talk(client)

    return asyncio.run(run())


def post(application, path: str, *requests: Posted) -> list[httpx.Response]:
    """Post requests to an ASGI application, one after the other."""

    async def talk(client):
        return [await client.post(path, content=request.body, headers=request.headers) for request in requests]

    return ask(application, talk)


class Answer(NamedTuple):
    """The response to a webhook."""

    status: int
    text: str


def by_application(db, provider: str, request: Posted, tenant: str | None = None) -> Answer:
    """Post a webhook to a mounted application with the secrets of the setting."""
    shop = mount_receiver(secrets=None, url=None, engine=db.engine, tenant=tenant)
    (response,) = post(shop, f"/webhooks/{provider}", request)
    return Answer(response.status_code, response.text.removesuffix("\n"))


def by_django(db, provider: str, request: Posted, tenant: str | None = None) -> Answer:
    """Post a webhook to Django's view."""
    client = Client(raise_request_exception=False)
    with override_settings(ROOT_URLCONF="webhook_urls", MAILGLASS_TENANT=tenant):
        response = client.post(**request.for_anymail(f"/webhooks/{provider}"))
    return Answer(response.status_code, response.content.decode())


def by_receive(db, provider: str, request: Posted, tenant: str | None = None) -> Answer:
    """Call the functions of a view of one's own."""
    try:
        with db.engine.begin() as connection:
            receive(connection, provider, request.body, request.headers, tenant_id=tenant)
    except Exception as error:
        status, text, _ = refusal(provider, error)
        return Answer(status, text)
    return Answer(200, "ok")


def setting(db, text: str | None, *, webhook_url: str | None = None) -> None:
    """Set `MAILGLASS_WEBHOOK_SECRETS` and `MAILGLASS_WEBHOOK_URL`."""
    secrets = {"webhook_secrets": SecretStr(text) if text else None}
    url = {"webhook_url": SecretStr(webhook_url) if webhook_url else None}
    settings = db.settings.model_copy(update=secrets | url)
    mailglass_reconcile.configure(engine=db.engine, settings=settings)


@contextmanager
def receiving(
    db, folder: Path, module: Sequence[str] = ("mailglass_reconcile", "receive"), *, forked: bool = True, **more: str
) -> Iterator[tuple[str, Process]]:
    """Run `mailglass-reconcile receive`, or another module, on a free port, and yield its address and the process."""
    addresses = [senders.CERTIFICATE_URL, senders.SCALEWAY_CERTIFICATE_URL]
    addresses += [
        f"https://messaging.s3.fr-par.scw.cloud/{region}/sns/sns-trust-chain.pem" for region in ("fr-par", "nl-ams")
    ]
    (folder / "certificates").write_text(
        json.dumps({url: senders.serve_certificate(url).decode() for url in addresses})
    )
    (folder / "secrets").write_text("".join(f"{provider}={secret}\n" for provider, secret in SECRETS.items()))
    environment = {
        **db.environment(),
        "MAILGLASS_IMPORTS": "canned_certificates",
        "MAILGLASS_WEBHOOK_SECRETS": f"@{folder / 'secrets'}",
        "MAILGLASS_WEBHOOK_URL": MANDRILL_URL,
        "TEST_CERTIFICATES": str(folder / "certificates"),
        "MAILGLASS_WEB_TOKEN": "",
        **more,
    }
    with serving.serve(environment, module=module, forked=forked) as (process, address):
        yield address, process
