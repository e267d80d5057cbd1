"""Which orphans a sweep looks at, and in which order: those with keys of which one names a delivery, then those
without keys; what the database has refused before comes last, so that it holds nobody up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import eligible, schema, slices
from mailglass_reconcile.store.database import Transaction, by_scans
from mailglass_reconcile.store.eligible import Group, Marks, Survey
from mailglass_reconcile.store.model import Open, Slice
from mailglass_reconcile.store.slices import SLICE_ORPHANS

PROBE_US, SCAN_US, PAGE_US = 5.0, 0.5, 10.0
"""Microseconds, as measured: to probe for one orphan's ids; to hash one; to read 8 kB of either table."""


LOOK_BACK_SECONDS = 2.0
"""A recent sweep looks at what arrived during the last two seconds, or three ticks if that is longer."""
DUE_AGES = (4, 8, 16, 32, 64, 128, 256)
"""Seconds after its arrival at which a recent sweep looks at an orphan again: at 256, full sweeps have taken over."""
DUE_TICKS = 2
"""So that a tick may come a whole interval late, and nothing that became due meanwhile is missed."""
AHEAD_SECONDS = 300.0
"""How far ahead of the database's clock an arrival may be: the trigger's own tolerance."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a sweep: a slice of which either the orphans with keys are looked at, or those without."""

    rest: Slice
    keyed: bool
    orphans: int


@dataclass(slots=True)
class Window:
    """What is eligible, as the survey saw it.

    Attributes:
        survey: The window's bounds, and the state of the schema.
        whole: All of it, as one slice.
        eligible: How many orphans are open in it.
        groups: The same by rule, tenant and provider.
        unmatchable: How many of them have keys without any usable id.
        marks: Which stored keys are out of date.
        parts: What must be looked at, in order.
    """

    survey: Survey
    whole: Slice
    eligible: int
    groups: list[Group]
    unmatchable: int
    marks: Marks
    parts: list[Part] = field(default_factory=list)


def survey(
    tx: Transaction,
    settings: Settings,
    marks: Mapping[str, str],
    any_provider: str,
    tenant_id: str | None,
    bounds: tuple[str | None, str | None] = (None, None),
    recent: float | None = None,
) -> Window:
    """Look at what will be swept, and at the schema.

    Args:
        tx: A read-only transaction.
        settings: Grace and maximum age.
        marks: The mark of each provider's rule in this process.
        any_provider: The mark of the rule of every other provider.
        tenant_id: Of this tenant only; None is all tenants.
        bounds: Of what arrived after the first time and until the second only; both as Postgres writes them.
        recent: Seconds between recent sweeps: what is new or due again, in its grace or not; None: what is eligible.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    ages = None if recent is None else due_ages(recent)
    seen = eligible.survey(tx, settings, ages=ages, after=bounds[0], until=bounds[1])
    schema.require_current(seen.version)
    if not seen.indexed:
        raise SchemaOutdatedError(
            "the index mailglass_deliveries_reconcile_idx is missing or incomplete: run `mailglass-reconcile migrate`"
        )
    whole = seen.window(tenant_id)
    known = [provider for provider in marks if marks[provider] != any_provider]
    groups = eligible.groups(tx, whole, Marks((), any_provider, known)) if can_be(tenant_id) else []
    stale = {group.rule for group in groups if group.rule and _is_stale(group.rule, marks, any_provider)}
    window = Window(
        seen,
        whole,
        sum(group.orphans for group in groups),
        groups,
        sum(group.unmatchable for group in groups if group.rule not in stale),
        Marks(stale, any_provider, known),
    )
    for refused in (False, True):
        of_these = [group for group in groups if group.refused == refused]
        without = sum(g.orphans if g.rule is None or g.rule in stale else g.better_known for g in of_these)
        keyed = sum(group.orphans for group in of_these) - without
        piece = replace(whole, refused=refused)
        window.parts += [Part(piece, True, keyed)] if keyed else []
        window.parts += [Part(piece, False, without)] if without else []
    return window


def due_ages(interval: float) -> list[tuple[float, float]]:
    """Return the ages at which orphans are new or due again, as ranges: the older end, the younger end, in seconds.

    They are disjoint, and the oldest comes first.

    Args:
        interval: Seconds between recent sweeps.
    """
    ranges = [(max(LOOK_BACK_SECONDS, 3 * interval), -AHEAD_SECONDS)]
    for age in DUE_AGES:
        older, younger = ranges[-1]
        if age <= older:
            ranges[-1] = (max(older, age + DUE_TICKS * interval), younger)
        else:
            ranges.append((age + DUE_TICKS * interval, age))
    return ranges[::-1]


def seconds_for(interval: float) -> float:
    """Return how long a recent sweep may take: a burst is left to the next ones, and to the full sweep."""
    return max(LOOK_BACK_SECONDS, interval)


def can_be(tenant_id: str | None) -> bool:
    """Whether a row can have this tenant: Postgres stores neither NUL nor half a surrogate pair."""
    return tenant_id is None or not ("\x00" in tenant_id or any("\ud800" <= c <= "\udfff" for c in tenant_id))


def _is_stale(mark: str, marks: Mapping[str, str], any_provider: str) -> bool:
    """Whether keys with *mark* must be computed again; not if this process does not know their provider's rule."""
    provider = mark.rpartition("/")[0]
    current = any_provider if provider == any_provider.rpartition("/")[0] else marks.get(provider)
    return current is not None and mark != current


def next_orphans(tx: Transaction, window: Window, parts: Sequence[Part]) -> tuple[list[Open], list[Part]]:
    """Return the next orphans of *parts*, at most a slice, and what is left of them."""
    part, *others = parts
    if not part.keyed:
        found = slices.without_keys(tx, part.rest, window.marks)
    elif _by_scans(window, part):
        with by_scans(tx):
            found = slices.naming_by_scans(tx, part.rest, window.marks)
    else:
        found = slices.naming(tx, part.rest, window.marks)
    if len(found) < SLICE_ORPHANS:
        return found, others
    left = part.orphans - (0 if part.keyed else len(found))
    return found, [Part(replace(part.rest, after=found[-1].place), part.keyed, left), *others]


def _by_scans(window: Window, part: Part) -> bool:
    """Whether both tables are better read once than probed for each orphan.

    Decided from the tables' sizes: statistics may be stale, and then a planner's guess costs minutes.
    """
    if len(part.rest.ranges) > 1:  # each range would read them again
        return False
    return part.orphans * PROBE_US > part.orphans * SCAN_US + window.groups[0].pages * PAGE_US


def by_delivery(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of orphan and delivery in their order, except that a delivery's stand together, behind its first.

    One batch then projects them at once.
    """
    together: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        together.setdefault(pair[1], []).append(pair)
    return list(chain.from_iterable(together.values()))
