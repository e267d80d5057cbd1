"""Records the demo and writes docs/demo.svg: `python docs/record_demo.py`.

The picture shows the lines as they came, once. A reader who wants no motion, and whatever does not play, sees them all.
"""

# ruff: noqa: S603 - it starts the demo, with nothing from outside

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

COLUMNS = 80
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 19, 14
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 1.5  # so that people can read along

HEADER = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">
<title>mailglass-reconcile demo, in a terminal</title>
<style>
text{{font:14px "Fira Code","DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre;fill:#c5c8c6}}
@keyframes wait{{from{{visibility:hidden}}to{{visibility:hidden}}}}
@media (prefers-reduced-motion:no-preference){{text{{animation:wait var(--after) backwards}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#171b22"/>
"""


def main() -> None:
    """Record, draw, write."""
    recorded = list(record())
    Path(__file__).with_name("demo.svg").write_text(draw(recorded))


def record() -> Iterator[tuple[float, str]]:
    """Run the demo in colours, and yield each line with the seconds after which it is to appear."""
    command = [str(Path(sys.executable).with_name("mailglass-reconcile")), "demo"]
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    times, lines = [time.monotonic()], [f"$ {' '.join(['mailglass-reconcile', *command[1:]])}\n"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as demo:
        for line in demo.stdout or ():
            times.append(time.monotonic())
            lines.append(line)
    if demo.returncode:
        sys.exit("the demo failed: " + "".join(lines))
    after = 0.0
    yield after, lines[0]
    for (before, now), line in zip(pairwise(times), lines[1:], strict=True):
        after += min(max(now - before, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        yield after, line


def draw(recorded: list[tuple[float, str]]) -> str:
    """Return the picture of lines that appear one after the other."""
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, (len(recorded) + 0.5) * LINE_HEIGHT + MARGIN
    shapes = []
    for number, (after, line) in enumerate(recorded, 1):
        spans = "".join(span(text, style) for text, style in parts(line.rstrip("\n")))
        if spans:
            place = f'x="{MARGIN}" y="{number * LINE_HEIGHT + MARGIN / 2:g}"'
            shapes.append(f'<text {place} style="--after:{after:.2f}s">{spans}</text>')
    return HEADER.format(width=width, height=height) + "\n".join(shapes) + "\n</svg>\n"


def parts(line: str) -> Iterator[tuple[str, Style]]:
    """Yield the parts of a line with ANSI's colours, each with its style."""
    for segment in Console(color_system="truecolor", width=2 * COLUMNS).render(Text.from_ansi(line)):
        if segment.text.strip("\n"):
            yield segment.text, segment.style or Style()


def span(text: str, style: Style) -> str:
    """Return a part of a line; a fixed length keeps columns in line, whatever the font."""
    look = f' textLength="{len(text) * CELL_WIDTH:.4g}"'
    if style.color:
        look += f' fill="{style.color.get_truecolor(SVG_EXPORT_THEME).hex}"'
    if style.bold:
        look += ' font-weight="bold"'
    return f"<tspan{look}>{escape(text)}</tspan>"


if __name__ == "__main__":
    main()
