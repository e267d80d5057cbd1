"""Alembic's environment: the connection, the schema and the settings come from the migration's runner."""

from alembic import context

from mailglass_reconcile.store.schema import VERSION_TABLE

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=attributes["settings"].database_schema,
    transactional_ddl=False,  # each step is a transaction of its own
)
with context.begin_transaction():
    context.run_migrations()
