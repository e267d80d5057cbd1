"""Latency: from the later of the two commits, of the send and of the webhook, to the message at a subscriber."""

from __future__ import annotations

import os

from bench.performance import ways
from bench.performance.figures import Part, percentile
from bench.performance.plan import Load
from bench.performance.trial import Laboratory, Outcome, Way

WAYS = [
    Way("record_send, record_webhook", "record", ways.nothing, 0.1),
    Way("follow, every 0.1 s", "insert", ways.follow, 0.25),
    Way("recent=1.0", "insert", ways.recent, 1.5),
]

EVENTS = 10_000
"""In each trial at half of the maximum."""

FLAT_OUT = {"record": 300.0, "insert": 1_000.0}
"""Events a second for each core, by the kind of writer: more than it takes, and doubled if not."""

LATE = 0.5
"""Seconds; a generator that is later than this has more to do than it can."""

TICK_SECONDS, GRACE_SECONDS = 300, 60


def measure(laboratory: Laboratory) -> Part:
    """Measure each way at half of the maximum that it sustains, and simulate the tick alone."""
    part = Part()
    scale = laboratory.machine.scale
    cores = os.cpu_count() or 1
    for way in WAYS:
        most = _maximum(laboratory, way, part)
        load = Load("half", -(-EVENTS // scale) // 2, most / 2)
        half = laboratory.trial(way, load)
        at = f"at {load.rate:,.0f} events/s"
        part.add(f"{way.name}: p99", half.percentile(99) * 1000, "ms", way.wanted * 1000, note=at)
        for name, percent in (("p50", 50), ("p95", 95), ("maximum", 100)):
            part.add(f"{way.name}: {name}", half.percentile(percent) * 1000, "ms", note=at)
        part.add(f"{way.name}: events in this run", len(half.latencies), "", EVENTS / scale, least=True)
        spent = half.meter.seconds["Postgres, writers"] / len(half.latencies) * 1e6
        part.add(f"{way.name}: Postgres, writers, per event", spent, "CPU µs", note="with half a send")
        note = "written before their send had committed"
        part.add(f"{way.name}: early events", half.early * 100, "%", note=note)
        note = "p99, how late the load generator began a transaction"
        part.add(f"{way.name}: lateness", half.late * 1000, "ms", note=note)
        part.add(f"{way.name}: cores in use at half load", half.meter.cores(), f"of {cores}", note=half.meter.words())
        part.curves[f"latency: {way.name}"] = _tail([seconds * 1000 for seconds in half.latencies])
    _tick_alone(part)
    return part


def _maximum(laboratory: Laboratory, way: Way, part: Part) -> float:
    """Return the highest load, in events a second, that neither the generator nor the way fell behind.

    A first trial writes as fast as it can. Then loads are tried downwards from 0.95 of its rate until one is kept up.
    """
    messages, rate = 1_500 // laboratory.machine.scale, FLAT_OUT[way.writer] * (os.cpu_count() or 1)
    while (flat_out := laboratory.trial(way, Load("most", messages, rate))).rate > rate * 0.75:
        rate *= 2
    rate = flat_out.rate * 0.95
    while True:
        tried = laboratory.trial(way, Load("tried", max(messages, round(rate * 2.5)), rate))
        if _is_sustained(tried, way):
            break
        rate *= 0.9
    part.add(f"{way.name}: maximum sustained", rate, "events/s", note=tried.meter.words())
    note = f"{flat_out.rate:,.0f} events/s written as fast as possible; {flat_out.meter.words()}"
    part.add(f"{way.name}: cores in use flat out", flat_out.meter.cores(), f"of {os.cpu_count()}", note=note)
    return rate


def _is_sustained(outcome: Outcome, way: Way) -> bool:
    """Whether the generator was less than half a second late, and nine in ten events within a second of the target."""
    return outcome.late < LATE and outcome.percentile(90) < way.wanted + 1


def _tick_alone(part: Part) -> None:
    """Simulate the full sweep alone, by its clock: events of all moments of one tick, each due after its grace.

    The sweep itself takes seconds, and is left out.
    """
    waits = []
    for number in range(100_000):
        arrived = number * TICK_SECONDS / 100_000
        due = arrived + GRACE_SECONDS
        waits.append(-(-due // TICK_SECONDS) * TICK_SECONDS - arrived)
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99), ("maximum", 100)):
        part.add(f"the tick alone, simulated: {name}", percentile(waits, percent), "s")
    part.curves["latency: the tick alone, simulated"] = _tail([seconds * 1000 for seconds in waits])


def _tail(milliseconds: list[float]) -> list[tuple[float, float]]:
    """Return the share of events, in percent, that waited longer than so many milliseconds."""
    ordered, points = sorted(milliseconds), []
    for step in range(201):
        share = 100 * (1 - step / 200) ** 2
        index = min(len(ordered) - 1, round(len(ordered) * (1 - share / 100)))
        points.append((round(max(ordered[index], 0.1), 2), round(max(share, 100 / len(ordered)), 4)))
    return points
