"""Where each provider puts the id that its send API has answered; adopters add rules of their own with `key_rule`.

One plain function per provider. A rule names the JSON values that it reads (`column/key/key…`), gets each as a
trimmed text or None, and returns ids as the provider's send API may have answered them. Sources: each provider's
webhook documentation, and the rows that Mailglass 0.1.1 writes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mailglass_reconcile.rules import humanize

logger = logging.getLogger(__name__)

ANY_PROVIDER = "*"

MAX_READS = 8

GENERATION = 2
"""Raised if every rule's keys change, such as by another way to expand an id: all stored keys are computed again."""

Rule = Callable[..., Iterable[str | None]]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """A provider's rule: the JSON values that it reads, the function that takes them, and its mark.

    The mark, `provider/generation.version`, is stored with the keys that the rule made; a rule of higher rank computes
    them again. An adopter's rule has `own` before its version, and ranks above the built-in one.
    """

    reads: tuple[str, ...]
    candidates: Rule
    mark: str


_rules: dict[str, KeyRule] = {}
_MARK = re.compile(r"(.*)/(\d{1,9})\.(own)?(\d{1,9})", re.DOTALL)


def key_rule(*providers: str, reads: Sequence[str], version: int = 1) -> Callable[[Rule], Rule]:
    """Register the decorated function as the key rule of *providers*; a later rule replaces an earlier one.

    Args:
        providers: Names as in an event's `metadata.provider`, in any known spelling; `*` is every provider without a
            rule.
        reads: At most 8 paths `metadata/…` or `normalized_payload/…`. The function gets one argument for each, a
            string of 1 to 512 characters or None, and returns at most 32 message ids, in the order in which to try
            them. `record_webhook` stores an event's message id under the first path `metadata/<key>`, or under
            `metadata/message_id`.
        version: Raise it if the rule returns other ids than before, so that stored ids are computed again. After going
            back to an earlier version, run `mailglass-reconcile rekey`.

    Raises:
        ValueError: A path cannot be used, there are more than 8, or the version is below 1.
    """
    for path in reads:
        if path.partition("/")[0] not in ("metadata", "normalized_payload") or not path.partition("/")[2]:
            raise ValueError(f"a read is 'metadata/<key>' or 'normalized_payload/<key>', not {path!r}")
    if len(reads) > MAX_READS:
        raise ValueError(f"a rule reads at most {MAX_READS} values, not {len(reads)}")
    if not 1 <= version < 10**9:
        raise ValueError("the version of a rule is 1 or more")
    return _register(providers, tuple(reads), f"own{version}")


def _built_in(*providers: str, reads: tuple[str, ...], version: int = 1) -> Callable[[Rule], Rule]:
    return _register(providers, reads, str(version))


