"""Candidate ids: under which message ids the delivery of an event may be stored.

A provider's rule says which ids an event names; `expand` adds the spellings in which one id is written.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.providers import KeyRule

logger = logging.getLogger(__name__)

MAX_ID_LENGTH = 512
MAX_IDS = 32
"""Ids that a rule may return; each is tried in up to six spellings."""
COMMON_READS = ("metadata/provider_message_id", "normalized_payload/provider_message_id")
"""Read for every provider, first: other writers, and this package's own, store the id under this name."""


class Keys(NamedTuple):
    """What an orphan is matched by: its provider, its candidate ids in order, its recipient if known.

    `rule` names the rule and the version that made them; None if the rule failed and nothing may be stored. `lost`
    says that the event had a recipient which is not known any more.
    """

    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None
    rule: str | None = None
    lost: bool = False


class Values(NamedTuple):
    """JSON values of one event that its keys are computed from, each as `type:text`, None or empty if absent."""

    event_id: str
    provider: str | None
    recipient: str | None
    email: str | None
    ids: list[str | None]
    recipient_known: bool = False


def reads() -> Mapping[str, tuple[str, ...]]:
    """Return, for each provider with a rule, by its canonical name, the paths that `keys_of` needs the values of."""
    return {provider: (*COMMON_READS, *rule.reads) for provider, rule in providers.rules().items()}


def provider_of(values: Values) -> str | None:
    """Return the canonical name of an event's provider, or None if it names none that can be used."""
    provider = text_of(values.provider, numbers=False)
    return providers.canonical(provider) if provider else None


def keys_of(values: Values, complain: Callable[[str], None] = logger.error) -> Keys:
    """Compute an event's keys; its `ids` are the values at the paths that `reads` gives for its provider.

    An event without a provider has no usable id. If its provider's rule fails, neither has it, and its keys are not to
    be stored (`rule` is None); *complain* gets a sentence that says what failed, the same for every event.
    """
    recipient = text_of(values.recipient, numbers=False) or text_of(values.email, numbers=False)
    lost = values.recipient_known and recipient is None
    provider = provider_of(values)
    if provider is None:
        return Keys(None, (), recipient, providers.rule_of(providers.ANY_PROVIDER).mark, lost)
    rule = providers.rule_of(provider)
    texts = [text_of(value) for value in values.ids]
    try:
        found = (*texts[: len(COMMON_READS)], *_ids_of(rule, texts[len(COMMON_READS) :]))
    except Exception as error:  # an adopter's rule may fail in any way on one row, which costs that row only
        reason = str(error) if isinstance(error, _RuleError) else f"failed with {type(error).__name__}"
        complain(f"the key rule {rule.mark} {reason}; its events stay open until the rule is corrected")
        return Keys(provider, (), recipient, None, lost)
    spelled = dict.fromkeys(spelling for text in found if text for spelling in expand(text))
    return Keys(provider, tuple(filter(is_usable, spelled)), recipient, rule.mark, lost)


class _RuleError(Exception):
    """A rule returned something else than ids; the message says what."""


def _ids_of(rule: KeyRule, texts: list[str | None]) -> list[str | None]:
    answer = rule.candidates(*texts)
    if answer is None or isinstance(answer, str | bytes):
        raise _RuleError(f"returned {type(answer).__name__} instead of a list of ids")
    ids: list[str | None] = []
    for id_ in answer:
        if id_ is not None and not isinstance(id_, str):
            raise _RuleError(f"returned an id of type {type(id_).__name__} instead of a text")
        if len(ids) == MAX_IDS:
            raise _RuleError(f"returned more than {MAX_IDS} ids")
        ids.append(id_)
    return ids


def keys_of_text(provider: str, message_id: str | None, recipient: str | None) -> Keys:
    """Compute the keys of an event whose provider, message id and recipient are known as plain texts."""
    wanted = len(COMMON_READS) + len(providers.rule_of(provider).reads)
    return keys_of(
        Values(
            event_id="",
            provider=f"string:{provider}",
            recipient=f"string:{recipient}" if recipient else None,
            email=None,
            ids=[f"string:{message_id}" if message_id else None] * wanted,
        )
    )


def text_of(value: str | None, *, numbers: bool = True) -> str | None:
    """Return the usable text of a JSON value given as `type:text`, trimmed, or None.

    A text of 1 to 512 characters without control characters is usable, and, unless *numbers* is false, an
    integer as its digits.
    """
    if not value:
        return None
    kind, _, text = value.partition(":")
    text = text.strip()
    if kind == "number":
        return text if numbers and is_usable(text) and text.isdecimal() else None
    return text if kind == "string" and is_usable(text) else None


def is_usable(text: str) -> bool:
    """Whether *text* can be an id: 1 to 512 characters, none of them a control character."""
    if not 0 < len(text) <= MAX_ID_LENGTH:
        return False
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def expand(text: str) -> Iterator[str]:
    """Yield the spellings of one id, as written first: UUIDs in both cases, with and without angle brackets."""
    bare = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    cases = (bare, bare.lower(), bare.upper()) if _UUID.fullmatch(bare) else (bare,)
    bracketed = tuple(f"<{case}>" for case in cases) if bare != text or "@" in bare else ()
    yield from cases if bare == text else bracketed
    yield from bracketed if bare == text else cases
