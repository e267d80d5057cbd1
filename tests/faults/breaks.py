"""Ways to break the package on purpose, each with the tests that are to catch it."""

from __future__ import annotations

from dataclasses import dataclass

_LINES_OF_LINKS = (
    "        doubt.links += [Link(i, c.event_id, c.delivery_id, c.tenant_id, c.type, c.occurred_at) for i, c in new]\n"
)
_BROADCAST = "told = projector.broadcast(outcome.links, self._publisher.publish)"


@dataclass(frozen=True)
class Break:
    """What is broken: in each file, a text that stands there once, and what takes its place."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def _break(name: str, file: str, old: str, new: str, *tests: str) -> Break:
    return Break(name, ((file, old, new),), tests)


BREAKS = (
    _break(
        "no `ON CONFLICT` when a link is appended",
        "mailglass_reconcile/store/ledger.py",
        "    FROM claimed\n      ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
        "    FROM claimed\n",
        "faults/test_hostile_rows.py",
        "faults/test_faults_concurrency.py",
    ),
    Break(
        "published before the commit",
        (
            (
                "mailglass_reconcile/sweep/batch.py",
                _LINES_OF_LINKS,
                _LINES_OF_LINKS + "        projector.told = projector.broadcast(doubt.links, projector.publish)\n",
            ),
            (
                "mailglass_reconcile/sweep/reconciler.py",
                "                outcome = link_batch(",
                "                projector.publish = self._publisher.publish\n                outcome = link_batch(",
            ),
            ("mailglass_reconcile/sweep/reconciler.py", _BROADCAST, "told = projector.told"),
        ),
        ("sweep/test_sweep.py",),
    ),
    _break(
        "published again after a COMMIT whose answer was lost: no look at what is there",
        "mailglass_reconcile/sweep/batch.py",
        "    if doubt.links:\n        if",
        "    if doubt.links and not doubt.links:\n        if",
        "faults/test_faults_connection.py",
    ),
    Break(
        "no tenant in the match and the claim",
        (
            ("mailglass_reconcile/sweep/match.py", "d.tenant_id = p.tenant_id AS own", "true AS own"),
            (
                "mailglass_reconcile/store/ledger.py",
                "ON d.id = m.delivery_id AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id",
                "ON d.id = m.delivery_id",
            ),
        ),
        ("faults/test_hostile_tenants.py",),
    ),
    _break(
        "no tenant in the match, which the claim then makes good",
        "mailglass_reconcile/sweep/match.py",
        "d.tenant_id = p.tenant_id AS own",
        "true AS own",
        "faults/test_hostile_tenants.py",
    ),
    _break(
        "no `SKIP LOCKED` on deliveries",
        "mailglass_reconcile/store/ledger.py",
        "FOR NO KEY UPDATE OF d SKIP LOCKED",
        "FOR NO KEY UPDATE OF d",
        "faults/test_faults_postgres.py",
    ),
    _break(
        "no `SKIP LOCKED` on open orphans",
        "mailglass_reconcile/store/ledger.py",
        "FOR UPDATE OF o SKIP LOCKED\n     FOR NO KEY",
        "FOR UPDATE OF o\n     FOR NO KEY",
        "faults/test_faults_postgres.py",
    ),
    _break(
        "no lock on deliveries at all",
        "mailglass_reconcile/store/ledger.py",
        "\n     FOR NO KEY UPDATE OF d SKIP LOCKED",
        "",
        "faults/test_faults_postgres.py",
        "faults/test_faults_concurrency.py",
    ),
    _break(
        "projected without the insert",
        "mailglass_reconcile/sweep/batch.py",
        "        new = [c for c in claimed if c.appended]\n",
        "        new = claimed\n",
        "faults/test_hostile_rows.py",
    ),
    _break(
        "a casting trigger: it takes the key for a UUID unseen",
        "alembic/versions/0001_open_orphans.py",
        "            ~ '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')\n",
        "            ~ '^reconciled:')\n",
        "faults/test_hostile_rows.py",
    ),
    _break(
        "the fate of a COMMIT is not waited for",
        "mailglass_reconcile/sweep/batch.py",
        "            if not in_progress(tx, doubt.xact_id):\n",
        "            if doubt:\n",
        "faults/test_faults_standby.py",
    ),
    _break(
        "an object of another role's is taken for ours",
        "mailglass_reconcile/store/migration/state.py",
        "    if found:\n        objects",
        "    if not found and found:\n        objects",
        "store/test_trust.py",
    ),
    _break(
        "policies hide rows from us",
        "mailglass_reconcile/store/database.py",
        "       set_config('row_security', 'off', true),\n       set_config('array_nulls', 'on', true),\n"
        "       set_config('lock_timeout'",
        "       set_config('row_security', 'on', true),\n       set_config('array_nulls', 'on', true),\n"
        "       set_config('lock_timeout'",
        "store/test_trust.py",
    ),
    _break(
        "a migration does not get past an autovacuum",
        "mailglass_reconcile/store/migration/steps.py",
        "                    self._shut_out_autovacuum(tx)\n",
        '                    tx.execute(_IMPATIENCE, {"milliseconds": str(LOCK_TIMEOUT_MS)})\n',
        "store/test_busy_migration.py",
    ),
    _break(
        "a forgotten schema makes a second set of tables",
        "mailglass_reconcile/store/migration/preflight.py",
        "            _refuse_second_set(tx)\n",
        "            pass\n",
        "store/test_beside_mailglass.py",
    ),
    _break(
        "an infinite arrival is believed",
        "alembic/versions/0001_open_orphans.py",
        " OR NOT isfinite(NEW.inserted_at)\n",
        "\n",
        "store/test_arrival.py",
    ),
    _break(
        "an event of any type closes an orphan",
        "alembic/versions/0001_open_orphans.py",
        "  WHEN (NEW.type = 'reconciled'\n        AND current_setting",
        "  WHEN (current_setting",
        "store/test_arrival.py",
    ),
    _break(
        "the prune believes a forged `reconciled` event",
        "mailglass_reconcile/store/repair.py",
        "                          AND type = 'reconciled' AND tenant_id = c.tenant_id)\n",
        "                       )\n",
        "store/test_arrival.py",
    ),
    _break(
        "an orphan that the trigger did not see arrived at its session's local time",
        "mailglass_reconcile/store/repair.py",
        "              THEN m.made_at\n",
        "              THEN p.inserted_at\n",
        "store/test_arrival.py",
    ),
    _break(
        "no halving of a batch that fails on its data",
        "mailglass_reconcile/sweep/batch.py",
        "            if len(part) > 1:\n",
        "            if len(part) > len(pairs):\n",
        "faults/test_faults_postgres.py",
    ),
    _break(
        "a lost connection is not tried again",
        "mailglass_reconcile/sweep/batch.py",
        "            if not is_passing(error):\n",
        "            if error:\n",
        "faults/test_faults_connection.py",
    ),
    _break(
        "a connection that is made anew has the server's default isolation",
        "mailglass_reconcile/store/database.py",
        "    connection.execution_options(isolation_level=ISOLATION)\n    with",
        "    with",
        "faults/test_faults_connection.py",
    ),
    _break(
        "an orphan that was linked stays in the open set",
        "mailglass_reconcile/sweep/batch.py",
        "        open_orphans.close(connection, (c.event_id for c in claimed))\n",
        "",
        "faults/test_faults_connection.py",
    ),
    _break(
        "a replica's OK is believed",
        "mailglass_reconcile/pubsub.py",
        "if not string.find(replication",
        "if false and not string.find(replication",
        "faults/test_faults_redis.py",
    ),
    _break(
        "no end to the patience with Redis",
        "mailglass_reconcile/pubsub.py",
        "self._patience -= max(",
        "self._patience -= 0 * max(",
        "faults/test_faults_redis.py",
        "faults/test_faults_publishing.py",
    ),
    _break(
        "an answer that is slow costs nothing",
        "mailglass_reconcile/pubsub.py",
        "HEALTHY_SECONDS = 0.01",
        "HEALTHY_SECONDS = 10",
        "faults/test_faults_publishing.py",
    ),
    _break(
        "an application's client is used as it is, with its retries",
        "mailglass_reconcile/pubsub.py",
        "        self._client = impatient(client)\n        self._script",
        "        self._client = client\n        self._script",
        "faults/test_faults_publishing.py",
    ),
    _break(
        "without the right to ask, a replica is taken for a master",
        "mailglass_reconcile/pubsub.py",
        '_PUBLISH_IF_WRITABLE = "#!lua flags=allow-oom" + _PUBLISH',
        "_PUBLISH_IF_WRITABLE = _PUBLISH",
        "faults/test_faults_publishing.py",
    ),
    _break(
        "a tenant's name goes into its channel as it is",
        "mailglass_reconcile/pubsub.py",
        'tenant = quote(tenant_id, safe="").replace("~", "%7E")',
        "tenant = tenant_id",
        "faults/test_hostile_tenants.py",
    ),
    _break(
        "an error that quotes the database's own words",
        "mailglass_reconcile/errors.py",
        'DatabaseRefusedError(f"the database refused a statement (SQLSTATE {state})")',
        'DatabaseRefusedError(f"the database refused a statement: {error}")',
        "faults/test_secrets.py",
    ),
    _break(
        "the reason of a refused row in the log",
        "mailglass_reconcile/sweep/batch.py",
        'it stays open", part[0][0], sqlstate(error))',
        'it stays open", part[0][0], error)',
        "faults/test_secrets.py",
    ),
    _break(
        "no lock timeout",
        "mailglass_reconcile/store/database.py",
        '"lock_timeout": str(lock_timeout_ms)',
        '"lock_timeout": "0"',
        "faults/test_faults_resources.py",
    ),
    _break(
        "the last event is the one that is linked last",
        "mailglass_reconcile/projector.py",
        "(s.standing > :own, s.occurred_at, s.standing)\n"
        "           > (held.standing > :own, d.last_event_at, held.standing) AS pointer",
        "true AS pointer",
        "faults/test_state_machine.py",
    ),
    _break(
        "an error of a writer is not undone to a savepoint",
        "mailglass_reconcile/store/database.py",
        "    with connection.begin_nested():\n",
        "    if connection:\n",
        "record/test_sessions.py",
    ),
    _break(
        "a connection in autocommit mode is taken",
        "mailglass_reconcile/store/database.py",
        'if getattr(connection.connection.dbapi_connection, "autocommit", False):',
        "if False:",
        "record/test_sessions.py",
    ),
    _break(
        "a writer does not lock deliveries in the order of their ids",
        "mailglass_reconcile/projector.py",
        "ORDER BY id FOR NO KEY UPDATE",
        "ORDER BY id DESC FOR NO KEY UPDATE",
        "record/test_locking.py",
    ),
    _break(
        "events are inserted in the order in which they came",
        "mailglass_reconcile/store/ledger.py",
        ' ORDER BY n.idempotency_key COLLATE "C"\n',
        "",
        "record/test_locking.py",
    ),
    _break(
        "a delivery that is gone when it is to be locked is taken for there",
        "mailglass_reconcile/record/webhooks.py",
        "if delivery_id in locked else entry",
        "if delivery_id else entry",
        "record/test_sessions.py",
    ),
    _break(
        "an event id without its tenant",
        "mailglass_reconcile/record/drafts.py",
        "json.dumps([tenant_id, provider,",
        "json.dumps([provider,",
        "record/test_identity.py",
    ),
    _break(
        "an event's key is joined with colons",
        "mailglass_reconcile/record/drafts.py",
        "identity = json.dumps([tenant_id, provider, provider_event_id, number])",
        'identity = f"{tenant_id}:{provider}:{provider_event_id}:{number}"',
        "record/test_identity.py",
    ),
    _break(
        "`append` takes keys that are ours",
        "mailglass_reconcile/record/events.py",
        "if text.startswith(RESERVED_KEYS):",
        "if text in RESERVED_KEYS:",
        "record/test_refusals.py",
    ),
    _break(
        "a refusal quotes a key that is an address",
        "mailglass_reconcile/record/storing.py",
        'return "…" if _is_address(key) else repr(',
        "return repr(",
        "record/test_refusals.py",
    ),
    _break(
        "a recipient leaves no flag in the ledger",
        "mailglass_reconcile/record/drafts.py",
        '**({"recipient_known": True} if recipient else {}),',
        "",
        "record/test_personal_data.py",
    ),
    _break(
        "`Email` goes into the ledger, `email` does not",
        "mailglass_reconcile/record/drafts.py",
        "return name.strip().lower()",
        "return name",
        "record/test_personal_data.py",
    ),
    _break(
        "a session publishes when a savepoint is released",
        "mailglass_reconcile/record/sessions.py",
        "if pending is None or pending.connection.in_transaction():",
        "if pending is None:",
        "record/test_broadcasts.py",
    ),
    _break(
        "a savepoint that was rolled back keeps its messages",
        "mailglass_reconcile/record/sessions.py",
        "            del self.messages[self._marks.get(name, 0) :]\n",
        "            pass\n",
        "record/test_broadcasts.py",
    ),
    _break(
        "a session that was rolled back keeps its messages",
        "mailglass_reconcile/record/sessions.py",
        "session.info.pop(_KEY, None) if transaction.parent is None else None",
        "None",
        "record/test_broadcasts.py",
    ),
    _break(
        "a session publishes in its event loop",
        "mailglass_reconcile/record/sessions.py",
        "loop.run_in_executor(None, _publish_or_log, messages)",
        "_publish_or_log(messages)",
        "record/test_broadcasts.py",
    ),
    _break(
        "a time a little later than arrival counts as arrival",
        "mailglass_reconcile/projector.py",
        "r.occurred_at - interval '5 minutes' > r.arrived_at",
        "r.occurred_at > r.arrived_at",
        "test_projection.py",
    ),
    _break(
        "a lock that nobody will free is believed",
        "mailglass_reconcile/singleton/lock.py",
        "and left > 0 and left <= ARGV[3] * 1000",
        "",
        "singleton/test_hostile_lock.py",
    ),
    _break(
        "a run is known by its task's id alone",
        "mailglass_reconcile/singleton/lock.py",
        'return f"{uuid4().hex}:{task_id}"',
        "return task_id",
        "singleton/test_hostile_lock.py",
    ),
    _break(
        "the thread that renews a lock never ends",
        "mailglass_reconcile/singleton/lock.py",
        "            done.set()\n",
        "",
        "singleton/test_hostile_lock.py",
    ),
    _break(
        "a forked child uses its parent's connections",
        "mailglass_reconcile/runtime.py",
        "_Configured.engine.dispose(close=False)",
        "pass",
        "singleton/test_hostile_lock.py",
    ),
    _break(
        "a tenant argument goes into a task's result as it is",
        "mailglass_reconcile/tasks.py",
        '"tenant_id": _shown(tenant_id)}',
        '"tenant_id": tenant_id}',
        "singleton/test_worker_log.py::test_the_result_shows_a_tenant_argument_in_one_line_and_cut",
    ),
    _break(
        "the engine's errors quote parameters",
        "mailglass_reconcile/store/database.py",
        "        hide_parameters=True,\n",
        "",
        "store/test_engine.py",
    ),
    _break(
        "the garbage collector stays off after a sweep that broke off",
        "mailglass_reconcile/sweep/reconciler.py",
        "    try:\n        yield\n    finally:\n        gc.enable()\n",
        "    yield\n    gc.enable()\n",
        "sweep/test_sweep.py",
    ),
    _break(
        "a control character in an id",
        "mailglass_reconcile/sweep/keys.py",
        'in ("Cc", "Cs")',
        'in ("Cs",)',
        "sweep/test_key_bounds.py",
    ),
    _break(
        "a batch is tried once more than it should",
        "mailglass_reconcile/store/database.py",
        "ATTEMPTS = 4\n",
        "ATTEMPTS = 5\n",
        "sweep/test_attempts.py",
    ),
    _break(
        "a test's PostgreSQL gets the environment of whoever starts it",
        "mailglass_reconcile/testing/postgres.py",
        'env={"PATH": os.defpath, "LC_ALL": "C"},',
        "env=None,",
        "testing/test_servers.py",
    ),
    _break(
        "the deliveries of one API call commit one after the other",
        "mailglass_reconcile/demo/traffic.py",
        "self._open.get(mail.message_id)\n",
        "(self._open.pop(mail.message_id, None) and None)\n",
        "demo/test_demo.py",
    ),
    _break(
        "a slice may be read whole and sorted",
        "mailglass_reconcile/store/database.py",
        '"sorts": "off" if probes_only and read_only else "on"',
        '"sorts": "on"',
        "sweep/test_plans.py",
    ),
    _break(
        "orphans without keys in the order of their texts",
        "mailglass_reconcile/store/open_orphans.py",
        "ORDER BY o.arrived_at, o.event_id LIMIT :size\n",
        "ORDER BY arrived_at, event_id LIMIT :size\n",
        "sweep/test_plans.py",
    ),
    _break(
        "a question to a wide id may use another index",
        "mailglass_reconcile/store/deliveries.py",
        "tenant_id < q.tenant_id AND num_nulls(provider) = 1",
        "tenant_id < q.tenant_id AND provider IS NULL",
        "sweep/test_plans.py",
    ),
    _break(
        "the environment's encoding until a transaction begins",
        "mailglass_reconcile/store/database.py",
        '            "client_encoding": "utf8",\n',
        "",
        "sweep/test_cost.py",
    ),
    _break(
        "late commits count as eligible",
        "mailglass_reconcile/sweep/result.py",
        "still_open = max(0, min(still_open, eligible - linked_here))",
        "still_open = max(0, still_open)",
        "sweep/test_counts.py",
    ),
    _break(
        "keys of a process without the rule are taken for good",
        "mailglass_reconcile/sweep/windows.py",
        "known = [provider for provider in marks if marks[provider] != any_provider]",
        "known: list[str] = []",
        "sweep/test_healing.py",
    ),
    _break(
        "a recipient that was lost is no obstacle",
        "mailglass_reconcile/sweep/match.py",
        "    if wanted.lost:\n",
        "    if wanted.lost and not wanted.lost:\n",
        "sweep/test_match.py",
        "faults/test_state_machine.py",
    ),
)
"""Each by itself."""
