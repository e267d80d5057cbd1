"""With Mailglass: whether recipients can be read, and whether its own reconciler still links."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.errors import docs_url
from mailglass_reconcile.mailglass_compat import raw_webhooks
from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, ok, warning
from mailglass_reconcile.rules.humanize import n_of_m, pluralize, verb
from mailglass_reconcile.store.database import Transaction, array_literal, uuid7_bounds
from mailglass_reconcile.store.tables import runs

HOUR_SECONDS = 3_600
EVENTS_OF_AN_HOUR = 20_000
TENANTS, EVENTS_OF_A_TENANT = 20, 1_000
DAYS = 7
DAY_SECONDS = 86_400
LINKS_OF_A_DAY = 100
"""Links of a day below which no share of them is reported."""
MOST_UNCHECKED = 0.1
"""Share of a day's links that may be made by the message id alone."""
TAKE_IT_OUT = "remove the line of Mailglass.Webhook.Reconciler from Oban's crontab"

# By the primary key, if ids are UUIDv7; and of the first tenants with orphans, by an index of Mailglass's. Its
# `inserted_at` may be local time, its `occurred_at` is UTC. Ours are both the time of the transaction.
_FOREIGN = """
WITH newest AS (
  (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
    WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :events)
   UNION
  SELECT e.id, e.type, e.occurred_at, e.inserted_at
    FROM (SELECT tenant_id FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1(CAST('' AS text))
           LIMIT :tenants) AS t
   CROSS JOIN LATERAL (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
                        WHERE tenant_id = t.tenant_id ORDER BY inserted_at DESC LIMIT :of_tenant) AS e
)
SELECT count(*) FROM newest
 WHERE type = 'reconciled' AND occurred_at IS DISTINCT FROM inserted_at
   AND occurred_at > now()::timestamp - make_interval(secs => :seconds)
"""


@check("other_reconciler")
def other_reconciler(context: CheckContext) -> Iterator[Finding]:
    """Mailglass's own reconciler no longer runs."""
    if not context.is_made_by_mailglass:
        yield ok("there is no Mailglass here")
        return
    bounds = {
        **uuid7_bounds(HOUR_SECONDS),
        "events": EVENTS_OF_AN_HOUR,
        "tenants": TENANTS,
        "of_tenant": EVENTS_OF_A_TENANT,
        "seconds": HOUR_SECONDS,
    }
    foreign = context.tx.execute(_FOREIGN, bounds).scalar_one()
    if foreign:
        yield warning(
            f"another program made {pluralize(foreign, 'link')} within an hour: Mailglass's own reconciler still"
            " runs. It links no event twice, but checks neither tenant nor recipient",
            TAKE_IT_OUT,
        )
    else:
        yield ok("no other reconciler has linked anything within an hour")


# Only a sweeper and the owner may delete open orphans. The sweeper of grants.sql is checked whoever runs this, because
# the owner can read everything.
_CANNOT_READ = """
SELECT quote_ident(r.rolname) AS role, quote_ident(:schema) AS schema
  FROM pg_roles AS r
 WHERE r.rolname IN (current_user, 'mailglass_sweeper')
   AND has_table_privilege(r.oid, to_regclass(:orphans), 'DELETE')
   AND EXISTS (SELECT FROM pg_attribute AS a
                WHERE a.attrelid = to_regclass(:webhooks) AND a.attname = ANY (CAST(:columns AS text[]))
                  AND NOT has_column_privilege(r.oid, a.attrelid, a.attnum, 'SELECT'))
 ORDER BY r.rolname = current_user DESC
 LIMIT 1
"""


@check("recipients", fast=True)
def recipients(context: CheckContext) -> Iterator[Finding]:
    """The role that sweeps may read the recipients that Mailglass's raw webhooks name."""
    if not context.is_made_by_mailglass:
        yield ok("there is no Mailglass here")
        return
    blind = _find_blind_role(context.tx)
    if blind is None:
        yield ok("recipients can be read from raw webhooks")
        return
    columns = ", ".join(raw_webhooks.COLUMNS)
    yield warning(
        f"role {blind.role} cannot read raw webhooks, so sweeps link by the message id alone: a Cc's bounce may be"
        " linked to the To's delivery, and a link cannot be undone",
        f"GRANT SELECT ({columns}) ON {blind.schema}.mailglass_webhook_events TO {blind.role}",
    )


def _find_blind_role(tx: Transaction) -> sa.Row[Any] | None:
    """Return the quoted names of a role that sweeps but may not read raw webhooks, and of their schema."""
    names = tx.names_of("open_orphans", "webhook_events")
    parameters = {
        "schema": tx.schema,
        "orphans": names["open_orphans"],
        "webhooks": names["webhook_events"],
        "columns": array_literal(raw_webhooks.COLUMNS),
    }
    return tx.execute(_CANNOT_READ, parameters).one_or_none()


@check("links")
def links(context: CheckContext) -> Iterator[Finding]:
    """The recipients of most events can be read; without its recipient, an event is linked by the message id alone."""
    if not context.is_made_by_mailglass:
        yield ok("there is no Mailglass here")
        return
    counts = runs.count_links(context.tx, DAY_SECONDS)
    is_unchecked = counts.linked >= LINKS_OF_A_DAY and counts.unchecked >= MOST_UNCHECKED * counts.linked
    # Without the privilege all are; that is the finding of `recipients`.
    if is_unchecked and _find_blind_role(context.tx) is None:
        yield warning(
            f"{n_of_m(counts.unchecked, counts.linked, 'link')} of the last day {verb(counts.unchecked, 'was', 'were')}"
            " made by the message id alone, because no raw webhook names the recipient: a Cc's bounce may be linked to"
            " the To's delivery",
            f"keep raw webhooks for {DAYS} days at least, and send one message per recipient; see"
            f" {docs_url('with-mailglass.md#recipients')}",
        )
    else:
        yield ok(
            f"of {pluralize(counts.linked, 'link')} of the last day, {counts.unchecked:,} without a known recipient"
        )
