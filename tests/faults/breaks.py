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
        "if not string.find(",
        "if false and not string.find(",
        "faults/test_faults_redis.py",
    ),
    _break(
        "no end to the patience with Redis",
        "mailglass_reconcile/pubsub.py",
        "if self._lost_seconds >= PATIENCE_SECONDS:",
        "if self._lost_seconds < 0:",
        "faults/test_faults_redis.py",
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
