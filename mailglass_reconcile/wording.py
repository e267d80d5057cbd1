"""Numbers, spans of time and other people's names, as a line of text for a person has them."""

from __future__ import annotations

SHOWN_CHARACTERS = 100


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and what it counts: `1 event`, `12,345 events`.

    Args:
        number: How many.
        one: What is counted, if it is one; it may be the rest of a sentence, such as `event is dead`.
        many: The same for any other number; *one* and an `s` if not given.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def age(seconds: float) -> str:
    """Return a span of time as people say it: `45 seconds`, `1 minute`, `6 days`."""
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return counted(int(seconds // size), name)
    return counted(int(seconds), "second")


def took(milliseconds: int) -> str:
    """Return how long something took: `12 ms`, and from ten seconds on as `age` says it."""
    return f"{milliseconds:,} ms" if milliseconds < 10_000 else age(milliseconds / 1000)


def printable(text: str) -> str:
    """Return *text* with everything escaped that a terminal or a log might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: str, most: int = SHOWN_CHARACTERS) -> str:
    """Return a name that others chose, such as a tenant's, in one line and cut after *most* characters."""
    return printable(name[:most]) + ("…" if len(name) > most else "")
