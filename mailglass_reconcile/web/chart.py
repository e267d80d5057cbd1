"""Backlog and lag over time as shapes that the server draws: paths, without a style or a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mailglass_reconcile.ops.time_series import TimeBucket

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
    """A bucket: its position, of 960, its time, and its values by name; None if nothing is known."""

    left: float
    width: float
    began: float
    ended: float
    values: dict[str, float] | None
    peak: bool

    @property
    def right(self) -> float:
        return round(self.left + self.width, 1)

    @property
    def total(self) -> float:
        return sum((self.values or {}).values())


class Tick(NamedTuple):
    """A label of the time axis: seconds since 1970, and the position in per cent of the width."""

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
        """Return True if any value is above zero."""
        return any(column.total for column in self.columns)


def draw_backlog(buckets: Sequence[TimeBucket]) -> Chart:
    """Draw the open orphans that no sweep can link, by state."""
    present = {state for bucket in buckets for state, orphans in (bucket.states or {}).items() if orphans}
    names = [state for state in STATES if state in present] + sorted(present.difference(STATES))
    return _draw(buckets, names, lambda bucket: bucket.states, _round_up)


def draw_matched(buckets: Sequence[TimeBucket]) -> Chart:
    """Draw the orphans that could be linked but were still open when a sweep ended."""
    return _draw(buckets, ["matched"], lambda bucket: {"matched": bucket.left_linkable}, _round_up)


def draw_lag(buckets: Sequence[TimeBucket]) -> Chart:
    """Draw the lag: the longest time that a linkable orphan was open.

    While nothing sweeps the lag is unknown, so the time without a sweep is drawn instead.
    """

    def values(bucket: TimeBucket) -> dict[str, float]:
        return {"lag": bucket.lag_seconds, "silent": max(0.0, bucket.silent_seconds - bucket.lag_seconds)}

    def top(highest: float) -> float:
        return float(next((edge for edge in LAGS if edge >= highest), highest))

    return _draw(buckets, ["lag", "silent"], values, top)


def y_position(value: float, top: float) -> float:
    """Return the distance of a value from the upper edge."""
    return round(HEIGHT * (1 - value / top), 1)


def _draw(
    buckets: Sequence[TimeBucket],
    names: Sequence[str],
    values: Callable[[TimeBucket], dict[str, int] | dict[str, float] | None],
    top_of: Callable[[float], float],
) -> Chart:
    columns = _make_columns(buckets, values)
    top = top_of(max((column.total for column in columns), default=0.0))
    bands, below = [], [0.0] * len(columns)
    for name in names:
        above = [low + (column.values or {}).get(name, 0.0) for low, column in zip(below, columns, strict=True)]
        if above != below or name == names[0]:
            bands.append(_make_band(name, columns, below, above, top))
        below = above
    return Chart(bands, top, columns, _choose_rows(columns), list(_make_ticks(buckets)))


def _make_columns(
    buckets: Sequence[TimeBucket], values: Callable[[TimeBucket], dict[str, int] | dict[str, float] | None]
) -> list[Column]:
    if not buckets:
        return []
    began, scale = buckets[0].began, WIDTH / (buckets[-1].ended - buckets[0].began)
    drawn = [(bucket, values(bucket)) for bucket in buckets]
    totals = [sum((by_name or {}).values()) for _, by_name in drawn]
    peak = max(range(len(totals)), key=totals.__getitem__) if any(totals) else None
    return [
        Column(
            round((bucket.began - began) * scale, 1),
            round((bucket.ended - bucket.began) * scale, 1),
            bucket.began,
            bucket.ended,
            None if by_name is None else {name: float(value) for name, value in by_name.items()},
            number == peak,
        )
        for number, (bucket, by_name) in enumerate(drawn)
    ]


def _make_ticks(buckets: Sequence[TimeBucket]) -> Iterator[Tick]:
    """Yield the labels of the time axis at round times, at most six."""
    if not buckets:
        return
    began, ended = buckets[0].began, buckets[-1].ended
    step = next((step for step in STEPS if (ended - began) / step <= MOST_TICKS), STEPS[-1])
    at = (began // step + 1) * step
    while at < ended:
        percent = round(100 * (at - began) / (ended - began), 2)
        if EDGES[0] <= percent <= EDGES[1]:
            yield Tick(at, percent)
        at += step


def _make_band(
    name: str, columns: Sequence[Column], below: Sequence[float], above: Sequence[float], top: float
) -> Band:
    boxes = [
        (column, y_position(low, top), y_position(high, top))
        for column, low, high in zip(columns, below, above, strict=True)
        if high > low
    ]
    path = "".join(f"M{column.left} {low}V{high}H{column.right}V{low}Z" for column, low, high in boxes)
    return Band(name, path, edge="".join(f"M{column.left} {high}H{column.right}" for column, _, high in boxes))


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 8, 10, 20, 40, …, whose halves are whole numbers except for 1."""
    size = 1.0
    while True:
        for step in (1, 2, 4, 6, 8):
            if value <= step * size:
                return step * size
        size *= 10


def _choose_rows(columns: Sequence[Column]) -> list[Column]:
    """Choose columns for a table, the newest first and evenly spread, including the peak."""
    newest = [column for column in reversed(columns) if column.values is not None]
    if len(newest) <= ROWS:
        return newest
    spread = {row * len(newest) // ROWS for row in range(ROWS)}
    return [column for number, column in enumerate(newest) if column.peak or number in spread]
