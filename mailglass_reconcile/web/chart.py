"""Backlog and lag over time as the shapes of a picture that the server draws: paths, without a style or a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.ops.curve import Sample
from mailglass_reconcile.schedule import LATE_SECONDS

WIDTH, HEIGHT = 960, 200
STATES = ("unmatched", "unmatchable", "recipient_mismatch", "ambiguous", "tenant_mismatch", "matched")
"""From the bottom to the top: what nobody can act on, and at last what a sweep should have linked."""
HELD_BUCKETS = 3.0
"""How many buckets a sweep stands for at most; a longer silence is a gap in the picture."""
HELD_SECONDS = LATE_SECONDS
ROWS = 6
LAGS = (1_200, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Upper edges of the lag's picture, in seconds; the least shows when somebody has to act."""


class Band(NamedTuple):
    """One state's part of the picture."""

    name: str
    path: str


class Picture(NamedTuple):
    """A picture of some bands; `top` is the value of its upper edge, and `rows` are for the table beside it."""

    bands: list[Band]
    top: float
    rows: list[Sample]


def backlog(samples: Sequence[Sample], began: float, ended: float, bucket: float) -> Picture:
    """Return the open orphans by state between two times, in seconds since 1970; each sample stands until the next."""
    present = [state for state in STATES if any(sample.states.get(state) for sample in samples)]
    top = _rounded(max((sum(sample.states.values()) for sample in samples), default=0))
    spans = _spans(samples, began, ended, bucket)
    below = [0.0] * len(samples)
    bands = []
    for state in present:
        above = [low + sample.states.get(state, 0) for low, sample in zip(below, samples, strict=True)]
        bands.append(Band(state, _columns(spans, below, above, top)))
        below = above
    return Picture(bands, top, _some(samples))


def lag(samples: Sequence[Sample], began: float, ended: float, bucket: float) -> Picture:
    """Return the lag between two times."""
    values = [sample.lag_seconds or 0.0 for sample in samples]
    highest = max(values, default=0.0)
    top = float(next((edge for edge in LAGS if edge >= highest), highest))
    path = _columns(_spans(samples, began, ended, bucket), [0.0] * len(values), values, top)
    return Picture([Band("lag", path)] if samples else [], top, _some(samples))


def height(value: float, top: float) -> float:
    """Return how far from the upper edge a value is drawn."""
    return round(HEIGHT * (1 - value / top), 1)


def _spans(samples: Sequence[Sample], began: float, ended: float, bucket: float) -> list[tuple[float, float]]:
    held = max(HELD_SECONDS, HELD_BUCKETS * bucket)
    starts = [sample.at for sample in samples]
    ends = [min(next_, start + held) for start, next_ in zip(starts, [*starts, ended][1:], strict=True)]
    scale = WIDTH / (ended - began)
    return [
        (round(max(0.0, (start - began) * scale), 1), round((end - began) * scale, 1))
        for start, end in zip(starts, ends, strict=True)
    ]


def _columns(spans: Sequence[tuple[float, float]], below: Sequence[float], above: Sequence[float], top: float) -> str:
    return "".join(
        f"M{left} {height(low, top)}V{height(high, top)}H{right}V{height(low, top)}Z"
        for (left, right), low, high in zip(spans, below, above, strict=True)
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
