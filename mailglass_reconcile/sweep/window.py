"""What one sweep looks at, and in which order.

First, the newest first, comes what no sweep has checked, what matched and was left, and what has keys of a lower rank.
Then comes one ring, entered at a random row: mismatches, failed rules, and what a delivery may match by now. What the
database has refused before comes last, in the last tenth of the time. Progress is in the rows themselves, so a sweep
that ends early needs no memory, and nothing starves.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError, hint
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.matching import MATCHED, UNMATCHABLE, UNMATCHED
from mailglass_reconcile.rules.states import UNSEEN
from mailglass_reconcile.store import windows
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.open_orphans import LAST, Place
from mailglass_reconcile.store.windows import Group, Outdated, Slice, Survey

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """What is eligible, as a sweep saw it when it began.

    Attributes:
        survey: That moment, and the state of the schema.
        whole: All of it, as one slice.
        groups: How many orphans are open in it, by state, rule, tenant and provider.
        outdated: Which stored keys must be computed again.
    """

    survey: Survey
    whole: Slice
    groups: list[Group]
    outdated: Outdated

    @property
    def eligible(self) -> int:
        return sum(group.orphans for group in self.groups)

    @property
    def census(self) -> Counter[str | None]:
        """How many of them are in each stored state."""
        found: Counter[str | None] = Counter()
        for group in self.groups:
            found[group.state] += group.orphans
        return found

    @property
    def refused(self) -> int:
        """How many of them the database has refused before."""
        return sum(group.orphans for group in self.groups if group.refused)


class Part(NamedTuple):
    """Ids to judge, 16 bytes each, in order; `last` is as in `windows.Ids`."""

    packed: bytes
    last: Place | None = None
    refused: bool = False

    @property
    def orphans(self) -> int:
        return len(self.packed) // 16


def open_window(
    tx: Transaction,
    tenant_id: str | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    ages: Sequence[tuple[float, float]] | None = None,
) -> Window:
    """Return what a sweep will look at, of one tenant or, with None, of all.

    That is what is eligible; with *bounds*, of what arrived after the first time and until the second only, both as
    Postgres writes them; or with *ages*, as `windows.survey` takes them, what is of these ages, even in its grace.
    """
    seen = windows.survey(tx, ages=ages, bounds=bounds, counted=True)
    if not seen.indexed:
        missing = "the index mailglass_deliveries_reconcile_idx is missing or incomplete"
        raise SchemaOutdatedError(f"{missing}: run `mailglass-reconcile migrate`")
    whole = seen.whole(tenant_id)
    groups = windows.groups(tx, whole, _outdated(), seen.few)
    return Window(seen, whole, groups, _outdated(groups))


def _outdated(groups: Sequence[Group] = ()) -> Outdated:
    """Return which of the keys that *groups* have this process would compute again."""
    marks = {group.rule for group in groups if group.rule and providers.is_outdated(group.rule)}
    return Outdated(marks, providers.rule_of(providers.ANY_PROVIDER).mark, providers.known())


def parts(tx: Transaction, window: Window) -> list[Part]:
    """Return what to judge, in order; what the census says is empty is not looked for.

    All of it must be read in one snapshot, before anything is stored: what comes first has a state afterwards, and
    would come again in the ring. Of a ring of more than `windows.MOST_IDS`, the rest is left to other sweeps.
    """
    looked_at = [group for group in window.groups if not group.refused]
    found = []
    if any(_comes_first(group, window.outdated) for group in looked_at):
        found.append(next_part(tx, window, LAST))
    if any(_is_in_ring(group, window.outdated) for group in looked_at):
        found.append(_ring(tx, window))
    if window.refused:
        found.append(Part(_turned(windows.refused_ids(tx, window.whole)), refused=True))
    return [part for part in found if part.packed]


def next_part(tx: Transaction, window: Window, before: Place) -> Part:
    """Return what comes first, before a place in the order of arrival."""
    many = window.survey.few == windows.FEW
    return Part(*windows.first_ids(tx, window.whole, window.outdated, before, many=many))


def _comes_first(group: Group, outdated: Outdated) -> bool:
    return group.state in (None, MATCHED) or group.rule in outdated.marks or group.superseded > 0


def _is_in_ring(group: Group, outdated: Outdated) -> bool:
    if group.rule in outdated.marks or group.state in (None, MATCHED):
        return False
    return group.state != UNMATCHABLE or group.rule is None


def _ring(tx: Transaction, window: Window) -> Part:
    """Return the ring, entered at a random row; of one that is too large, from a random row to the end and around."""

    def ids(piece: Slice) -> bytes:
        return windows.ring_ids(tx, piece, window.outdated, window.eligible, stuck=stuck, unmatched=unmatched)

    states = {one.state for one in window.groups if not one.refused and _is_in_ring(one, window.outdated)}
    stuck, unmatched = bool(states - {UNMATCHED}), UNMATCHED in states
    found = ids(window.whole)
    if len(found) < 16 * windows.MOST_IDS:
        return Part(_turned(found))
    start = windows.any_place(tx, window.whole, window.eligible)
    found = ids(replace(window.whole, after=start))
    if len(found) < 16 * windows.MOST_IDS:
        found += ids(replace(window.whole, until=start))
    return Part(found[: 16 * windows.MOST_IDS])


def _turned(packed: bytes) -> bytes:
    """Return ids that begin with a random one of them, and go round."""
    count = len(packed) // 16
    turn = 16 * random.randrange(count) if count else 0  # noqa: S311 - fairness, no secret
    return packed[turn:] + packed[:turn]


def as_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return `state`, `tenant_id`, `provider` and `orphans` of what is open, the largest first."""
    found: Counter[tuple[str, str | None, str | None]] = Counter()
    for group in groups:
        found[group.state or UNSEEN, group.tenant_id, group.provider] += group.orphans
    return [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in found.most_common()
    ]


def warn(survey: Survey) -> None:
    """Log what an operator should know of the schema before anything is swept."""
    if not survey.triggers:
        found = "a trigger on mailglass_events is missing or disabled: new orphans are not noticed"
        logger.warning(hint(f"{found}: run `mailglass-reconcile migrate`"))
