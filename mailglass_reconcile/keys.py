"""Candidate ids: under which message ids the delivery of an event may be stored.

One plain function per provider. A rule names the JSON values that it reads (`column/key/key…`), gets each as a
trimmed text or None, and returns ids as the provider's send API may have answered them. `expand` then adds the
spellings in which one id is written. Sources: each provider's webhook documentation, and the rows that
Mailglass 0.1.1 writes.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mailglass_reconcile.model import Keys, Values

logger = logging.getLogger(__name__)

MAX_ID_LENGTH = 512
COMMON_READS = ("metadata/provider_message_id", "normalized_payload/provider_message_id")
"""Read for every provider, first: other writers and this package's own say the id by this name."""

ANY_PROVIDER = "*"

Rule = Callable[..., Iterable[str | None]]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """A provider's rule: the JSON values it reads, and the function that takes them."""

    reads: tuple[str, ...]
    candidates: Rule


_rules: dict[str, KeyRule] = {}


def key_rule(*providers: str, reads: Sequence[str]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of *providers* (compared without regard to case).

    Args:
        providers: Names as they stand in an event's `metadata.provider`; `*` is every name without a rule.
        reads: Paths `metadata/…` or `normalized_payload/…`; the function gets one argument for each, a text
            of 1 to 512 characters or None.

    Raises:
        ValueError: A path does not begin with one of the two columns.
    """
    for path in reads:
        if path.partition("/")[0] not in ("metadata", "normalized_payload") or not path.partition("/")[2]:
            raise ValueError(f"a read is 'metadata/<key>' or 'normalized_payload/<key>', not {path!r}")

    def register(function: Rule) -> Rule:
        for provider in providers:
            _rules[provider.lower()] = KeyRule(tuple(reads), function)
        return function

    return register


def reads() -> Mapping[str, tuple[str, ...]]:
    """Return, for each registered provider name in lower case, the paths that `keys_of` wants the values of."""
    return {provider: (*COMMON_READS, *rule.reads) for provider, rule in _rules.items()}


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
    rule = _rules.get(provider.lower(), _rules[ANY_PROVIDER])
    try:
        found = (*common, *rule.candidates(*own))
        spellings = dict.fromkeys(spelling for text in found if text for spelling in expand(text))
    except Exception as error:  # an adopter's rule may fail in any way on one row, which costs that row only
        logger.error("the key rule of %s fails with %s", rule.candidates.__name__, type(error).__name__)
        return Keys(provider, (), recipient)
    return Keys(provider, tuple(filter(is_usable, spellings)), recipient)


def keys_of_text(provider: str, message_id: str | None, recipient: str | None) -> Keys:
    """Compute the keys of an event whose provider, message id and recipient are known as plain texts."""
    rule = _rules.get(provider.lower(), _rules[ANY_PROVIDER])
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


@key_rule("postmark", reads=("metadata/message_id", "metadata/MessageID"))
def postmark(message_id: str | None, original: str | None) -> Iterable[str | None]:
    """`MessageID`, a GUID. A bounce's `ID` is of another namespace and never read."""
    return message_id, original


_RELAY_SUFFIX = re.compile(r"\.(?:filter|stfilter-|recvd-)")
_RELAY_ONLY = re.compile(r"(?:filter|stfilter-|recvd-)[^.]*\.")
_SEND_ID = re.compile(r"[A-Za-z0-9_-]{22}(?=\.)")


@key_rule("sendgrid", reads=("metadata/sg_message_id",))
def sendgrid(sg_message_id: str | None) -> Iterable[str | None]:
    """`sg_message_id`: the send API's `X-Message-Id` and a relay suffix; legacy ids contain dots themselves."""
    if sg_message_id is None:
        return
    suffix = _RELAY_SUFFIX.search(sg_message_id)
    current = _SEND_ID.match(sg_message_id)
    if suffix:
        yield sg_message_id[: suffix.start()]
    elif current:
        yield current[0]
    elif _RELAY_ONLY.match(sg_message_id):
        return
    yield sg_message_id


@key_rule(
    "mailgun",
    reads=(
        "metadata/event-data/message/headers/message-id",
        "metadata/message/headers/message-id",
        "metadata/message-id",
        "metadata/Message-Id",
        "metadata/message_id",
    ),
)
@key_rule("brevo", "sendinblue", reads=("metadata/message-id", "metadata/messageId", "metadata/message_id"))
@key_rule(ANY_PROVIDER, reads=("metadata/message_id",))
def message_id(*spelled: str | None) -> Iterable[str | None]:
    """A message id, with or without angle brackets, under the names in which providers spell it."""
    return spelled


@key_rule(
    "ses",
    "amazon_ses",
    "amazon ses",
    "amazonses",
    reads=("metadata/mail/messageId", "metadata/messageId", "metadata/message_id"),
)
def amazon_ses(*spelled: str | None) -> Iterable[str | None]:
    """The inner `mail.messageId`; as an e-mail header it is `<id@….amazonses.com>`."""
    for text in spelled:
        if text is not None:
            local, _, domain = text.strip("<>").partition("@")
            yield local if domain.endswith("amazonses.com") else text


@key_rule("resend", reads=("metadata/email_id", "metadata/data/email_id"))
def resend(*email_id: str | None) -> Iterable[str | None]:
    """`email_id`, a UUID; never `message_id`, which is the e-mail's header."""
    return email_id


@key_rule(
    "sparkpost",
    reads=(
        "metadata/transmission_id",
        "metadata/msys/message_event/transmission_id",
        "metadata/msys/track_event/transmission_id",
        "metadata/msys/gen_event/transmission_id",
        "metadata/msys/unsubscribe_event/transmission_id",
    ),
)
def sparkpost(*transmission_id: str | None) -> Iterable[str | None]:
    """`transmission_id`, digits as text or integer; never `message_id`."""
    return transmission_id


@key_rule("mailjet", reads=("metadata/MessageID", "metadata/message_id"))
def mailjet(*number: str | None) -> Iterable[str | None]:
    """`MessageID`, an integer beyond 2^53, taken as its digits; never the UUID beside it."""
    return (text for text in number if text is not None and text.isdecimal())


@key_rule("mandrill", reads=("metadata/_id", "metadata/msg/_id", "metadata/message_id"))
def mandrill(*spelled: str | None) -> Iterable[str | None]:
    """`_id`, as it is."""
    return spelled