def _register(providers: Iterable[str], reads: tuple[str, ...], version: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for provider in map(canonical, providers):
            _rules[provider] = KeyRule(reads, function, f"{provider}/{GENERATION}.{version}")
        return function

    return register


def is_outdated(mark: str) -> bool:
    """Whether this process has a rule of higher rank for the provider of a stored mark.

    A process that lacks the provider's rule, or has an older one, leaves what is stored as it is.
    """
    current = _rules.get(mark.rpartition("/")[0])
    if current is None or current.mark == mark:
        return False
    stored, made = _MARK.fullmatch(mark), _MARK.fullmatch(current.mark)
    return stored is not None and made is not None and _rank(made) > _rank(stored)


def _rank(mark: re.Match[str]) -> tuple[bool, int, int]:
    return mark[3] is not None, int(mark[2]), int(mark[4])


_SPELLINGS = {
    "postmark": ("Postmark",),
    "sendgrid": ("SendGrid",),
    "mailgun": ("Mailgun",),
    "ses": ("Amazon SES", "amazon_ses", "amazon ses", "amazonses", "SES"),
    "brevo": ("Brevo", "sendinblue", "SendinBlue"),
    "resend": ("Resend",),
    "sparkpost": ("SparkPost",),
    "mailjet": ("Mailjet",),
    "mandrill": ("Mandrill",),
    "mailersend": ("MailerSend",),
    "mailtrap": ("Mailtrap",),
    "postal": ("Postal",),
    "scaleway": ("Scaleway",),
    "unisender_go": ("Unisender Go", "unisender go"),
}
_CANONICAL = {other.lower(): name for name, others in _SPELLINGS.items() for other in others}


def canonical(provider: str) -> str:
    """Return the one spelling of a provider's name: trimmed, in lower case, `Amazon SES` and its like as `ses`."""
    name = provider.strip().lower()
    return _CANONICAL.get(name, name)


def spellings(provider: str) -> tuple[str, ...]:
    """Return the spellings under which deliveries of a provider, given in its canonical one, may be stored."""
    return (provider, *_SPELLINGS.get(provider, ()))


def built_in() -> Collection[str]:
    """Return the providers whose webhooks this package reads itself."""
    return _SPELLINGS.keys()


def title(provider: str) -> str:
    """Return a provider's name as it writes it itself; that of an unknown one as it was given."""
    return _SPELLINGS.get(canonical(provider), (humanize.shown(provider.strip()),))[0]


def known() -> list[str]:
    """Return the providers that have a rule of their own."""
    return [provider for provider in _rules if provider != ANY_PROVIDER]


def mistyped(provider: str) -> str | None:
    """Return a sentence if no rule has *provider*'s name, and one has a similar name; None otherwise."""
    name, names = canonical(provider), {*known(), *_SPELLINGS}
    meant = None if name in names else humanize.did_you_mean(name, names)
    return f"no rule knows {humanize.shown(name)}{meant}" if meant else None


@lru_cache(maxsize=4096)
def warn_if_mistyped(provider: str) -> None:
    """Log, once for each name, that a provider's name is probably mistyped: nothing would be wrong until a sweep."""
    sentence = mistyped(provider)
    if sentence:
        logger.warning("%s", sentence)


_WITHOUT_ID: Mapping[str, frozenset[str]] = {
    "sendgrid": frozenset({"bounced", "rejected"}),  # asynchronous bounces; some drops
    "mandrill": frozenset(),  # changes of its lists are `unknown`
    "postmark": frozenset({"subscribed", "unsubscribed"}),  # by the account's owner or Postmark
    "brevo": frozenset({"subscribed"}),  # additions to a list
    "scaleway": frozenset({"suppressed"}),  # what its blocklist stops, which is no message yet
}


def may_lack_id(provider: str | None, type_: str | None = None) -> bool:
    """Whether events of a provider may have no id at all, by its documentation: those of this type; with None, some.

    An adopter's rule is expected to find one.
    """
    name = canonical(provider or "")
    types = None if "own" in rule_of(name).mark.rpartition("/")[2] else _WITHOUT_ID.get(name)
    if type_ is None:
        return types is not None
    return type_ == "unknown" or (types is not None and type_ in types)


def stored_under(provider: str) -> str:
    """Return the key of an event's metadata under which our writers store the message id: one that the rule reads."""
    return _first_flat(rule_of(provider).reads)


@lru_cache(maxsize=256)
def _first_flat(reads: tuple[str, ...]) -> str:
    flat = (path.partition("/")[2] for path in reads if path.startswith("metadata/"))
    return next((key for key in flat if "/" not in key), "message_id")


def rule_of(provider: str) -> KeyRule:
    """Return the rule of *provider*, or that of every provider without one."""
    return _rules.get(canonical(provider), _rules[ANY_PROVIDER])


def rules() -> Mapping[str, KeyRule]:
    """Return all rules by canonical provider name."""
    return _rules


@_built_in("postmark", reads=("metadata/message_id", "metadata/MessageID"))
def postmark(message_id: str | None, original: str | None) -> Iterable[str | None]:
    """`MessageID`, a GUID. A bounce's `ID` is of another namespace and never read."""
    return message_id, original


_RELAY_SUFFIX = re.compile(r"\.(?:filter|stfilter-|recvd-)")
_RELAY_ONLY = re.compile(r"(?:filter|stfilter-|recvd-)[^.]*\.")
_SEND_ID = re.compile(r"[A-Za-z0-9_-]{22}(?=\.)")


@_built_in("sendgrid", reads=("metadata/sg_message_id",))
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


@_built_in(
    "mailgun",
    reads=(
        "metadata/event-data/message/headers/message-id",
        "metadata/message/headers/message-id",
        "metadata/message-id",
        "metadata/Message-Id",
        "metadata/message_id",
    ),
)
@_built_in("brevo", reads=("metadata/message-id", "metadata/messageId", "metadata/message_id"))
@_built_in(ANY_PROVIDER, reads=("metadata/message_id",))
def message_id(*spelled: str | None) -> Iterable[str | None]:
    """A message id, with or without angle brackets, under the names in which providers spell it."""
    return spelled


@_built_in(
    "ses", reads=("metadata/mail/messageId", "metadata/messageId", "metadata/message_id", "metadata/region"), version=2
)
def amazon_ses(mail: str | None, id_: str | None, other: str | None, region: str | None) -> Iterable[str | None]:
    """The inner `mail.messageId`; as an e-mail header it is `<id@….amazonses.com>`, under the region's domain."""
    for text in filter(None, (mail, id_, other)):
        local, _, domain = text.strip("<>").partition("@")
        if domain.endswith("amazonses.com"):
            yield local
        yield text
        if region and not domain:
            yield f"{text}@{'email' if region == 'us-east-1' else region}.amazonses.com"


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@_built_in("resend", reads=("metadata/email_id", "metadata/data/email_id", "metadata/message_id"), version=2)
def resend(email_id: str | None, nested: str | None, message_id: str | None) -> Iterable[str | None]:
    """`email_id`, a UUID. Mailglass stores it as `message_id`, which Resend itself uses for the e-mail's header."""
    return email_id, nested, message_id if message_id and _UUID.fullmatch(message_id) else None


@_built_in(
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


@_built_in("mailjet", reads=("metadata/MessageID", "metadata/message_id"))
def mailjet(*number: str | None) -> Iterable[str | None]:
    """`MessageID`, an integer beyond 2^53, taken as its digits; never the UUID beside it."""
    return (text for text in number if text is not None and text.isdecimal())


@_built_in("mandrill", reads=("metadata/_id", "metadata/msg/_id", "metadata/message_id"))
def mandrill(*spelled: str | None) -> Iterable[str | None]:
    """`_id`, as it is."""
    return spelled
