"""What came of the demo, and whether every promise was kept: read from the tables, not from the sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mailglass_reconcile.demo.listener import Broadcast
from mailglass_reconcile.demo.plot import Plot
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.ops import orphans
from mailglass_reconcile.pubsub import events_channel

_LINKS = sa.text("""
SELECT r.id::text AS event_id, o.id::text AS orphan_id, r.delivery_id::text, r.tenant_id
  FROM mailglass_events AS r
  LEFT JOIN mailglass_events AS o ON r.idempotency_key = 'reconciled:' || o.id AND r.tenant_id = o.tenant_id
 WHERE r.type = 'reconciled' ORDER BY r.id
""")

_FINGERPRINTS = sa.text("SELECT e.id::text, md5(e::text) FROM mailglass_events AS e WHERE needs_reconciliation")

_LAST_EVENTS = sa.text("SELECT id::text, last_event_type FROM mailglass_deliveries")


@dataclass(frozen=True)
class Verdict:
    """How many orphans are linked, how many are open in each state, and of each promise whether it was kept."""

    linked: int
    still_open: Counter[str]
    promises: dict[str, bool]


def judge(connection: sa.Connection, plot: Plot, traffic: Traffic, heard: Sequence[Broadcast], quiet: bool) -> Verdict:
    """Compare the tables and what was *heard* with what *plot* must lead to.

    Args:
        connection: In a transaction.
        plot: What was played.
        traffic: What orphans looked like when they came.
        heard: The broadcasts.
        quiet: Whether a last sweep linked and published nothing.
    """
    links = connection.execute(_LINKS).all()
    now = {row[0]: row[1] for row in connection.execute(_FINGERPRINTS)}
    last_events = {row[0]: row[1] for row in connection.execute(_LAST_EVENTS)}
    states = {
        str(orphan.event_id): orphans.attempt_link(connection, orphan).state
        for orphan in orphans.find_orphans(connection)
    }
    linked = sorted((link.orphan_id or "", link.delivery_id) for link in links)
    told = Counter((message.channel, message.event_id) for message in heard)
    return Verdict(
        len(links),
        Counter(states.values()),
        {
            "each webhook came before its delivery could be seen": traffic.too_late == 0,
            "what can be linked is linked, once, and to its own delivery": linked == sorted(_expected_links(plot)),
            "each link was broadcast once on each of its two channels": told == Counter(_expected_messages(links)),
            "each delivery shows what its latest event says": last_events == _expected_last_events(plot),
            "what is open is open for the right reason": states == _expected_open(plot),
            "no row of an orphan has changed, compared by MD5": now == traffic.fingerprints,
            "a last sweep found nothing to link, and told nobody": quiet,
        },
    )


def _expected_links(plot: Plot) -> list[tuple[str, str]]:
    return [(webhook.id, mail.id) for act in plot for mail in act.mails if mail.commits for webhook in mail.webhooks]


def _expected_last_events(plot: Plot) -> dict[str, str]:
    told = {mail.id: [w.type for w in mail.webhooks] for act in plot for mail in act.mails if mail.commits}
    return {delivery_id: types[-1] if types else "dispatched" for delivery_id, types in told.items()}


def _expected_open(plot: Plot) -> dict[str, str]:
    return {webhook.id: webhook.state for webhook in plot.webhooks if webhook.state is not None}


def _expected_messages(links: Iterable[sa.Row[tuple[str, ...]]]) -> list[tuple[str, str]]:
    return [
        (events_channel(link.tenant_id, delivery_id), link.event_id)
        for link in links
        for delivery_id in (None, link.delivery_id)
    ]
