"""`python -m faults` runs every fault and prints a table of faults, runs and violations; `make test` runs a
selection.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["MAILGLASS_FAULTS"] = "full"

import pytest

from faults.runs import Table

TESTS = (
    "test_faults*.py",
    "test_hostile*.py",
    "test_secrets*.py",
    "test_state_machine.py",
    "../pubsub/test_publisher.py",
)


def main(arguments: list[str]) -> int:
    """Run the fault tests, with pytest's own options if there are any, and print the table."""
    table = Table()
    parent = Path(__file__).parent
    tests = [str(path) for pattern in TESTS for path in sorted(parent.glob(pattern))]
    started_at = time.monotonic()
    code = pytest.main(["-q", "--timeout=1500", *tests, *arguments], plugins=[table])
    print("\n".join(table.lines()))
    print(f"{time.monotonic() - started_at:.0f} s")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
