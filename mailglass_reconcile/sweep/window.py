"""What one sweep looks at, and in which order.

What is new comes first, then the rest from where the last full sweep stopped; what the database has refused before is
last, so that it holds nothing up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError, hint
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import shown_tenant
from mailglass_reconcile.store import windows
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.open_orphans import FIRST, LAST, Place
from mailglass_reconcile.store.windows import Group, Outdated, Slice, Survey


class Position(NamedTuple):
    """How far full sweeps that could not finish have come.

    Attributes:
        covered: Everything that arrived until here was looked at since `since`, or will be before that ends.
        resume: Where to continue in that part; None is its beginning.
        since: When the first of these sweeps began, in UTC.
    """

    covered: Place
    resume: Place | None
    since: str

    def as_json(self) -> dict[str, Any]:
        """Return it as the run history keeps it."""
        return {"covered": self.covered, "resume": self.resume, "since": self.since}

    @classmethod
    def of_json(cls, kept: dict[str, Any] | None) -> Position | None:
        """Return what `as_json` made, or None."""
        if kept is None:
            return None
        resume = kept.get("resume")
        return cls(Place(*kept["covered"]), Place(*resume) if resume else None, kept["since"])


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a window: what is `fresh`, the `rest`, or what was `refused`; about how many orphans are open in it."""

    slice: Slice
    which: Literal["fresh", "rest", "refused"]
    orphans: int

    def after(self, place: Place) -> Part:
        """Return what of it comes after a place."""
        return replace(self, slice=replace(self.slice, after=place))


@dataclass(slots=True)
class Window:
    """What is eligible, as a sweep saw it when it began.

    Attributes:
        survey: That moment, and the state of the schema.
        whole: All of it, as one slice.
        position: Where the last full sweep stopped, if it did not finish.
        groups: How many orphans are open in it, by rule, tenant and provider.
        outdated: Which stored keys must be computed again.
        parts: What must be looked at, in order.
    """

    survey: Survey | None
    whole: Slice
    position: Position | None
    groups: list[Group]
    outdated: Outdated
    parts: list[Part] = field(default_factory=list)

    @property
    def eligible(self) -> int:
        """How many orphans are open in it."""
        return sum(group.orphans for group in self.groups)

    @property
    def unmatchable(self) -> int:
        """How many of them have current keys without any usable id: they need no look."""
        return sum(group.unmatchable for group in self.groups if group.rule not in self.outdated.marks)


def open_window(
    tx: Transaction,
    tenant_id: str | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    ages: Sequence[tuple[float, float]] | None = None,
    full: bool = False,
) -> Window:
    """Return what a sweep will look at.

    Args:
        tx: A reading transaction.
        tenant_id: Of this tenant only; None is all tenants.
        bounds: Of what arrived after the first time and until the second only; both as Postgres writes them.
        ages: Of these ages only, even in their grace, as `windows.survey` takes them; None is what is eligible.
        full: Whether a full sweep begins, which continues where the last one stopped if that did not finish.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    seen = windows.survey(
        tx,
        ages=ages,
        after=bounds[0],
        until=bounds[1],
        full=full,
        counted=True,
        tenant_id=shown_tenant(tenant_id),
    )
    if not seen.indexed:
        raise SchemaOutdatedError(
            hint(
                "the index mailglass_deliveries_reconcile_idx is missing or incomplete: "
                "run `mailglass-reconcile migrate`"
            )
        )
    whole = seen.whole(tenant_id)
    of_any = Outdated((), providers.rule_of(providers.ANY_PROVIDER).mark, providers.known())
    position = Position.of_json(seen.position)
    groups = windows.groups(tx, whole, of_any, position.covered if position else FIRST, seen.few)
    marks = {group.rule for group in groups if group.rule and providers.is_outdated(group.rule)}
    window = Window(seen, whole, position, groups, of_any._replace(marks=marks))
    window.parts = [part for part in _parts(whole, groups, position) if part.orphans]
    return window


def _parts(whole: Slice, groups: Sequence[Group], position: Position | None) -> list[Part]:
    usual = [group for group in groups if not group.refused]
    orphans, fresh = sum(group.orphans for group in usual), sum(group.fresh for group in usual)
    refused = Part(replace(whole, refused=True), "refused", sum(g.orphans for g in groups if g.refused))
    if position is None:
        return [Part(whole, "fresh", orphans), refused]
    parts = [Part(replace(whole, after=position.covered), "fresh", fresh)]
    resume = position.resume or whole.after
    parts += [Part(replace(whole, after=resume, until=position.covered), "rest", orphans - fresh)]
    if position.resume:
        parts += [Part(replace(whole, until=position.resume), "rest", orphans - fresh)]
    return [*parts, refused]


def of_events(orphans: int) -> Window:
    """Return the window of a sweep over given events."""
    group = Group(None, False, None, None, False, orphans, 0, 0, 0)
    return Window(None, Slice(FIRST, LAST, ()), None, [group], Outdated((), "", ()))


def next_position(swept: Window, survey: Survey, part: Part, reached: Place | None) -> Position:
    """Return where the next full sweep continues.

    Args:
        swept: The window of a sweep that has stopped.
        survey: What it saw when it began.
        part: The part in which it stopped, fresh or rest.
        reached: The last place that it looked at there, or None.
    """
    before = swept.position
    since = before.since if before else survey.now
    if part.which == "fresh":
        return Position(reached or part.slice.after, before.resume if before else None, since)
    return Position(swept.whole.until, reached or part.slice.after, since)
