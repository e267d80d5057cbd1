"""From a template to an answer; every address in it is relative, so that it works under any path."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from mailglass_reconcile.rules import states
from mailglass_reconcile.web import words

FRAGMENT = "x-fragment"
"""The header by which the script asks for what changes only."""
REFRESH_SECONDS = 5

STATIC = {
    file.name: file.read_bytes() for file in resources.files("mailglass_reconcile.web").joinpath("static").iterdir()
}
_VERSION = hashlib.sha256(b"".join(STATIC[name] for name in sorted(STATIC))).hexdigest()[:12]


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("mailglass_reconcile.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        age=words.age,
        breakable=words.breakable,
        clock=words.clock,
        coded=words.coded,
        duration=words.duration,
        moment=words.moment,
        number=words.number,
        plain=words.plain,
        short_words=states.short_words,
        since=words.since,
    )
    made.globals.update(version=_VERSION, refresh_seconds=REFRESH_SECONDS, query=query)
    return made


def within(request: Request) -> str:
    """Return the path below the application's root, with a slash in front."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")) or "/"


def query(**values: object) -> str:
    """Return a query of what is given, with its question mark, or nothing."""
    given = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(given)}" if given else ""


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a page, or what changes of it if the script asks for that."""
    depth = within(request).count("/") - 1
    asked = {
        "root": "../" * depth or "./",
        "layout": "fragment.html" if FRAGMENT in request.headers else "page.html",
        "here": within(request),
        "scope": None,
    }
    text = _ENVIRONMENT.get_template(template).render({**asked, **values})
    return HTMLResponse(text, status, headers={"vary": FRAGMENT, **(headers or {})})


_ENVIRONMENT = _environment()
