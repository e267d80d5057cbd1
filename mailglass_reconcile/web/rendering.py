"""From a template to an answer; every address in it is relative, so that it works under any path."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from mailglass_reconcile.rules import states
from mailglass_reconcile.rules.wording import shown, took

SHOWN_CHARACTERS = 200
NONE = "\N{EN DASH}"
_CODE = re.compile("`([^`]+)`")


def plain(text: object) -> str:
    """Return a text of a row with everything escaped that is not printable, and cut."""
    return shown(str(text), SHOWN_CHARACTERS)


def breakable(name: str) -> Markup:
    """Return a name that may be broken after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def number(value: int | None) -> str:
    """Return a number with commas; a dash if there is none."""
    return NONE if value is None else f"{value:,}"


def age(seconds: float | None) -> str:
    """Return a span of time in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `6 d 1 h`."""
    if seconds is None or seconds < 0:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for name, size, lesser, small in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size:,} {name}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"


def duration(milliseconds: int | None) -> str:
    """Return how long something took."""
    return NONE if milliseconds is None else took(milliseconds)


def time_of(iso: str | None) -> dt.datetime | None:
    """Return a time in ISO 8601, or None if it is none that Python knows: infinity, a far year."""
    try:
        return dt.datetime.fromisoformat(iso or "")
    except ValueError:
        return None


def moment(iso: str | None, now: str | None = None) -> Markup:
    """Return a time as people read it, in UTC, and as machines do; only the clock if it is of the same day as *now*."""
    at, here = time_of(iso), time_of(now)
    if at is None:
        return escape(plain(iso or NONE).removesuffix("Z"))
    today = here is not None and at.date() == here.date()
    shown = at.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")
    return Markup('<time datetime="{}">{}</time>').format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), shown)


def clock(at: float, hours: int) -> Markup:
    """Return a time, given in seconds since 1970; with its day if a picture shows more than one."""
    time = dt.datetime.fromtimestamp(at, dt.UTC)
    shown = time.strftime("%a %H:%M" if hours > 24 else "%H:%M")
    return Markup('<time datetime="{}">{}</time>').format(time.strftime("%Y-%m-%dT%H:%M:%SZ"), shown)


def since(iso: str | None, now: str) -> str:
    """Return how long before *now* a time was."""
    at, here = time_of(iso), time_of(now)
    return NONE if at is None or here is None else age(max(0.0, (here - at).total_seconds()))


def coded(sentence: str) -> Markup:
    """Return a sentence of ours whose commands in backticks are set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(sentence))))  # noqa: S704 - escaped before


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
        age=age,
        breakable=breakable,
        clock=clock,
        coded=coded,
        duration=duration,
        moment=moment,
        number=number,
        plain=plain,
        short_words=states.short_words,
        since=since,
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
