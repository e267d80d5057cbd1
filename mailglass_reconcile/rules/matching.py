"""Matching: the ids under which an event's delivery may be stored, and the choice among the deliveries that have them.

A provider's rule says which ids an event names; `expand` adds the spellings in which one id is written. Then the
matching rule decides, for sweeps and single events alike: the first candidate id that names a delivery of the event's
own tenant, with the event's provider or none, decides. If the event knows a recipient, only that recipient's deliveries
remain; if several do, only those with the event's provider. Then it must be exactly one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from mailglass_reconcile.rules import provider_rules, states
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.provider_rules import KeyRule, canonical

MATCHED: Final = "matched"
UNMATCHED: Final = "unmatched"
UNMATCHABLE: Final = "unmatchable"
AMBIGUOUS: Final = "ambiguous"
TENANT_MISMATCH: Final = "tenant_mismatch"
RECIPIENT_MISMATCH: Final = "recipient_mismatch"

MAX_ID_LENGTH = 512
MOST_COMPARED = 1_000
"""Deliveries of one id and tenant that are compared with a recipient; among more, none is chosen."""
MAX_IDS = 32
"""Ids that a rule may return; each is tried in up to six spellings."""


class Keys(NamedTuple):
    """The keys that match an orphan: its provider, its candidate ids in order, its recipient if known.

    `rank` is that of the rule that made them; None if they were not computed yet, or if the rule failed for the
    reason `failure`, and nothing may be stored. `lost`: the event had a recipient that is no longer known.
    """

    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None
    rank: int | None = None
    lost: bool = False
    failure: str | None = None

    @property
    def is_current(self) -> bool:
        """True if this process would compute the same keys: no rule of higher rank was registered since."""
        return self.rank is not None and self.rank >= provider_rules.rank_of(self.provider)


class Document(NamedTuple):
    """The two JSON columns of one event that its keys are computed from; empty if they cannot be read."""

    metadata: Mapping[str, Any] = MappingProxyType({})
    normalized_payload: Mapping[str, Any] = MappingProxyType({})

    def at(self, path: Sequence[str]) -> Any:
        """Return the value at a path of a rule, such as `metadata`, `message`, `id`, or None if there is none."""
        value: Any = self.metadata if path[0] == "metadata" else self.normalized_payload
        for name in path[1:]:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    @property
    def provider(self) -> str | None:
        """The canonical name of the event's provider, or None if it names none that can be used."""
        value = self.metadata.get("provider")
        name = text_of(self.normalized_payload.get("provider") if value is None else value, numbers=False)
        return provider_rules.canonical(name) if name else None


def keys_of(document: Document) -> Keys:
    """Compute an event's keys, the same for its writer and for a sweep that reads its row.

    An event without a provider has no usable id, and neither has one whose provider's rule fails. The `failure` of the
    latter is the same sentence for every event.
    """
    metadata, provider = document.metadata, document.provider
    recipient = text_of(metadata.get("recipient"), numbers=False) or text_of(metadata.get("email"), numbers=False)
    rule = provider_rules.rule_of(provider)
    texts = [text_of(document.at(path)) for path in rule.paths] if provider else []
    return _keys(provider, rule, recipient, texts, metadata.get("recipient_known") is True)


def keys_of_one(document: Document, path: Sequence[str]) -> Keys:
    """Compute the keys that an event would have if its provider's rule found a value at one path only."""
    provider = document.provider
    rule = provider_rules.rule_of(provider)
    texts = [text_of(document.at(path)) if other == path else None for other in rule.paths] if provider else []
    return _keys(provider, rule, None, texts, recipient_known=False)


def _keys(
    provider: str | None, rule: KeyRule, recipient: str | None, texts: list[str | None], recipient_known: bool
) -> Keys:
    """Compute keys of usable texts, which are those at the paths of the provider's rule."""
    compared = normalize_address(recipient) if recipient else None
    lost = recipient_known and compared is None
    if provider is None:
        return Keys(None, (), compared, rule.rank, lost)
    common = len(provider_rules.COMMON_READS)
    end = common + len(rule.reads)
    try:
        ids = (*texts[:common], *_ids_of(rule, texts[common:end]), *texts[end:])
    except Exception as error:  # an adopter's rule may fail in any way on one row, which costs that row only
        return Keys(provider, (), compared, None, lost, _failure(rule, error))
    spellings = dict.fromkeys(spelling for id_ in ids if id_ for spelling in expand(id_) if is_usable(spelling))
    return Keys(provider, tuple(spellings), compared, rule.rank, lost)


