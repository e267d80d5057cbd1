"""Records the demo in a real terminal, tmux's, and writes docs/demo.svg: `python docs/record_demo.py`.

The picture plays in a browser. Where nothing plays, or the reader wants no motion, it shows the last screen.
"""

# ruff: noqa: S603 - it starts tmux, with nothing from outside

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 112, 38
CELL_WIDTH, CELL_HEIGHT = 12.2, 24.4  # Rich's, in the units of its pictures
MARGIN = 12
TIMEOUT_SECONDS = 60
LOOK_SECONDS = 0.1

# The first screen on which each of these is read, in this order, and for how many seconds it is shown.
MOMENTS = (
    ("starting celery", 2.5),
    ("Open orphans: 12", 3.0),
    ("12 unmatched", 3.0),
    (r": delivery \S+ committed", 3.0),
    (r" redis [\s\S]*\b11 reconciled", 3.5),
    ("rolled back", 3.0),
    (r"\b22 reconciled", 3.5),
    ("a last sweep found nothing", 9.0),
)


def main() -> None:
    """Record, draw, write."""
    screens = [screen for screen, _ in zip(moments(), MOMENTS, strict=True)]
    Path(__file__).with_name("demo.svg").write_text(svg(screens))


def moments() -> Iterator[str]:
    """Run the demo, and yield the screen at each moment, as text with ANSI's colours."""
    demo = Path(sys.executable).with_name("mailglass-reconcile")
    with tempfile.TemporaryDirectory() as directory:
        tmux = ["tmux", "-S", f"{directory}/socket", "-f", "/dev/null"]
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        command = f"TERM=xterm-256color {demo} demo; sleep {TIMEOUT_SECONDS}"
        subprocess.run([*tmux, "new-session", "-d", *size, command], check=True)
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            for pattern, _ in MOMENTS:
                while not re.search(pattern, Text.from_ansi(screen := look(tmux)).plain):
                    if time.monotonic() > deadline:
                        sys.exit(f"never on the screen: {pattern}")
                    time.sleep(LOOK_SECONDS)
                yield screen
        finally:
            subprocess.run([*tmux, "kill-server"], check=True)


def look(tmux: list[str]) -> str:
    """Return the screen as it is now."""
    return subprocess.run([*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True).stdout


def svg(screens: list[str]) -> str:
    """Return one picture that shows *screens* in turn."""
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, ROWS * CELL_HEIGHT + 2 * MARGIN
    total = sum(seconds for _, seconds in MOMENTS)
    styles, frames, begin = [], [], 0.0
    for number, (screen, (_, seconds)) in enumerate(zip(screens, MOMENTS, strict=True)):
        style, frame = draw(screen, f"s{number}")
        styles += [style, keyframes(f"s{number}", begin / total, (begin + seconds) / total)]
        styles.append(f".s{number}{{animation:s{number} {total:g}s step-end infinite}}")
        shown = "visible" if screen is screens[-1] else "hidden"
        frames.append(f'<g class="screen s{number}" visibility="{shown}">{frame}</g>')
        begin += seconds
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">
<title>mailglass-reconcile demo, in a terminal</title>
<style>
text{{font:20px "Fira Code","DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre}}
{chr(10).join(styles)}
@media (prefers-reduced-motion:reduce){{.screen{{animation:none!important}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#171b22"/>
<g transform="translate({MARGIN},{MARGIN})">
{chr(10).join(frames)}
</g>
</svg>
"""


def draw(screen: str, name: str) -> tuple[str, str]:
    """Return *screen* as Rich draws it, its styles and its shapes; *name* begins its classes' names."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen), no_wrap=True, crop=True)
    drawn = console.export_svg(code_format="{styles}\0{backgrounds}{matrix}", unique_id=name)
    style, shapes = re.sub(r' clip-path="[^"]*"', "", drawn).split("\0")
    return style.strip(), shapes.strip()


def keyframes(name: str, begin: float, end: float) -> str:
    """Return an animation that shows its element from *begin* to *end*, in parts of the whole."""
    first = "visible" if begin == 0 else "hidden"
    return (
        f"@keyframes {name}{{0%{{visibility:{first}}}{begin:.3%}{{visibility:visible}}"
        f"{end:.3%},100%{{visibility:hidden}}}}"
    )


if __name__ == "__main__":
    main()
