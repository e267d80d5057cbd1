"""How a sweep's cost grows: with open orphans, with those that never match, with history, with the batch's size."""

from __future__ import annotations

from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_reconciled
from bench.machine import Machine, vacuum
from bench.parts.sweep import complete
from bench.sweeping import sweep

OPEN = (1_000, 3_000, 10_000, 30_000, 100_000)
NEVER = (1_000, 10_000, 30_000, 100_000)
HISTORY = (10_000, 100_000, 500_000)
BATCHES = (50, 200, 500, 1_000, 2_000, 5_000, 10_000)
BATCHED = 20_000
"""Orphans that are swept with each size of batch."""


def measure(machine: Machine) -> Part:
    """Measure each curve."""
    part = Part()
    _open_orphans(machine, part)
    _never_matching(machine, part)
    _history(machine, part)
    _batches(machine, part)
    return part


def _open_orphans(machine: Machine, part: Part) -> None:
    points = part.curves["open orphans"] = []
    for messages in (machine.scaled(orphans) // 2 for orphans in OPEN):
        url = machine.copy("migrated")
        fill(url, deliveries=messages, messages=messages)
        points.append((2 * messages, complete(sweep(url), 2 * messages)["seconds"]))
    (few, seconds), (many, longest) = points[-2:]
    note = f"{longest:.2f} s / {seconds:.2f} s; {many / few:.1f} times as many"
    part.add(f"{many:,} open orphans / {few:,}: a sweep", longest / seconds, "", many / few * 1.3, note=note)


def _never_matching(machine: Machine, part: Part) -> None:
    first = part.curves["never matching: first sweep"] = []
    later = part.curves["never matching: each later sweep"] = []
    for messages in (machine.scaled(orphans) // 2 for orphans in NEVER):
        url = machine.copy("migrated")
        fill(url, deliveries=machine.scaled(10_000), messages=messages, **NOBODYS)
        first.append((2 * messages, sweep(url)["seconds"]))
        vacuum(url)
        later.append((2 * messages, sweep(url)["seconds"]))


def _history(machine: Machine, part: Part) -> None:
    points = part.curves["history"] = []
    messages = machine.scaled(2_000) // 2
    for orphans in map(machine.scaled, HISTORY):
        url = machine.copy("migrated")
        fill_reconciled(url, orphans)
        fill(url, deliveries=messages, messages=messages)
        points.append((orphans, complete(sweep(url), 2 * messages)["seconds"]))


def _batches(machine: Machine, part: Part) -> None:
    rates = part.curves["batch size: links/s"] = []
    locks = part.curves["batch size: ms a batch"] = []
    messages = machine.scaled(BATCHED) // 2
    fill(machine.copy("migrated", "batches"), deliveries=messages, messages=messages)
    for size in BATCHES:
        swept = machine.sweeps(machine.copy("batches"), [], MAILGLASS_BATCH_SIZE=str(size))[0]
        seconds = complete(swept, 2 * messages)["seconds"]
        rates.append((size, 2 * messages / seconds))
        locks.append((size, 1000 * seconds / max(1.0, 2 * messages / size)))
    machine.drop("batches")
    note = "its rows are locked for less than that"
    part.add("a batch of 2,000, the default: its time", dict(locks)[2_000], "ms", note=note)
