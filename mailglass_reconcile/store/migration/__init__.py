"""Migrate a database to the schema of this version."""

import logging

# Alembic tells of its own plugins at INFO while it is imported, which no reader of an application's log needs.
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
