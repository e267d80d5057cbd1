"""How a sweep's cost grows: with open orphans, with those that never match, with history, with the batch's size."""

from __future__ import annotations

from typing import Any

import psycopg

from bench import data
from bench.performance.figures import Part
from bench.performance.trial import Laboratory

OPEN = (1_000, 3_000, 10_000, 30_000, 100_000)
NEVER = (1_000, 10_000, 30_000, 100_000)
HISTORY = (10_000, 100_000, 500_000)
BATCHES = (50, 200, 500, 1_000, 2_000, 5_000, 10_000)
BATCHED = 20_000
"""Orphans that are swept with each size of batch."""


def measure(laboratory: Laboratory) -> Part:
    """Measure each curve, and keep how far it is from a straight line through its ends."""
    part = Part()
    _open_orphans(laboratory, part)
    _never_matching(laboratory, part)
    _history(laboratory, part)
    _batches(laboratory, part)
    return part


def _open_orphans(laboratory: Laboratory, part: Part) -> None:
    machine, points = laboratory.machine, []
    for orphans in _scaled(laboratory, OPEN):
        url = machine.migrated("curve")
        data.fill(url, deliveries=orphans // 2, messages=orphans // 2)
        swept = _complete(machine.sweep(url), orphans)
        points.append((orphans, swept["seconds"]))
    part.curves["open orphans"] = points
    (few, seconds), (many, longest) = points[-2:]
    note = f"{longest:.2f} s / {seconds:.2f} s; {many / few:.1f} times as many"
    part.add(f"{many:,.0f} open orphans / {few:,.0f}: a sweep", longest / seconds, "", many / few * 1.3, note=note)


def _never_matching(laboratory: Laboratory, part: Part) -> None:
    machine, first, later = laboratory.machine, [], []
    for orphans in _scaled(laboratory, NEVER):
        url = machine.migrated("curve")
        data.fill(url, deliveries=10_000 // machine.scale, messages=orphans // 2, kind="n")
        first.append((orphans, machine.sweep(url)["seconds"]))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        later.append((orphans, machine.sweep(url)["seconds"]))
    part.curves |= {"never matching: first sweep": first, "never matching: each later sweep": later}
    orphans, seconds = later[-1]
    note = f"the first, which stores their keys, took {first[-1][1]:.2f} s"
    part.add(f"{orphans:,.0f} that never match: each later sweep", seconds, "s", 2 * orphans / 1e6 + 0.4, note=note)


def _history(laboratory: Laboratory, part: Part) -> None:
    machine, points, buffers = laboratory.machine, [], []
    links = 2_000 // machine.scale
    for orphans in _scaled(laboratory, HISTORY):
        url = machine.migrated("curve")
        data.fill_reconciled(url, orphans)
        buffers.append(machine.sweep(url, "--buffers")["buffers"])
        data.fill(url, deliveries=links // 2, messages=links // 2)
        points.append((orphans, _complete(machine.sweep(url), links)["seconds"]))
    part.curves["history"] = points
    name = f"buffers of a sweep, nothing open, beside {points[-1][0]:,.0f} reconciled"
    part.add(name, buffers[-1], "", 100, note=f"{buffers[0]:,} beside {points[0][0]:,.0f}")


def _batches(laboratory: Laboratory, part: Part) -> None:
    machine, rates, locks = laboratory.machine, [], []
    orphans = BATCHED // machine.scale
    data.fill(machine.migrated("curve"), deliveries=orphans // 2, messages=orphans // 2)
    for size in BATCHES:
        swept = machine.sweeps(machine.copy("curve"), [], MAILGLASS_BATCH_SIZE=str(size))[0]
        seconds = _complete(swept, orphans)["seconds"]
        rates.append((size, orphans / seconds))
        locks.append((size, 1000 * seconds / max(1.0, orphans / size)))
    part.curves |= {"batch size: links/s": rates, "batch size: ms a batch": locks}
    default = dict(locks)[2_000]
    part.add("a batch of 2,000, the default: its time", default, "ms", note="its rows are locked for less than that")
    data.drop(machine.server, "curve")


def _scaled(laboratory: Laboratory, sizes: tuple[int, ...]) -> list[int]:
    return [size // laboratory.machine.scale for size in sizes]


def _complete(swept: dict[str, Any], links: int) -> dict[str, Any]:
    if swept["linked"] != links:
        raise SystemExit(f"of {links} orphans a sweep linked {swept['linked']}")
    return swept
