"""Writes the figures: to `results/figures.json`, all rows to `figures.md`, selected rows to the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import Figure, Points, number

Parts = dict[str, dict[str, Any]]

FEW_POINTS = 20

RESULTS = "bench/results"
PAGE = "docs/performance.md"
PICTURES = "docs/performance"
"""Where the figures, the page that quotes some, and its pictures are, from the repository's root."""

ALSO_5_MS = "5 ms per round trip: "
SELECTED = {
    "calls": {
        "a webhook whose delivery exists": "a webhook",
        "a send": "a send",
        "a webhook that is too early": "a webhook that is earlier than its send",
        f"{ALSO_5_MS}a webhook whose delivery exists": "a webhook, with 5 ms to the database",
        f"{ALSO_5_MS}a send": "a send, with 5 ms to the database",
        f"{ALSO_5_MS}a webhook that is too early": "an early webhook, with 5 ms to the database",
    },
    "latency": {
        "record_send, record_webhook: p99": "`record_send` and `record_webhook`",
        "follow, every 0.1 s: p99": "`follow`",
        "recent=1.0: p99": "`recent=1.0`",
        "the tick alone, simulated: p99": "the five-minute sweep alone (simulated)",
        "record_send, record_webhook: Postgres, writers, per event": "CPU of Postgres, for an event and half a send",
    },
    "backlog": {
        "1 process: links a second": "one process",
        "2 processes: links a second": "two processes",
        "2 processes: Postgres": "CPU of Postgres, with two processes",
        "2 processes: Python": "CPU of Python, with two processes",
    },
    "sizing": {
        "a million messages a day, kept 30 days: on disk": "disk, kept for 30 days",
        "a million messages a day, kept 365 days: on disk": "disk, kept for 365 days",
        "a day: WAL of recording": "WAL of a day's recording",
        "a day: WAL of deleting as many": "WAL of deleting as many",
        "a day: the prune takes": "time of the daily prune",
    },
    "layouts": {
        "1,000,000 unmatched, in order: the first sweep": "the first sweep over a million",
        "1,000,000 unmatched, in order: a sweep": "each later sweep over them",
    },
}
"""The rows of the page, by part, in words that need no explanation."""

ABOUT = {
    "calls": "One call and its commit, against the same work written by hand with SQLAlchemy on the same tables:"
    " look the delivery up, insert, update (`bench/hand_written.py`). A send by hand inserts one row; ours"
    " also writes an event, stores the ids, and checks again after the commit.",
    "receiving": "Four clients post signed batches to `mailglass-reconcile receive`, which records them in eight"
    " threads. By hand is one thread that calls `record_webhook` with events that were parsed before.",
    "latency": "From the later of the two commits, of the send and of the webhook, until a subscriber has the"
    " message. For `record_send, record_webhook` an application calls both functions, with a call and a"
    " commit for each event. For the other rows, plain INSERTs make every event an orphan, as Mailglass"
    " does. Two processes with twelve threads each make the load on the same two cores. The maximum is"
    " the highest load at which nine in ten events arrive within a second more than the target; the"
    " latencies are those at half of it.",
    "backlog": "Half a million orphans of ten tenants, linked by processes on disjoint ranges of arrival, as"
    " `fan_out` cuts them for Celery.",
    "sweep": "The bare statement matches, appends and updates the same events in one SQL statement, without"
    " batches or checks, while nothing else runs. Mailglass's algorithm looks up and commits each event"
    " separately.",
    "layouts": "Sweeps over orphans that match no delivery. The first sweep computes and stores their ids, and"
    " costs more than later ones.",
    "handlers": "Dispatchers run a handler on 5,000 events that a sweep has put into the outbox.",
    "sizing": "A million messages a day, each with a send and two webhook events, scaled from a tenth.",
}
"""What a part measures, for `figures.md`."""

INTRODUCTION = """# All figures

Every row that `python -m bench` has measured, with its small print. [Performance](../../docs/performance.md) has the
few that most readers need. Targets are our own goals for a change of the code; a missed one is a plan, not a fault.
Each part was measured on the day that its first line names: parts of different days, and machines under load, cannot
be compared.
"""

TRIAL = "**Not to be quoted:** some of these figures are of a trial (`--quick`), with small sizes.\n\n"


class Chart(NamedTuple):
    """One picture: the curves whose names begin with `prefix`; `scale` is that of both axes, or of x and y.

    With `bars`, each point is a bar. With `shares` too, points are milliseconds and the percentage that took longer,
    and the bars are the median and the 99th percentile of each curve. One with `on_page` is among the page's pictures.
    """

    file: str
    prefix: str
    title: str
    x: str
    y: str
    scale: str = "log log"
    bars: bool = False
    shares: bool = False
    on_page: bool = True


