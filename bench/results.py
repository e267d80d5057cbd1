"""Figures: printed as they are measured, and stored as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Turn = TypeVar("Turn")


def take_turns(rounds: int, ours: Callable[[int], Turn], other: Callable[[int], Turn]) -> tuple[list[Turn], list[Turn]]:
    """Call both sides with the number of each round, the last one of a round first in the next; return the results."""
    results: tuple[list[Turn], list[Turn]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            results[side].append((ours, other)[side](number))
    return results


@dataclass(slots=True)
class Results:
    """The figures of a part, in the order of their measurement."""

    figures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, unit: str, values: Sequence[float] | float, note: str = "") -> None:
        """Add a figure: the median of *values*."""
        self._append(name, unit, {"value": _median(values)}, note)

    def compare(
        self, name: str, unit: str, other: str, turns: tuple[Sequence[float], Sequence[float]], note: str = ""
    ) -> None:
        """Add a figure with its ratio to that of another side, from the values that both had in the same rounds."""
        values, other_values = turns
        ratios = sorted(value / other_value for value, other_value in zip(values, other_values, strict=True))
        compared = {"other": other, "other_value": _median(other_values)}
        spread = {"ratio": _median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
        self._append(name, unit, {"value": _median(values), **compared, **spread}, note)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the figures with four significant digits."""
        return [
            {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figure.items()}
            for figure in self.figures
        ]

    def _append(self, name: str, unit: str, values: dict[str, Any], note: str) -> None:
        figure = {"name": name, "unit": unit, **values, **({"note": note} if note else {})}
        self.figures.append(figure)
        print(format_figure(figure), flush=True)


def format_figure(figure: dict[str, Any]) -> str:
    """Return a figure as a line for a terminal."""
    line = f"{figure['name']:<70}{number(figure['value']):>9} {figure['unit']:<8}"
    if "ratio" in figure:
        other = f"{figure['other']} {number(figure['other_value'])}"
        line += f"{other:<22} ratio {number(figure['ratio'])} ({number(figure['lowest'])}-{number(figure['highest'])})"
    return f"{line}  {figure.get('note', '')}".rstrip()


def number(value: float) -> str:
    """Format a number with three significant digits and separated thousands."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _median(values: Sequence[float] | float) -> float:
    return float(values if isinstance(values, int | float) else statistics.median(values))
