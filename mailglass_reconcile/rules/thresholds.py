"""After how long something is late: for the doctor, `status --check`, the page and Django's checks alike."""

SWEEP_INTERVAL_SECONDS = 300
"""Between two full sweeps, if nothing else is asked for."""
LATE_SECONDS = 3 * SWEEP_INTERVAL_SECONDS
"""What could have been linked for longer than this is late; a full sweep has to succeed within two thirds of it."""
PRUNE_LATE_SECONDS = 2 * 86_400
"""A prune runs daily."""
HANDLERS_LATE_SECONDS = 300.0
"""By then, dispatches every ten seconds have passed an event over thirty times."""
