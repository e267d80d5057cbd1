"""The checker of the invariants (I1 to I7 and I9 to I14 of the design), which runs after every test with `db`."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import psycopg
import redis
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import oracle
from database_pool import Uncommitted, session
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.states import OUTCOMES
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables.handler_jobs import MOST_ATTEMPTS
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult
from waiting import wait_until
from witness import Witness, running

ALL = frozenset({"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I10", "I11", "I12", "I13", "I14"})

PATIENCE_SECONDS = 10
"""How long a process or a connection may take to end."""

_EVENTS = """
SELECT e.id::text, e.tenant_id, e.delivery_id::text, e.type, to_json(e.occurred_at) #>> '{}' AS occurred_at,
       e.idempotency_key, e.needs_reconciliation, to_json(e.inserted_at) #>> '{}' AS inserted_at,
       md5(to_jsonb(e)::text) AS text,
       CASE WHEN e.type = 'reconciled' THEN e.metadata ->> 'reconciled_from_event_id' END AS reconciled_from
  FROM mailglass_events AS e
"""
_PRUNED_EVENTS = """
SELECT e.id::text, e.tenant_id, e.delivery_id::text, e.type, to_json(e.occurred_at) #>> '{}' AS occurred_at,
       e.idempotency_key, e.needs_reconciliation, to_json(e.inserted_at) #>> '{}' AS inserted_at, p.text,
       CASE WHEN e.type = 'reconciled' THEN e.metadata ->> 'reconciled_from_event_id' END AS reconciled_from,
       p.xact::text
  FROM witness.pruned AS p, jsonb_populate_record(NULL::mailglass_events, p.row) AS e
 WHERE p.relation = 'mailglass_events'
"""
_PRUNED_DELIVERIES = """
SELECT d.id::text, d.tenant_id, d.recipient, d.provider, d.provider_message_id
  FROM witness.pruned AS p, jsonb_populate_record(NULL::mailglass_deliveries, p.row) AS d
 WHERE p.relation = 'mailglass_deliveries'
"""
_DELIVERIES = "SELECT id::text, tenant_id, recipient, provider, provider_message_id FROM mailglass_deliveries"
_WITNESSED = "SELECT id::text, text, ours, utc, local FROM witness.events"
_VERSIONS = "SELECT id::text, version, ours FROM witness.deliveries ORDER BY n"
_OPEN = """
SELECT event_id::text AS id, tenant_id, arrived_at, provider, recipient, recipient_lost, rank IS NOT NULL AS keyed, ids,
       (SELECT e.metadata -> 'recipient_known' = 'true' AND NOT e.metadata ?| '{recipient,email}'
          FROM mailglass_events AS e WHERE e.id = o.event_id) AS flagged,
       ARRAY(SELECT candidate_id FROM mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY position) AS candidate_ids
  FROM mailglass_open_orphans AS o
"""
_STRAY_IDS = """
SELECT count(*) FROM mailglass_open_orphan_ids AS k
 WHERE NOT EXISTS (SELECT FROM mailglass_open_orphans AS o WHERE o.event_id = k.event_id AND o.rank IS NOT NULL)
"""
_OUTBOX = """
SELECT event_id::text AS id, handler, delivery_id::text, type, state, attempts, error, finished_at
  FROM mailglass_handler_outbox
"""
_EFFECTS = "SELECT handler, event_id::text AS id, count(*) AS n FROM witness.effects GROUP BY 1, 2"
_WINDOW = """
SELECT now()::timestamp - make_interval(mins => {max_age}) AS oldest,
       now()::timestamp - make_interval(secs => {grace}) AS youngest
"""

# The functions behind the views of those names: planning the views takes longer than all the rest.
_LEFT_BEHIND = """
WITH here AS MATERIALIZED (SELECT oid FROM pg_database WHERE datname = current_database())
SELECT s.pid, s.state, left(s.query, 80) AS query FROM here, pg_stat_get_activity(NULL) AS s
 WHERE s.datid = here.oid AND s.pid <> pg_backend_pid() AND s.backend_type = 'client backend'
 UNION ALL
