"""Alembic's environment: what `migrate` hands over, or the environment variables if Alembic's own command is run."""

import click
from alembic import context

from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import VERSION_TABLE

with runner.prepare_config(context.config, click.echo, plan=context.is_offline_mode()):
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        version_table=VERSION_TABLE,
        version_table_schema=attributes["settings"].database_schema,
        transactional_ddl=False,  # each step is a transaction of its own
    )
    with context.begin_transaction():
        context.run_migrations()
