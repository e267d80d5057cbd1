"""Open orphans by state, tenant and provider: what the survey counted, corrected by what was examined since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from mailglass_reconcile.store.eligible import Group
from mailglass_reconcile.sweep.examination import Examined

Whose = tuple[str | None, str | None]

OTHERS: Whose = (None, None)
"""The tenants and providers that the survey has added up, because there are very many."""


class Census:
    """Counts open orphans; those of which nothing else is known are unmatched."""

    def __init__(self, groups: Iterable[Group], stale: Collection[str | None]) -> None:
        """Begin with what a survey found; keys of *stale* rules say nothing yet."""
        self._counts: Counter[tuple[str, Whose]] = Counter()
        self._named: set[Whose] = set()
        self._tenants: set[str | None] = set()
        for group in groups:
            unmatchable = 0 if group.rule in stale else group.unmatchable
            whose = (group.tenant_id, group.provider)
            self._counts["unmatched", whose] += group.orphans - unmatchable
            self._counts["unmatchable", whose] += unmatchable
            if not group.small:
                self._named.add(whose)
                self._tenants.add(group.tenant_id)

    def examined(self, found: Iterable[Examined], linked: Collection[str] = ()) -> None:
        """Correct the counts by the verdict on each orphan; those in *linked* are open no longer."""
        for one in found:
            whose = (one.orphan.tenant_id, one.orphan.keys.provider)
            self._counts["unmatched", whose if whose in self._named else OTHERS] -= 1
            if one.orphan.event_id not in linked:
                named = one.orphan.tenant_id in self._tenants
                self._counts[one.verdict.state, (one.orphan.tenant_id, one.keys.provider) if named else OTHERS] += 1

    def as_groups(self) -> list[dict[str, Any]]:
        """Return `state`, `tenant_id`, `provider` and `orphans` of each group, the largest first."""
        return [
            {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
            for (state, (tenant_id, provider)), orphans in self._counts.most_common()
            if orphans > 0
        ]
