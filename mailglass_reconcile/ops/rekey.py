"""Letting the keys of all open orphans be computed again, after a key rule was corrected without a new version."""

from __future__ import annotations

from mailglass_reconcile import runtime
from mailglass_reconcile.store import open_orphans, schema

BATCH_ROWS = 5_000


def rekey() -> int:
    """Forget the ids of all open orphans, never a recipient, and return how many; the next sweep computes them again.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong.
    """
    with runtime.database().connect() as connected:
        with connected.reading() as tx:
            schema.require_current(tx.execute(schema.READ_VERSION).scalar_one())
        return connected.in_batches(open_orphans.FORGET_KEYS, {"size": BATCH_ROWS})