def _failure(rule: KeyRule, error: Exception) -> str:
    reason = str(error) if isinstance(error, _RuleError) else f"failed with {type(error).__name__}"
    return f"the key rule {rule.name} {reason}; its events stay open until the rule is corrected"


class _RuleError(Exception):
    """A rule returned a value that is not a list of ids; the message names it."""


def _ids_of(rule: KeyRule, texts: list[str | None]) -> list[str | None]:
    answer = rule.candidates(*texts)
    if answer is None or isinstance(answer, str | bytes):
        raise _RuleError(f"returned {type(answer).__name__} instead of a list of ids")
    ids: list[str | None] = []
    for id_ in answer:
        if id_ is not None and not isinstance(id_, str):
            raise _RuleError(f"returned an id of type {type(id_).__name__} instead of a string")
        if len(ids) == MAX_IDS:
            raise _RuleError(f"returned more than {MAX_IDS} ids")
        ids.append(id_)
    return ids


def spellings_of(message_id: str) -> frozenset[str]:
    """Return the candidate ids that all providers' rules make of a message id, as webhooks call it."""
    spellings: set[str] = set()
    for provider, rule in provider_rules.rules().items():
        texts = [text_of(message_id)] * len(rule.paths)
        spellings.update(_keys(provider, rule, None, texts, recipient_known=False).candidate_ids)
    return frozenset(spellings)


def text_of(value: Any, *, numbers: bool = True) -> str | None:
    """Return the usable text of a JSON value, trimmed, or None.

    A text of 1 to 512 characters without control characters is usable, and, unless *numbers* is false, a whole number
    of 0 or more as its digits.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        return text if is_usable(text) else None
    if not numbers or not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return str(value) if value < _TOO_LONG else None


_TOO_LONG: Final = 10**MAX_ID_LENGTH


def is_usable(text: str) -> bool:
    """Return True if *text* can be an id: 1 to 512 characters, none of them a control character."""
    if not 0 < len(text) <= MAX_ID_LENGTH:
        return False
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def expand(text: str) -> tuple[str, ...]:
    """Return the spellings of one id, as written first: UUIDs in both cases, with and without angle brackets."""
    is_bracketed = text.startswith("<") and text.endswith(">")
    bare = text[1:-1] if is_bracketed else text
    cases = (bare, bare.lower(), bare.upper()) if len(bare) == 36 and _UUID.fullmatch(bare) else (bare,)
    if not is_bracketed and "@" not in bare:
        return cases
    bracketed = tuple(f"<{case}>" for case in cases)
    return (*bracketed, *cases) if is_bracketed else (*cases, *bracketed)


class DeliveryRow(NamedTuple):
    """A delivery that carries a candidate id."""

    candidate_id: str
    delivery_id: str
    tenant_id: str
    provider: str | None
    recipient: str

    def has_provider(self, provider: str | None) -> bool:
        """Return True if an event of *provider*, in its canonical spelling, can be about this delivery."""
        return self.provider is None or canonical(self.provider) == provider


class MatchResult(NamedTuple):
    """The delivery that an event links to, or why it does not: the state, and the delivery if it is `matched`."""

    state: states.MatchState
    delivery_id: str | None = None


def match(tenant_id: str, keys: Keys, deliveries: Mapping[str, Collection[DeliveryRow]]) -> MatchResult:
    """Match an event of a tenant.

    *deliveries* are those that carry its candidate ids, by id; for an id of many deliveries, only those that decide.
    """
    if not keys.candidate_ids:
        return MatchResult(UNMATCHABLE)
    has_others = False
    for candidate_id in keys.candidate_ids:
        of_tenant = []
        for delivery in deliveries.get(candidate_id, ()):
            if delivery.has_provider(keys.provider):
                if delivery.tenant_id == tenant_id:
                    of_tenant.append(delivery)
                else:
                    has_others = True
        if of_tenant:
            return _match_recipient(keys, of_tenant)
    return MatchResult(TENANT_MISMATCH if has_others else UNMATCHED)


def _match_recipient(keys: Keys, deliveries: Sequence[DeliveryRow]) -> MatchResult:
    if keys.lost or len(deliveries) > MOST_COMPARED:  # more of the recipient's may have been left out
        return MatchResult(AMBIGUOUS)
    if keys.recipient is not None:
        recipient = normalize_address(keys.recipient)
        deliveries = [delivery for delivery in deliveries if normalize_address(delivery.recipient) == recipient]
        if not deliveries:
            return MatchResult(RECIPIENT_MISMATCH)
        if len(deliveries) > 1:
            deliveries = [delivery for delivery in deliveries if delivery.provider is not None]
    return MatchResult(MATCHED, deliveries[0].delivery_id) if len(deliveries) == 1 else MatchResult(AMBIGUOUS)
