"""The results of a part: figures with their targets, and the points of its curves."""

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
        value: Its value; a ratio if `baseline` is not empty.
        unit: Its unit; empty for a ratio or a count.
        target: The upper or lower limit to meet; None without a target.
        least: True if the target is a lower limit.
        note: Small print.
        package: For a comparison, the value of this package, with its unit.
        baseline: For a comparison, the value of the hand-written baseline, with its unit.
    """

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    least: bool = False
    note: str = ""
    package: str = ""
    baseline: str = ""

    @property
    def verdict(self) -> str:
        """Return `met` or `missed`, or nothing without a target."""
        if self.target is None:
            return ""
        return "met" if (self.value >= self.target if self.least else self.value <= self.target) else "missed"

    @property
    def target_text(self) -> str:
        """Return the target in words."""
        return "" if self.target is None else f"at {'least' if self.least else 'most'} {number(self.target)}"

    def line(self) -> str:
        """Return the figure as a line for a terminal."""
        compared = f"{self.package} / {self.baseline}" if self.baseline else ""
        value = f"{number(self.value)} {self.unit}"
        return f"{self.verdict:<7}{self.name:<68}{value:>16}  {self.target_text:<16}{compared}  {self.note}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults; the value has four significant digits."""
        defaults = {field_.name: field_.default for field_ in fields(self)}
        values = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return values | {"value": float(f"{self.value:.4g}")}


@dataclass(slots=True)
class Part:
    """The results of one run of a part."""

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, Points] = field(default_factory=dict)
    """Points by the curve's name, such as `latency: follow`."""

    def add(self, name: str, value: float, unit: str = "", target: float | None = None, **details: Any) -> None:
        """Add a figure, and print it; *details* are fields of `Figure`."""
        self.figures.append(Figure(name, value, unit, target, **details))
        print(self.figures[-1].line(), flush=True)

    def compare(self, name: str, package: float, baseline: float, unit: str, target: float, **details: Any) -> None:
        """Add the ratio of the package to the baseline, both in *unit*."""
        costs = {"package": f"{number(package)} {unit}", "baseline": f"{number(baseline)} {unit}"}
        self.add(name, package / baseline, "", target, **costs, **details)


def medians(runs: Sequence[Part]) -> Part:
    """Return each figure's median over several runs of a part, and the curves of the last run."""
    values: dict[str, list[float]] = {}
    for figure in (figure for run in runs for figure in run.figures):
        values.setdefault(figure.name, []).append(figure.value)
    last_run = runs[-1]
    return Part([replace(f, value=statistics.median(values[f.name])) for f in last_run.figures], last_run.curves)


def number(value: float) -> str:
    """Format a number with three significant digits and separated thousands."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that at least *percent* percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, int(-(-len(ordered) * percent // 100)) - 1)]
