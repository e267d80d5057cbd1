"""Candidate ids: under which message ids the delivery of an event may be stored.

A provider's rule says which ids an event names; `expand` adds the spellings in which one id is written.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping

from mailglass_reconcile.store.model import Keys, Values
from mailglass_reconcile.sweep import providers

logger = logging.getLogger(__name__)

MAX_ID_LENGTH = 512
COMMON_READS = ("metadata/provider_message_id", "normalized_payload/provider_message_id")
"""Read for every provider, first: other writers and this package's own say the id by this name."""


def reads() -> Mapping[str, tuple[str, ...]]:
    """Return, for each registered provider name in lower case, the paths that `keys_of` wants the values of."""
    return {provider: (*COMMON_READS, *rule.reads) for provider, rule in providers.rules().items()}


def keys_of(values: Values) -> Keys:
    """Compute an event's keys; its `ids` are the values at the paths that `reads` gives for its provider.

    An event without a provider has no usable id, and neither has one on which its provider's rule fails.
    """
    provider = text_of(values.provider, numbers=False)
    recipient = text_of(values.recipient, numbers=False) or text_of(values.email, numbers=False)
    if provider is None:
        return Keys(None, (), recipient)
    texts = [text_of(value) if value else None for value in values.ids]
    common, own = texts[: len(COMMON_READS)], texts[len(COMMON_READS) :]
    rule = providers.rule_of(provider)
    try:
        found = (*common, *rule.candidates(*own))
        spellings = dict.fromkeys(spelling for text in found if text for spelling in expand(text))
    except Exception as error:  # an adopter's rule may fail in any way on one row, which costs that row only
        logger.error("the key rule of %s fails with %s", rule.candidates.__name__, type(error).__name__)
        return Keys(provider, (), recipient)
    return Keys(provider, tuple(filter(is_usable, spellings)), recipient)


def keys_of_text(provider: str, message_id: str | None, recipient: str | None) -> Keys:
    """Compute the keys of an event whose provider, message id and recipient are known as plain texts."""
    rule = providers.rule_of(provider)
    ids = [f"string:{message_id}"] * (len(COMMON_READS) + len(rule.reads)) if message_id else []
    return keys_of(
        Values(
            event_id="",
            provider=f"string:{provider}",
            recipient=f"string:{recipient}" if recipient else None,
            email=None,
            ids=ids or [""] * (len(COMMON_READS) + len(rule.reads)),
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
