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
        "the engine's errors quote parameters",
        "mailglass_reconcile/store/database.py",
        "        hide_parameters=True,\n",
        "",
        "store/test_engine.py",
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
        "mailglass_reconcile/sweep/batch.py",
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
)
"""Each by itself."""
