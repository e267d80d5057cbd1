"""Draws docs/growth.svg from the benchmark's figures: cost against events in the ledger, and rate against processes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from bench.results import number

Points = Sequence[tuple[float, float]]

HISTORY = re.compile(r"([\d,]+) events before: (a \w+)")
PROCESSES = re.compile(r"([\d,]+) orphans, processes: (\d+)")
WIDTH, HEIGHT = 330, 170
"""Of the area of a panel."""
COLOURS = ("blue", "green", "amber")

FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 330" role="img" aria-labelledby="title text"
     font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif" font-size="14">
  <title id="title">Cost against history, and rate against processes</title>
  <desc id="text">{description}</desc>
  <style>
    text {{ fill: #1f2328 }} .dim {{ fill: #57606a; font-size: 12px }} .head {{ font-weight: 600; font-size: 16px }}
    .axis {{ stroke: #b6bec7 }} polyline {{ fill: none; stroke-width: 2 }}
    .blue {{ stroke: #0969da }} .green {{ stroke: #1a7f37 }} .amber {{ stroke: #9a6700 }}
    @media (prefers-color-scheme: dark) {{
      text {{ fill: #f0f6fc }} .dim {{ fill: #9198a1 }} .axis {{ stroke: #484f58 }}
      .blue {{ stroke: #4493f8 }} .green {{ stroke: #3fb950 }} .amber {{ stroke: #d29922 }}
    }}
  </style>
{panels}
  <text class="dim" x="40" y="318">{caption}</text>
</svg>
"""


def draw(part: Mapping[str, Any]) -> str:
    """Return the picture of the part `growth`."""
    costs: dict[str, list[tuple[float, float]]] = {}
    rates: list[tuple[float, float]] = []
    backlog = ""
    for figure in part["figures"]:
        if match := HISTORY.fullmatch(figure["name"]):
            milliseconds = figure["value"] / (1_000 if figure["unit"] == "µs" else 1)
            costs.setdefault(match[2], []).append((math.log10(float(match[1].replace(",", ""))), milliseconds))
        elif match := PROCESSES.fullmatch(figure["name"]):
            backlog = match[1]
            rates.append((math.log2(float(match[2])), figure["value"]))
    ticks = [(at, f"{round(10**at):,}") for at, _ in next(iter(costs.values()))]
    process_ticks = [(at, f"{2**at:.0f}") for at, _ in rates]
    panels = [
        _panel(40, "Milliseconds, by events in the ledger", costs, ticks),
        _panel(520, "Links a second, by processes", {f"of {backlog}": rates}, process_ticks),
    ]
    described = [f"{name}: {', '.join(number(value) for _, value in points)} ms" for name, points in costs.items()]
    described.append(f"links a second: {', '.join(number(value) for _, value in rates)}")
    caption = f"{part['date']}, {part['about'].partition(' (load')[0]}: {part['command']}"
    return FRAME.format(description=escape("; ".join(described)), panels="\n".join(panels), caption=escape(caption))


def _panel(left: int, head: str, lines: Mapping[str, Points], ticks: Sequence[tuple[float, str]]) -> str:
    """Return a panel: axes, ticks, and each line with its values."""
    top, bottom = 80, 80 + HEIGHT
    lowest, highest = ticks[0][0], ticks[-1][0]
    most = 1.15 * max(value for points in lines.values() for _, value in points)

    def x(at: float) -> float:
        return left + 30 + (WIDTH - 60) * (at - lowest) / ((highest - lowest) or 1)

    def y(value: float) -> float:
        return bottom - HEIGHT * value / most

    parts = [f'  <text class="head" x="{left}" y="40">{escape(head)}</text>']
    parts.append(f'  <polyline class="axis" points="{left},{top} {left},{bottom} {left + WIDTH},{bottom}"/>')
    for at, label in ticks:
        parts.append(f'  <text class="dim" text-anchor="middle" x="{x(at):.0f}" y="{bottom + 20}">{label}</text>')
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        corners = " ".join(f"{x(at):.0f},{y(value):.1f}" for at, value in points)
        parts.append(f'  <polyline class="{colour}" points="{corners}"/>')
        for at, value in points:
            place = f'x="{x(at):.0f}" y="{y(value) - 6:.1f}"'
            parts.append(f'  <text class="dim" text-anchor="middle" {place}>{number(value)}</text>')
        at, value = points[-1]
        parts.append(f'  <text x="{x(at) + 26:.0f}" y="{y(value) + 5:.1f}">{escape(name)}</text>')
    return "\n".join(parts)
