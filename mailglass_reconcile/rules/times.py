"""Times as every reader prints them: in UTC, for machines in ISO 8601 with Z, for people with their distance from now.

Now is this machine's clock, in the terminal and on the dashboard alike.
"""

from __future__ import annotations

import datetime as dt

from mailglass_reconcile.rules.humanize import format_ago


def parse(iso: str | None) -> dt.datetime | None:
    """Return a time in ISO 8601; None for None, and for one that Python does not have."""
    try:
        return dt.datetime.fromisoformat(iso or "").astimezone(dt.UTC)
    except (OverflowError, ValueError):
        return None


def seconds_ago(at: dt.datetime) -> float:
    """Return how long ago a time was; negative for one to come."""
    return (dt.datetime.now(dt.UTC) - at).total_seconds()


def format_utc(at: dt.datetime) -> str:
    """Return a time for people: `2026-11-29 17:05:19 UTC`."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def format_time(iso: str | None, missing: str = "-") -> str:
    """Return a time in ISO 8601 for a line of text: `2026-11-29 17:05:19 UTC (5 minutes ago)`.

    A time that Python cannot represent is returned unchanged, and *missing* for None.
    """
    at = parse(iso)
    return iso or missing if at is None else f"{format_utc(at)} ({format_ago(seconds_ago(at))})"
