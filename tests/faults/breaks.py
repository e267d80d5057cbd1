"""Ways to break the package on purpose, each with the tests that are to catch it."""

from __future__ import annotations

from dataclasses import dataclass

_LINES_OF_LINKS = (
    "        links += [Link(i, c.event_id, c.delivery_id, c.tenant_id, c.type, c.occurred_at) for i, c in new]\n"
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
        "  JOIN mailglass_events AS e ON e.id = l.event_id\n"
        "    ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
        "  JOIN mailglass_events AS e ON e.id = l.event_id\n",
        "faults/test_hostile_rows.py",
        "faults/test_faults_concurrency.py",
    ),
    Break(
        "published before the commit",
        (
            (
                "mailglass_reconcile/sweep/batch.py",
                _LINES_OF_LINKS,
                _LINES_OF_LINKS + "        projector.told = projector.broadcast(links, projector.publish)\n",
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
        "    if doubtful:\n",
        "    if doubtful and not doubtful:\n",
        "faults/test_faults_connection.py",
    ),
    Break(
        "no tenant in the match and the claim",
        (
            ("mailglass_reconcile/sweep/match.py", "d.tenant_id = p.tenant_id AS own", "true AS own"),
            (
                "mailglass_reconcile/store/open_orphans.py",
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
        "mailglass_reconcile/store/open_orphans.py",
        "FOR NO KEY UPDATE OF d SKIP LOCKED",
        "FOR NO KEY UPDATE OF d",
        "faults/test_faults_postgres.py",
    ),
    _break(
        "no `SKIP LOCKED` on open orphans",
        "mailglass_reconcile/store/open_orphans.py",
        "FOR UPDATE OF o SKIP LOCKED\n   FOR NO KEY",
        "FOR UPDATE OF o\n   FOR NO KEY",
        "faults/test_faults_postgres.py",
    ),
    _break(
        "no lock on deliveries at all",
        "mailglass_reconcile/store/open_orphans.py",
        "\n   FOR NO KEY UPDATE OF d SKIP LOCKED",
        "",
        "faults/test_faults_postgres.py",
        "faults/test_faults_concurrency.py",
    ),
    _break(
        "projected without the insert",
        "mailglass_reconcile/sweep/batch.py",
        " for id_, c in zip(ids, claimed, strict=True) if id_ in inserted]",
        " for id_, c in zip(ids, claimed, strict=True)]",
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
)
"""Each by itself."""
