"""Alembic's environment: the same for `migrate`, and for Alembic's own command with the environment variables."""

from alembic import context

from mailglass_reconcile.store.migration import environment

environment.run(context)
