"""Providers by name: their definitions, and where each puts the id that its send API has answered.

A rule names the JSON values that it reads (`column/key/key…`), gets each as a trimmed text or None, and returns ids as
the provider's send API may have answered them. Built-in rules are in the providers' definitions; adopters add rules of
their own with `key_rule`. Sources: each provider's webhook documentation, and the rows that Mailglass writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple, Protocol, cast

from mailglass_reconcile.rules import humanize

logger = logging.getLogger(__name__)

ANY_PROVIDER = "*"

MAX_READS = 8

NEARLY_THE_SAME = 0.85
"""The similarity of a name with one letter wrong, as `difflib` measures it.

A known name with a number or a suffix, such as `mailgun2` or `sparkpost-eu`, is that of a second account.
"""

_accepted: set[str] = set()

COMMON_READS = ("metadata/provider_message_id", "normalized_payload/provider_message_id")
"""Read for every provider, first: Mailglass's own reconciler and other writers know the id by this name."""
SMTP_MESSAGE_ID = "smtp_message_id"
"""The key of metadata that is read for every provider, last: messages sent over SMTP are recorded under it."""

GENERATION = 2
"""Raised if every rule's keys change, such as by another way to expand an id: all stored keys are computed again."""

NAMES_PROVIDER = 1 << 62
CUSTOM = 1 << 61
"""Bits of a rank, above the generation (from bit 30) and the version."""

Rule = Callable[..., Iterable[str | None]]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """A provider's rule: the JSON values that it reads, the function that takes them, its rank, and its name.

    The rank is stored with the keys that the rule made; a rule of higher rank computes them again. A rule that names
    its provider ranks above `*`'s, then an adopter's above a built-in one, then the later generation, then the version.
    The name, `provider/generation.version` with `own` before an adopter's version, is for people.

    Attributes:
        reads: The JSON values that the function takes.
        candidates: The function.
        rank: The rank.
        name: The name.
        stored_under: The key of metadata under which our writers store the message id: one that the rule reads.
        paths: All that is read for the provider, each path split: the common ones, those of `reads`, and the last ones.
    """

    reads: tuple[str, ...]
    candidates: Rule
    rank: int
    name: str
    stored_under: str
    paths: tuple[tuple[str, ...], ...]


def _build_rule(provider: str, reads: tuple[str, ...], candidates: Rule, version: int, *, is_custom: bool) -> KeyRule:
    rank = NAMES_PROVIDER * (provider != ANY_PROVIDER) | CUSTOM * is_custom | GENERATION << 30 | version
    keys = (path.partition("/")[2] for path in reads if path.startswith("metadata/"))
    key = next((key for key in keys if "/" not in key), "message_id")
    last = (path for path in (f"metadata/{key}", f"metadata/{SMTP_MESSAGE_ID}") if path not in reads)
    paths = tuple(tuple(path.split("/")) for path in (*COMMON_READS, *reads, *last))
    return KeyRule(
        reads, candidates, rank, f"{provider}/{GENERATION}.{'own' if is_custom else ''}{version}", key, paths
    )


_rules: dict[str, KeyRule] = {}
"""Rules of adopters, by canonical provider name."""


def key_rule(*providers: str, reads: Sequence[str], version: int = 1) -> Callable[[Rule], Rule]:
    """Register the decorated function, which extracts the message id from events of *providers*, as their key rule.

    A later rule replaces an earlier one.

    Args:
        providers: Names as in an event's `metadata.provider`, in any known spelling; `*` is every provider without a
            rule.
        reads: At most 8 paths `metadata/…` or `normalized_payload/…`. The function gets one argument for each, a
            string or None, and returns message ids, in the order in which to try them
            (`docs/own-provider.md#a-rule-for-the-message-id`). `record_webhook` stores an event's message id under
            the first path `metadata/<key>`, or under `metadata/message_id`.
        version: Raise it if the rule returns other ids than before, so that stored ids are computed again.

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

    def register(function: Rule) -> Rule:
        for provider in map(canonical, providers):
            _rules[provider] = _build_rule(provider, tuple(reads), function, version, is_custom=True)
        return function

    return register


def _read_as_spelled(*texts: str | None) -> Iterable[str | None]:
    """A message id, under the names in which a provider spells it."""
    return texts


class MessageIds(NamedTuple):
    """The fields of a provider's events that hold the message id; part of the provider's definition.

    Attributes:
        reads: The JSON values that hold it, as of `key_rule`.
        candidates: Returns ids of them, as the provider's send API may have answered them.
        version: Raised if it returns other ids than before.
    """

    reads: tuple[str, ...]
    candidates: Rule = _read_as_spelled
    version: int = 1


class Definition(Protocol):
    """The fields of a provider's definition that rules read; `providers.provider.Provider` documents them."""

    title: str
    spellings: tuple[str, ...]
    message_ids: MessageIds | None
    lacks_id: frozenset[str] | None
    synthetic_ids: bool
    redelivery: str | None
    has_private_key: bool


_DEFINITIONS = "mailglass_reconcile.providers.builtin"
"""The package of the definitions: one module per provider, with its canonical name. It is imported on first look-up."""


@cache
def built_in() -> Collection[str]:
    """Return the canonical names of the providers that have a definition."""
    return frozenset(module.name for module in iter_modules(import_module(_DEFINITIONS).__path__))


