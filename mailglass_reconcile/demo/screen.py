"""The demo's terminal: lines as things happen, and below them, where there is a terminal, the tables as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mailglass_reconcile.cli.texts import printable
from mailglass_reconcile.demo.view import ROWS, View

PLAIN_WIDTH = 110
STYLES = {
    "worker": "green",
    "sends": "cyan",
    "webhook": "yellow",
    "commit": "bold cyan",
    "sweep": "bold green",
    "recent": "bold green",
    "redis": "magenta",
}


class Screen:
    """Writes to a terminal in colours, and to anything else as plain lines."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=PLAIN_WIDTH)
        self._began = time.monotonic()
        self._live: Live | None = None

    def tell(self, who: str, what: str) -> None:
        """Write one line, with the seconds since the demo began, and with all escaped that a terminal might obey."""
        seconds = time.monotonic() - self._began
        line = f"{seconds:5.1f} s  {who:<8} {printable(what)}"
        self.console.print(line, style=STYLES.get(who), markup=False, soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the tables below the lines while the block runs; not a terminal, it shows none."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def show(self, view: View) -> None:
        """Show the tables as they are now."""
        if self._live is not None:
            self._live.update(_side_by_side(view), refresh=True)


def _side_by_side(view: View) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(_ledger(view), _open_set(view))
    return grid


def _ledger(view: View) -> Table:
    table = _table(f"Ledger: {view.events} events, {view.reconciled} reconciled", "event", "tenant", "type", "delivery")
    for row in view.newest:
        style = "green" if row.type == "reconciled" else None
        table.add_row(short(row.id), row.tenant_id, row.type, short(row.delivery_id), style=style)
    return _filled(table)


def _open_set(view: View) -> Table:
    table = _table(f"Open orphans: {view.open}", "event", "tenant", "type", "age")
    for row in view.oldest_open:
        table.add_row(short(row.event_id), row.tenant_id, row.type, f"{row.age:.1f} s", style="yellow")
    return _filled(table)


def _table(title: str, *headings: str) -> Table:
    return Table(*headings, title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))


def _filled(table: Table) -> Table:
    """Return *table* with as many rows as the tallest has, so that nothing jumps."""
    for _ in range(ROWS - table.row_count):
        table.add_row()
    return table


def short(id_: str | None) -> str:
    """Return the end of an id, which is what tells ids of the same millisecond apart."""
    return f"..{id_[-6:]}" if id_ else "none"