CHARTS = (
    Chart(
        "latency",
        "latency: ",
        "From the later commit to the subscriber",
        "",
        "milliseconds",
        "linear log",
        bars=True,
        shares=True,
    ),
    Chart(
        "processes",
        "processes",
        "A backlog, by worker processes",
        "processes",
        "links a second",
        "linear linear",
        bars=True,
    ),
    Chart(
        "stuck",
        "stuck: ",
        "A sweep, by orphans that cannot be linked",
        "open orphans",
        "seconds",
        "linear linear",
        on_page=False,
    ),
)


def read(root: Path) -> Parts:
    """Return the stored parts, by name."""
    path = root / RESULTS / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(root: Path, parts: Parts, *, draws: bool = True) -> None:
    """Write the figures of *parts*, their curves, all rows as `figures.md`, and the tables of the page."""
    results = root / RESULTS
    (results / "figures.json").write_text(to_json(parts))
    if draws:
        _draw({name: points for part in parts.values() for name, points in part["curves"].items()}, root)
    page = root / PAGE
    text = page.read_text()
    for name, part in parts.items():
        head, marker, tail = text.partition(f"<!-- {name}: written by python -m bench -->\n")
        if marker:
            text = head + marker + selected_table(name, part) + tail[tail.index("<!-- end -->") :]
    page.write_text(text)
    (results / "figures.md").write_text(INTRODUCTION + "".join(_section(name, part) for name, part in parts.items()))


def _section(name: str, part: dict[str, Any]) -> str:
    return f"\n## {name}\n\n{ABOUT[name]}\n\n{table(part)}{_images(part)}"


