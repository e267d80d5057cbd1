"""Where the figures go: `performance/figures.json`, the SVGs beside it, and the tables in `performance.md`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.performance import plot
from bench.performance.figures import Figure, figure, number

Parts = dict[str, dict[str, Any]]

SUMMED_UP = ("maximum sustained", "links a second", ": its own processes", "the backlog of an hour is gone after")
"""Ends of names that stand in the summary without a target."""

DETAILS = ("events in this run", "left to the next sweep")
"""Ends of names that have a target and do not stand there."""

TRIAL = (
    "**Not to be quoted:** some of these figures are of a trial (`--quick`), with small sizes and perhaps beside other"
    " work.\n\n"
)

HEAD = "| figure | measured | target | |\n|---|---|---|---|\n"


def read(docs: Path) -> Parts:
    """Return the parts that were measured before, by name."""
    path = docs / "performance" / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(docs: Path, parts: Parts) -> None:
    """Write the figures of *parts*, their curves, and their tables between the markers of `performance.md`."""
    directory = docs / "performance"
    directory.mkdir(exist_ok=True)
    (directory / "figures.json").write_text(json.dumps(parts, indent=1) + "\n")
    plot.draw({name: points for part in parts.values() for name, points in part["curves"].items()}, directory)
    page = docs / "performance.md"
    text = page.read_text()
    for name, part in parts.items():
        text = _between(text, name, _table(part))
    page.write_text(_between(text, "summary", _summary(parts)))


def _between(text: str, name: str, block: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{block}{found[2]}", text)


def _summary(parts: Parts) -> str:
    rows = [figure(each) for part in parts.values() for each in part["figures"]]
    summed_up = [row for row in rows if row.target is not None or row.name.endswith(SUMMED_UP)]
    trial = TRIAL if any("--quick" in part["command"] for part in parts.values()) else ""
    return trial + HEAD + "".join(_row(row) for row in summed_up if not row.name.endswith(DETAILS))


def _table(part: dict[str, Any]) -> str:
    rows = [figure(each) for each in part["figures"]]
    return f"`{part['command']}`, {part['date']}, {part['seconds']} s. {part['machine']}\n\n{HEAD}" + "".join(
        _row(row, row.note) for row in rows
    )


def _row(row: Figure, note: str = "") -> str:
    verdict = "**missed**" if row.verdict == "MISSED" else row.verdict
    name = f"{row.name}<br><sub>{note}</sub>" if note else row.name
    return f"| {name} | {number(row.value)} {row.unit} | {row.wanted} | {verdict} |\n"
