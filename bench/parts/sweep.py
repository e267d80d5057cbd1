"""One sweep: against the bare statement, and its memory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from bench import statements
from bench.figures import Part
from bench.filling import NOBODYS, fill
from bench.parts.backlog import range_options
from bench.testbed import Testbed


def measure(testbed: Testbed) -> Part:
    """Measure the speed and the memory of one sweep."""
    part = Part()
    _speed(testbed, part)
    _memory(testbed, part)
    return part


def _speed(testbed: Testbed, part: Part) -> None:
    """Compare one sweep, and two on disjoint ranges, with the bare statement and Mailglass's algorithm."""
    messages = testbed.scaled(50_000)
    storm = testbed.copy("migrated", "storm")
    fill(storm, deliveries=messages * 9 // 10, messages=messages)
    halves = range_options(storm, 2)
    links = messages * 9 // 10 * 2
    runs: dict[str, list[float]] = defaultdict(list)
    for _ in range(testbed.rounds):
        seconds, postgres = statements.run_bare_statement(testbed.copy("storm"))
        single = complete(testbed.sweep(testbed.copy("storm")), links)
        pair = testbed.sweeps(testbed.copy("storm"), *halves)
        linked = sum(result["linked"] for result in pair)
        # A delivery's two events may be in different ranges, and then one of them may have to wait.
        if linked < 0.99 * links:
            raise SystemExit(f"of {links} orphans two processes linked {linked}")
        runs["bare"].append(links / seconds)
        runs["one"].append(links / single["seconds"])
        runs["two"].append(linked / (max(result["ended"] for result in pair) - min(result["began"] for result in pair)))
        runs["original"].append(
            statements.run_mailglass_algorithm(testbed.copy("storm"), testbed.redis_url, testbed.scaled(2_000))
        )
        runs["Postgres"].append(single["postgres"] / postgres)
        runs["Python"].append(single["python"] * 1e6 / links)
    rates = {name: statistics.median(values) for name, values in runs.items()}
    for name, rate, reference, target in (
        ("links a second, one process / the bare statement", "one", "bare", 0.45),
        ("links a second, two processes / one", "two", "one", 1.7),
        ("links a second, one process / Mailglass's algorithm on a sample", "one", "original", 11),
    ):
        part.compare(name, rates[rate], rates[reference], "links/s", target, least=True)
    part.add("CPU of Postgres, one process / the bare statement", rates["Postgres"], "", 1.7)
    part.add("CPU of Python", rates["Python"], "µs/link")
    testbed.drop("storm")


def _memory(testbed: Testbed, part: Part) -> None:
    memory = {}
    for name, messages, padding in (
        ("few", 500, 0),
        ("many", testbed.scaled(500_000), 0),
        ("large", 500, 1_000_000 // testbed.scale),
    ):
        url = testbed.copy("migrated")
        fill(url, deliveries=1_000, messages=messages, padding=padding, **NOBODYS)
        memory[name] = testbed.sweep(url)["memory"] / 1024
    note = "in the first sweep"
    name = f"peak memory, {testbed.scaled(500_000) * 2:,} open above 1,000"
    part.add(name, memory["many"] - memory["few"], "MB", 40, note=note)
    part.add("peak memory, 1,000 orphans of 1 MB above 1,000 small ones", memory["large"] - memory["few"], "MB", 50)


def complete(swept: dict[str, Any], links: int) -> dict[str, Any]:
    """Return the result of a sweep.

    Raises:
        SystemExit: It did not link exactly *links* orphans.
    """
    if swept["linked"] != links:
        raise SystemExit(f"of {links} orphans a sweep linked {swept['linked']}")
    return swept
