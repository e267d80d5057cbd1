"""What each of some open orphans links to, or why not: its keys, computed if they are not stored, and the rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.rules import keys, providers
from mailglass_reconcile.rules.keys import Keys, Values
from mailglass_reconcile.store import candidates
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Open
from mailglass_reconcile.sweep import match
from mailglass_reconcile.sweep.match import Event, Verdict


class Examined(NamedTuple):
    """An orphan, its keys as they are now, and the verdict on it."""

    orphan: Open
    keys: Keys
    verdict: Verdict


def marks() -> tuple[Mapping[str, str], str]:
    """Return the mark of the rule of each provider that has one in this process, and of every other provider."""
    rules = {provider: rule.mark for provider, rule in providers.rules().items()}
    return rules, rules.pop(providers.ANY_PROVIDER)


def is_current(known: Keys) -> bool:
    """Whether stored keys are what this process would store: not of another version, or of a rule since registered."""
    rules, any_provider = marks()
    of_any = (known.rule or "").rpartition("/")[0] == providers.ANY_PROVIDER
    return known.rule == rules.get(known.provider or "", any_provider if of_any else known.rule)


def examine(
    tx: Transaction, orphans: Sequence[Open], *, raw_webhooks: bool, complain: Callable[[str], None]
) -> list[Examined]:
    """Return the keys of *orphans* and the verdict on each, in their order; nothing is locked or written.

    Args:
        tx: A transaction in which all statements see the same rows.
        orphans: Those with ids are taken as they are.
        raw_webhooks: Whether Mailglass's raw webhooks can be read, for the recipients of Postmark's events.
        complain: Gets a sentence if a provider's rule fails.
    """
    without = [orphan for orphan in orphans if not orphan.keys.candidate_ids]
    computed = keys_of_events(tx, without, raw_webhooks=raw_webhooks, complain=complain) if without else {}
    known = [(orphan, computed.get(orphan.event_id, orphan.keys)) for orphan in orphans]
    verdicts = match.match(tx, [Event(orphan.event_id, orphan.tenant_id, its) for orphan, its in known])
    return [Examined(orphan, its, verdict) for (orphan, its), verdict in zip(known, verdicts, strict=True)]


def keys_of_events(
    tx: Transaction, orphans: Sequence[Open], *, raw_webhooks: bool, complain: Callable[[str], None]
) -> dict[str, Keys]:
    """Compute the keys of orphans from the ledger, and from what their writers left with the open orphan."""
    by_provider: dict[str | None, list[Values]] = defaultdict(list)
    for values in candidates.of_events(tx, [orphan.event_id for orphan in orphans]):
        by_provider[keys.provider_of(values)].append(values)
    reads = keys.reads()
    computed: dict[str, Keys] = {}
    for provider, of_provider in by_provider.items():
        if provider is not None:
            paths = reads.get(provider, reads[providers.ANY_PROVIDER])
            ids = candidates.at_paths(tx, [values.event_id for values in of_provider], paths)
            of_provider = [values._replace(ids=ids[values.event_id]) for values in of_provider]  # noqa: PLW2901
        computed |= {values.event_id: keys.keys_of(values, complain) for values in of_provider}
    kept = {orphan.event_id: orphan.keys for orphan in orphans}
    if raw_webhooks:
        asking = [id_ for id_, its in computed.items() if its.provider == "postmark" and not its.recipient]
        asking = [id_ for id_ in asking if not kept[id_].recipient and not computed[id_].lost]
        for id_, recipient in (candidates.postmark_recipients(tx, asking) if asking else {}).items():
            computed[id_] = computed[id_]._replace(recipient=keys.text_of(f"string:{recipient}"))
    return {id_: _with_kept(its, kept[id_]) for id_, its in computed.items()}


def _with_kept(computed: Keys, kept: Keys) -> Keys:
    """Prefer the recipient that the orphan's writer left with it; then nothing is lost."""
    return computed._replace(recipient=kept.recipient, lost=False) if kept.recipient else computed
