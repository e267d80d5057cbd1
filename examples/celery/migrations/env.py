"""The shop's migrations; `include_object` keeps autogenerate from dropping the tables that are not in its models."""

from alembic import context
from shop.models import Base, engine

from mailglass_reconcile import include_object

with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()
