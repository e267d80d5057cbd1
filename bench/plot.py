"""The curves as SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench.performance.figures import Points


class Chart(NamedTuple):
    """One picture: the curves whose names begin with `prefix`."""

    file: str
    prefix: str
    title: str
    x: str
    y: str
    scales: tuple[str, str] = ("log", "log")


CHARTS = (
    Chart(
        "latency",
        "latency: ",
        "From the later commit to the subscriber",
        "milliseconds",
        "% of events that took longer",
    ),
    Chart(
        "processes", "processes", "A backlog, by worker processes", "processes", "links a second", ("linear", "linear")
    ),
    Chart("open", "open orphans", "A sweep, by open orphans", "open orphans, all linked", "seconds"),
    Chart("never", "never matching", "A sweep, by orphans that never match", "open orphans, none linked", "seconds"),
    Chart("history", "history", "A sweep of 2,000 orphans, by history", "reconciled orphans in the ledger", "seconds"),
    Chart("batch", "batch size: links", "A sweep, by batch size", "orphans in a batch", "links a second"),
    Chart("locks", "batch size: ms", "How long a batch holds its rows", "orphans in a batch", "milliseconds"),
    Chart(
        "outage",
        "outage: ",
        "Simulated: an hour's outage at 10 million orphans a day",
        "minutes",
        "backlog, orphans",
        ("linear", "linear"),
    ),
)


def draw(curves: dict[str, Points], directory: Path) -> None:
    """Draw every chart that *curves* has points of; the same points make the same bytes."""
    for chart in CHARTS:
        of_chart = {name: points for name, points in curves.items() if name.startswith(chart.prefix)}
        if of_chart:
            _draw(chart, of_chart, directory / f"{chart.file}.svg")


def _draw(chart: Chart, curves: dict[str, Points], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - not every part has curves, and only they need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({"svg.hashsalt": "mailglass-reconcile", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(6, 3.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for name, points in curves.items():
        marker = "o" if len(points) < 20 else None
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=name.partition(": ")[2] or name)
    axes.set(xscale=chart.scales[0], yscale=chart.scales[1], title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if chart.scales[1] == "linear":
        axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:,g}")
        axis.set_minor_formatter(lambda value, position: "")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
