"""What a revision may use beside Alembic's own operations.

Tables are named with their schema: `op.add_column("mailglass_…", column, schema=schema_name())`. A revision is one
transaction, which is repeated until it gets its locks within a tenth of a second.
"""

from __future__ import annotations

from typing import cast

from mailglass_reconcile.store.database import in_schema
from mailglass_reconcile.store.migration.quiet_alembic import op

NEW_LEDGER = "mailglass_reconcile.new_ledger"
"""An attribute of Alembic's configuration."""


def schema_name() -> str:
    """Return the schema of the tables."""
    return cast("str", op.get_context().version_table_schema)


def execute(sql: str) -> None:
    """Run statements, in which `{schema}` stands for the quoted schema."""
    op.execute(in_schema(sql, schema_name()))


def is_new_ledger() -> bool:
    """Return True if there are no tables of Mailglass's, so that the revision makes them."""
    return bool(op.get_context().config.attributes[NEW_LEDGER])  # type: ignore[union-attr]
