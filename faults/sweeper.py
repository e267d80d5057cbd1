"""A process that sweeps: once and ends, or, with `--serve`, once per line that it is given, as the line says.

A line is a batch size; the answer is a line of JSON. Settings come from the environment.
"""

from __future__ import annotations

import json
import sys

import mailglass_reconcile


def main(serve: bool) -> None:
    """Sweep, and print each result."""
    if not serve:
        print(json.dumps(mailglass_reconcile.reconcile().as_dict()))
        return
    for line in sys.stdin:
        settings = mailglass_reconcile.Settings(batch_size=int(line))
        mailglass_reconcile.configure(settings=settings)
        print(json.dumps(mailglass_reconcile.reconcile().as_dict()), flush=True)


if __name__ == "__main__":
    main("--serve" in sys.argv)
