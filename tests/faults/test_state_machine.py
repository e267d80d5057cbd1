"""Random schedules of everything that can happen to the tables, compared with an oracle in plain Python."""

import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import factories
import invariants
import mailglass_reconcile
import oracle
import sweeping
from database import Database
from handling import leave_effect, make_due, register, states
from mailglass_reconcile import DeliveryEvent, InvalidEventError, erase, link, on_event, runtime
from mailglass_reconcile.handlers import administration
from mailglass_reconcile.ops.pruner import prune_with
from mailglass_reconcile.pubsub import Message, Published
from mailglass_reconcile.rules import matching, provider_rules
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.event_types import TYPES as KNOWN_TYPES
from mailglass_reconcile.rules.matching import Document
from mailglass_reconcile.rules.states import OUTCOMES
from mailglass_reconcile.singleton.lock import PREFIX, LockBackend, load_holder, running_token
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import NIL
from mailglass_reconcile.store.database import Database as Handle
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.tables import ledger, retention, stored_keys
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = [pytest.mark.long, pytest.mark.slow]

SCHEDULES = int(os.environ.get("MAILGLASS_SCHEDULES", "15"))
# Few ids, mostly of one tenant and one delivery, so that most orphans meet a delivery, and some meet several.
TENANTS = st.sampled_from(["a", "a", "a", "b"])
IDS = st.sampled_from(["m1", "m1", "m1", "m2", "wide"])
PROVIDERS = st.sampled_from(["postmark", "Postmark", None, None])
SPELLED = st.sampled_from(["postmark", "Postmark", " POSTMARK "])
TYPES = st.sampled_from(["delivered", "opened", "bounced", "dispatched", "deferred", "zap", "complained"])
ADDRESSES = st.sampled_from(["Ada@Example.com", "Ada <ADA@example.com>", "eve@example.com", "u3@example.com"])
RECIPIENTS = st.one_of(st.none(), st.none(), ADDRESSES)
TIMES = st.sampled_from(
    ["2026-01-01", "2026-01-02 03:04:05", "2026-02-01", "1999-01-01", "infinity", "2026-01-03", "9000-01-01"]
)
SIZES = st.sampled_from([1, 2, 5])
SLICE = 2
"""How many orphans a sweep with a limit looks at."""

_DELIVERIES = "SELECT id::text, to_jsonb(d) AS row FROM mailglass_deliveries AS d"
_LINKS = """
SELECT metadata ->> 'reconciled_from_event_id' AS orphan, delivery_id::text AS delivery FROM mailglass_events
 WHERE type = 'reconciled' AND metadata ? 'reconciled_provider'
"""
_RECIPIENTS = "SELECT event_id::text AS id, tenant_id, recipient, recipient_lost FROM mailglass_open_orphans"
_FIRST = "SELECT event_id::text AS id FROM mailglass_open_orphans WHERE state IS NULL OR state = 'matched'"
_FORGET_STATE = "UPDATE {schema}.mailglass_open_orphans SET state = NULL WHERE event_id = CAST(:id AS uuid)"
_LEDGER = """
SELECT id::text, delivery_id::text, type, idempotency_key, needs_reconciliation AND delivery_id IS NULL AS is_orphan
  FROM mailglass_events
"""
_NEEDED = "SELECT event_id::text FROM mailglass_handler_outbox WHERE state <> 'done'"
AGED_NS = 41 * 86_400 * 10**9
"""More than the days by which a rule ages events."""
_OPEN = "SELECT event_id::text FROM mailglass_open_orphans"
_TENANT_MISMATCHES = "SELECT event_id::text FROM mailglass_open_orphans WHERE state = 'tenant_mismatch'"
_AGE = """
WITH events AS (
  UPDATE mailglass_events SET inserted_at = inserted_at - interval '40 days' WHERE id = ANY (CAST(:ids AS uuid[]))
), orphans AS (
  UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '40 days'
   WHERE event_id = ANY (CAST(:ids AS uuid[]))
)
UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '40 days' WHERE id = ANY (CAST(:ids AS uuid[]))
"""
_OLD_DELIVERIES = """
SELECT id::text FROM mailglass_deliveries AS d
 WHERE greatest(inserted_at, last_event_at) < now()::timestamp - interval '30 days'
   AND NOT EXISTS (SELECT FROM mailglass_events AS e WHERE e.delivery_id = d.id)
"""
_PRUNED = "SELECT id::text, row FROM witness.pruned WHERE relation = 'mailglass_deliveries'"
_ARRIVED = """
SELECT to_json(inserted_at) #>> '{}' AS at, to_json(occurred_at) #>> '{}' AS occurred
  FROM mailglass_events WHERE id = CAST(:id AS uuid)
"""


