"""Format numbers, durations and names for a line of text that a person reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_CHARACTERS = 100
MAX_TENANT_CHARACTERS = 1_000
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def pluralize(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 event`, `12,345 events`.

    Args:
        number: The number.
        singular: The noun after 1; it may be followed by the rest of a sentence.
        plural: The text after any other number. Without it, *singular* gets an `s`.
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def n_of_m(part: int, total: int, singular: str, plural: str | None = None) -> str:
    """Return a part of a number with its noun, formed as `pluralize` does: `1 of 12,345 events`."""
    return f"{part:,} of {pluralize(total, singular, plural)}"


def verb(number: int, singular: str = "is", plural: str = "are") -> str:
    """Return the form of a verb that agrees with *number*."""
    return singular if number == 1 else plural


def format_duration(seconds: float) -> str:
    """Return a duration in its largest whole unit: `45 seconds`, `1 minute`, `6 days`."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return pluralize(int(seconds // size), unit)
    return pluralize(int(seconds), "second")


def format_ago(seconds: float) -> str:
    """Return a distance from now, in hours up to two days: `now`, `5 minutes ago`, `30 hours ago`, `in 6 days`."""
    if abs(seconds) < 1:
        return "now"
    if 86_400 <= seconds < 2 * 86_400:
        return f"{pluralize(int(seconds // 3_600), 'hour')} ago"
    return f"{format_duration(seconds)} ago" if seconds >= 0 else f"in {format_duration(-seconds)}"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as people type it: `90s`, `5m`, `2h`, `6d`."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdecimal() or len(number) > 6:
        raise ValueError("use a number and s, m, h or d, such as 90s, 5m, 2h or 6d")
    return float(int(number) * UNITS[unit])


def format_duration_ms(milliseconds: int) -> str:
    """Return a duration in milliseconds, `12 ms`, and from ten seconds on as `format_duration` does."""
    return f"{milliseconds:,} ms" if milliseconds < 10_000 else format_duration(milliseconds / 1000)


def escape_unprintable(text: str) -> str:
    """Return *text* with each character escaped that a terminal or a log might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sanitize(name: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a name that others chose, such as a tenant's: escaped, in one line, and truncated to *limit* characters.

    A backtick is escaped too: in our sentences it marks a command, which can be copied.
    """
    return escape_unprintable(name[:limit]).replace("`", "\\x60") + ("…" if len(name) > limit else "")


def sanitize_tenant(tenant_id: str | None) -> str | None:
    """Return a tenant argument for logs, results and the history: escaped, in one line, and truncated.

    A backslash is doubled: no two tenants look the same.
    """
    return None if tenant_id is None else sanitize(tenant_id.replace("\\", "\\\\"), MAX_TENANT_CHARACTERS)


def find_closest(name: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the candidate that is most similar to *name*, whatever its case, or None if none is similar.

    Args:
        name: The name that is not known.
        candidates: The names that are.
        cutoff: The least similarity, from 0 to 1, as `difflib` measures it.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower()[:MAX_CHARACTERS], by_lower, n=1, cutoff=cutoff)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, candidates: Iterable[str], form: str = "; {}") -> str:
    """Return the end of a sentence about an unknown name, `; did you mean bounced?`, or an empty string."""
    closest = find_closest(name, candidates)
    return "" if closest is None or closest == name else form.format(f"did you mean {sanitize(closest)}?")
