"""The demo's lines, at most 80 columns wide, as things happen."""

from __future__ import annotations

import time

from rich.console import Console

from mailglass_reconcile.rules.wording import printable

COLUMNS = 80
STYLES = {
    "app": "cyan",
    "Postmark": "yellow",
    "SendGrid": "yellow",
    "worker": "green",
    "sweep": "bold green",
    "recent": "bold green",
    "redis": "magenta",
}


class Screen:
    """Writes to a terminal in colours, and to anything else as plain text."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._began = time.monotonic()

    def tell(self, who: str, what: str) -> None:
        """Write one line, with the seconds since the demo began, and with all escaped that a terminal might obey."""
        seconds = time.monotonic() - self._began
        self.say(f"{seconds:5.1f} s  {who:<9} {what}", STYLES.get(who))

    def title(self, text: str) -> None:
        """Write the title of an act, after an empty line."""
        self.say("")
        self.say(text, "bold")

    def note(self, text: str) -> None:
        """Write one line below what was told last."""
        self.say(f"{'':19}{text}")

    def say(self, line: str, style: str | None = None) -> None:
        """Write one line as it is, except for what a terminal might obey."""
        self._console.print(printable(line), style=style, markup=False, soft_wrap=True)