SELECT l.pid, 'advisory lock', NULL FROM here, pg_lock_status() AS l
 WHERE l.locktype = 'advisory' AND l.database = here.oid
 UNION ALL
SELECT NULL, 'prepared transaction', p.gid FROM here, pg_prepared_xact() AS p WHERE p.dbid = here.oid
"""


class State:
    """The tables as they are now, and what the witness recorded."""

    def __init__(self, driver: psycopg.Connection, settings: Settings) -> None:
        """Read everything once in one transaction."""
        statements = {
            "pruned": _PRUNED_EVENTS,
            "live": _EVENTS,
            "witnessed": _WITNESSED,
            "pruned_deliveries": _PRUNED_DELIVERIES,
            "deliveries": _DELIVERIES,
            "versions": _VERSIONS,
            "open": _OPEN,
            "stray_ids": _STRAY_IDS,
            "outbox": _OUTBOX,
            "effects": _EFFECTS,
            "window": _WINDOW.format(max_age=settings.max_age_minutes, grace=settings.grace_seconds),
        }
        read = {}
        with driver.cursor(row_factory=dict_row) as cursor:
            cursor.execute("; ".join(["SET LOCAL TimeZone = 'UTC'", *statements.values()]))  # type: ignore[call-overload]
            for name in statements:
                cursor.nextset()
                read[name] = cursor.fetchall()
        self.pruned = {row["id"]: row for row in read["pruned"]}
        """Copies of what retention has deleted; `events` and `deliveries` have them too."""
        self.live = {row["id"]: row for row in read["live"]}
        self.events = {**self.pruned, **self.live}
        self.witnessed = {row["id"]: row for row in read["witnessed"]}
        self.deliveries = {row["id"]: row for row in [*read["pruned_deliveries"], *read["deliveries"]]}
        self.existing = read["deliveries"]
        self.versions = defaultdict(list)
        for row in read["versions"]:
            times = {k: oracle.moment(row["version"][k]) for k in (*oracle.EARLIEST, "last_event_at", "updated_at")}
            self.versions[row["id"]].append({**row["version"], **times, "ours": row["ours"]})
        self.links = [
            event
            for event in self.events.values()
            if event["type"] == "reconciled" and self.witnessed.get(event["id"], {"ours": False})["ours"]
        ]
        self.open = {row["id"]: row for row in read["open"]}
        self.stray_ids = read["stray_ids"][0]["count"]
        self.jobs = {(row["id"], row["handler"]): row for row in read["outbox"]}
        self.effects = {(row["handler"], row["id"]): row["n"] for row in read["effects"]}
        [window] = read["window"]
        self.oldest = window["oldest"]
        self.eligible = [row for row in self.open.values() if self.oldest < row["arrived_at"] <= window["youngest"]]
        """Open orphans that a full sweep looks at."""

    def verdicts(self) -> Counter[str]:
        """Return the number of eligible orphans with known ids by state, by the oracle."""
        return Counter(oracle.match(orphan, self.existing)[0] for orphan in self.eligible if orphan["keyed"])

    def is_matchable(self) -> bool:
        """Return True if an eligible orphan may have a delivery, by the oracle or because its ids are unknown."""
        unknown = any(not orphan["keyed"] for orphan in self.eligible)
        has_message_ids = any(row["provider_message_id"] is not None for row in self.existing)
        return has_message_ids and (unknown or self.verdicts()["matched"] > 0)


def read(db: Any) -> State:
    """Return the state of a database."""
    with session(db.engine) as driver:
        return State(driver, db.settings)


def check(db: Any, witness: Witness, *, holding: frozenset[str] = ALL) -> None:
    """Check the invariants in *holding*, unless the tables do not exist."""
    with session(db.engine) as driver:
        _run_checks(
            {"I9": partial(check_log, witness.log), "I10": partial(check_nobody_stays, driver, witness)}, holding
        )
        state = State(driver, db.settings) if db.pooled and db.pooled.is_unchanged_in(driver) else None
    if state is None:
        if not db.is_current():
            return
        state = read(db)
    checks: dict[str, partial[None]] = {
        "I11": partial(check_counts, witness.results()),
        "I12": partial(check_statuses, [result for result, _ in witness.results()]),
        "I13": partial(check_open_set, state),
    }
    _run_checks(checks, holding)
    if "I6" in holding and state.is_matchable():
        _run_checks({"I6": partial(check_nothing_is_left, db)}, holding)
        state = read(db)
    if "I4" in holding:
        _run_checks({"I4": partial(check_messages, state, witness.messages(), witness.early)}, holding)
    _check_rows(state, db.handled, holding)


def check_uncommitted(tx: Uncommitted) -> None:
    """Check what a transaction that is about to be rolled back shows of the invariants, unless it was aborted."""
    driver: psycopg.Connection = tx.connection.connection.driver_connection  # type: ignore[assignment]
    if driver.info.transaction_status != TransactionStatus.INTRANS:
        return
    state = State(driver, tx.settings)
    _run_checks({"I13": partial(check_open_set, state)}, ALL - tx.broken)
    _check_rows(state, tx.handled, ALL - tx.broken)


def _check_rows(state: State, handled: Collection[tuple[str, str]], holding: frozenset[str]) -> None:
    checks: dict[str, partial[None]] = {
        "I1": partial(check_links, state),
        "I2": partial(check_projection, state),
        "I3": partial(check_ledger, state),
        "I5": partial(check_tenants, state),
        "I7": partial(check_monotone, state),
        "I14": partial(check_handlers, state, handled),
    }
    _run_checks(checks, holding)


def _run_checks(checks: Mapping[str, partial[None]], holding: frozenset[str]) -> None:
    """Run the checks in *holding*; an error begins with the sentence of the broken invariant."""
    for name, check_invariant in checks.items():
        if name in holding:
            try:
                check_invariant()
            except AssertionError as error:
                sentence = " ".join(str(check_invariant.func.__doc__).split())
                raise AssertionError(f"{sentence}\n{error}") from error


def check_links(state: State) -> None:
    """I1: at most one `reconciled` event per orphan, its delivery exists, its key is right."""
    of = Counter(event["reconciled_from"] for event in state.events.values() if event["type"] == "reconciled")
    assert not [orphan for orphan, count in of.items() if orphan and count > 1]
    for link in state.links:
        orphan = state.events[link["reconciled_from"]]
        assert orphan["needs_reconciliation"]
        assert orphan["delivery_id"] is None
        assert link["idempotency_key"] == f"reconciled:{orphan['id']}"
        assert link["delivery_id"] in state.deliveries
        assert not link["needs_reconciliation"]
        assert uuid.UUID(link["id"]).version == 7


def check_projection(state: State) -> None:
    """I2: every delivery equals the fold of what is linked to it over what it was before."""
    reports = defaultdict(list)
    for link in state.links:
        reports[link["delivery_id"]].append(_report(state, link["reconciled_from"]))
    for event in state.events.values():
        witnessed = state.witnessed.get(event["id"])
        if witnessed and witnessed["ours"] and event["type"] != "reconciled" and event["delivery_id"]:
            reports[event["delivery_id"]].append(_report(state, event["id"]))
    for id_, versions in state.versions.items():
        if id_ in state.deliveries:
            before = [version for version in versions if not version["ours"]]
            if before:
                now = {name: versions[-1][name] for name in oracle.PROJECTED}
                assert now == oracle.fold(before[-1], reports[id_]), f"delivery {id_}"


def _report(state: State, event_id: str) -> tuple[str, datetime, datetime]:
    event, witnessed = state.events[event_id], state.witnessed.get(event_id)
    arrival = oracle.moment(event["inserted_at"])
    if witnessed and arrival == witnessed["local"]:
        arrival = witnessed["utc"]
    return event["type"], oracle.moment(event["occurred_at"]), arrival


def check_ledger(state: State) -> None:
    """I3: orphans and all other rows are byte for byte what they were; only retention shrinks the ledger.

    What retention deletes goes together: an orphan with its `reconciled` event.
    """
    for id_, witnessed in state.witnessed.items():
        assert id_ in state.events, f"event {id_} is gone"
        assert state.events[id_]["text"] == witnessed["text"], f"event {id_} has changed"
    assert not set(state.pruned) & set(state.live), "a deleted event has come back"
    for link in state.links:
        link_ids = (link["id"], link["reconciled_from"])
        assert len({state.pruned.get(id_, {}).get("xact") for id_ in link_ids}) == 1, (
            f"half of link {link['id']} is gone"
        )


def check_messages(state: State, messages: Sequence[tuple[str, Mapping[str, Any]]], early: Sequence[str]) -> None:
    """I4: every message names a committed event; none before its commit; one per channel per link."""
    assert not early, f"told of before their commit: {early}"
    by_event = defaultdict(list)
    for channel, payload in messages:
        if payload == {"event": "test"}:  # of the doctor
            continue
        if payload["meta"].get("reconciled_from_event_id", payload["meta"]["event_id"]) in state.events:
            by_event[payload["meta"]["event_id"]].append((channel, payload))
    links = {link["id"]: link for link in state.links}
    check_direct_messages(
        state, {id_: by_event.pop(id_) for id_ in [*by_event] if id_ not in links and id_ in state.events}
    )
    for event_id, heard in by_event.items():
        assert event_id in links, "a message names an event that is not in the ledger"
        link = links[event_id]
        orphan = state.events[link["reconciled_from"]]
        tenant = f"mailglass:events:{quote(link['tenant_id'], safe='').replace('~', '%7E')}"
        assert sorted(channel for channel, _ in heard) == [tenant, f"{tenant}:{link['delivery_id']}"]
        for _, payload in heard:
            assert payload == {
                "event": "delivery_updated",
                "delivery_id": link["delivery_id"],
                "event_type": "reconciled",
                "meta": {
                    "event_id": event_id,
                    "reconciled_from_event_id": orphan["id"],
                    "type": orphan["type"][:512],
                    "occurred_at": payload["meta"]["occurred_at"],
                    "tenant_id": link["tenant_id"],
                },
            }
            assert oracle.moment(payload["meta"]["occurred_at"].removesuffix("Z")) == oracle.moment(
                orphan["occurred_at"]
            )


def check_direct_messages(state: State, by_event: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> None:
    """I4 for attached events: they have their own type, and no orphan."""
    for event_id, heard in by_event.items():
        event = state.events[event_id]
        tenant = f"mailglass:events:{quote(event['tenant_id'], safe='').replace('~', '%7E')}"
        assert sorted(channel for channel, _ in heard) == [tenant, f"{tenant}:{event['delivery_id']}"]
        for _, payload in heard:
            assert (payload["event_type"], payload["delivery_id"]) == (event["type"], event["delivery_id"])
            assert "reconciled_from_event_id" not in payload["meta"]


def check_tenants(state: State) -> None:
    """I5: one tenant throughout: orphan, link, delivery."""
    for link in state.links:
        tenants = {
            link["tenant_id"],
            state.events[link["reconciled_from"]]["tenant_id"],
            state.deliveries[link["delivery_id"]]["tenant_id"],
        }
        assert len(tenants) == 1


def check_monotone(state: State) -> None:
    """I7: nothing monotone goes back, and the version moves when, and only when, something else did."""
    for id_, versions in state.versions.items():
        for before, after in pairwise(versions):
            if not after["ours"]:
                continue
            assert after["terminal"] or not before["terminal"], f"delivery {id_}"
            for name in oracle.EARLIEST:
                assert before[name] is None or after[name] <= before[name], f"delivery {id_}: {name}"
            erased = before["recipient"] != after["recipient"]
            assert not erased or after["recipient"].endswith("@erased.invalid"), f"delivery {id_}"
            moved = erased or any(before[name] != after[name] for name in oracle.PROJECTED)
            version = before["lock_version"]
            assert after["lock_version"] == (version + 1 if moved else version)
            assert moved, f"delivery {id_} was written for nothing"


def check_counts(results: Sequence[tuple[SweepResult, int | None]]) -> None:
    """I11: counts add up to `scanned`, which is what was eligible: each orphan is counted once."""
    for result, eligible in results:
        assert eligible is None or result.scanned == eligible, result
        assert result.scanned == sum(getattr(result, state) for state in OUTCOMES), result
        assert min(getattr(result, state) for state in OUTCOMES) >= 0, result
        if not result.dry_run and result.status == "ok":
            assert result.published + result.publish_failed == 2 * result.linked, result


def check_statuses(results: Sequence[SweepResult]) -> None:
    """I12: a sweep that left something undone by a fault says so."""
    for result in results:
        assert result.status in ("ok", "partial", "failed"), result
        assert result.status != "ok" or not (result.failed or result.skipped_deadline), result


def check_log(lines: Sequence[str]) -> None:
    """I9: what this package has logged holds no address."""
    assert not [line for line in lines if "@" in line]


def check_nobody_stays(driver: psycopg.Connection, witness: Witness) -> None:
    """I10: no lock, no idle transaction, no connection and no process is left behind."""
    remaining: list[Any] = []

    def is_clear() -> bool:
        remaining[:] = [*driver.execute(_LEFT_BEHIND).fetchall(), *(running().items() - witness.children.items())]  # type: ignore[call-overload]
        return not remaining

    try:
        wait_until(is_clear, PATIENCE_SECONDS)
    except AssertionError:
        raise AssertionError(f"left behind: {remaining}") from None


def check_open_set(state: State) -> None:
    """I13: the open set equals what the ledger says, within the maximum age."""
    settled = {
        (event["idempotency_key"], event["tenant_id"]) for event in state.live.values() if event["type"] == "reconciled"
    }
    expected = {
        id_
        for id_, event in state.live.items()
        if event["needs_reconciliation"]
        and event["delivery_id"] is None
        and len(event["tenant_id"]) <= 1_000
        and (f"reconciled:{id_}", event["tenant_id"]) not in settled
        and (oracle.moment(event["inserted_at"]) > state.oldest or id_ in state.open)
    }
    assert set(state.open) == expected
    for id_, row in state.open.items():
        assert state.live[id_]["tenant_id"] == row["tenant_id"]
        assert len(row["candidate_ids"]) == (row["ids"] or 0)
        assert row["recipient"] or row["recipient_lost"] or not (row["keyed"] and row["flagged"])
        assert not (row["recipient"] and row["recipient_lost"])
        assert not row["provider"] or row["provider"] == oracle.canonical_provider(row["provider"])
    assert state.stray_ids == 0


def check_handlers(state: State, handled: Collection[tuple[str, str]]) -> None:
    """I14: each handler's effect happens exactly once per event, and each event of a delivery has one job per
    handler.
    """
    deliveries = {link["reconciled_from"]: link["delivery_id"] for link in state.links}
    for id_, event in state.events.items():
        witnessed = state.witnessed.get(id_)
        if witnessed and witnessed["ours"] and event["type"] != "reconciled" and event["delivery_id"]:
            deliveries[id_] = event["delivery_id"]
    jobs = state.jobs
    for (id_, _), job in jobs.items():
        assert (job["type"], job["delivery_id"]) == (state.events[id_]["type"], deliveries[id_]), f"event {id_}"
        assert (job["finished_at"] is None) == (job["state"] == "waiting"), job
        assert job["attempts"] <= MOST_ATTEMPTS, job
        assert job["state"] != "done" or job["error"] is None, job
    missing = {
        id_
        for id_ in deliveries
        for handler, type_ in handled
        if state.events[id_]["type"] == type_ and (id_, handler) not in jobs
    }
    assert not missing - set(state.pruned)
    leaving = {handler for handler, _ in state.effects}
    done_jobs = {
        (handler, id_) for (id_, handler), job in jobs.items() if job["state"] == "done" and handler in leaving
    }
    assert state.effects == dict.fromkeys(done_jobs, 1)


def check_nothing_is_left(db: Any) -> None:
    """I6: every matchable orphan is linked by the next sweep, and classified as the plain reading does."""
    client = redis.Redis.from_url(db.settings.redis_url.get_secret_value())
    settings = db.settings.model_copy(update={"sweep_seconds": 240, "batch_size": 2_000})
    with client:
        result = Sweep(Database(db.engine, settings), Publisher(client)).run()
    assert result.skipped == 0, result
    counts = read(db).verdicts()
    assert counts["matched"] == result.failed, result
    for state in ("unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch"):
        assert counts[state] == getattr(result, state), (state, result)
