"""What the steps of a sweep hand to each other.

Times and ids are texts as Postgres writes them: the ledger may hold times that no Python datetime can, and a
text goes back to Postgres as fast as it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

SEPARATOR = "\x1f"
"""Stands between ids, and between paths, in one parameter; neither holds a control character."""

LAST_EVENT = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Keys(NamedTuple):
    """What an orphan is matched by: its provider, its candidate ids in order, its recipient if known."""

    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None


class Values(NamedTuple):
    """JSON values of one event that its keys are computed from, each as `type:text`, None or empty where absent."""

    event_id: str
    provider: str | None
    recipient: str | None
    email: str | None
    ids: list[str]


class Survey(NamedTuple):
    """What a sweep sees when it begins: the window of eligible arrivals, its size, and the state of the schema."""

    after: str
    until: str
    eligible: int
    triggers: bool
    version: str | None


class Place(NamedTuple):
    """A place in the order of arrival."""

    arrived_at: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Open orphans after one place, up to another, of one tenant or, with None, of all."""

    after: Place
    until: Place
    tenant_id: str | None

    def parameters(self) -> dict[str, object]:
        """Return the parameters that every statement on a slice has."""
        return {
            "after_time": self.after.arrived_at,
            "after_event": self.after.event_id,
            "until_time": self.until.arrived_at,
            "until_event": self.until.event_id,
            "tenant_id": self.tenant_id,
        }


class Claimed(NamedTuple):
    """A claimed orphan and its locked delivery; `occurred_at` in ISO 8601."""

    event_id: str
    delivery_id: str
    tenant_id: str
    arrived_at: str
    type: str
    occurred_at: str


class Report(NamedTuple):
    """An event as its delivery sees it; times in UTC."""

    delivery_id: str
    type: str
    occurred_at: str
    arrived_at: str


class Link(NamedTuple):
    """A link: the `reconciled` event that was appended, and the orphan that it links to its delivery."""

    event_id: str
    orphan_id: str
    delivery_id: str
    tenant_id: str
    type: str
    occurred_at: str


def array_literal(texts: Iterable[str | None]) -> str:
    """Return a Postgres array as one text, which the driver hands over as it is; it dumps lists slowly."""
    return "{" + ",".join("NULL" if text is None else _quoted(text) for text in texts) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def keys_parameters(computed: Mapping[str, Keys]) -> dict[str, object]:
    """Return keys by event id as four arrays of equal length, for `unnest`."""
    return {
        "event_ids": array_literal(computed),
        "providers": array_literal(key.provider for key in computed.values()),
        "candidate_ids": array_literal(SEPARATOR.join(key.candidate_ids) for key in computed.values()),
        "recipients": array_literal(key.recipient for key in computed.values()),
    }
