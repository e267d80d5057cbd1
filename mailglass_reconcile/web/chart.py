"""Backlog and lag over time as shapes that the server draws: paths, without a style or a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.ops.overview import BUCKETS, Sample
from mailglass_reconcile.schedule import LATE_SECONDS

WIDTH, HEIGHT = 960, 200
STATES = ("unmatched", "unmatchable", "recipient_mismatch", "ambiguous", "tenant_mismatch", "matched")
"""From the bottom to the top: `matched`, which a sweep should have linked, is on top of all others."""
HELD_BUCKETS = 3.0
"""How many buckets a sweep stands for at most; a longer silence is a gap in the chart."""
HELD_SECONDS = LATE_SECONDS
SHORTEST_SECONDS = 300.0
"""A new installation's chart begins with its first sweep, but spans at least this time."""
ROWS = 6
LAGS = (1_200, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Upper edges of the lag's chart, in seconds; the least one is above the threshold at which somebody has to act."""


class Band(NamedTuple):
    """One state's part of a chart, and the line between it and the part above."""

    name: str
    path: str
    edge: str = ""


class Chart(NamedTuple):
    """A chart of some bands; `top` is the value of its upper edge, `rows` are some samples for a table."""

    bands: list[Band]
    top: float
    rows: list[Sample]


class Span(NamedTuple):
    """The time that a chart shows, in seconds since 1970, and how long one sample stands for at most."""

    began: float
    ended: float
    held: float


def span(seconds: float, ended: float, first_ever: float | None) -> Span:
    """Return the span of a chart: *seconds* up to *ended*, or less if the history's first sweep is younger."""
    began = ended - seconds
    if first_ever is not None and first_ever > began:
        began = min(first_ever, ended - SHORTEST_SECONDS)
    return Span(began, ended, max(HELD_SECONDS, HELD_BUCKETS * seconds / BUCKETS))


def backlog(samples: Sequence[Sample], shown: Span) -> Chart:
    """Return the open orphans by state; each sample stands until the next one."""
    found = {state for sample in samples for state, orphans in sample.states.items() if orphans}
    present = [state for state in STATES if state in found] + sorted(found.difference(STATES))
    top = _rounded(max((sum(sample.states.values()) for sample in samples), default=0))
    columns = _columns(samples, shown)
    below = [0.0] * len(samples)
    bands = []
    for state in present:
        above = [low + sample.states.get(state, 0) for low, sample in zip(below, samples, strict=True)]
        bands.append(Band(state, _path(columns, below, above, top), _edge(columns, below, above, top)))
        below = above
    return Chart(bands, top, _some(samples))


def lag(samples: Sequence[Sample], shown: Span) -> Chart:
    """Return the lag."""
    values = [sample.lag_seconds for sample in samples]
    highest = max(values, default=0.0)
    top = float(next((edge for edge in LAGS if edge >= highest), highest))
    path = _path(_columns(samples, shown), [0.0] * len(values), values, top)
    return Chart([Band("lag", path)] if samples else [], top, _some(samples))


def height(value: float, top: float) -> float:
    """Return how far below the upper edge a value is drawn."""
    return round(HEIGHT * (1 - value / top), 1)


def _columns(samples: Sequence[Sample], shown: Span) -> list[tuple[float, float]]:
    """Return the left and the right edge of each sample."""
    starts = [sample.at for sample in samples]
    ends = [min(next_, start + shown.held) for start, next_ in zip(starts, [*starts, shown.ended][1:], strict=True)]
    scale = WIDTH / (shown.ended - shown.began)
    return [
        (round(max(0.0, (start - shown.began) * scale), 1), round((end - shown.began) * scale, 1))
        for start, end in zip(starts, ends, strict=True)
    ]


def _path(columns: Sequence[tuple[float, float]], below: Sequence[float], above: Sequence[float], top: float) -> str:
    return "".join(
        f"M{left} {height(low, top)}V{height(high, top)}H{right}V{height(low, top)}Z"
        for (left, right), low, high in zip(columns, below, above, strict=True)
        if high > low
    )


def _edge(columns: Sequence[tuple[float, float]], below: Sequence[float], above: Sequence[float], top: float) -> str:
    return "".join(
        f"M{left} {height(high, top)}H{right}"
        for (left, right), low, high in zip(columns, below, above, strict=True)
        if high > low
    )


def _rounded(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50, …"""
    size = 1.0
    while True:
        for step in (1, 2, 5):
            if value <= step * size:
                return step * size
        size *= 10


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Return some samples for a table, the newest first and evenly spread."""
    newest = list(reversed(samples))
    return [newest[i * len(newest) // ROWS] for i in range(ROWS)] if len(newest) > ROWS else newest
