"""Faults of servers, connections, processes and rows."""

import os

FULL = os.environ.get("MAILGLASS_FAULTS") == "full"
"""True if everything runs (`make faults`), False for a selection."""