def to_json(parts: Parts) -> str:
    """Return *parts* as JSON, one line for each figure and each curve."""
    lines = []
    for name, part in parts.items():
        about = {key: value for key, value in part.items() if key not in ("figures", "curves")}
        figures = ",\n   ".join(json.dumps(row, ensure_ascii=False) for row in part["figures"])
        curves = ",\n   ".join(f"{json.dumps(curve)}: {_compact(points)}" for curve, points in part["curves"].items())
        head = json.dumps(about, ensure_ascii=False)[:-1]
        lines.append(f' {json.dumps(name)}: {head},\n  "figures": [\n   {figures}],\n  "curves": {{\n   {curves}}}}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(points: Points) -> str:
    return json.dumps([[float(f"{value:.4g}") for value in point] for point in points], separators=(",", ":"))


def selected_table(name: str, part: dict[str, Any]) -> str:
    """Return a Markdown table of the figures of the part *name* that `SELECTED` lists."""
    figures = {row["name"]: Figure(**row) for row in part["figures"]}
    rows = [(label, figures[figure]) for figure, label in SELECTED[name].items() if figure in figures]
    trial = TRIAL * ("--quick" in part["command"])
    head = f"{trial}Measured on {part['date'].partition(' ')[0]}, {part['machine'].partition(' (')[0]}:\n\n"
    if any(row.baseline for _, row in rows):
        lines = [f"| {label} | {row.package} | {row.baseline} | {number(row.value)} |\n" for label, row in rows]
        return head + "| | this package | by hand | ratio |\n|---|---|---|---|\n" + "".join(lines)
    lines = [f"| {label} | {number(row.value)} {row.unit} |\n" for label, row in rows]
    return head + "| | measured |\n|---|---|\n" + "".join(lines)


def table(part: dict[str, Any]) -> str:
    """Return the figures of a part as a Markdown table with their small print, after how they were measured."""
    rows = [Figure(**row) for row in part["figures"]]
    names = {row.name: f"{row.name}<br><sub>{row.note}</sub>" if row.note else row.name for row in rows}
    head = f"{TRIAL * ('--quick' in part['command'])}`{part['command']}`, {part['date']}, {part['machine']}\n\n"
    if any(row.baseline for row in rows):
        lines = [
            f"| {names[r.name]} | {_package_cost(r)} | {r.baseline} | {_ratio(r)} | {r.target_text} | {_bold(r)} |\n"
            for r in rows
        ]
        return head + "| | ours | by hand | ratio | target | |\n|---|---|---|---|---|---|\n" + "".join(lines)
    lines = [f"| {names[r.name]} | {number(r.value)} {r.unit} | {r.target_text} | {_bold(r)} |\n" for r in rows]
    return head + "| | measured | target | |\n|---|---|---|---|\n" + "".join(lines)


def _images(part: dict[str, Any]) -> str:
    series = [chart for chart in CHARTS if any(name.startswith(chart.prefix) for name in part["curves"])]
    folders = {chart: f"../../{PICTURES}/" if chart.on_page else "" for chart in series}
    return "".join(f"\n![{chart.title}]({folder}{chart.file}.svg)\n" for chart, folder in folders.items())


def _package_cost(row: Figure) -> str:
    return row.package if row.baseline else f"{number(row.value)} {row.unit}"


def _ratio(row: Figure) -> str:
    return number(row.value) if row.baseline else ""


def _bold(row: Figure) -> str:
    return "**missed**" if row.verdict == "missed" else row.verdict


INK, FAINT = "#010203", "#010204"
SERIES = ("#010210", "#010211", "#010212", "#010213")
"""Placeholders that are replaced by the colours of `LOOK`, which follow the reader's colour scheme."""
LOOK = """
svg{--ink:#1f2328;--faint:#d0d7de;--a:#0a62c4;--b:#b35900;--c:#1a7f37;--d:#8250df}
@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--faint:#3d444d;--a:#6cb0ff;--b:#f0a04b;--c:#56d364;--d:#c297ff}}
"""
NAMES = {INK: "ink", FAINT: "faint", **dict(zip(SERIES, "abcd", strict=True))}
STYLE = {
    "svg.hashsalt": "mailglass-reconcile",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
}
LABEL_POINTS = 13.0
"""The distance between two labels at the ends of curves, in points."""


def _draw(curves: dict[str, Points], root: Path) -> None:
    """Draw every chart that *curves* has points of; the same points make the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - only a run that is kept needs it
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    mpl.rcParams.update(STYLE)
    for chart in CHARTS:
        series = {name: points for name, points in curves.items() if name.startswith(chart.prefix)}
        if not series:
            continue
        canvas = Canvas(figsize=(7, 3.6), layout="constrained", facecolor="none")
        axes = canvas.subplots()
        axes.set_facecolor("none")
        xscale, yscale = chart.scale.split()
        axes.set(xscale=xscale, yscale=yscale, xlabel=chart.x)
        axes.set_title(f"{chart.title}, {chart.y}", loc="left", fontweight="bold")
        if yscale == "linear":
            axes.set_ylim(0, 1.1 * max(y for points in series.values() for _, y in points))
        for axis in (axes.yaxis,) if chart.bars else (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, position: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            axis.set_minor_formatter(lambda value, position: "")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        (_draw_bars if chart.bars else _draw_lines)(axes, chart, series)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
        folder = root / (PICTURES if chart.on_page else RESULTS)
        (folder / f"{chart.file}.svg").write_text(_use_color_scheme(buffer.getvalue()))


def _use_color_scheme(svg: str) -> str:
    """Replace the placeholder colours by those of the reader's colour scheme, on a transparent background."""
    for colour, name in NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace('<style type="text/css">', f'<style type="text/css">{LOOK}', 1)


def _draw_lines(axes: Any, chart: Chart, series: dict[str, Points]) -> None:
    """Draw curves, each with its name at its end."""
    for points, colour in zip(series.values(), SERIES, strict=False):
        marker = "o" if len(points) < FEW_POINTS else None
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=colour)
    if len(points) < FEW_POINTS:
        axes.set_xticks([x for x, _ in points])
    if len(series) == 1:
        for x, y in points:
            axes.annotate(number(y), (x, y), xytext=(-6, 7), textcoords="offset points", ha="right")
        axes.margins(x=0.15, y=0.15)
        return
    ends = sorted((points[-1], name, colour) for (name, points), colour in zip(series.items(), SERIES, strict=False))
    before = -LABEL_POINTS
    for (x, y), name, colour in sorted(ends, key=lambda end: end[0][1]):
        points_up = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi
        before = max(points_up, before + LABEL_POINTS)
        axes.annotate(
            name.removeprefix(chart.prefix),
            (x, y),
            xytext=(8, before - points_up),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def _draw_bars(axes: Any, chart: Chart, series: dict[str, Points]) -> None:
    """Draw bars with their values; the first pair is labelled."""
    if not chart.shares:
        (points,) = series.values()
        bars = axes.bar([f"{x:g}" for x, _ in points], [y for _, y in points], width=0.6, color=SERIES[0])
        axes.bar_label(bars, fmt="{:,.0f}")
        return
    names = [name.removeprefix(chart.prefix).replace(", ", ",\n") for name in series]
    for offset, longer, label, colour in ((-0.2, 50, "median", SERIES[0]), (0.2, 1, "99 %", SERIES[1])):
        values = [next(x for x, share in points if share <= longer) for points in series.values()]
        places = [place + offset for place in range(len(names))]
        axes.bar_label(axes.bar(places, values, width=0.38, color=colour), fmt=number, fontsize=9)
        axes.annotate(
            label,
            (places[0], values[0]),
            xytext=(0, 20),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontweight="bold",
        )
    axes.set_xticks(range(len(names)), names)
    axes.margins(y=0.12)
