"""Computing the keys of all open orphans again, after a key rule was corrected without a new version."""

from __future__ import annotations

import logging
from collections import Counter

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.rules.wording import counted
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import candidates, eligible, schema, slices
from mailglass_reconcile.store.database import Transaction, transaction
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.model import LAST_EVENT, Place, Slice
from mailglass_reconcile.sweep import examination

logger = logging.getLogger(__name__)

EVERYTHING = Slice(Place("-infinity", LAST_EVENT), Place("infinity", LAST_EVENT))


def rekey() -> int:
    """Compute the keys of all open orphans again, and return of how many they were stored.

    Keys of a rule that this process does not know are left as they are; so are those of an orphan that somebody holds.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong.
    """
    runtime.load_imports()
    settings, place, stored = runtime.get_settings(), EVERYTHING.after, 0
    complaints: Counter[str] = Counter()
    with database_errors(), connect(runtime.get_engine()) as connection:
        with transaction(connection, settings, read_only=True) as tx:
            schema.require_current(eligible.survey(tx, settings).version)
        while True:
            piece = Slice(place, EVERYTHING.until)
            with transaction(connection, settings, probes_only=True) as tx:
                place, done = _slice(tx, settings, piece, complaints)
            stored += done
            if place == piece.after:
                break
    for complaint, orphans in complaints.items():
        logger.error("%s (%s)", complaint, counted(orphans, "orphan"))
    return stored


def _slice(tx: Transaction, settings: Settings, piece: Slice, complaints: Counter[str]) -> tuple[Place, int]:
    """Compute and store the keys of the first orphans of *piece*; return the place of the last, and how many."""
    orphans = slices.any_of(tx, piece)
    if not orphans:
        return piece.after, 0
    marks, any_provider = examination.marks()
    known = {mark.rpartition("/")[0] for mark in (*marks.values(), any_provider)}
    ours = [o for o in orphans if o.keys.rule is None or o.keys.rule.rpartition("/")[0] in known]
    raw_webhooks = eligible.survey(tx, settings).raw_webhooks
    failed: list[str] = []
    computed = examination.keys_of_events(tx, ours, raw_webhooks=raw_webhooks, complain=failed.append) if ours else {}
    complaints.update(failed)
    new = {event_id: keys for event_id, keys in computed.items() if keys.rule}
    settled = candidates.store(tx, new) if new else ()
    return orphans[-1].place, len(new) - len(settled)
