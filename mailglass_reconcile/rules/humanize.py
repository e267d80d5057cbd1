"""Numbers, spans of time and other people's names, as a line of text for a person has them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN_CHARACTERS = 100
TENANT_CHARACTERS = 1_000
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and what it counts: `1 event`, `12,345 events`; *one* may be the rest of a sentence.

    *many* is the same for any other number; without it, *one* gets an `s`.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def share(part: int, whole: int, one: str, many: str | None = None) -> str:
    """Return how many of what is counted, as `counted` says it: `1 of 12,345 events`."""
    return f"{part:,} of {counted(whole, one, many)}"


def verb(number: int, one: str = "is", many: str = "are") -> str:
    return one if number == 1 else many


def age(seconds: float) -> str:
    """Return a span of time as people say it: `45 seconds`, `1 minute`, `6 days`."""
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return counted(int(seconds // size), name)
    return counted(int(seconds), "second")


def ago(seconds: float) -> str:
    """Return how long ago something was, in hours up to two days: `5 minutes ago`, `30 hours ago`, `6 days ago`."""
    if 86_400 <= seconds < 2 * 86_400:
        return f"{counted(int(seconds // 3_600), 'hour')} ago"
    return f"{age(seconds)} ago" if seconds >= 0 else f"in {age(-seconds)}"


def seconds_of(text: str) -> float:
    """Return the seconds of a span of time as people type it: `90s`, `5m`, `2h`, `6d`."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdecimal() or len(number) > 6:
        raise ValueError("use a number and s, m, h or d, such as 90s, 5m, 2h or 6d")
    return float(int(number) * UNITS[unit])


def took(milliseconds: int) -> str:
    """Return how long something took: `12 ms`, and from ten seconds on as `age` says it."""
    return f"{milliseconds:,} ms" if milliseconds < 10_000 else age(milliseconds / 1000)


def printable(text: str) -> str:
    """Return *text* with everything escaped that a terminal or a log might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: str, most: int = SHOWN_CHARACTERS) -> str:
    """Return a name that others chose, such as a tenant's, in one line and cut after *most* characters.

    A backtick is escaped too: in our sentences it marks a command, which can be copied.
    """
    return printable(name[:most]).replace("`", "\\x60") + ("…" if len(name) > most else "")


def shown_tenant(tenant_id: str | None) -> str | None:
    """Return a tenant argument as logs, results and the history show it: escaped, so that it is one line, and cut.

    A backslash is doubled: no two tenants look the same.
    """
    return None if tenant_id is None else shown(tenant_id.replace("\\", "\\\\"), TENANT_CHARACTERS)


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known name that is most like *name*, upper and lower case alike; None if none is like it."""
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower()[:SHOWN_CHARACTERS], by_lower, n=1, cutoff=likeness)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], form: str = "; {}") -> str:
    """Return the end of a sentence about an unknown name, `; did you mean bounced?`, or an empty string."""
    meant = nearest(name, known)
    return "" if meant is None else form.format(f"did you mean {shown(meant)}?")
