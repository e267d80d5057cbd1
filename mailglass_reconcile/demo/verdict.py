"""The demo's result, and whether every promise was kept: read from the tables, not from the sweeps."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mailglass_reconcile.demo.listener import Broadcast
from mailglass_reconcile.demo.story import Wave
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.ops import orphans
from mailglass_reconcile.pubsub import events_channel

_LINKS = sa.text("""
SELECT r.id::text AS event_id, o.id::text AS orphan_id, r.delivery_id::text, r.tenant_id, r.inserted_at
  FROM mailglass_events AS r
  LEFT JOIN mailglass_events AS o ON r.idempotency_key = 'reconciled:' || o.id AND r.tenant_id = o.tenant_id
 WHERE r.type = 'reconciled' ORDER BY r.id
""")

_FINGERPRINTS = sa.text("SELECT e.id::text, md5(e::text) FROM mailglass_events AS e WHERE needs_reconciliation")

_LAST_EVENTS = sa.text("SELECT id::text, last_event_type FROM mailglass_deliveries")


@dataclass(frozen=True)
class Verdict:
    """The figures of the last table; `promises` says of each whether it was kept."""

    orphans: int
    linked: int
    still_open: Counter[str]
    seconds_to_link: Sequence[float]
    broadcasts: int
    changed: int
    linked_by: Counter[str]
    promises: dict[str, bool]


def judge(
    connection: sa.Connection,
    plot: Sequence[Wave],
    traffic: Traffic,
    heard: Sequence[Broadcast],
    quiet: bool,
    linked_by: Counter[str],
) -> Verdict:
    """Compare the tables and what was *heard* with what *plot* must lead to.

    Args:
        connection: In a transaction.
        plot: What was played.
        traffic: When deliveries committed, and what orphans looked like then.
        heard: The broadcasts.
        quiet: Whether a last sweep linked and published nothing.
        linked_by: How many orphans the recent sweeps and the full ones say they have linked.
    """
    links = connection.execute(_LINKS).all()
    now = {row[0]: row[1] for row in connection.execute(_FINGERPRINTS)}
    last_events = {row[0]: row[1] for row in connection.execute(_LAST_EVENTS)}
    changed = {id_ for id_, fingerprint in traffic.fingerprints.items() if now.get(id_) != fingerprint}
    states = {
        str(orphan.event_id): orphans.attempt_link(connection, orphan).state
        for orphan in orphans.find_orphans(connection)
    }
    return Verdict(
        orphans=len(traffic.fingerprints),
        linked=len(links),
        still_open=Counter(states.values()),
        seconds_to_link=_seconds_to_link(links, traffic.committed),
        broadcasts=len(heard),
        changed=len(changed),
        linked_by=linked_by,
        promises={
            "every webhook came before its delivery could be seen": traffic.too_late == 0,
            "exactly the matchable orphans are linked, each once, each to its own delivery": sorted(
                (link.orphan_id or "", link.delivery_id) for link in links
            )
            == sorted(_expected_links(plot)),
            "each link was told once on each of its two channels": Counter(
                (message.channel, message.event_id) for message in heard
            )
            == Counter(_expected_messages(links)),
            "each delivery says what its latest event said": last_events == _expected_last_events(plot),
            "every other orphan is still open, for the right reason": states == _expected_open(plot),
            "no row of an orphan changed, by its MD5 before and after": not changed,
            "a last sweep found nothing to link and published nothing": quiet,
        },
    )


def _expected_links(plot: Sequence[Wave]) -> list[tuple[str, str]]:
    return [(webhook.id, mail.id) for wave in plot for mail in wave.mails if mail.commits for webhook in mail.webhooks]


def _expected_last_events(plot: Sequence[Wave]) -> dict[str, str]:
    told = {mail.id: [w.type for w in mail.webhooks] for wave in plot for mail in wave.mails if mail.commits}
    return {delivery_id: types[-1] if types else "dispatched" for delivery_id, types in told.items()}


def _expected_open(plot: Sequence[Wave]) -> dict[str, str]:
    return {webhook.id: webhook.state for wave in plot for webhook in wave.webhooks if webhook.state is not None}


def _expected_messages(links: Iterable[sa.Row[tuple[str, ...]]]) -> list[tuple[str, str]]:
    return [
        (events_channel(link.tenant_id, delivery_id), link.event_id)
        for link in links
        for delivery_id in (None, link.delivery_id)
    ]


def _seconds_to_link(links: Iterable[sa.Row[tuple[str, ...]]], committed: dict[str, dt.datetime]) -> list[float]:
    """Return, for each link, the seconds from its delivery's commit to the transaction that linked it."""
    return [
        (link.inserted_at.replace(tzinfo=dt.UTC) - committed[link.delivery_id]).total_seconds()
        for link in links
        if link.delivery_id in committed
    ]