def load_definition(provider: str) -> Definition | None:
    """Return the definition of a provider, given in its canonical spelling; None if this package has none."""
    return _load(provider) if provider in built_in() else None


@cache
def _load(provider: str) -> Definition:
    return cast("Definition", import_module(f"{_DEFINITIONS}.{provider}").PROVIDER)


def _built_in_rule(provider: str) -> KeyRule | None:
    return _make_rule(provider) if provider in built_in() else None


@cache
def _make_rule(provider: str) -> KeyRule | None:
    message_ids = _load(provider).message_ids
    if message_ids is None:
        return None
    return _build_rule(provider, message_ids.reads, message_ids.candidates, message_ids.version, is_custom=False)


_ANY_PROVIDER_RULE = _build_rule(ANY_PROVIDER, ("metadata/message_id",), _read_as_spelled, 1, is_custom=False)


def rank_of(provider: str | None) -> int:
    """Return the rank of the rule for a provider, in its canonical spelling; None is an event without one.

    Stored keys of a lower rank are outdated. A process that lacks the provider's rule, or has an older one, has a lower
    rank, and leaves what is stored as it is.
    """
    return rule_of(provider).rank


def canonical(provider: str) -> str:
    """Return the one spelling of a provider's name: trimmed, in lower case, `Amazon SES` and its like as `ses`."""
    if provider in built_in():
        return provider
    name = provider.strip().lower()
    return name if name in built_in() else names_by_spelling().get(name, name)


@cache
def names_by_spelling() -> Mapping[str, str]:
    """Return the canonical names by other spellings in lower case."""
    definitions = {name: definition for name in built_in() if (definition := load_definition(name))}
    return {
        spelling.lower(): name
        for name, definition in definitions.items()
        for spelling in (definition.title, *definition.spellings)
    }


@cache
def spellings_as_json() -> str:
    """Return `names_by_spelling` as JSON, for statements."""
    return json.dumps(dict(names_by_spelling()))


def spellings(provider: str) -> tuple[str, ...]:
    """Return the spellings under which deliveries of a provider, given in its canonical one, may be stored."""
    definition = load_definition(provider)
    return (provider, definition.title, *definition.spellings) if definition else (provider,)


def title(provider: str) -> str:
    """Return a provider's name in its own spelling; an unknown name is returned unchanged."""
    definition = load_definition(canonical(provider))
    return definition.title if definition else humanize.sanitize(provider.strip())


def providers_with_rule() -> list[str]:
    """Return the providers that have a rule of their own."""
    return [provider for provider in rules() if provider != ANY_PROVIDER]


def mistyped(provider: str) -> str | None:
    """Return a sentence that suggests a similar name if no rule has *provider*'s; None otherwise."""
    name, names = canonical(provider), {*providers_with_rule(), *built_in()}
    suggestion = None if name in names else humanize.did_you_mean(name, names)
    return f"no rule knows {humanize.sanitize(name)}{suggestion}" if suggestion else None


def accept(provider: str) -> None:
    """Accept a name however similar it is to another: a provider of the application's, or one that Anymail reports."""
    _accepted.add(canonical(provider))


@lru_cache(maxsize=4096)  # without the errors
def check_name(provider: str) -> None:
    """Refuse a name that is nearly one of ours, and log, once, if it is similar: no event could ever meet its sends.

    Raises:
        ValueError: No rule knows the canonical name *provider*, and one knows a name that is nearly the same.
    """
    sentence = mistyped(provider)
    if sentence is None:
        return
    names = {*providers_with_rule(), *built_in()}
    closest = humanize.find_closest(provider, names, cutoff=NEARLY_THE_SAME)
    is_second_account = closest and provider.startswith(closest) and not provider[len(closest)].isalpha()
    if closest and provider not in _accepted and not is_second_account:
        raise ValueError(f"{sentence} (a provider of your own needs a key_rule or webhook_reader in MAILGLASS_IMPORTS)")
    logger.warning("%s", sentence)


def may_lack_id(provider: str | None, type_: str | None = None) -> bool:
    """Return True if a provider documents events without any id: of this type or, with None, of some type.

    An adopter's rule is expected to find one.
    """
    name = canonical(provider or "")
    definition = None if name in _rules else load_definition(name)
    types = definition.lacks_id if definition else None
    if type_ is None:
        return types is not None
    return type_ == "unknown" or (types is not None and type_ in types)


def rule_of(provider: str | None) -> KeyRule:
    """Return the rule of a provider, in its canonical spelling; without one, and for None, that of every provider."""
    return (_find_rule(provider) if provider else None) or _rules.get(ANY_PROVIDER, _ANY_PROVIDER_RULE)


def _find_rule(provider: str) -> KeyRule | None:
    return _rules.get(provider) or (_ANY_PROVIDER_RULE if provider == ANY_PROVIDER else _built_in_rule(provider))


def has_custom_rules() -> bool:
    """Return True if an adopter has registered a rule in this process."""
    return bool(_rules)


def rules() -> Mapping[str, KeyRule]:
    """Return all rules by canonical provider name."""
    built_in_rules = {provider: rule for provider in sorted(built_in()) if (rule := _built_in_rule(provider))}
    return {**built_in_rules, ANY_PROVIDER: _ANY_PROVIDER_RULE, **_rules}
