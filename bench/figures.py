"""What a part of the benchmark measured: figures beside their targets, and the points of its curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; `target` is None if nothing was promised."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return `met` or `MISSED`, or nothing without a target."""
        if self.target is None:
            return ""
        return "met" if (self.value <= self.target if self.at_most else self.value >= self.target) else "MISSED"

    @property
    def wanted(self) -> str:
        """Return the target in words."""
        if self.target is None:
            return ""
        return f"at {'most' if self.at_most else 'least'} {number(self.target)}"

    def line(self) -> str:
        """Return the figure beside its target as a line for a terminal."""
        value = f"{self.verdict:<7}{self.name:<72}{number(self.value):>10} {self.unit:<9}{self.wanted:<18}"
        return f"{value}{self.note}".rstrip()


@dataclass(slots=True)
class Part:
    """What one run of a part measured."""

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, Points] = field(default_factory=dict)
    """Points by the curve's name, such as `latency: follow`."""

    def add(
        self, name: str, value: float, unit: str, target: float | None = None, *, least: bool = False, note: str = ""
    ) -> None:
        """Keep a figure, and print it beside its target.

        Args:
            name: What was measured.
            value: How much.
            unit: Of what; empty for a ratio or a count.
            target: What is wanted at most.
            least: Whether the target is what is wanted at least.
            note: What else a reader should know.
        """
        figure = Figure(name, value, unit, target, not least, note)
        self.figures.append(figure)
        print(figure.line(), flush=True)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        figures = [{**asdict(figure), "verdict": figure.verdict} for figure in self.figures]
        return {"figures": figures, "curves": self.curves}


def medians(runs: Sequence[Part]) -> Part:
    """Return each figure's median over several runs of a part, and the curves of the last run."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for figure in run.figures:
            values.setdefault(figure.name, []).append(figure.value)
    last = runs[-1]
    figures = [replace(figure, value=statistics.median(values[figure.name])) for figure in last.figures]
    return Part(figures, last.curves)


def figure(json: dict[str, Any]) -> Figure:
    """Return a figure that `as_dict` wrote."""
    return Figure(**{name: value for name, value in json.items() if name != "verdict"})


def number(value: float) -> str:
    """Return a number as a reader likes it: three digits that count, and thousands apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that at least *percent* of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]
