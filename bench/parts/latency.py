"""Latency: from the later of the two commits, of the send and of the webhook, to the message at a subscriber."""

from __future__ import annotations

import os

from bench.figures import Part, Points, percentile
from bench.filling import fill
from bench.load import Load
from bench.machine import Machine
from bench.trial import FOLLOW, RECENT, RECORD, Outcome, Way, trial

DELIVERIES, EVENTS = 100_000, 10_000
"""In the database at first, and in each trial at half of the maximum."""

FLAT_OUT = {"record": 300.0, "insert": 1_000.0}
"""Events a second for each core, by the kind of writer: more than it takes, and doubled if not."""

LATE = 0.5
"""Seconds; a generator that is later than this has more to do than it can."""

TICK_SECONDS, GRACE_SECONDS = 300, 60


def measure(machine: Machine) -> Part:
    """Measure each way at half of the maximum that it sustains, and simulate the sweep every five minutes alone."""
    part = Part()
    fill(machine.copy("migrated", "start"), deliveries=machine.scaled(DELIVERIES))
    for way in (RECORD, FOLLOW, RECENT):
        most = _maximum(machine, way, part)
        load = Load("half", max(150, machine.scaled(EVENTS) // 2), most / 2)
        half = trial(machine, "start", way, load)
        at = f"at {load.rate:,.0f} events/s; {half.early:.0%} were written before their send had committed"
        part.add(f"{way.name}: p99", half.percentile(99) * 1000, "ms", way.wanted * 1000, note=at)
        for name, percent in (("p50", 50), ("p95", 95), ("maximum", 100)):
            part.add(f"{way.name}: {name}", half.percentile(percent) * 1000, "ms")
        spent = half.meter.seconds["Postgres, writers"] / len(half.latencies) * 1e6
        note = f"with half a send; {half.meter.cores()}"
        part.add(f"{way.name}: Postgres, writers, per event", spent, "CPU µs", note=note)
        part.curves[f"latency: {way.name}"] = _tail([seconds * 1000 for seconds in half.latencies])
    _tick_alone(part)
    machine.drop("start")
    return part


def _maximum(machine: Machine, way: Way, part: Part) -> float:
    """Return the highest load, in events a second, that neither the generator nor the way fell behind.

    A first trial writes as fast as it can. Then loads are tried downwards from 0.95 of its rate until one is kept up.
    """
    messages, rate = max(150, machine.scaled(1_500)), FLAT_OUT[way.writer] * (os.cpu_count() or 1)
    while (flat_out := trial(machine, "start", way, Load("most", messages, rate))).rate > rate * 0.75:
        rate *= 2
    rate = flat_out.rate * 0.95
    while True:
        tried = trial(machine, "start", way, Load("tried", max(messages, round(rate * 2.5 / machine.scale)), rate))
        if _is_sustained(tried, way):
            break
        rate *= 0.9
    part.add(f"{way.name}: maximum sustained", rate, "events/s", note=tried.meter.cores())
    return rate


def _is_sustained(outcome: Outcome, way: Way) -> bool:
    """Whether the generator was less than half a second late, and nine in ten events within a second of the target."""
    return outcome.late < LATE and outcome.percentile(90) < way.wanted + 1


def _tick_alone(part: Part) -> None:
    """Simulate the full sweep alone, by its clock: events of all moments of one interval, each due after its grace.

    The sweep itself takes seconds, and is left out.
    """
    waits = []
    for number in range(10_000):
        arrived = number * TICK_SECONDS / 10_000
        waits.append(-(-(arrived + GRACE_SECONDS) // TICK_SECONDS) * TICK_SECONDS - arrived)
    part.add("the tick alone, simulated: p50", percentile(waits, 50), "s")
    part.add("the tick alone, simulated: p99", percentile(waits, 99), "s")
    part.curves["latency: the tick alone, simulated"] = _tail([seconds * 1000 for seconds in waits])


def _tail(milliseconds: list[float]) -> Points:
    """Return the share of events, in percent, that waited longer than so many milliseconds."""
    ordered, points = sorted(milliseconds), []
    for step in range(61):
        share = 100 * (1 - step / 60) ** 2
        index = min(len(ordered) - 1, round(len(ordered) * (1 - share / 100)))
        points.append((max(ordered[index], 0.1), max(share, 100 / len(ordered))))
    return points
