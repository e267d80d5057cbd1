"""Numbers, times and texts as the page shows them."""

from __future__ import annotations

import datetime as dt
import re

from markupsafe import Markup, escape

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
