"""Breaks of central functions, each of which a quick test should notice.

`make broken` applies each of them to a copy of the package; `breaks.txt` says which test failed.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Break(NamedTuple):
    """A break of one function.

    Attributes:
        name: What is wrong then.
        file: The broken file.
        folders: The folders of `tests/` whose quick tests should notice, the likeliest first.
        old: A text that occurs once in the file.
        new: Its replacement.
    """

    name: str
    file: str
    folders: tuple[str, ...]
    old: str
    new: str

    @property
    def digest(self) -> str:
        """The digest of the edit, which `breaks.txt` has too."""
        return hashlib.sha256(repr((self.file, self.old, self.new)).encode()).hexdigest()[:8]


SWEEP = ("sweep", "record", "stories", "handlers")
RECORD = ("record", "contrib", "stories", "sweep")
SCHEMA = (
    "sweep",
    "record",
    "store",
    "handlers",
    "mailglass_compat",
    "stories",
    "faults",
    "contrib",
    "ops",
    "test_projector.py",
)
RULES = ("rules", "sweep", "record")
STORE = ("store", "faults", "sweep", "record", "ops")
HANDLERS = ("handlers", "stories")
PUBSUB = ("pubsub", "sweep", "stories")
RECEIVER = ("receiver", "providers", "contrib", "stories")
PROVIDERS = ("providers", "receiver", "contrib")
DOCTOR = ("ops", "monitoring", "web", "cli", "stories")

# fmt: off
BREAKS = (
    Break("the dispatcher skips a claimed row that another one reads", "alembic/schema/handlers.sql", SCHEMA,
          " AND o.handler = handler_name\n",
          " AND o.handler = handler_name AND o.event_id = (SELECT x.event_id FROM"
          " {schema}.mailglass_handler_outbox AS x WHERE x.event_id = event FOR UPDATE SKIP LOCKED)\n"),

    Break("a link is appended without ON CONFLICT", "alembic/schema/linking.sql", SCHEMA,
          "      FROM claimed\n"
          "        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
          "      FROM claimed\n"),
    Break("an event that was not inserted is projected", "alembic/schema/linking.sql", SCHEMA,
          "    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE\n", "    SELECT * FROM claimed\n"),
    Break("the claim of a link does not compare tenants", "alembic/schema/linking.sql", SCHEMA,
          " AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id\n", "\n"),
    Break("two lists are joined pair by pair", "alembic/schema/linking.sql", SCHEMA,
          "    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE\n",
          "    SELECT * FROM claimed WHERE id IN (SELECT id FROM appended)\n"),
    Break("orphans are not closed in the rest of the transaction of a link", "alembic/schema/linking.sql", SCHEMA,
          "  PERFORM set_config('mailglass_reconcile.closes_orphans', 'off', true);\n", ""),
    Break("a link waits for an orphan that another session has locked", "alembic/schema/linking.sql", SCHEMA,
          "FOR UPDATE OF o SKIP LOCKED", "FOR UPDATE OF o"),
    Break("a link waits for a delivery that another session has locked", "alembic/schema/linking.sql", SCHEMA,
          "FOR NO KEY UPDATE OF d SKIP LOCKED", "FOR NO KEY UPDATE OF d"),
    Break("the id of an SES webhook is copied with its address", "alembic/schema/linking.sql", SCHEMA,
          "CASE WHEN starts_with(e.metadata ->> 'provider_event_id', (e.metadata ->> 'sns_message_id') || ':')",
          "CASE WHEN false"),
    Break("the mark of a looked-up recipient is copied to the link", "alembic/schema/linking.sql", SCHEMA,
          "CASE WHEN starts_with(e.idempotency_key, 'webhook:') THEN m.metadata - 'recipient_checked'",
          "CASE WHEN false THEN m.metadata"),
    Break("the jobs of handlers are enqueued in no order", "alembic/schema/enqueued.sql", SCHEMA,
          "     ORDER BY r.event_id, h.handler\n", ""),
    Break("the ids of a closed orphan with one id stay", "alembic/schema/linking.sql", SCHEMA,
          "WHERE c.ids > 0", "WHERE c.ids > 1"),

    Break("the trigger believes an infinite arrival", "alembic/schema/open_orphans.sql", SCHEMA,
          " OR NOT isfinite(NEW.inserted_at)\n", "\n"),
    Break("an event of any type closes an orphan", "alembic/schema/open_orphans.sql", SCHEMA,
          "  WHEN (NEW.type = 'reconciled'\n"
          "        AND current_setting",
          "  WHEN (current_setting"),

    Break("a final state ends with the next report", "alembic/schema/projection.sql", SCHEMA,
          "         terminal = d.terminal OR c.terminal,\n", "         terminal = c.terminal,\n"),

    Break("an appended event does not lock its delivery", "alembic/schema/recording.sql", SCHEMA,
          "tenant_id IS NOT DISTINCT FROM n.tenant_id FOR KEY SHARE)", "tenant_id IS NOT DISTINCT FROM n.tenant_id)"),
    Break("a serialization failure of a send is swallowed", "alembic/schema/recording.sql", SCHEMA,
          "'{08,25,40,53,57,58,XX}'", "'{08,25,53,57,58,XX}'"),
    Break("a webhook does not lock its deliveries", "alembic/schema/recording.sql", SCHEMA,
          "WHERE id = n.delivery_id FOR NO KEY UPDATE)", "WHERE id = n.delivery_id)"),
    Break("the events of a webhook are appended in no order", "alembic/schema/recording.sql", SCHEMA,
          '      FROM n ORDER BY idempotency_key COLLATE "C"\n', "      FROM n\n"),
    Break("the state is kept of an orphan whose delivery existed", "alembic/schema/recording.sql", SCHEMA,
          "CASE WHEN delivery_id IS NULL THEN state END", "state"),
    Break("the provider of another delivery with the id is ignored", "alembic/schema/recording.sql", SCHEMA,
          "(num_nulls(d.provider) = 1 OR d.provider = ANY (CAST(spellings AS text[])))",
          "d.provider = ANY (CAST(spellings AS text[]))"),
    Break("sends are appended in no order", "alembic/schema/recording.sql", SCHEMA,
          'NOT (SELECT any_open FROM early) ORDER BY key COLLATE "C"\n', "NOT (SELECT any_open FROM early)\n"),
    Break("the messages of sends are locked in no order", "alembic/schema/recording.sql", SCHEMA,
          'WHERE provider IS NOT NULL ORDER BY message_id COLLATE "C"\n', "WHERE provider IS NOT NULL\n"),
    Break("the deliveries of a webhook are locked in no order", "alembic/schema/recording.sql", SCHEMA,
          "             ORDER BY delivery_id) AS n", "             ) AS n"),
    Break("the message of a missing privilege is dropped", "alembic/schema/recording.sql", SCHEMA,
          "'message', CASE error_state WHEN '42501' THEN message END", "'message', NULL"),

    Break("a prune takes old events of a delivery whose latest one is young",
          "alembic/schema/retention.sql", SCHEMA,
          "AND NOT {schema}.mailglass_reconcile_is_old_event_v1(e.id, e.inserted_at, days)\n", "AND false\n"),
    Break("a prune deletes events whose id alone is old",
          "alembic/schema/retention.sql", ("store",),
          "       AND inserted_at OPERATOR(pg_catalog.<) {schema}.mailglass_reconcile_days_ago_v1(days)\n$$", "$$"),
    Break("an event changes a column that an index of deliveries has",
          "alembic/schema/mailglass.sql", ("store",),
          "(tenant_id, (COALESCE(provider, '')), inserted_at, id)",
          "(tenant_id, (COALESCE(provider, '')), inserted_at, id, last_event_at)"),
    Break("a prune takes old events of a delivery to which one is being appended",
          "alembic/schema/retention.sql", ("stories", "store"),
          "ORDER BY d.id FOR UPDATE SKIP LOCKED) AS l;", "ORDER BY d.id FOR NO KEY UPDATE SKIP LOCKED) AS l;"),

    Break("an event of another tenant counts as the link of an orphan",
          "alembic/schema/readers.sql", ("store", "handlers"),
          " AND (r.tenant_id OPERATOR(pg_catalog.=) orphan_tenant) IS TRUE", ""),

    Break("the connection of a failed handler is used again", "mailglass_reconcile/handlers/execution.py", HANDLERS,
          "            self._discard(connection)\n"
          "            raise",
          "            raise"),
    Break("a conflict that a handler hides counts as its failure",
          "mailglass_reconcile/handlers/execution.py", HANDLERS,
          "candidate for candidate in (error, error.__context__) if candidate is not None",
          "candidate for candidate in (error,) if candidate is not None"),
    Break("an erased recipient is passed to a handler", "mailglass_reconcile/handlers/execution.py", HANDLERS,
          "None if job.recipient and job.recipient.endswith(ERASED) else job.recipient", "job.recipient"),
    Break("a handler may compute for ever", "mailglass_reconcile/handlers/execution.py", HANDLERS,
          "    if time.monotonic() - began > seconds:\n"
          "        raise HandlerTimeoutError\n",
          ""),
    Break("a coroutine that a handler returns is not closed", "mailglass_reconcile/handlers/execution.py", HANDLERS,
          "        if inspect.iscoroutine(result):\n"
          "            result.close()\n",
          ""),
    Break("a handler that returns an asynchronous generator succeeds",
          "mailglass_reconcile/handlers/execution.py", HANDLERS,
          " or inspect.isasyncgen(result)", ""),

    Break("a link may be twice as late", "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "if lag > context.max_lag_seconds:", "if lag > 2 * context.max_lag_seconds:"),
    Break("several events of another tenant are a warning only", "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "number >= SEVERAL", "number > SEVERAL"),
    Break("events of a wrong tenant are an error although others of it were linked",
          "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          " and latest_links.get(tenant_id, math.inf) > age_seconds[tenant_id]", ""),
    Break("a misrouted campaign is a warning where other tenants' events are linked",
          "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "latest_links.get(tenant_id, math.inf) > age_seconds[tenant_id]",
          "min(latest_links.values(), default=math.inf) > age_seconds[tenant_id]"),
    Break("a misrouted campaign is a warning where its tenant had a link before",
          "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "latest_links.get(tenant_id, math.inf) > age_seconds[tenant_id]", "tenant_id not in latest_links"),
    Break("many events without an id are a warning only", "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "without_id >= MANY", "without_id > MANY"),
    Break("a misspelled provider is no finding", "mailglass_reconcile/ops/checks/backlog.py", DOCTOR,
          "if hint := provider_rules.mistyped(name):", "if hint := None:"),

    Break("dead jobs are no finding", "mailglass_reconcile/ops/checks/handlers.py", DOCTOR,
          "if facts.dead:", "if False:"),
    Break("failing jobs are no finding", "mailglass_reconcile/ops/checks/handlers.py", DOCTOR,
          "if facts.failing:", "if False:"),
    Break("a job may wait twice as long for its handler", "mailglass_reconcile/ops/checks/handlers.py", DOCTOR,
          "    if facts.overdue_seconds > HANDLERS_LATE_SECONDS:\n",
          "    if facts.overdue_seconds > 2 * HANDLERS_LATE_SECONDS:\n"),

    Break("beat may be late without an error", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "history.beat_age <= history.late_after(LATE_SECONDS)",
          "history.beat_age <= history.late_after(2 * LATE_SECONDS)"),
    Break("the full sweeps may be as late as the links", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "context.max_lag_seconds * 2 / 3", "context.max_lag_seconds"),
    Break("a failed sweep is no finding", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          'history.last.status == "failed":', 'history.last.status == "lost":'),
    Break("a sweep whose links were all refused is no finding", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "history.last.failed and not history.last.linked:", "False:"),
    Break("sweeps that always end at their deadline are no finding", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "if history.uncovered_seconds > allowed:", "if False:"),
    Break("the prune may be twice as late", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "if history.unpruned_seconds > PRUNE_LATE_SECONDS:", "if history.unpruned_seconds > 2 * PRUNE_LATE_SECONDS:"),
    Break("some lost broadcasts are a finding", "mailglass_reconcile/ops/checks/sweeps.py", DOCTOR,
          "last.publish_failed and not last.published:", "last.publish_failed:"),

    Break("replies to a failed batch are read as those to the next one",
          "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "connection.read_response(disconnect_on_error=True)", "connection.read_response(disconnect_on_error=False)"),
    Break("a publisher never backs off", "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "return time.monotonic() < self._backoff_until", "return False"),
    Break("a failure after a success is not logged", "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "self._backoff_until = self._warned_at = NEVER\n"
          "        if error",
          "self._backoff_until = NEVER\n"
          "        if error"),
    Break("a publisher that waits in vain does not back off", "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "        if not is_done and self._completed == before:  # the client's timeout is longer than a"
          " sweep waits\n"
          "            self.server.back_off(TimeoutError())\n",
          ""),
    Break("the accepted messages of another call are counted", "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "sum(accepted[start:end])", "sum(accepted[:end - start])"),
    Break("messages of one call are sent one by one", "mailglass_reconcile/pubsub/publisher.py", PUBSUB,
          "limit=MAX_WAITING_LINKS, batch=CHUNK_LINKS", "limit=MAX_WAITING_LINKS, batch=1"),

    Break("a body has no limit of bytes", "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "            if len(content) > limit:\n"
          "                raise BodyTooLargeError(\"the body is too large\")\n",
          ""),
    Break("all bodies together have no limit of bytes", "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "if self._used_bytes > self.budget_bytes:", "if False:"),
    Break("the memory of a finished body stays reserved", "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "        self._used_bytes -= body.size\n", ""),
    Break("a body may take for ever to arrive", "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "self.wait(body, self.body_seconds,", "self.wait(body, 1e9,"),
    Break("incomplete bodies have no limit", "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "if len(self._incomplete) > self.max_incomplete:", "if False:"),
    Break("a stranger evicts a body whose sender has proved a secret",
          "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "return body.verified, self._is_progressing(body), body.progress_at or 0.0",
          "return False, self._is_progressing(body), body.progress_at or 0.0"),
    Break("a large body of a stranger evicts one whose sender has proved a secret",
          "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "return body.verified, self._is_progressing(body), -body.size",
          "return False, self._is_progressing(body), -body.size"),
    Break("unverified bodies of one provider evict those of another",
          "mailglass_reconcile/receiver/admission.py", RECEIVER,
          "        if not body.verified:\n"
          "            ((",
          "        if False:\n"
          "            (("),
    Break("every webhook of a process waits for its certificate", "mailglass_reconcile/providers/certificates.py",
          PROVIDERS, "if may_wait and not self._is_waiting and time.monotonic() >= self._next_wait_at:",
          "if may_wait:"),
    Break("the oldest certificate is fetched first", "mailglass_reconcile/providers/certificates.py", PROVIDERS,
          "url, source = self._queue.popitem()",
          "source = self._queue.pop(url := next(iter(self._queue)))"),
    Break("an address that failed is tried again at once", "mailglass_reconcile/providers/certificates.py", PROVIDERS,
          "self._failures[source.url] = _Failure(time.monotonic(), type(error), str(error))", "pass"),

    Break("nobody hears that all webhooks are refused", "mailglass_reconcile/receiver/results.py", RECEIVER,
          "        if self.engine is not None and is_known", "        if False and is_known"),
    Break("refusals go on after an accepted webhook", "mailglass_reconcile/store/tables/refusals.py", RECEIVER,
          "coalesce(r.accepted_at >= r.since, false)", "false"),
    Break("a webhook is recorded without verification", "mailglass_reconcile/receiver/opening.py", RECEIVER,
          "        if not self.is_verified:\n            self.verify()\n", ""),
    Break("only the first of two secrets is tried", "mailglass_reconcile/receiver/opening.py", RECEIVER,
          "for secret in self._secrets:", "for secret in self._secrets[:1]:"),
    Break("a subscription is not confirmed", "mailglass_reconcile/receiver/opening.py", RECEIVER,
          "partial(definition.confirm, request) if definition.confirm else _do_nothing", "_do_nothing"),

    Break("a refused signature does not ask for a password", "mailglass_reconcile/receiver/refusals.py", RECEIVER,
          "if rejection_status == 401 else RETRY_AFTER", "if False else RETRY_AFTER"),
    Break("each refusal is logged", "mailglass_reconcile/receiver/refusals.py", RECEIVER,
          "if _throttle.allow((subject, cause)):", "if True:"),
    Break("a late body is refused for good", "mailglass_reconcile/receiver/refusals.py", RECEIVER,
          "408 if retry_status == 503 else retry_status", "408"),
    Break("a body that cannot be read is sent again and again", "mailglass_reconcile/receiver/refusals.py", RECEIVER,
          'Refusal(400, "the body cannot be read")', 'Refusal(503, "the body cannot be read")'),

    Break("a cancelled job is verified nevertheless", "mailglass_reconcile/receiver/verifier.py", RECEIVER,
          "            if not job.future.done():\n"
          "                self._running",
          "            if True:\n"
          "                self._running"),
    Break("verified and unverified bodies do not take turns", "mailglass_reconcile/receiver/verifier.py", RECEIVER,
          "self._next, self._other = self._other, self._next", "pass"),
    Break("the bodies of one provider are all verified before those of the next",
          "mailglass_reconcile/receiver/verifier.py", RECEIVER,
          "            del self._queues[provider]\n"
          "            if queue:\n"
          "                self._queues[provider] = queue  # at the end of the round\n",
          "            if not queue:\n"
          "                del self._queues[provider]\n"),
    Break("the thread takes the next job at once after a failed one",
          "mailglass_reconcile/receiver/verifier.py", RECEIVER,
          "            self._idle_until = now + (now - self._started_at)", "            self._idle_until = now"),

    Break("a call that is larger than the queue is dropped", "mailglass_reconcile/pubsub/background.py", RECORD,
          "(self._size and self._size + size > self._limit)", "self._size + size > self._limit"),

    Break("a send links orphans of other deliveries too", "mailglass_reconcile/record/sends.py", RECORD,
          "if (id_ := match.result.delivery_id) in new_delivery_ids and id_",
          "if (id_ := match.result.delivery_id) and id_"),
    Break("recipients of a send are looked up as they are spelled", "mailglass_reconcile/record/sends.py", RECORD,
          "recipients = {normalize_address(send.recipient) for send in new_sends}",
          "recipients = {send.recipient for send in new_sends}"),
    Break("a send does not look for orphans again after the commit", "mailglass_reconcile/record/sends.py", RECORD,
          "[LookUp(tenant_id, message_id=id_) for tenant_id, id_ in ids]", "[]"),
    Break("of two sends with one key the last is stored", "mailglass_reconcile/record/sends.py", RECORD,
          "for send in reversed(new_sends)}", "for send in new_sends}"),

    Break("the rule does not compare tenants", "mailglass_reconcile/rules/matching.py", RULES,
          "if delivery.tenant_id == tenant_id:", "if True:"),
    Break("an id with too many deliveries is compared nevertheless", "mailglass_reconcile/rules/matching.py", RULES,
          "if keys.lost or len(deliveries) > MOST_COMPARED:", "if keys.lost:"),
    Break("a recipient that was lost is ignored", "mailglass_reconcile/rules/matching.py", RULES,
          "if keys.lost or len(deliveries) > MOST_COMPARED:",
          "if len(deliveries) > MOST_COMPARED:"),
    Break("the next id is tried if the first one is ambiguous", "mailglass_reconcile/rules/matching.py", RULES,
          "        if of_tenant:\n"
          "            return _match_recipient(keys, of_tenant)",
          "        if of_tenant and (result := _match_recipient(keys, of_tenant)).delivery_id:\n"
          "            return result"),
    Break("keys of a higher rank are outdated", "mailglass_reconcile/rules/matching.py", RULES,
          "self.rank >= provider_rules.rank_of", "self.rank == provider_rules.rank_of"),
    Break("one more id than the limit is compared", "mailglass_reconcile/rules/matching.py", RULES,
          "if len(ids) == MAX_IDS:", "if len(ids) > MAX_IDS:"),
    Break("the message id 0 is dropped", "mailglass_reconcile/rules/matching.py", RULES,
          "or isinstance(value, bool) or value < 0:", "or isinstance(value, bool) or value <= 0:"),

    Break("a lock is waited for without end", "mailglass_reconcile/store/database.py", STORE,
          '"lock_timeout": str(max(1, lock_timeout_ms))', '"lock_timeout": "0"'),

    Break("a sweep writes a recipient back that was erased meanwhile",
          "mailglass_reconcile/store/tables/stored_keys.py", RECORD,
          "recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,",
          "recipient = coalesce(o.recipient, k.recipient),"),

    Break("a lost recipient is not marked", "mailglass_reconcile/store/tables/stored_keys.py", RECORD,
          "o.recipient_lost OR (o.recipient IS NULL AND k.lost)", "o.recipient_lost"),

    Break("a sweep of one tenant counts the orphans of all", "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)\n"
          "-- Those that pass",
          "     AND (CAST(:tenant_id AS text) IS NULL OR true)\n"
          "-- Those that pass"),
    Break("the rotation of checked orphans always starts at the oldest",
          "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "WHERE part = 1 AND CAST(:most_checked AS bigint) IS NULL ORDER BY random() LIMIT 1",
          "WHERE part = 1 AND CAST(:most_checked AS bigint) IS NULL ORDER BY arrived_at LIMIT 1"),
    Break("the rotation of refused orphans always starts at the oldest",
          "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "WHERE part = 2 AND CAST(:most_checked AS bigint) IS NULL ORDER BY random() LIMIT 1",
          "WHERE part = 2 AND CAST(:most_checked AS bigint) IS NULL ORDER BY arrived_at LIMIT 1"),
    Break("the groups of many tenants keep their names", "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "> :named_groups AS is_small", "> :named_groups + 1000000 AS is_small"),
    Break("a window never prefers scans", "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "return Window(row.after, row.until, row.triggers, row.indexed, by_scans)",
          "return Window(row.after, row.until, row.triggers, row.indexed, False)"),
    Break("an unseen orphan is late from its arrival on, not from the end of its grace",
          "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "(SELECT min(arrived_at) + make_interval(secs => :grace_seconds) FROM selected",
          "(SELECT min(arrived_at) FROM selected"),
    Break("status forgets events between the end of their grace and the next full sweep",
          "mailglass_reconcile/store/queries/selection.py", DOCTOR,
          "greatest(CAST(:covered_until AS timestamp),",
          "greatest(CAST(:covered_until AS timestamp), now()::timestamp - make_interval(secs => :grace_seconds),"),
    Break("one more checked orphan than the limit is matched", "mailglass_reconcile/store/queries/selection.py", SWEEP,
          "place < :most_checked", "place <= :most_checked"),

    Break("a link that conflicts is not counted as failed", "mailglass_reconcile/linking/link.py", SWEEP,
          "conflicting_ids = [event.event_id for event in claimed if not event.closed]",
          "conflicting_ids: list[str] = []"),
    Break("a link that waits for a lock counts as failed", "mailglass_reconcile/linking/link.py", SWEEP,
          "if sqlstate(error) == LOCK_NOT_AVAILABLE:", "if False:"),
    Break("a send keeps its transaction after a conflict in a link", "mailglass_reconcile/linking/link.py", SWEEP,
          "        if not is_data_error(error):\n"
          "            raise\n",
          ""),
    Break("a link records no lag", "mailglass_reconcile/linking/link.py", SWEEP,
          "        telemetry.record_lags(event.lag_seconds for event in linked)\n", ""),
    Break("a send links without a savepoint", "mailglass_reconcile/linking/link.py", SWEEP,
          "        with tx.connection.begin_nested():\n"
          "            claimed = ledger.link(tx, pairs, extra_metadata)",
          "        if True:\n"
          "            claimed = ledger.link(tx, pairs, extra_metadata)"),
    Break("an outage counts as an error of the rows", "mailglass_reconcile/linking/link.py", SWEEP,
          "return not is_outage(error)", "return True"),

    Break("an element that cannot be read loses its batch", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "except Exception as error:  # an element", "except ZeroDivisionError as error:  # an element"),
    Break("a webhook of which nothing can be read is accepted", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "if failures.total() == len(elements):", "if False:"),
    Break("an event without id and recipient is recorded", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "or formats.identify_or_warn(provider.name, event)\n", "or True\n"),
    Break("a body may be larger than its provider sends", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "if len(request.body) > provider.max_bytes:", "if False:"),
    Break("the white space around a secret is part of it", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "    return secret.strip()\n", "    return secret\n"),
    Break("names of headers are compared as they are spelled", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "{name.lower(): value for", "{name: value for"),
    Break("a provider is known by its canonical name only", "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "    name = provider_rules.canonical(provider)\n"
          "    return name in PROVIDERS",
          "    name = provider\n"
          "    return name in PROVIDERS"),
    Break("the modules of the application are not imported for an unknown provider",
          "mailglass_reconcile/providers/registry.py", PROVIDERS,
          "if not is_known(provider) and load_custom_providers:", "if False:"),

    Break("a statement passes an argument of another type to a function", "mailglass_reconcile/ops/prune_preview.py",
          STORE, "is_old_event_v1(e.id, e.inserted_at, CAST(:days AS integer))",
          "is_old_event_v1(e.id, e.inserted_at, :days)"),
    Break("a function passes an argument of unknown type to another", "alembic/schema/handlers.sql", STORE,
          "CAST('{}' AS float8[])", "'{}'"),
    Break("relations with our names are read whoever owns them", "mailglass_reconcile/store/database.py",
          ("stories", "store"), "checks_owners=not (self._has_checked_owners or is_of_catalog)", "checks_owners=False"),
    Break("functions with our names are called whoever owns them", "mailglass_reconcile/store/database.py",
          ("stories", "store"), "if place not in _trusted:", "if False:"),
)
