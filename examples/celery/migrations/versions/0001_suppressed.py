"""Make the table of suppressed addresses."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "suppressed",
        sa.Column("address", sa.String, primary_key=True),
        sa.Column("reason", sa.String, nullable=False),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("suppressed")
