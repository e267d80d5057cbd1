"""The number of orphans in the tests of faults, and the statement around which links are lost."""

ORPHANS = 5
COMMIT = b"COMMIT\0"
"""The simple query as libpq sends it; `BEGIN ISOLATION LEVEL READ COMMITTED` does not hold it."""
