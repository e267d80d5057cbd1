"""On paper, from measured figures: an hour without sweeps, at 100 million deliveries and 10 million orphans a day."""

from __future__ import annotations

from collections.abc import Mapping

from bench.figures import Part, Points

DELIVERIES, ORPHANS = 100e6, 10e6
"""A day."""

EVENTS_PER_DELIVERY = 3
"""Beside `dispatched`, with orphans among them: delivered, and two of opened, clicked, or another."""

PEAK = 2.5
"""The busiest hour, as a multiple of the day's average."""

DAY, HOUR, TICK, DEADLINE = 86_400, 3_600, 300, 240

LEFT = 0.5
"""The share of its measured speed that linking has on a primary that also takes the writes."""

NEEDED = {
    "1": "1 process: links a second",
    "2": "2 processes: links a second",
    "4": "4 processes: links a second",
    "link": "2 processes: Postgres",
    "event": "record_send, record_webhook: Postgres, writers, per event",
    "bytes": "an event: on disk, with its indexes",
    "delivery": "a delivery: on disk, with its indexes",
    "wal": "an event with its delivery, INSERT: WAL",
    "sent": "a delivery, INSERT: WAL",
    "orphan": "an orphan, INSERT: WAL",
    "update": "a delivery, UPDATE after an event: WAL",
}
"""What is taken from the other parts: the names of their figures."""


def measure(known: Mapping[str, float]) -> Part:
    """Simulate the backlog after the outage, and add up what such a day needs.

    Args:
        known: Figures of the other parts by name.

    Raises:
        SystemExit: One that is needed has not been measured.
    """
    missing = [name for name in NEEDED.values() if name not in known]
    if missing:
        raise SystemExit(f"outage needs figures of other parts, measure these first: {'; '.join(missing)}")
    part, of = Part(), {key: known[name] for key, name in NEEDED.items()}
    arriving = ORPHANS / DAY * PEAK
    part.add("orphans that arrive in the busiest hour", arriving, "a second")
    for processes in ("1", "2", "4"):
        speed = of[processes] * LEFT
        backlog, minutes = simulate(arriving, speed)
        name = f"{processes} process{'es' * (processes > '1')}"
        note = f"{speed:,.0f} links/s, half of what was measured; {max(y for _, y in backlog):,.0f} orphans at most"
        part.add(f"{name}: the backlog of an hour is gone after", minutes, "minutes", note=note)
        part.curves[f"outage: {name}"] = backlog
    _day(part, of)
    return part


def simulate(arriving: float, speed: float) -> tuple[Points, float]:
    """Simulate two hours by the second: for the first nobody links, and then a sweep does every five minutes.

    A sweep takes what is older than the grace, in order of arrival, and stops after its deadline. What arrives after
    the outage is linked by recent sweeps, at the cost of the same speed.

    Args:
        arriving: Orphans a second.
        speed: Links a second.

    Returns:
        The backlog by minutes, and the minutes from the end of the outage until it is gone.
    """
    points: Points = [(0.0, 0.0)]
    backlog, gone = 0.0, 1.0 * HOUR
    for second in range(1, 2 * HOUR + 1):
        if second <= HOUR:
            backlog += arriving
        elif backlog and (second - 1) % TICK < DEADLINE:
            backlog = max(0.0, backlog - max(0.0, speed - arriving))
            gone = gone if backlog else float(second - HOUR)
        if second % 60 == 0:
            points.append((second / 60, round(backlog)))
    return points, gone / 60


def _day(part: Part, of: dict[str, float]) -> None:
    """Add up CPU, WAL and disk: the part of the busiest second is what a primary is bought for."""
    deliveries, orphans = DELIVERIES / DAY * PEAK, ORPHANS / DAY * PEAK
    events = deliveries * EVENTS_PER_DELIVERY
    part.add("busiest hour: deliveries", deliveries, "a second")
    part.add("busiest hour: events", events, "a second")
    note = "with record_send and record_webhook, a call and a commit for each event"
    part.add("busiest hour: Postgres for the writers", events * of["event"] / 1e6, "cores", note=note)
    part.add("busiest hour: Postgres for the links", orphans * of["link"] / 1e6, "cores")
    wal = deliveries * (of["sent"] + of["wal"]) + events * (of["wal"] + of["update"]) + orphans * of["orphan"]
    part.add("busiest hour: WAL", wal / 1e6, "MB/s", note="without full-page images after checkpoints")
    rows = DELIVERIES * (EVENTS_PER_DELIVERY + 1) + ORPHANS
    part.add("a day: the ledger grows by", rows * of["bytes"] / 1e9, "GB", note=f"{rows / 1e6:,.0f} million rows")
    part.add("a day: deliveries grow by", DELIVERIES * of["delivery"] / 1e9, "GB")
    note = "autovacuum of the open set starts at 5,000 dead rows"
    part.add("busiest hour: autovacuum of the open set every", 5_000 / orphans, "s", note=note)
