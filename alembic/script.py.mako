"""${message}."""

import sqlalchemy as sa
from alembic import op

from mailglass_reconcile.store.migration.operations import execute, schema_name

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    pass
