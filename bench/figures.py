"""What a part of the benchmark measures: figures with their targets, and the points of its curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: What was measured.
        value: How much; a ratio if `by_hand` is given.
        unit: Its unit; empty for a ratio or a count.
        target: At most, or at least, this much; None without a target.
        least: Whether the target is what is wanted at least.
        note: What else a reader should know.
        ours: For a comparison, what this package took, with its unit.
        by_hand: For a comparison, what the hand-written alternative took, with its unit.
    """

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    least: bool = False
    note: str = ""
    ours: str = ""
    by_hand: str = ""

    @property
    def verdict(self) -> str:
        """Return `met` or `missed`, or nothing without a target."""
        if self.target is None:
            return ""
        return "met" if (self.value >= self.target if self.least else self.value <= self.target) else "missed"

    @property
    def wanted(self) -> str:
        """Return the target in words."""
        return "" if self.target is None else f"at {'least' if self.least else 'most'} {number(self.target)}"

    def line(self) -> str:
        """Return the figure as a line for a terminal."""
        compared = f"{self.ours} / {self.by_hand}" if self.by_hand else ""
        value = f"{number(self.value)} {self.unit}"
        return f"{self.verdict:<7}{self.name:<68}{value:>16}  {self.wanted:<16}{compared}  {self.note}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return what differs from the defaults; the value with four digits that count."""
        kept = {each.name: each.default for each in fields(self)}
        found = {name: value for name, value in asdict(self).items() if value != kept[name]}
        return found | {"value": float(f"{self.value:.4g}")}


@dataclass(slots=True)
class Part:
    """What one run of a part measured."""

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, Points] = field(default_factory=dict)
    """Points by the curve's name, such as `latency: follow`."""

    def add(self, name: str, value: float, unit: str = "", target: float | None = None, **more: Any) -> None:
        """Keep a figure, and print it; *more* as in `Figure`."""
        self.figures.append(Figure(name, value, unit, target, **more))
        print(self.figures[-1].line(), flush=True)

    def compare(self, name: str, ours: float, by_hand: float, unit: str, target: float, **more: Any) -> None:
        """Keep a ratio of ours to what was written by hand, both in *unit*."""
        shown = {"ours": f"{number(ours)} {unit}", "by_hand": f"{number(by_hand)} {unit}"}
        self.add(name, ours / by_hand, "", target, **shown, **more)


def medians(runs: Sequence[Part]) -> Part:
    """Return each figure's median over several runs of a part, and the curves of the last run."""
    values: dict[str, list[float]] = {}
    for figure in (figure for run in runs for figure in run.figures):
        values.setdefault(figure.name, []).append(figure.value)
    last = runs[-1]
    return Part([replace(f, value=statistics.median(values[f.name])) for f in last.figures], last.curves)


def number(value: float) -> str:
    """Return a number with three digits that count, and thousands apart."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that at least *percent* of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, int(-(-len(ordered) * percent // 100)) - 1)]
