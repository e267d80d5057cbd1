"""`python -m faults.soak [schedules [options]]`: schedules of the state machine, 10,000 unless told.

The options are pytest's. The seed is drawn unless `--hypothesis-seed=N` names one, and printed with what replays it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

os.environ["MAILGLASS_SCHEDULES"] = sys.argv[1] if sys.argv[1:] else "10000"

import pytest

SEED = "--hypothesis-seed"


def main(arguments: list[str]) -> int:
    """Run the state machine, with pytest's own options if there are any."""
    if not any(argument.startswith(SEED) for argument in arguments):
        arguments = [*arguments, f"{SEED}={random.randrange(2**32)}"]
    print(f'make soak ARGS="{os.environ["MAILGLASS_SCHEDULES"]} {" ".join(arguments)}"', flush=True)
    test = Path(__file__).parent / "test_state_machine.py"
    return int(pytest.main(["-q", "--timeout=0", str(test), *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
