"""The dashboard without a server: requests from this machine or from another one."""

import asyncio
from typing import Any

import httpx
from pydantic import SecretStr

import mailglass_reconcile
from mailglass_reconcile.web import create_app

TOKEN = "operator-token-of-tests"  # noqa: S105


class Visitor:
    """Requests pages of an application with its token, with another one, or without any."""

    def __init__(self, app: Any, token: str | None = TOKEN, host: str = "127.0.0.1:8080"):
        self.app, self.host = app, host
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Request one page."""
        return self.ask("GET", path, headers=headers)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """Send one request."""
        return asyncio.run(self._ask(method, path, {**self.headers, **(headers or {})}, more))

    def get_all(self, paths: list[str]) -> list[httpx.Response]:
        """Request pages at the same time."""

        async def ask() -> list[httpx.Response]:
            return await asyncio.gather(*map(self.get_in_loop, paths))

        return asyncio.run(ask())

    async def get_in_loop(self, path: str) -> httpx.Response:
        """Request a page within a running event loop."""
        return await self._ask("GET", path, self.headers, {})

    async def _ask(self, method: str, path: str, headers: dict[str, str], more: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{self.host}") as client:
            return await client.request(method, path, headers=headers, **more)


def app(db: Any, **settings: Any) -> Any:
    """Return the application on a test's database, with more settings."""
    changes = {"web_token": SecretStr(TOKEN), **settings}
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update=changes))
    return create_app()
