"""Erasing a person: an address leaves the deliveries, open orphans and raw webhooks, in any spelling.

The ledger is append-only and stays as it is; our writers put no address there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import validation
from mailglass_reconcile.rules import addresses
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store import deliveries, personal_data, schema
from mailglass_reconcile.store.caller_transaction import borrowed
from mailglass_reconcile.store.database import NIL, Database, Transaction
from mailglass_reconcile.store.personal_data import PersonFilter

BATCH_ROWS = 5_000

GIVEN = "metadata that your application gave to append, to record_webhook, or to record_send for other recipients"
MAILGLASS_S = (
    "Mailglass's own tables (mailglass_deliveries, mailglass_webhook_events, mailglass_suppressions, and what Mailglass"
    " wrote to mailglass_events): erase the address there as Mailglass provides for it"
)

Begin = Callable[[], AbstractContextManager[Transaction]]
"""Begins the transaction of one batch."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The rows that `erase` has changed.

    Attributes:
        deliveries: Deliveries that now have a random recipient and empty metadata.
        open_orphans: Open orphans that now have no recipient.
        webhook_events: Raw webhooks that were emptied.
        not_reached: Where the address may still be, each in words.
    """

    deliveries: int
    open_orphans: int
    webhook_events: int
    not_reached: tuple[str, ...]

    @property
    def rows(self) -> str:
        """What it was erased from, for a person."""
        deliveries = pluralize(self.deliveries, "delivery", "deliveries")
        orphans = pluralize(self.open_orphans, "open orphan")
        return f"{deliveries}, {orphans} and {pluralize(self.webhook_events, 'raw webhook')}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `erase --json` prints them."""
        return asdict(self)


class Wanted(NamedTuple):
    """A checked address, as it is compared, and the tenant; None is all."""

    address: str
    tenant_id: str | None

    @property
    def person(self) -> PersonFilter:
        """By what the rows are found."""
        return PersonFilter(
            addresses.make_index_key(self.address), addresses.search_fragment(self.address), self.tenant_id
        )

    def is_recipient(self, _tx: Transaction, row: tuple[str, str]) -> bool:
        """Whether a row's recipient is the address."""
        return addresses.normalize_address(row[1]) == self.address

    def is_named(self, tx: Transaction, row: tuple[str, bool]) -> bool:
        """Whether a raw webhook holds the address; one at a time is read, because each may have megabytes."""
        return row[1] and addresses.contains_recipient(personal_data.load_webhook_text(tx, row[0]), self.address)


def erase(connection: sa.Connection | Session, *, recipient: str, tenant_id: str | None = None) -> Erased:
    """Remove a person's address, in any spelling, from our tables.

    Deliveries stay, with a random recipient at `erased.invalid` and empty metadata. On tables that Mailglass made,
    only open orphans are changed. `docs/personal-data.md` lists what is not reached.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        recipient: The address, with or without a display name.
        tenant_id: Only this tenant; None is all tenants.

    Returns:
        The number of changed rows, and the places where the address may still be.

    Raises:
        InvalidEventError: *recipient* is not an e-mail address, or *tenant_id* cannot be used.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was erased, and the caller's own work is unaffected.
        TypeError: *connection* is something else.
    """
    wanted = check(recipient, tenant_id)
    with borrowed(connection, runtime.get_settings()) as tx:
        return _erase(lambda: nullcontext(tx), wanted)


def erase_with(database: Database, wanted: Wanted, *, dry_run: bool = False) -> Erased:
    """Erase in batches, each a transaction of its own, or count with *dry_run*; a second call does what is left."""
    with database.connect() as connected:
        with connected.reading() as tx:
            schema.require_migrated(tx)
        return _erase(connected.reading if dry_run else connected.writing, wanted, dry_run=dry_run)


def check(recipient: object, tenant_id: object = None) -> Wanted:
    """Check what `erase` is given; the message of an InvalidEventError does not repeat the address."""
    given = validation.recipient("recipient", recipient) or ""
    if not addresses.contains_address(given) or given.endswith(addresses.ERASED):
        raise InvalidEventError("recipient must be an e-mail address, such as ada@example.com")
    return Wanted(
        addresses.normalize_address(given), None if tenant_id is None else validation.name("tenant_id", tenant_id)
    )


def _erase(begin: Begin, wanted: Wanted, *, dry_run: bool = False) -> Erased:
    each = partial(_each, begin, wanted.person, dry_run=dry_run)
    with begin() as tx:
        is_mailglass_s = schema.is_made_by_mailglass(tx)
    orphans = each(personal_data.page_of_open_orphans, wanted.is_recipient, personal_data.erase_open_orphans)
    if is_mailglass_s:
        return Erased(0, orphans, 0, (GIVEN, MAILGLASS_S))
    deliveries = each(personal_data.page_of_deliveries, wanted.is_recipient, _erase_deliveries)
    webhooks = each(personal_data.page_of_webhook_events, wanted.is_named, personal_data.erase_webhook_events)
    return Erased(deliveries, orphans, webhooks, (GIVEN,))


def _erase_deliveries(tx: Transaction, ids: Sequence[str]) -> None:
    """Lock in the order of ids first, as all writers do."""
    personal_data.erase_deliveries(tx, deliveries.lock(tx, ids))


def _each(
    begin: Begin,
    person: PersonFilter,
    read: Callable[[Transaction, PersonFilter, str, int], Sequence[tuple[str, Any]]],
    is_meant: Callable[[Transaction, Any], bool],
    erase_rows: Callable[[Transaction, Sequence[str]], None],
    *,
    dry_run: bool,
) -> int:
    """Read page after page of rows, whose ids come first, and erase those that are meant; return how many."""
    erased, after = 0, NIL
    while True:
        with begin() as tx:
            page = read(tx, person, after, BATCH_ROWS)
            meant = [row[0] for row in page if is_meant(tx, row)]
            if meant and not dry_run:
                erase_rows(tx, meant)
        erased += len(meant)
        if len(page) < BATCH_ROWS:
            return erased
        after = page[-1][0]
