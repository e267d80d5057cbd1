"""Erase a person: remove an address, in any spelling, from deliveries, open orphans and raw webhooks.

The ledger is append-only and does not change; our writers store no address there.
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
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import NIL, Database, Transaction
from mailglass_reconcile.store.tables import deliveries, personal_data
from mailglass_reconcile.store.tables.personal_data import PersonFilter

APPLICATION_METADATA = (
    "metadata that your application gave to append, to record_webhook, or to record_send for other recipients, and"
    " idempotency keys that it gave to append"
)
MAILGLASS_TABLES = (
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
        open_orphans: Open events that now have no recipient.
        webhook_events: Raw webhooks that were emptied.
        not_reached: A phrase for each place where the address may still be.
    """

    deliveries: int
    open_orphans: int
    webhook_events: int
    not_reached: tuple[str, ...]

    @property
    def rows(self) -> str:
        """The counts in words: `2 deliveries, 1 open orphan and 0 raw webhooks`."""
        deliveries = pluralize(self.deliveries, "delivery", "deliveries")
        orphans = pluralize(self.open_orphans, "open event")
        return f"{deliveries}, {orphans} and {pluralize(self.webhook_events, 'raw webhook')}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `erase --json` prints them."""
        return asdict(self)


class ErasureTarget(NamedTuple):
    """The normalized address to erase, and its tenant; None is all tenants."""

    address: str
    tenant_id: str | None

    @property
    def person(self) -> PersonFilter:
        """The filter by which the address's rows are found."""
        return PersonFilter(
            addresses.make_index_key(self.address), addresses.search_fragment(self.address), self.tenant_id
        )

    def is_recipient(self, _tx: Transaction, row: tuple[str, str]) -> bool:
        """Return True if a row's recipient is the address."""
        return addresses.normalize_address(row[1]) == self.address

    def is_named(self, tx: Transaction, row: tuple[str, bool]) -> bool:
        """Return True if a raw webhook contains the address; each is read alone, because it may have megabytes."""
        return row[1] and addresses.contains_recipient(personal_data.load_webhook_text(tx, row[0]), self.address)


def erase(connection: sa.Connection | Session, *, recipient: str, tenant_id: str | None = None) -> Erased:
    """Remove a person's address, in any spelling, from our tables.

    Deliveries stay, with a random recipient at `erased.invalid` and empty metadata. On tables that Mailglass made,
    only open events are changed. `docs/personal-data.md` lists what is not reached.

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
    target = validate_erasure(recipient, tenant_id)
    with use_caller_transaction(connection, runtime.get_settings(), runtime.get_limits()) as tx:
        return _erase(lambda: nullcontext(tx), target)


def erase_with(database: Database, target: ErasureTarget, *, dry_run: bool = False) -> Erased:
    """Erase in batches, each in its own transaction, or count with *dry_run*; a second call continues."""
    with database.connect() as connected:
        with connected.reading() as tx:
            installed.require_migrated(tx)
        return _erase(connected.reading if dry_run else connected.writing, target, dry_run=dry_run)


def validate_erasure(recipient: object, tenant_id: object = None) -> ErasureTarget:
    """Validate the arguments of `erase`; the message of an InvalidEventError does not repeat the address."""
    address = validation.recipient("recipient", recipient) or ""
    if not addresses.contains_address(address) or address.endswith(addresses.ERASED):
        raise InvalidEventError("recipient must be an e-mail address, such as ada@example.com")
    return ErasureTarget(
        addresses.normalize_address(address),
        None if tenant_id is None else validation.stored_tenant("tenant_id", tenant_id),
    )


def _erase(begin: Begin, target: ErasureTarget, *, dry_run: bool = False) -> Erased:
    erase_pages = partial(_erase_pages, begin, target.person, dry_run=dry_run)
    with begin() as tx:
        is_mailglass = installed.is_made_by_mailglass(tx)
    orphans = erase_pages(personal_data.page_of_open_orphans, target.is_recipient, personal_data.erase_open_orphans)
    if is_mailglass:
        return Erased(0, orphans, 0, (APPLICATION_METADATA, MAILGLASS_TABLES))
    deliveries = _erase_deliveries(begin, target, dry_run=dry_run)
    webhooks = erase_pages(personal_data.page_of_webhook_events, target.is_named, personal_data.erase_webhook_events)
    return Erased(deliveries, orphans, webhooks, (APPLICATION_METADATA,))


def _erase_deliveries(begin: Begin, target: ErasureTarget, *, dry_run: bool) -> int:
    """Erase the deliveries batch by batch, and return their number; our index has no order in which to page them."""
    with begin() as tx:
        size = tx.limits.batch_rows
        ids = [row[0] for row in personal_data.find_deliveries(tx, target.person) if target.is_recipient(tx, row)]
    for start in () if dry_run else range(0, len(ids), size):
        with begin() as tx:  # all writers lock deliveries in the order of ids
            personal_data.erase_deliveries(tx, deliveries.lock(tx, ids[start : start + size]))
    return len(ids)


def _erase_pages(
    begin: Begin,
    person: PersonFilter,
    read: Callable[[Transaction, PersonFilter, str, int], Sequence[tuple[str, Any]]],
    matches: Callable[[Transaction, Any], bool],
    erase_rows: Callable[[Transaction, Sequence[str]], None],
    *,
    dry_run: bool,
) -> int:
    """Erase the matching rows page by page, and return their number; a row begins with its id."""
    erased, after = 0, NIL
    while True:
        with begin() as tx:
            size = tx.limits.batch_rows
            page = read(tx, person, after, size)
            matching = [row[0] for row in page if matches(tx, row)]
            if matching and not dry_run:
                erase_rows(tx, matching)
        erased += len(matching)
        if len(page) < size:
            return erased
        after = page[-1][0]
