"""Thresholds of lateness, for the doctor, `status --check`, the dashboard and Django's checks."""

SWEEP_INTERVAL_SECONDS = 300
"""Default interval between two full sweeps."""
LATE_SECONDS = 3 * SWEEP_INTERVAL_SECONDS
"""A linkable orphan that is open for longer is late; a full sweep has to succeed within two thirds of it."""
PRUNE_LATE_SECONDS = 2 * 86_400
"""A prune runs daily."""
HANDLERS_LATE_SECONDS = 300.0
"""A job that waits for longer is late: dispatches every ten seconds have missed it thirty times."""
