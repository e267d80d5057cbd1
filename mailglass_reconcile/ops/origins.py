"""Where an event's candidate ids come from: which of the places that its provider's rule reads holds what."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules import keys, providers
from mailglass_reconcile.store import candidates
from mailglass_reconcile.store.database import Transaction


class Origins(NamedTuple):
    """What the rule of an event's provider makes of the event.

    Attributes:
        provider: The event's provider, in its canonical spelling, or None if it names none that can be used.
        rule: The rule's mark, `provider/version`; None if the event names no provider.
        reads: Each place that is read, in order, with what it holds: `string`, `number`, … , or None for nothing.
        places: For each candidate id the place it comes from; an id that the rule makes of several is not here.
    """

    provider: str | None
    rule: str | None
    reads: tuple[tuple[str, str | None], ...]
    places: dict[str, str]


def of_event(tx: Transaction, event_id: str) -> Origins:
    """Read the places again, and let the rule make ids of each value alone."""
    values = candidates.of_events(tx, [event_id])[0]
    provider = keys.provider_of(values)
    if provider is None:
        return Origins(None, None, (), {})
    rule = providers.rule_of(provider)
    paths = (*keys.COMMON_READS, *rule.reads)
    found = candidates.at_paths(tx, [event_id], paths)[event_id]
    places: dict[str, str] = {}
    for number, (path, value) in enumerate(zip(paths, found, strict=True)):
        if value is not None:
            alone = [value if other == number else None for other in range(len(paths))]
            for id_ in keys.keys_of(values._replace(ids=alone), lambda sentence: None).candidate_ids:
                places.setdefault(id_, path)
    held = tuple((path, value and value.partition(":")[0]) for path, value in zip(paths, found, strict=True))
    return Origins(provider, rule.mark, held, places)
