"""The limits of work on a database."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a step of the work on a database reads, changes or has in memory, and how long it takes.

    No setting changes them; tests make them small.

    Attributes:
        slice_orphans: Orphans whose keys and match results are in memory at once, of two slices: about 10 MB.
        reading_seconds: Half of the 100 ms that a reading transaction of a sweep may last, because migrations wait for
            its locks on the tables.
        most_ids: Ids of one part that are in memory at once: 8 MB. What is new beyond them takes another pass.
        most_checked: Orphans that a recent sweep matches again, at most.
        named_groups: With more groups of tenants, small ones are added up under no name, so that memory stays bounded.
        small_bytes: An open-orphans table of this size is always read along its index of arrival.
        few_orphans: So many orphans are counted along the index of arrival; of more, the number follows from the
            table's size.
        held_seconds: Recent sweeps that did nothing share one row in this time: each would cost a write.
        ids_per_batch: Events and ids of calls that are looked up at once after their commits.
        batch_rows: Rows that one transaction reads or changes where all of a table are: in a prune, a repair, an
            erasure, `rekey`, and changes of handlers' jobs.
        retention_rows: Events that one transaction of retention scans; it also deletes the other events of their
            deliveries.
        handler_seconds: Seconds that each statement of a handler may take, and all of a handler's work on an event.
        register_seconds: Seconds after which a dispatcher registers its handlers again.
        most_orphans_read: Open orphans whose types one page compares, because only the ledger has them: about half a
            second.
        most_events_read: Orphans of the ledger, reconciled ones too, that one page of expired ones reads.
        most_counted: Open orphans that are counted by cause: a quarter of a second, or two if all are tenant
            mismatches.
        fast_timeout_ms: Milliseconds that a statement of the fast checks may take.
    """

    slice_orphans: int = 4_000
    reading_seconds: float = 0.05
    most_ids: int = 500_000
    most_checked: int = 2_000
    named_groups: int = 500
    small_bytes: int = 2**21
    few_orphans: int = 20_000
    held_seconds: float = 10.0
    ids_per_batch: int = 5_000
    batch_rows: int = 5_000
    retention_rows: int = 1_000
    handler_seconds: float = 30.0
    register_seconds: float = 60.0
    most_orphans_read: int = 20_000
    most_events_read: int = 5_000
    most_counted: int = 100_000
    fast_timeout_ms: int = 10_000


LIMITS = Limits()