class _CrashError(BaseException):
    """The process has died."""


class _RecordingPublisher:
    """A publisher that records messages, and at which the process may die after a commit."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.told: list[Message] = []
        self._dies_at = dies_at

    def publish(self, messages: Sequence[Message]) -> None:
        if self._dies_at is not None:
            self._dies_at -= 1
            if self._dies_at < 0:
                raise _CrashError
        self.told += messages

    def wait(self) -> Published:
        return Published(2 * len(self.told), 0)


class _OneSliceSweep(Sweep):
    """A sweep whose deadline passes after one slice, whose matches it links."""

    def _store(self, *arguments: Any) -> None:
        super()._store(*arguments)
        self.stop()


class _HandlerFaults:
    """Failures of the handlers, and the calls at which their process dies."""

    fails = False
    dies_at: int | None = None


def _steady(connection: sa.Connection, event: DeliveryEvent) -> None:
    leave_effect("steady", connection, event)


def _fickle(connection: sa.Connection, event: DeliveryEvent) -> None:
    leave_effect("fickle", connection, event)
    if _HandlerFaults.dies_at is not None:
        _HandlerFaults.dies_at -= 1
        if _HandlerFaults.dies_at < 0:
            raise _CrashError
    if _HandlerFaults.fails:
        raise ValueError


class Schedule(RuleBasedStateMachine):
    """The rules; each step is compared with the oracle as soon as its outcome is known."""

    db: Database

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[dict[str, Any]] = []
        self.orphans: dict[str, dict[str, Any]] = {}
        self.links: dict[str, str] = {}
        self.settled: set[str] = set()
        """By another writer, with the triggers on."""
        self.unnoticed: set[str] = set()
        """Settled by another writer while the triggers were off."""
        self.unseen: set[str] = set()
        """Inserted while the triggers were off."""
        self.aged: set[str] = set()
        """Events that have got old."""
        self.arrived: dict[str, tuple[str, datetime, datetime]] = {}
        """Of those the type and the times, as they were when they were linked."""
        self.retired: list[dict[str, Any]] = []
        """Deliveries that retention has deleted."""
        self.late: list[tuple[sa.Connection, dict[str, Any]]] = []
        self.told: Counter[str] = Counter()

    @rule(
        tenant=TENANTS,
        id_=IDS,
        provider=PROVIDERS,
        recipient=ADDRESSES,
        twin=st.sampled_from([False, False, False, True]),
    )
    def dispatch(self, tenant: str, id_: str, provider: str | None, recipient: str, twin: bool) -> None:
        """Commit a delivery, and now and then a second one of the same id."""
        if not twin and any((d["tenant_id"], d["provider_message_id"]) == (tenant, id_) for d in self.deliveries):
            return
        if provider and any((d["provider"], d["provider_message_id"]) == (provider, id_) for d in self.deliveries):
            return
        self._send(factories.delivery_row(id_, tenant_id=tenant, provider=provider, recipient=recipient))

    @rule(tenant=TENANTS)
    def campaign(self, tenant: str) -> None:
        """Commit deliveries to more recipients than are read of one id at once."""
        if not any((d["tenant_id"], d["provider_message_id"]) == (tenant, "wide") for d in self.deliveries):
            recipients = [f"u{n}@example.com" for n in range(factories.WIDE + 2)]
            self._send(*(factories.delivery_row("wide", tenant_id=tenant, recipient=to) for to in recipients))

    def _send(self, *rows: dict[str, Any]) -> None:
        factories.insert(self.db, deliveries=rows)
        at = datetime(2026, 1, 2, 3, 4, 5)
        projected = {**dict.fromkeys(oracle.PROJECTED), "last_event_type": "dispatched", "last_event_at": at}
        projected |= {"terminal": False, "dispatched_at": at}
        self.deliveries += [{**row, **projected, "provider_message_id": row["message_id"]} for row in rows]

    def _orphan(
        self, tenant: str, id_: str, kind: str, at: str, recipient: str | None, age_seconds: float = 300, **more: object
    ) -> dict[str, Any]:
        if recipient is not None and "recipient_known" not in more:
            more["recipient"] = recipient
        metadata = factories.postmark(id_, **more)
        row = factories.orphan_row(metadata, tenant_id=tenant, type=kind, occurred_at=at, age_seconds=age_seconds)
        row["idempotency_key"] = f"postmark:{row['id']}"
        self.orphans[row["id"]] = {
            "tenant_id": tenant,
            "provider": "postmark",
            "candidate_ids": [id_],
            "recipient": recipient,
            "in_ledger": more.get("recipient"),
            "recipient_known": "recipient_known" in more,
            "type": kind,
        }
        return row

    @rule(
        tenant=TENANTS,
        id_=IDS,
        kind=TYPES,
        at=TIMES,
        recipient=RECIPIENTS,
        provider=SPELLED,
        twice=st.sampled_from([False, False, True]),
    )
    def record(
        self, tenant: str, id_: str, kind: str, at: str, recipient: str | None, provider: str, twice: bool
    ) -> None:
        """Record a webhook, and perhaps its redelivery, which the key refuses."""
        row = self._orphan(tenant, id_, kind, at, recipient, provider=provider)
        factories.insert(self.db, events=[row])
        if twice:
            try:
                factories.insert(self.db, events=[{**row, "id": factories.new_id()}])
            except sa.exc.IntegrityError:
                return
            raise AssertionError("the ledger took a duplicate")

    @rule(tenant=TENANTS, id_=IDS, kind=TYPES, at=TIMES, recipient=ADDRESSES)
    def record_with_a_recipient_that_the_ledger_lacks(
        self, tenant: str, id_: str, kind: str, at: str, recipient: str
    ) -> None:
        """Record like our own writers: only the open set has the address, and the ledger has a flag."""
        row = self._orphan(tenant, id_, kind, at, recipient, recipient_known=True)
        with self.db.engine.begin() as connection:
            factories.insert(connection, events=[row])
            document_keys = matching.keys_of(Document(json.loads(row["metadata"])))
            with use_caller_transaction(connection, self.db.settings) as tx:
                keys = document_keys._replace(recipient=normalize_address(recipient), lost=False)
                stored_keys.store(tx, {row["id"]: stored_keys.StoredKeys(keys, "unmatched")})
                tx.execute(_FORGET_STATE, {"id": row["id"]})  # as before any sweep

    @rule(tenant=TENANTS, id_=IDS, kind=TYPES, at=TIMES)
    def record_and_commit_late(self, tenant: str, id_: str, kind: str, at: str) -> None:
        """Insert a webhook in a transaction that stays open."""
        if len(self.late) < 2:
            connection = self.db.engine.connect()
            row = factories.orphan_row(factories.postmark(id_), tenant_id=tenant, type=kind, occurred_at=at)
            factories.insert(connection, events=[row])
            self.late.append((connection, row))

    @rule(commits=st.booleans())
    def end_late(self, commits: bool) -> None:
        """Commit or roll back the oldest open transaction."""
        if self.late:
            connection, row = self.late.pop(0)
            if commits:
                connection.commit()
                id_ = json.loads(row["metadata"])["message_id"]
                self.orphans[row["id"]] = {
                    "tenant_id": row["tenant_id"],
                    "provider": "postmark",
                    "candidate_ids": [id_],
                    "recipient": None,
                    "in_ledger": None,
                    "recipient_known": False,
                    "type": row["type"],
                }
            connection.close()

    @rule(tenant=TENANTS, id_=IDS, kind=TYPES, at=TIMES)
    def record_without_triggers(self, tenant: str, id_: str, kind: str, at: str) -> None:
        """Insert a webhook while the triggers are disabled."""
        row = self._orphan(tenant, id_, kind, at, None)
        with self.db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            factories.insert(connection, events=[row])
        self.unseen.add(row["id"])

    @rule()
    def mend(self) -> None:
        """Prune, which compares the open set with the ledger."""
        result = mailglass_reconcile.prune()
        assert result is not None
        self.unseen.clear()
        self.settled |= self.unnoticed
        self.unnoticed.clear()

    @rule()
    def rebuild_the_open_set(self) -> None:
        """Prune with a short maximum age, which empties the open set, and refill it, which loses our writers'
        recipients.
        """
        prune_with(Handle(self.db.engine, self.db.settings.model_copy(update={"max_age_minutes": 1})))
        assert not self.db.rows("SELECT FROM mailglass_open_orphans UNION ALL SELECT FROM mailglass_open_orphan_ids")
        self.mend()
        for id_ in self._open():
            recipient_known = self.orphans[id_]["recipient_known"]
            self.orphans[id_] |= {"recipient": self.orphans[id_]["in_ledger"], "recipient_lost": recipient_known}

    @rule(number=st.integers(0, 20), off=st.booleans())
    def another_reconciler(self, number: int, off: bool) -> None:
        """Append the `reconciled` event of some orphan for some delivery, as another writer."""
        open_ = [o for o in self.orphans if o not in self.links and o not in self.settled | self.unnoticed]
        if not open_ or not self.deliveries:
            return
        orphan = open_[number % len(open_)]
        delivery = self.deliveries[number % len(self.deliveries)]["id"]
        row = factories.reconciled_row(orphan, delivery, tenant_id=self.orphans[orphan]["tenant_id"])
        with self.db.engine.begin() as connection:
            if off:
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            factories.insert(connection, events=[row])
        if off and orphan not in self.unseen:
            self.unnoticed.add(orphan)
        else:
            self.settled.add(orphan)

    @rule(number=st.integers(0, 20), delivery_number=st.integers(0, 20))
    def link_by_hand(self, number: int, delivery_number: int) -> None:
        """Link an open orphan to any delivery of its tenant; a linked one is refused."""
        open_ = self._open()
        orphan = open_[number % len(open_)] if open_ else None
        own = [d["id"] for d in self.deliveries if orphan and d["tenant_id"] == self.orphans[orphan]["tenant_id"]]
        if not orphan or not own:
            return
        delivery = own[delivery_number % len(own)]
        try:
            with self.db.engine.begin() as connection:
                link(connection, orphan, delivery, reason="drawn by lot")
        except InvalidEventError:
            assert orphan in self.unnoticed
        else:
            assert orphan not in self.unnoticed
            self.links[orphan] = delivery

    @rule(recipient=ADDRESSES, tenant=st.sampled_from([None, None, "a"]))
    def erase_a_person(self, recipient: str, tenant: str | None) -> None:
        """Erase a person: deliveries get another recipient, and open orphans about the person none."""
        address = oracle.normalize_recipient(recipient)
        with self.db.engine.begin() as connection:
            erased = erase(connection, recipient=recipient, tenant_id=tenant)
        erased_deliveries = [
            d
            for d in self.deliveries
            if tenant in (None, d["tenant_id"]) and oracle.normalize_recipient(d["recipient"]) == address
        ]
        assert erased.deliveries == len(erased_deliveries)
        now = {row.id: row.row["recipient"] for row in self.db.rows(_DELIVERIES)}
        for delivery in erased_deliveries:
            delivery["recipient"] = now[delivery["id"]]
            assert delivery["recipient"].endswith("@erased.invalid")
        for row in self.db.rows(_RECIPIENTS):
            if row.recipient_lost:
                self.orphans[row.id] |= {"recipient": None, "recipient_lost": True}
            assert (
                tenant not in (None, row.tenant_id)
                or row.recipient is None
                or oracle.normalize_recipient(row.recipient) != address
            )

    @rule(share=st.integers(1, 3), spares=st.booleans(), size=SIZES, dies_at=st.sampled_from([None, None, 0, 1]))
    def retire(self, share: int, spares: bool, size: int, dies_at: int | None) -> None:
        """Age some rows, and delete them by retention; its process may die between two batches."""
        self._age(share, spares)
        before, open_ = self._ledger(), self._ids(_OPEN)
        kept_ids = (before.keys() - self.aged) | self._ids(_NEEDED)
        limits = Limits(retention_rows=size)
        if dies_at is not None:
            database = Handle(self.db.engine, self.db.settings, limits)
            with contextlib.suppress(_CrashError), database.connect() as connected:
                for number, _ in enumerate(retention.delete_events(connected, 30)):
                    if number == dies_at:
                        raise _CrashError
            deleted = before.keys() - self._ledger().keys()
            deleted_groups = [group for group in oracle.group_by_retention(before, kept_ids, open_) if group & deleted]
            assert deleted == frozenset().union(*deleted_groups), "of each delivery all, or none"
        days = {"retention_events_days": 30, "retention_deliveries_days": 30}
        result = prune_with(Handle(self.db.engine, self.db.settings.model_copy(update=days), limits))
        assert not result.failures
        deleted = before.keys() - self._ledger().keys()
        assert deleted == frozenset().union(*oracle.group_by_retention(before, kept_ids, []))
        assert not self._ids(_OLD_DELIVERIES), "deliveries follow"
        invariants.check_open_set(invariants.read(self.db))
        self._forget_deleted(deleted)

    def _age(self, share: int, spares: bool) -> None:
        """Age some deliveries with all events, or with all but one, and some other orphans."""
        ledger_ = self._ledger()
        reconciled_ids = {row["idempotency_key"]: id_ for id_, row in ledger_.items() if row["type"] == "reconciled"}
        owners = {key: ledger_[id_]["delivery_id"] for key, id_ in reconciled_ids.items()}
        chosen, events_by_owner = set(), dict.fromkeys((d["id"] for d in self.deliveries), ())
        for id_, row in ledger_.items():
            owner = row["delivery_id"] or owners.get(f"reconciled:{id_}")
            events_by_owner[owner or id_] = (*events_by_owner.get(owner or id_, ()), id_)
        for owner, ids in [*events_by_owner.items()][::share]:
            chosen |= {owner, *ids}
            if spares and len(ids) > 1:  # an orphan is not younger than the event that links it
                chosen.discard(reconciled_ids.get(f"reconciled:{ids[0]}", ids[0]))
        chosen -= self.aged
        for id_ in chosen & self.orphans.keys():
            self.arrived[id_] = self._report(id_)
        self.aged |= chosen
        with self.db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            connection.execute(sa.text(_AGE), {"ids": list(chosen)})

    def _forget_deleted(self, deleted_events: Collection[str]) -> None:
        """Update the model after a prune with a retention."""
        self.settled |= self.unnoticed | (deleted_events & self.orphans.keys()) - self.links.keys()
        self.unnoticed.clear()
        self.unseen.clear()
        remaining = self._ids("SELECT id::text FROM mailglass_deliveries")
        self.retired += [delivery for delivery in self.deliveries if delivery["id"] not in remaining]
        deleted = {delivery["id"] for delivery in self.retired}
        assert deleted <= self.aged
        assert not deleted & {row["delivery_id"] for row in self._ledger().values()}
        self.deliveries = [delivery for delivery in self.deliveries if delivery["id"] in remaining]

    def _ledger(self) -> dict[str, dict[str, Any]]:
        return {row.id: dict(row._mapping) for row in self.db.rows(_LEDGER)}

    def _ids(self, sql: str) -> set[str]:
        return {row[0] for row in self.db.rows(sql)}

    def _report(self, orphan: str) -> tuple[str, datetime, datetime]:
        """Return an orphan's type, and its times before it was aged."""
        if orphan in self.arrived:
            return self.arrived[orphan]
        row = self.db.rows(_ARRIVED, id=orphan)[0]
        return self.orphans[orphan]["type"], oracle.moment(row.occurred), oracle.moment(row.at)

    def _open(self) -> list[str]:
        closed = self.settled | self.unseen | self.links.keys()
        return [orphan for orphan in self.orphans if orphan not in closed]

    def _match_by_oracle(self, orphan: str) -> tuple[str, str | None]:
        return oracle.match(self.orphans[orphan], self.deliveries)

    def _sweep(self, mouth: _RecordingPublisher, size: int, **options: Any) -> Sweep:
        configured = self.db.settings.model_copy(update={"batch_size": size})
        return Sweep(Handle(self.db.engine, configured), mouth, **options)  # type: ignore[arg-type]

    def _learn(self, mouth: _RecordingPublisher, candidates: Sequence[str]) -> int:
        """Update the model from the ledger; each new link must be the oracle's."""
        new = {r.orphan: r.delivery for r in self.db.rows(_LINKS) if r.orphan not in self.links}
        for orphan, delivery in new.items():
            assert orphan in candidates
            assert self._match_by_oracle(orphan) == ("matched", delivery)
        for _, _, payload in mouth.told:
            self.told[json.loads(payload)["meta"]["reconciled_from_event_id"]] += 1
        assert set(self.told) <= set(self.links) | set(new)
        assert max(self.told.values(), default=1) == 1
        self.links |= new
        return len(new)

    @rule(size=SIZES, tenant=st.sampled_from([None, None, "a", "b"]), recent=st.sampled_from([None, None, 600.0]))
    def sweep(self, size: int, tenant: str | None, recent: float | None) -> None:
        """Sweep: links and counts must be the oracle's.

        This holds for a sweep of the last ten minutes too. A tenant mismatch whose delivery
        was deleted since may still be counted as one, because only a delivery of its own tenant has it matched again.
        """
        open_ = [o for o in self._open() if tenant in (None, self.orphans[o]["tenant_id"])]
        mismatches = self._ids(_TENANT_MISMATCHES) & set(open_)
        unnoticed = self.unnoticed & set(open_)
        mouth = _RecordingPublisher()
        ages = None if recent is None else (recent, -300.0)
        result = self._sweep(mouth, size, tenant_id=tenant, ages=ages, kind="full" if ages is None else "recent").run()
        self._notice()
        closed = unnoticed - self.unnoticed
        expected = Counter(self._match_by_oracle(orphan)[0] for orphan in open_ if orphan not in closed)
        linked = self._learn(mouth, open_)
        counts = {state: getattr(result, state) for state in OUTCOMES}
        excess = counts["tenant_mismatch"] - expected["tenant_mismatch"]
        assert 0 <= excess <= sum(self._match_by_oracle(orphan)[0] == "unmatched" for orphan in mismatches)
        expected.update(tenant_mismatch=excess, unmatched=-excess)
        assert counts == {
            **{state: expected[state] for state in OUTCOMES},
            "linked": expected["matched"],
            "skipped": len(closed),
        }
        assert linked == result.linked
        assert result.scanned == len(open_)

    @rule()
    def rekey(self) -> None:
        """Delete all keys, and no recipient."""
        with self.db.database.writing() as tx:
            while stored_keys.clear(tx, NIL, 2):
                pass

    @rule()
    def raise_a_rule_s_version(self) -> None:
        """Outdate all keys; the new ones are the same."""
        current = provider_rules.rule_of("postmark")
        provider_rules._rules["postmark"] = replace(current, rank=current.rank + 1)

    @rule(size=SIZES)
    def sweep_while_the_rule_fails(self, size: int) -> None:
        """Deploy a rule with a bug and take it back: stored keys stay, and nothing is linked wrongly."""

        def fail(*texts: str | None) -> list[str]:
            raise RuntimeError

        current, open_, mouth = provider_rules.rule_of("postmark"), self._open(), _RecordingPublisher()
        provider_rules._rules["postmark"] = replace(current, rank=current.rank + 1, candidates=fail)
        try:
            result = self._sweep(mouth, size).run()
        finally:
            provider_rules._rules["postmark"] = current
        assert self._learn(mouth, open_) == result.linked
        assert result.scanned == len(open_)
        self._notice()

    @rule(size=SIZES, tenant=TENANTS, id_=IDS, newcomers=st.integers(0, 2))
    def sweep_slice_by_slice(self, size: int, tenant: str, id_: str, newcomers: int) -> None:
        """Sweeps of two orphans each reach all of them, wherever the rotation starts."""
        remaining = 40 * (len(self._open()) + newcomers + 1)
        while newcomers or self._linkable():
            assert remaining, f"still waiting: {self._linkable()}"
            if newcomers:
                age = self.db.settings.grace_seconds
                row = self._orphan(tenant, id_, "opened", "2026-01-02", None, age_seconds=age)
                factories.insert(self.db, events=[row])
            self._sweep_one_slice(size)
            newcomers, remaining = max(0, newcomers - 1), remaining - 1

    def _sweep_one_slice(self, size: int) -> None:
        """Sweep one slice, which links all orphans of the first part if they fit."""
        open_, first, mouth = self._open(), [row.id for row in self.db.rows(_FIRST)], _RecordingPublisher()
        configured = self.db.settings.model_copy(update={"batch_size": size})
        database = Handle(self.db.engine, configured, Limits(slice_orphans=SLICE))
        result = _OneSliceSweep(database, mouth).run()  # type: ignore[arg-type]
        assert self._learn(mouth, open_) == result.linked <= SLICE
        assert result.scanned == len(open_)
        self._notice()
        if len(first) <= SLICE:
            assert not set(first) & set(self._linkable()), "what nobody has looked at comes first"

    def _linkable(self) -> list[str]:
        return [orphan for orphan in self._open() if self._match_by_oracle(orphan)[0] == "matched"]

    @rule(size=SIZES)
    def overlapping_sweeps(self, size: int) -> None:
        """Run a sweep between two batches of another; each counts what was open when it started."""
        self._overlap(size)

    @rule(size=SIZES)
    def sweep_whose_lock_expires(self, size: int) -> None:
        """Let another process take the lock and sweep; at its end, the first sweep leaves the lock to its new
        holder.
        """
        client = runtime.get_redis()
        lock, key, own, other_token = (
            LockBackend(client),
            f"{PREFIX}schedule",
            running_token("one"),
            running_token("two"),
        )

        def expire() -> None:
            client.delete(key)
            assert lock.acquire(key, other_token) is None

        assert lock.acquire(key, own) is None
        with lock.renewing(key, own, lambda: False):
            has_expired = self._overlap(size, expire)
        holder = load_holder(client, key)
        assert (holder and holder.token) == (other_token if has_expired else None)
        lock.release(key, other_token)
        assert load_holder(client, key) is None

    def _overlap(self, size: int, before_inner: Callable[[], None] = lambda: None) -> bool:
        """Run a sweep after the first batch of another, and return True if there was one."""
        open_ = self._open()
        outer, inner = _RecordingPublisher(), _RecordingPublisher()
        inner_results: list[tuple[int, SweepResult]] = []

        def overlap(so_far: SweepResult) -> None:
            if not inner_results:
                before_inner()
                count = len(self.db.rows("SELECT FROM mailglass_open_orphans"))
                inner_results.append((count, self._sweep(inner, size).run()))

        result = sweeping.run(self._sweep(outer, size), overlap)
        outer.told += inner.told
        assert self._learn(outer, open_) == result.linked + sum(r.linked for _, r in inner_results)
        for began_with, sweep_result in ((len(open_), result), *inner_results):
            assert sweep_result.scanned == began_with == sum(getattr(sweep_result, state) for state in OUTCOMES), (
                sweep_result
            )
            assert sweep_result.skipped == sweep_result.skipped_held, sweep_result
        self._notice()
        closed = (
            len(open_) - result.remaining,
            *(before - inner_result.remaining for before, inner_result in inner_results),
        )
        # What the inner sweep closed before the outer one read it remains for neither, and the outer one skipped it.
        counted_twice = sum(closed) - (len(open_) - len(self._open()))
        assert 0 <= counted_twice <= result.skipped_held, "what either of them closed is what one of them counts"
        return bool(inner_results)

    @rule(size=SIZES, limit=st.integers(1, 3))
    def sweep_with_limit(self, size: int, limit: int) -> None:
        """Sweep with a limit, which bounds the links."""
        open_ = self._open()
        mouth = _RecordingPublisher()
        result = self._sweep(mouth, size, limit=limit).run()
        assert self._learn(mouth, open_) == result.linked <= limit
        assert result.skipped == result.skipped_limit + result.skipped_held
        self._notice()

    @rule(size=SIZES, at=st.integers(0, 2))
    def crash_after_commit(self, size: int, at: int) -> None:
        """Kill the process between a commit and its messages."""
        open_ = self._open()
        mouth = _RecordingPublisher(dies_at=at)
        with contextlib.suppress(_CrashError):
            self._sweep(mouth, size).run()
        self._learn(mouth, open_)
        self._notice()

    @rule()
    def crash_before_commit(self) -> None:
        """Kill the process after a batch is claimed and appended, which rolls it back."""
        pairs = [(o, self._match_by_oracle(o)[1]) for o in self._open() if self._match_by_oracle(o)[0] == "matched"]
        if pairs:
            with (
                contextlib.suppress(_CrashError),
                self.db.database.connect() as connected,
                connected.linking() as tx,
            ):
                assert ledger.link(tx, pairs)  # type: ignore[arg-type]
                raise _CrashError

    @rule(number=st.integers(0, 20), size=SIZES)
    def sweep_beside_a_locked_delivery(self, number: int, size: int) -> None:
        """Lock a delivery and sweep; what is linked meanwhile is right, and the rest waits."""
        if not self.deliveries:
            return
        open_ = self._open()
        id_ = self.deliveries[number % len(self.deliveries)]["id"]
        with self.db.engine.begin() as holder:
            holder.execute(
                sa.text("SELECT FROM mailglass_deliveries WHERE id = CAST(:i AS uuid) FOR UPDATE"), {"i": id_}
            )
            mouth = _RecordingPublisher()
            self._sweep(mouth, size).run()
            self._learn(mouth, open_)
        assert all(self.links.get(orphan) != id_ for orphan in open_)
        self._notice()

    @rule(fails=st.booleans(), dies_at=st.sampled_from([None, 0, 1, 3]))
    def run_handlers(self, fails: bool, dies_at: int | None) -> None:
        """Run handlers on what is linked; one of them fails, or dies with its process."""
        _HandlerFaults.fails, _HandlerFaults.dies_at = fails, dies_at
        make_due(self.db)
        with contextlib.suppress(_CrashError):
            mailglass_reconcile.dispatch()

    def _dispatch_all(self) -> None:
        """Run handlers without faults: each has then run once on each link of a known type."""
        _HandlerFaults.fails, _HandlerFaults.dies_at = False, None
        administration.retry(self.db.database)
        make_due(self.db)
        mailglass_reconcile.dispatch()
        assert set(states(self.db)) <= {"done"}
        links = {orphan for orphan in self.links if self.orphans[orphan]["type"] in KNOWN_TYPES}
        effects = Counter(
            (row.handler, row.id) for row in self.db.rows("SELECT handler, event_id::text AS id FROM witness.effects")
        )
        assert effects == dict.fromkeys(((name, id_) for id_ in links for name in ("steady", "fickle")), 1)

    def _notice(self) -> None:
        """Update which orphans, closed without triggers, a sweep has removed from the open set."""
        ids = {row.id for row in self.db.rows("SELECT event_id::text AS id FROM mailglass_open_orphans")}
        closed = self.unnoticed - ids
        self.unnoticed -= closed
        self.settled |= closed

    def teardown(self) -> None:
        """Prune and sweep once more without faults: the deliveries are what they would be without any race."""
        try:
            while self.late:
                self.end_late(True)
            self.mend()
            self.sweep(5, None, None)
            self._dispatch_all()
            sent = [*self.deliveries, *self.retired]
            reports: dict[str, list[Any]] = {delivery["id"]: [] for delivery in sent}
            for orphan, delivery in self.links.items():
                reports[delivery].append(self._report(orphan))
            now = {row.id: row.row for row in [*self.db.rows(_DELIVERIES), *self.db.rows(_PRUNED)]}
            for delivery in sent:
                random.Random(len(reports)).shuffle(reports[delivery["id"]])
                result = now[delivery["id"]]
                times = {k: oracle.moment(result[k]) for k in (*oracle.EARLIEST, "last_event_at")}
                result = {name: {**result, **times}[name] for name in oracle.PROJECTED}
                assert result == oracle.fold(delivery, reports[delivery["id"]])
        finally:
            for connection, _ in self.late:
                connection.close()
            with self.db.engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
                for table in ("events", "deliveries", "open_orphans", "open_orphan_ids", "handler_outbox"):
                    connection.exec_driver_sql(f"DELETE FROM mailglass_{table}")  # noqa: S608 - five fixed names
                connection.exec_driver_sql(
                    "TRUNCATE witness.events, witness.deliveries, witness.effects, witness.pruned"
                )


def test_any_schedule_ends_as_if_there_had_been_no_race(handler_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing schedule is printed with the command that replays it."""
    db = handler_db
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))
    on_event("*", name="steady")(_steady)
    on_event("*", name="fickle")(_fickle)
    register(db)
    db.run("ALTER TABLE mailglass_events DISABLE TRIGGER witness")
    db.run("ALTER TABLE mailglass_deliveries DISABLE TRIGGER witness")
    db.set_default("synchronous_commit", "off")
    # Ids of events are old from the start, as of a slow clock: a rule ages an event by its time of insertion.
    nanoseconds = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: nanoseconds() - AGED_NS)
    bound = type("Bound", (Schedule,), {"db": db})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    db.witness.sweeps.clear()
