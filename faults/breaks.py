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
        "mailglass_reconcile/ledger.py",
        "  JOIN mailglass_events AS e ON e.id = l.event_id\n"
        "    ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
        "  JOIN mailglass_events AS e ON e.id = l.event_id\n",
        "test_hostile_rows.py",
        "test_faults_concurrency.py",
    ),
    Break(
        "published before the commit",
        (
            (
                "mailglass_reconcile/batch.py",
                _LINES_OF_LINKS,
                _LINES_OF_LINKS + "        projector.told = projector.broadcast(links, projector.publish)\n",
            ),
            (
                "mailglass_reconcile/reconciler.py",
                "                outcome = link_batch(",
                "                projector.publish = self._publisher.publish\n                outcome = link_batch(",
            ),
            ("mailglass_reconcile/reconciler.py", _BROADCAST, "told = projector.told"),
        ),
        ("test_sweep.py",),
    ),
    _break(
        "published again after a COMMIT whose answer was lost: no look at what is there",
        "mailglass_reconcile/batch.py",
        "    if doubtful:\n",
        "    if doubtful and not doubtful:\n",
        "test_faults_connection.py",
    ),
    Break(
        "no tenant in the match and the claim",
        (
            ("mailglass_reconcile/linking.py", "d.tenant_id = p.tenant_id AS own", "true AS own"),
            (
                "mailglass_reconcile/open_orphans.py",
                "ON d.id = m.delivery_id AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id",
                "ON d.id = m.delivery_id",
            ),
        ),
        ("test_hostile_tenants.py",),
    ),
    _break(
        "no tenant in the match, which the claim then makes good",
        "mailglass_reconcile/linking.py",
        "d.tenant_id = p.tenant_id AS own",
        "true AS own",
        "test_hostile_tenants.py",
    ),
    _break(
        "no `SKIP LOCKED` on deliveries",
        "mailglass_reconcile/open_orphans.py",
        "FOR NO KEY UPDATE OF d SKIP LOCKED",
        "FOR NO KEY UPDATE OF d",
        "test_faults_postgres.py",
    ),
    _break(
        "no `SKIP LOCKED` on open orphans",
        "mailglass_reconcile/open_orphans.py",
        "FOR UPDATE OF o SKIP LOCKED\n   FOR NO KEY",
        "FOR UPDATE OF o\n   FOR NO KEY",
        "test_faults_postgres.py",
    ),
    _break(
        "no lock on deliveries at all",
        "mailglass_reconcile/open_orphans.py",
        "\n   FOR NO KEY UPDATE OF d SKIP LOCKED",
        "",
        "test_faults_postgres.py",
        "test_faults_concurrency.py",
    ),
    _break(
        "projected without the insert",
        "mailglass_reconcile/batch.py",
        " for id_, c in zip(ids, claimed, strict=True) if id_ in inserted]",
        " for id_, c in zip(ids, claimed, strict=True)]",
        "test_hostile_rows.py",
    ),
    _break(
        "a casting trigger: it takes the key for a UUID unseen",
        "alembic/versions/0001_open_orphans.py",
        "            ~ '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')\n",
        "            ~ '^reconciled:')\n",
        "test_hostile_rows.py",
    ),
    _break(
        "no halving of a batch that fails on its data",
        "mailglass_reconcile/batch.py",
        "            if len(part) > 1:\n",
        "            if len(part) > len(pairs):\n",
        "test_faults_postgres.py",
    ),
    _break(
        "a lost connection is not tried again",
        "mailglass_reconcile/batch.py",
        "            if not is_passing(error):\n",
        "            if error:\n",
        "test_faults_connection.py",
    ),
    _break(
        "a connection that is made anew has the server's default isolation",
        "mailglass_reconcile/database.py",
        "    connection.execution_options(isolation_level=ISOLATION)\n    with",
        "    with",
        "test_faults_connection.py",
    ),
    _break(
        "an orphan that was linked stays in the open set",
        "mailglass_reconcile/batch.py",
        "        open_orphans.close(connection, (c.event_id for c in claimed))\n",
        "",
        "test_faults_connection.py",
    ),
    _break(
        "a replica's OK is believed",
        "mailglass_reconcile/pubsub.py",
        "if not string.find(",
        "if false and not string.find(",
        "test_faults_redis.py",
    ),
    _break(
        "no end to the patience with Redis",
        "mailglass_reconcile/pubsub.py",
        "if self._lost_seconds >= PATIENCE_SECONDS:",
        "if self._lost_seconds < 0:",
        "test_faults_redis.py",
    ),
    _break(
        "a tenant's name goes into its channel as it is",
        "mailglass_reconcile/pubsub.py",
        'tenant = quote(tenant_id, safe="").replace("~", "%7E")',
        "tenant = tenant_id",
        "test_hostile_tenants.py",
    ),
    _break(
        "an error that quotes the database's own words",
        "mailglass_reconcile/errors.py",
        'DatabaseRefusedError(f"the database refused a statement (SQLSTATE {state})")',
        'DatabaseRefusedError(f"the database refused a statement: {error}")',
        "test_secrets.py",
    ),
    _break(
        "the reason of a refused row in the log",
        "mailglass_reconcile/batch.py",
        'it stays open", part[0][0], sqlstate(error))',
        'it stays open", part[0][0], error)',
        "test_secrets.py",
    ),
    _break(
        "no lock timeout",
        "mailglass_reconcile/database.py",
        '"lock_timeout": str(lock_timeout_ms)',
        '"lock_timeout": "0"',
        "test_faults_resources.py",
    ),
    _break(
        "the last event is the one that is linked last",
        "mailglass_reconcile/projector.py",
        "(s.standing > :own, s.occurred_at, s.standing)\n"
        "           > (held.standing > :own, d.last_event_at, held.standing) AS pointer",
        "true AS pointer",
        "test_state_machine.py",
    ),
)
"""Each by itself."""
