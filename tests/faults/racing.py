"""How many orphans the tests of faults link, and the statement around which their links are lost."""

ORPHANS = 5
COMMIT = b"COMMIT\0"
"""The simple query as libpq sends it; `BEGIN ISOLATION LEVEL READ COMMITTED` does not hold it."""
