"""The application without a server: requests to it, as from this machine or from elsewhere."""

import asyncio
from typing import Any

import httpx
from pydantic import SecretStr

import mailglass_reconcile
from mailglass_reconcile.web import create_app

OPERATOR = "operator-token"
ACME = "acme-token"
BETA = "beta-token"
TOKENS = {"web_token": SecretStr(OPERATOR), "web_tenant_tokens": SecretStr(f"acme={ACME}, beta = {BETA}==")}


class Visitor:
    """Asks an application for pages; with a token, as whoever it belongs to."""

    def __init__(self, app: Any, token: str | None = None, client: str = "127.0.0.1", host: str = "127.0.0.1:8080"):
        self.app, self.client, self.host = app, client, host
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask for one page."""
        return self.ask("GET", path, headers=headers)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """Send one request."""
        return asyncio.run(self._ask(method, path, {**self.headers, **(headers or {})}, more))

    def all(self, paths: list[str]) -> list[httpx.Response]:
        """Ask for pages, all at once."""

        async def ask() -> list[httpx.Response]:
            return await asyncio.gather(*map(self.one, paths))

        return asyncio.run(ask())

    async def one(self, path: str) -> httpx.Response:
        """Ask for a page, in a loop that runs already."""
        return await self._ask("GET", path, self.headers, {})

    async def _ask(self, method: str, path: str, headers: dict[str, str], more: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(self.client, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{self.host}") as client:
            return await client.request(method, path, headers=headers, **more)


def app(db: Any, **settings: Any) -> Any:
    """Return the application on a test's database, with more settings."""
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update=settings))
    return create_app()
