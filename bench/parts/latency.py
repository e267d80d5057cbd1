"""Latency: from the later of the two commits, of the send and of the webhook, to the message at a subscriber."""

from __future__ import annotations

import os

from bench.figures import Part, Points, percentile
from bench.filling import fill
from bench.load_generator import Load
from bench.testbed import Testbed
from bench.trial import FOLLOW, RECENT, RECORD, LinkMethod, TrialResult, run_trial

DELIVERIES, EVENTS = 100_000, 10_000
"""In the database at first, and in each trial at half of the maximum."""

UNLIMITED_RATE = {"record": 300.0, "insert": 1_000.0}
"""Events per second and core at which the search for a writer's maximum starts, doubled until it cannot keep up."""

MAX_DELAY_SECONDS = 0.5
"""A generator that is later than this is overloaded."""

TICK_SECONDS, GRACE_SECONDS = 300, 60


def measure(testbed: Testbed) -> Part:
    """Measure each method at half of its maximum load, and simulate the five-minute sweep alone."""
    part = Part()
    fill(testbed.copy("migrated", "start"), deliveries=testbed.scaled(DELIVERIES))
    for method in (RECORD, FOLLOW, RECENT):
        maximum = _find_maximum(testbed, method, part)
        load = Load("half", max(150, testbed.scaled(EVENTS) // 2), maximum / 2)
        result = run_trial(testbed, "start", method, load)
        at = f"at {load.rate:,.0f} events/s; {result.early_share:.0%} were written before their send had committed"
        part.add(f"{method.name}: p99", result.percentile(99) * 1000, "ms", method.target_seconds * 1000, note=at)
        for name, percent in (("p50", 50), ("p95", 95), ("maximum", 100)):
            part.add(f"{method.name}: {name}", result.percentile(percent) * 1000, "ms")
        spent = result.meter.seconds["Postgres, writers"] / len(result.latencies) * 1e6
        note = f"with half a send; {result.meter.cores()}"
        part.add(f"{method.name}: Postgres, writers, per event", spent, "CPU µs", note=note)
        part.curves[f"latency: {method.name}"] = _survival_curve([seconds * 1000 for seconds in result.latencies])
    _simulate_full_sweeps(part)
    testbed.drop("start")
    return part


def _find_maximum(testbed: Testbed, method: LinkMethod, part: Part) -> float:
    """Return the highest load, in events a second, with which generator and method keep up.

    A first trial writes as fast as it can. Then the load is lowered from 0.95 of its rate until both keep up.
    """
    messages, rate = max(150, testbed.scaled(1_500)), UNLIMITED_RATE[method.writer] * (os.cpu_count() or 1)
    while (unlimited := run_trial(testbed, "start", method, Load("most", messages, rate))).rate > rate * 0.75:
        rate *= 2
    rate = unlimited.rate * 0.95
    while True:
        outcome = run_trial(
            testbed, "start", method, Load("tried", max(messages, round(rate * 2.5 / testbed.scale)), rate)
        )
        if _is_sustained(outcome, method):
            break
        rate *= 0.9
    part.add(f"{method.name}: maximum sustained", rate, "events/s", note=outcome.meter.cores())
    return rate


def _is_sustained(result: TrialResult, method: LinkMethod) -> bool:
    """Return True if the generator was on time, and nine in ten events took at most a second more than the target."""
    return result.delay < MAX_DELAY_SECONDS and result.percentile(90) < method.target_seconds + 1


def _simulate_full_sweeps(part: Part) -> None:
    """Simulate full sweeps alone: events arrive evenly over one interval, and wait for the next tick after their grace.

    The sweep itself takes seconds, and is left out.
    """
    waits = []
    for number in range(10_000):
        arrived = number * TICK_SECONDS / 10_000
        waits.append(-(-(arrived + GRACE_SECONDS) // TICK_SECONDS) * TICK_SECONDS - arrived)
    part.add("the tick alone, simulated: p50", percentile(waits, 50), "s")
    part.add("the tick alone, simulated: p99", percentile(waits, 99), "s")
    part.curves["latency: the tick alone, simulated"] = _survival_curve([seconds * 1000 for seconds in waits])


def _survival_curve(milliseconds: list[float]) -> Points:
    """Return the share of events, in percent, that waited longer than so many milliseconds."""
    ordered, points = sorted(milliseconds), []
    for step in range(61):
        share = 100 * (1 - step / 60) ** 2
        index = min(len(ordered) - 1, round(len(ordered) * (1 - share / 100)))
        points.append((max(ordered[index], 0.1), max(share, 100 / len(ordered))))
    return points
