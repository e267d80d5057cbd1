"""What an orphan's keys are computed from, and the keys once they are known: one row per candidate id."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mailglass_reconcile.rules.keys import Keys, Values
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import array_literal

_OF_EVENTS = """
SELECT e.id::text, jsonb_typeof(p.provider) || ':' || left(btrim(p.provider #>> '{}'), 513),
       jsonb_typeof(e.metadata -> 'recipient') || ':' || left(btrim(e.metadata ->> 'recipient'), 513),
       jsonb_typeof(e.metadata -> 'email') || ':' || left(btrim(e.metadata ->> 'email'), 513),
       coalesce(e.metadata -> 'recipient_known' = 'true', false)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 CROSS JOIN LATERAL (
         SELECT coalesce(nullif(e.metadata -> 'provider', 'null'), e.normalized_payload -> 'provider') AS provider) AS p
"""

# One column per path: gathering them into an array costs several times as much.
_AT_PATHS = """
SELECT e.id::text,
       jsonb_typeof(v0) || ':' || left(btrim(v0 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v1) || ':' || left(btrim(v1 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v2) || ':' || left(btrim(v2 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v3) || ':' || left(btrim(v3 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v4) || ':' || left(btrim(v4 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v5) || ':' || left(btrim(v5 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v6) || ':' || left(btrim(v6 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v7) || ':' || left(btrim(v7 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v8) || ':' || left(btrim(v8 #>> '{}', E' \\t\\r\\n'), 513),
       jsonb_typeof(v9) || ':' || left(btrim(v9 #>> '{}', E' \\t\\r\\n'), 513)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 CROSS JOIN LATERAL (
         SELECT coalesce(e.metadata #> CAST(:m0 AS text[]), e.normalized_payload #> CAST(:n0 AS text[])) AS v0,
                coalesce(e.metadata #> CAST(:m1 AS text[]), e.normalized_payload #> CAST(:n1 AS text[])) AS v1,
                coalesce(e.metadata #> CAST(:m2 AS text[]), e.normalized_payload #> CAST(:n2 AS text[])) AS v2,
                coalesce(e.metadata #> CAST(:m3 AS text[]), e.normalized_payload #> CAST(:n3 AS text[])) AS v3,
                coalesce(e.metadata #> CAST(:m4 AS text[]), e.normalized_payload #> CAST(:n4 AS text[])) AS v4,
                coalesce(e.metadata #> CAST(:m5 AS text[]), e.normalized_payload #> CAST(:n5 AS text[])) AS v5,
                coalesce(e.metadata #> CAST(:m6 AS text[]), e.normalized_payload #> CAST(:n6 AS text[])) AS v6,
                coalesce(e.metadata #> CAST(:m7 AS text[]), e.normalized_payload #> CAST(:n7 AS text[])) AS v7,
                coalesce(e.metadata #> CAST(:m8 AS text[]), e.normalized_payload #> CAST(:n8 AS text[])) AS v8,
                coalesce(e.metadata #> CAST(:m9 AS text[]), e.normalized_payload #> CAST(:n9 AS text[])) AS v9) AS v
"""

PATHS = 10

_POSTMARK_RECIPIENTS = """
SELECT e.id::text, coalesce(left(w.raw_payload ->> 'Recipient', 513), left(w.raw_payload ->> 'Email', 513))
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
  JOIN {schema}.mailglass_webhook_events AS w
    ON w.provider = 'postmark' AND w.provider_event_id = e.metadata ->> 'provider_event_id'
   AND w.tenant_id IS NOT DISTINCT FROM e.tenant_id
"""

_HOLD = """
SELECT o.event_id::text, o.rule IS NOT NULL AS keyed,
       EXISTS (SELECT FROM {schema}.mailglass_events AS r
                WHERE r.idempotency_key = 'reconciled:' || o.event_id
                  AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM o.tenant_id) AS settled
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.id
   FOR UPDATE OF o SKIP LOCKED
"""

_STORE = """
UPDATE {schema}.mailglass_open_orphans AS o
   SET provider = k.provider, recipient = coalesce(o.recipient, k.recipient), rule = k.rule,
       ids = cardinality(string_to_array(k.ids, E'\\x1f')), recipient_lost = o.recipient IS NULL AND k.lost
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:recipients AS text[]),
              CAST(:rules AS text[]), CAST(:ids AS text[]), CAST(:lost AS boolean[]))
       AS k (event_id, provider, recipient, rule, ids, lost)
 WHERE o.event_id = k.event_id
"""

_STORE_IDS = """
INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT k.event_id, c.position, c.id
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:ids AS text[])) AS k (event_id, ids)
 CROSS JOIN LATERAL unnest(string_to_array(k.ids, E'\\x1f')) WITH ORDINALITY AS c (id, position)
"""


# The ledger's trigger has put the orphans there; if it has not, they are put there now.
_REMEMBER = """
WITH known AS (
  SELECT * FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:recipients AS text[]),
                       CAST(:rules AS text[]), CAST(:ids AS text[]), CAST(:lost AS boolean[]))
                AS k (event_id, provider, recipient, rule, ids, lost)
), kept AS (
  INSERT INTO {schema}.mailglass_open_orphans AS o
         (event_id, tenant_id, arrived_at, provider, recipient, rule, ids, recipient_lost)
  SELECT event_id, :tenant_id, now()::timestamp, provider, recipient, rule,
         cardinality(string_to_array(ids, E'\\x1f')), recipient IS NULL AND lost FROM known
      ON CONFLICT (event_id) DO UPDATE
     SET provider = excluded.provider, recipient = excluded.recipient, rule = excluded.rule, ids = excluded.ids,
         recipient_lost = excluded.recipient_lost
)
INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT k.event_id, c.position, c.id
  FROM known AS k CROSS JOIN LATERAL unnest(string_to_array(k.ids, E'\\x1f')) WITH ORDINALITY AS c (id, position)
"""


def of_events(tx: Transaction, event_ids: Sequence[str]) -> list[Values]:
    """Return what names each event's provider and recipient; `ids` is empty until `at_paths` is asked."""
    rows = tx.execute(_OF_EVENTS, {"event_ids": array_literal(event_ids)})
    return [Values(id_, provider, recipient, email, [], known) for id_, provider, recipient, email, known in rows.all()]


def at_paths(tx: Transaction, event_ids: Sequence[str], paths: Sequence[str]) -> dict[str, list[str | None]]:
    """Return, for each event, the JSON values at *paths*, each as its type and no more than 513 characters.

    Args:
        tx: A transaction of this package's scope.
        event_ids: The events.
        paths: At most `PATHS` paths `metadata/…` or `normalized_payload/…`.
    """
    parameters: dict[str, object] = {"event_ids": array_literal(event_ids)}
    for number in range(PATHS):
        column, *path = paths[number].split("/") if number < len(paths) else ("",)
        parameters[f"m{number}"] = array_literal(path) if column == "metadata" else None
        parameters[f"n{number}"] = array_literal(path) if column == "normalized_payload" else None
    return {id_: values[: len(paths)] for id_, *values in tx.execute(_AT_PATHS, parameters).all()}


def postmark_recipients(tx: Transaction, event_ids: Sequence[str]) -> dict[str, str]:
    """Return the recipients of Postmark's events whose raw webhook Mailglass still keeps."""
    rows = tx.execute(_POSTMARK_RECIPIENTS, {"event_ids": array_literal(event_ids)})
    return {event_id: recipient for event_id, recipient in rows.all() if recipient}


def store(tx: Transaction, computed: Mapping[str, Keys]) -> Collection[str]:
    """Store keys with the orphans that are still open, and return the ids of those that turned out to be settled.

    An orphan whose `reconciled` event was there before it is closed here. One that somebody holds is left alone.
    """
    held = tx.execute(_HOLD, {"event_ids": array_literal(computed)}).all()
    settled = [row.event_id for row in held if row.settled]
    open_orphans.close(tx, settled, [row.event_id for row in held if row.keyed])
    _store(tx, {row.event_id: computed[row.event_id] for row in held if not row.settled})
    return settled


def remember(tx: Transaction, tenant_id: str, known: Mapping[str, Keys]) -> None:
    """Keep with orphans that this transaction has inserted what their writer knows: keys and recipients."""
    tx.execute(_REMEMBER, {**_parameters(known), "tenant_id": tenant_id})


def _store(tx: Transaction, known: Mapping[str, Keys]) -> None:
    if not known:
        return
    parameters = _parameters(known)
    tx.execute(_STORE, parameters)
    tx.execute(_STORE_IDS, {name: parameters[name] for name in ("event_ids", "ids")})


def _parameters(known: Mapping[str, Keys]) -> dict[str, str]:
    return {
        "event_ids": array_literal(known),
        "providers": array_literal(keys.provider for keys in known.values()),
        "recipients": array_literal(keys.recipient for keys in known.values()),
        "rules": array_literal(keys.rule for keys in known.values()),
        "ids": array_literal("\x1f".join(keys.candidate_ids) for keys in known.values()),
        "lost": array_literal(str(keys.lost) for keys in known.values()),
    }
