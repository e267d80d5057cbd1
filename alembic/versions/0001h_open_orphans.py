"""Everything in `alembic/schema/`, once; `migrate` compares the schema with it again later."""

from alembic import context

revision = "0001h"
down_revision = None


def upgrade() -> None:
    context.config.attributes["install"]()


def downgrade() -> None:
    context.config.attributes["remove"]()
