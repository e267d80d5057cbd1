"""From a template to an answer. Every address in it is relative, so that it works under any path."""

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

from mailglass_reconcile.rules.humanize import counted, shown, took
from mailglass_reconcile.rules.states import short_words

SHOWN_CHARACTERS = 200
NONE = "\N{EN DASH}"
FRAGMENT = "x-fragment"
"""The header by which the script requests only the parts that change."""
REFRESH_SECONDS = 5

STATIC = {
    file.name: file.read_bytes() for file in resources.files("mailglass_reconcile.web").joinpath("static").iterdir()
}
STATIC_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_VERSION = hashlib.sha256(b"".join(STATIC[name] for name in sorted(STATIC))).hexdigest()[:12]
_CODE = re.compile("`([^`]+)`")


def plain(text: object) -> str:
    """Return a text from a row: escaped where it is not printable, and cut."""
    return shown(str(text), SHOWN_CHARACTERS)


def breakable(name: str) -> Markup:
    """Return a name that a browser may break after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def number(value: int | None) -> str:
    """Return a number with commas; a dash for None."""
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
    """Return how long something took; a dash for None."""
    return NONE if milliseconds is None else took(milliseconds)


def moment(iso: str | None, now: str | None = None) -> Markup:
    """Return a time in UTC for people and for machines; only the clock if it is on the same day as *now*."""
    at, here = _time(iso), _time(now)
    if at is None:
        return escape(plain(iso or NONE).removesuffix("Z"))
    today = here is not None and at.date() == here.date()
    return _marked(at, "%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def clock(at: float, hours: int) -> Markup:
    """Return a time, given in seconds since 1970; with its weekday in a chart of more than a day."""
    return _marked(dt.datetime.fromtimestamp(at, dt.UTC), "%a %H:%M" if hours > 24 else "%H:%M")


def since(iso: str | None, now: str) -> str:
    """Return how long before *now* a time was."""
    at, here = _time(iso), _time(now)
    return NONE if at is None or here is None else age(max(0.0, (here - at).total_seconds()))


def coded(sentence: str) -> Markup:
    """Return a sentence of this package with the commands in its backticks set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(sentence))))  # noqa: S704 - escaped before


def query(**values: object) -> str:
    """Return a query of the values that are set, with its question mark; empty if none is."""
    given = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(given)}" if given else ""


def _time(iso: str | None) -> dt.datetime | None:
    """Return a time in ISO 8601; None for one that Python does not have, such as infinity."""
    try:
        return dt.datetime.fromisoformat(iso or "")
    except ValueError:
        return None


def _marked(at: dt.datetime, form: str) -> Markup:
    return Markup('<time datetime="{}">{}</time>').format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime(form))


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("mailglass_reconcile.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (age, breakable, clock, coded, counted, duration, moment, number, plain, short_words, since)
    made.filters.update((each.__name__, each) for each in filters)
    made.globals.update(version=_VERSION, refresh_seconds=REFRESH_SECONDS, query=query)
    return made


_ENVIRONMENT = _environment()


def path_below_root(request: Request) -> str:
    """Return the path below the application's root, with a leading slash."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")) or "/"


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a page, or only the parts that change if the script requests those."""
    path = path_below_root(request)
    common = {
        "root": "../" * (path.count("/") - 1) or "./",
        "layout": "fragment.html" if FRAGMENT in request.headers else "page.html",
        "here": path,
    }
    text = _ENVIRONMENT.get_template(template).render({**common, **values})
    return HTMLResponse(text, status, headers={"vary": FRAGMENT, **(headers or {})})
