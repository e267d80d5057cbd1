"""What the newest open orphans say: links that are late, webhooks of a wrong tenant, ids that no rule knows.

A bounded number of them is examined by the sweep's own rule, whatever is open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import health
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import age, counted, share, shown, verb
from mailglass_reconcile.schedule import LATE_SECONDS, SWEEP_INTERVAL_SECONDS
from mailglass_reconcile.store import ledger, open_orphans
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.sweep.judge import Judged, judge

NEWEST_ORPHANS = 300

_NEWEST_ORPHANS = """
SELECT n.event_id::text
  FROM (SELECT event_id FROM {schema}.mailglass_open_orphans
         WHERE arrived_at <= now()::timestamp - make_interval(secs => :older_than)
           AND arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
         ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS n
 -- Not if the ledger was emptied.
 WHERE (SELECT e.id FROM {schema}.mailglass_events AS e WHERE e.id = n.event_id) IS NOT NULL
"""

# A delivery with another id than a UUIDv7 does not say since when it is there.
_THERE_BEFORE = """
SELECT count(*) FROM unnest(CAST(:ids AS uuid[])) AS d (id)
 WHERE substr(d.id::text, 15, 1) = '7'
   AND to_timestamp(('x' || left(replace(d.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
       < now() - make_interval(secs => :seconds)
"""

_SINCE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_reconcile_runs
                WHERE started_at > CAST(:time AS timestamp) AND linked > 0) AS swept,
       extract(epoch FROM now()::timestamp - CAST(:time AS timestamp))::float8 AS seconds
"""


class Sample:
    """The newest open orphans, with the verdict of the sweep's own rule on each."""

    def __init__(self, tx: Transaction, older_than: int) -> None:
        """Examine those that arrived more than *older_than* seconds ago."""
        settings = runtime.get_settings()
        bounds = {
            "older_than": older_than,
            "max_age_minutes": settings.max_age_minutes,
            "size": NEWEST_ORPHANS,
        }
        found = judge(tx, open_orphans.read(tx, tx.execute(_NEWEST_ORPHANS, bounds).scalars()))
        self.found = found
        self.failures = Counter(one.keys.failure for one in found if one.keys.failure)

    def of(self, state: str) -> Sequence[Judged]:
        """Return those of one state."""
        return [one for one in self.found if one.verdict.state == state]


def linking(tx: Transaction) -> Iterator[Finding]:
    """Check that no orphan has waited for long although its delivery exists: that sweeps run and link."""
    sample = Sample(tx, runtime.get_settings().grace_seconds + LATE_SECONDS)
    ids = [one.verdict.delivery_id for one in sample.of("matched")]
    late = tx.execute(_THERE_BEFORE, {"ids": ids, "seconds": LATE_SECONDS}).scalar_one()
    if late:
        yield error(
            "linking",
            f"{share(late, len(sample.found), 'open orphan')} looked at could have been linked {age(LATE_SECONDS)} ago"
            " or earlier: sweeps do not run, or fail",
            "run `mailglass-reconcile sweep` and read what it says; if it links, look at the worker, the queues and"
            f" beat, which should ask for a sweep every {age(SWEEP_INTERVAL_SECONDS)}",
        )
    else:
        yield ok("linking", f"no open orphan is late, of the newest {len(sample.found):,} that are older than a sweep")


def webhooks(tx: Transaction) -> Iterator[Finding]:
    """Check the tenants of the newest open orphans, and that a key rule knows their ids."""
    sample = Sample(tx, 0)
    astray = sample.of("tenant_mismatch")
    newest = max((one.orphan.arrived_at for one in astray), default="")
    if len(astray) >= health.ASTRAY_ORPHANS and not sample.of("matched") and not _linked_since(tx, newest):
        tenants = sorted({one.orphan.tenant_id for one in astray})
        yield error(
            "tenants",
            f"{_newest(astray, sample)} deliveries of other tenants only;"
            f" they carry the tenant {', '.join(map(shown, tenants[:3]))}, so nothing of them can be linked",
            "implement resolve_webhook_tenant in Mailglass, which otherwise stamps every webhook with `default`; in"
            " your own code, pass the delivery's tenant to record_webhook()",
        )
    elif astray:
        yield warning(
            "tenants",
            f"{_newest(astray, sample)} deliveries of other tenants only",
            "`mailglass-reconcile explain EVENT_ID` says which; check how your webhooks find their tenant",
        )
    else:
        yield ok("tenants", f"of {counted(len(sample.found), 'newest open orphan')}, none is of a wrong tenant")
    yield from _rules(sample, _with_id(tx, sample.found))


def _newest(some: Sequence[Judged], sample: Sample) -> str:
    newest = counted(len(sample.found), "newest open orphan")
    return f"{len(some):,} of the {newest} {verb(len(some), 'names', 'name')}"


def _linked_since(tx: Transaction, arrived_at: str) -> bool:
    """Whether a run that began later has linked anything, or a webhook that came later."""
    since = tx.execute(_SINCE, {"time": arrived_at}).one()
    return bool(since.swept or ledger.newest_links(tx, since.seconds))


def _with_id(tx: Transaction, found: Sequence[Judged]) -> Sequence[Judged]:
    """Return those of *found* that should have an id; SendGrid's asynchronous bounces, for one, never have."""
    types = ledger.types_of(tx, [one.orphan.event_id for one in found if not one.keys.candidate_ids])
    return [
        one
        for one in found
        if one.keys.candidate_ids
        or not providers.may_lack_id(one.keys.provider, types.get(one.orphan.event_id, "unknown"))
    ]


def _rules(sample: Sample, examined: Sequence[Judged]) -> Iterator[Finding]:
    faults = [
        error("key_rules", sentence, "correct the rule, then run `mailglass-reconcile rekey`")
        for sentence in sample.failures
    ]
    all_ = Counter(one.keys.provider for one in examined)
    unusable = Counter(one.keys.provider for one in examined if one.verdict.state == "unmatchable")
    faults += [
        found for provider, events in all_.items() if (found := _of_provider(provider, events, unusable[provider]))
    ]
    yield from faults or [ok("key_rules", "the ids of the newest open orphans are where their key rules look")]


def _of_provider(provider: str | None, events: int, unusable: int) -> Finding | None:
    """Return what is wrong with the names or the ids of a provider's newest open orphans, if anything is."""
    if provider is None:
        those = f"{unusable:,} of the newest open orphans {verb(unusable, 'names', 'name')} no provider"
        step = "give provider in the metadata, or to record_webhook()"
        return warning("key_rules", those, step) if unusable else None
    if hint := providers.mistyped(provider):
        step = "correct the name where your webhooks are recorded; stored events keep their name"
        return warning("key_rules", f"{hint} ({counted(events, 'newest open orphan')})", step)
    if unusable < events:
        return None
    those = f"of {counted(events, 'newest open orphan')} of the provider {shown(provider)}, none has"
    if provider in providers.rules():
        step = "`mailglass-reconcile explain EVENT_ID` shows one; check what the webhook stores in metadata"
        return warning("key_rules", f"{those} an id where its rule looks", step)
    step = "register one with key_rule, and name its module in MAILGLASS_IMPORTS for every process"
    return error("key_rules", f"{those} a usable id: no key rule knows this provider in this process", step)
