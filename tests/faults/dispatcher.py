"""A process that forks a dispatcher for each line of its input, and prints its exit status.

A line is the fail point, from 1, at which the dispatcher is killed: before and after each statement, and before each
COMMIT; 0 is none. Settings and handlers come from the environment.
"""

from __future__ import annotations

import os
import sys

import mailglass_reconcile
from faults.sweeper import die_at


def main() -> None:
    """Fork, dispatch, and print the exit code, or minus the signal's number."""
    mailglass_reconcile.runtime.load_imports()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            die_at(int(line))
            mailglass_reconcile.dispatch()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
