"""What the steps of a sweep hand to each other.

Times and ids are texts as Postgres writes them: the ledger may hold times that no Python datetime can, and a
text goes back to Postgres as fast as it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mailglass_reconcile.rules.keys import Keys

LAST_EVENT = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Place(NamedTuple):
    """A place in the order of arrival."""

    arrived_at: str
    event_id: str


class Range(NamedTuple):
    """A range of arrival: after one time and until another; no orphans if the second is not the later one."""

    after: str
    until: str


EVER = (Range("-infinity", "infinity"),)


@dataclass(frozen=True, slots=True)
class Slice:
    """Open orphans after one place, up to another, of one tenant or, with None, of all.

    `refused` ones, whose link the database has refused before, are looked at by themselves and last. Of those in
    between, only what arrived in one of `ranges`, which are disjoint and stand in order.
    """

    after: Place
    until: Place
    tenant_id: str | None = None
    refused: bool = False
    ranges: tuple[Range, ...] = EVER

    def parameters(self) -> dict[str, object]:
        """Return the parameters that every statement on a slice has."""
        return {
            "after_time": self.after.arrived_at,
            "after_event": self.after.event_id,
            "until_time": self.until.arrived_at,
            "afters": array_literal(one.after for one in self.ranges),
            "untils": array_literal(one.until for one in self.ranges),
            "tenant_id": self.tenant_id,
            "refused": self.refused,
        }


class Open(NamedTuple):
    """An open orphan as its own row has it; without keys, `keys` is what its writer knew."""

    event_id: str
    tenant_id: str
    arrived_at: str
    keys: Keys

    @property
    def place(self) -> Place:
        """Where it stands in the order of arrival."""
        return Place(self.arrived_at, self.event_id)


class Named(NamedTuple):
    """A delivery that carries a candidate id."""

    candidate_id: str
    delivery_id: str
    tenant_id: str
    provider: str | None
    recipient: str


class Claimed(NamedTuple):
    """A claimed orphan, its locked delivery, and the `reconciled` event between them, by the id that it was to get.

    `appended` is false if the ledger did not take it, because the key `reconciled:<orphan id>` was held already;
    `occurred_at` is in ISO 8601; `keyed` says that the orphan has ids stored; it arrived `lag_seconds` ago.
    """

    reconciled_id: str
    appended: bool
    event_id: str
    delivery_id: str
    tenant_id: str
    arrived_at: str
    type: str
    occurred_at: str
    keyed: bool
    lag_seconds: float


class Report(NamedTuple):
    """An event as its delivery sees it; times in UTC."""

    delivery_id: str
    type: str
    occurred_at: str
    arrived_at: str
    event_id: str


class Link(NamedTuple):
    """A link: the `reconciled` event that was appended, and the orphan that it links to its delivery."""

    event_id: str
    orphan_id: str
    delivery_id: str
    tenant_id: str
    type: str
    occurred_at: str
    lag_seconds: float


def array_literal(texts: Iterable[str | None]) -> str:
    """Return a Postgres array as one text, which the driver hands over as it is; it dumps lists slowly."""
    return "{" + ",".join("NULL" if text is None else _quoted(text) for text in texts) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
