"""Backlog and lag over time as shapes that the server draws: paths, without a style or a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mailglass_reconcile.ops.time_series import Bucket

WIDTH, HEIGHT = 960, 200
STATES = ("unmatched", "unmatchable", "recipient_mismatch", "ambiguous", "tenant_mismatch")
"""From the bottom to the top; what can be linked, `matched`, has a chart of its own."""
ROWS = 6
LAGS = (1_200, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Upper edges of the lag's chart, in seconds; the least one is above the threshold at which a person has to act."""
STEPS = (60, 300, 900, 1_800, 3_600, 7_200, 14_400, 21_600, 43_200, 86_400, 172_800)
"""Seconds between two ticks."""
MOST_TICKS = 6
EDGES = (4.0, 90.0)
"""Ticks are between these places, in per cent of the width: no label is cut off, or on that of now."""


class Band(NamedTuple):
    """One state's part of a chart, and the line between it and the part above."""

    name: str
    path: str
    edge: str = ""


class Column(NamedTuple):
    """What one bucket shows: its place, of 960, and when it was, with its values by name; None if nothing is known."""

    left: float
    width: float
    began: float
    ended: float
    values: dict[str, float] | None
    peak: bool

    @property
    def total(self) -> float:
        return sum((self.values or {}).values())


class Tick(NamedTuple):
    """A moment on the axis of time, in seconds since 1970, and how far to the right it is, in per cent."""

    at: float
    place: float


class Chart(NamedTuple):
    """A chart of some bands.

    Attributes:
        bands: From the bottom to the top.
        top: The value of its upper edge.
        columns: Each bucket, the oldest first.
        rows: The peak and some others for a table, the newest first; those of which something is known.
        ticks: The axis of time.
    """

    bands: list[Band]
    top: float
    columns: list[Column]
    rows: list[Column]
    ticks: list[Tick]

    @property
    def has_peak(self) -> bool:
        """Whether anything is above zero."""
        return any(column.total for column in self.columns)


def backlog(buckets: Sequence[Bucket]) -> Chart:
    """Return the open orphans that no sweep can link, by state."""
    found = {state for one in buckets for state, orphans in (one.states or {}).items() if orphans}
    names = [state for state in STATES if state in found] + sorted(found.difference(STATES))
    return _chart(buckets, names, lambda one: one.states, _rounded)


def left(buckets: Sequence[Bucket]) -> Chart:
    """Return the open orphans that could be linked when a sweep ended."""
    return _chart(buckets, ["matched"], lambda one: {"matched": one.matched}, _rounded)


def lag(buckets: Sequence[Bucket]) -> Chart:
    """Return for how long an orphan was open although it could be linked, as far as it is known.

    While nothing sweeps, that is not known; what is drawn then is for how long nothing did.
    """

    def values(one: Bucket) -> dict[str, float]:
        return {"lag": one.lag_seconds, "silent": max(0.0, one.silent_seconds - one.lag_seconds)}

    def top(highest: float) -> float:
        return float(next((edge for edge in LAGS if edge >= highest), highest))

    return _chart(buckets, ["lag", "silent"], values, top)


def height(value: float, top: float) -> float:
    """Return how far below the upper edge a value is drawn."""
    return round(HEIGHT * (1 - value / top), 1)


def _chart(
    buckets: Sequence[Bucket],
    names: Sequence[str],
    values: Callable[[Bucket], dict[str, int] | dict[str, float] | None],
    top_of: Callable[[float], float],
) -> Chart:
    columns = _columns(buckets, values)
    top = top_of(max((column.total for column in columns), default=0.0))
    bands, below = [], [0.0] * len(columns)
    for name in names:
        above = [low + (one.values or {}).get(name, 0.0) for low, one in zip(below, columns, strict=True)]
        if above != below or name == names[0]:
            bands.append(Band(name, _path(columns, below, above, top), _edge(columns, below, above, top)))
        below = above
    return Chart(bands, top, columns, _rows(columns), list(_ticks(buckets)))


def _columns(
    buckets: Sequence[Bucket], values: Callable[[Bucket], dict[str, int] | dict[str, float] | None]
) -> list[Column]:
    if not buckets:
        return []
    began, scale = buckets[0].began, WIDTH / (buckets[-1].ended - buckets[0].began)
    found = [(one, values(one)) for one in buckets]
    totals = [sum((each or {}).values()) for _, each in found]
    peak = max(range(len(totals)), key=totals.__getitem__) if any(totals) else None
    return [
        Column(
            round((one.began - began) * scale, 1),
            round((one.ended - one.began) * scale, 1),
            one.began,
            one.ended,
            None if each is None else {name: float(value) for name, value in each.items()},
            number == peak,
        )
        for number, (one, each) in enumerate(found)
    ]


def _ticks(buckets: Sequence[Bucket]) -> Iterator[Tick]:
    """Yield round moments, at most six."""
    if not buckets:
        return
    began, ended = buckets[0].began, buckets[-1].ended
    step = next((one for one in STEPS if (ended - began) / one <= MOST_TICKS), STEPS[-1])
    at = (began // step + 1) * step
    while at < ended:
        place = round(100 * (at - began) / (ended - began), 2)
        if EDGES[0] <= place <= EDGES[1]:
            yield Tick(at, place)
        at += step


def _path(columns: Sequence[Column], below: Sequence[float], above: Sequence[float], top: float) -> str:
    return "".join(
        f"M{one.left} {height(low, top)}V{height(high, top)}H{round(one.left + one.width, 1)}V{height(low, top)}Z"
        for one, low, high in zip(columns, below, above, strict=True)
        if high > low
    )


def _edge(columns: Sequence[Column], below: Sequence[float], above: Sequence[float], top: float) -> str:
    return "".join(
        f"M{one.left} {height(high, top)}H{round(one.left + one.width, 1)}"
        for one, low, high in zip(columns, below, above, strict=True)
        if high > low
    )


def _rounded(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 8, 10, 20, 40, …, whose halves are whole numbers except for 1."""
    size = 1.0
    while True:
        for step in (1, 2, 4, 6, 8):
            if value <= step * size:
                return step * size
        size *= 10


def _rows(columns: Sequence[Column]) -> list[Column]:
    """Return some columns for a table, the newest first and evenly spread, the peak among them."""
    newest = [one for one in reversed(columns) if one.values is not None]
    if len(newest) <= ROWS:
        return newest
    return [one for n, one in enumerate(newest) if one.peak or n in {i * len(newest) // ROWS for i in range(ROWS)}]
