"""Samples: `trigger`'s webhooks are read and verified like the provider's own."""

import datetime as dt
import json

import pytest

from mailglass_reconcile.providers import registry, samples
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.webhooks import parse, verify
from senders import IDS, NOW, PRIVATE, SENDERS, Posted, secret_of, sign_request, url_of

pytestmark = pytest.mark.version_independent


def make_request(provider: str, type_: str, recipient: str | None = None, at: dt.datetime = NOW) -> Posted:
    """Return a signed sample."""
    sample = samples.make_sample(provider, type_, IDS.get(provider, "m-2"), recipient, at)
    return sign_request(provider, json.dumps(sample).encode(), at)


def test_samples_are_signed_for_all_providers_that_do_not_sign_with_a_private_key():
    """Nobody else can sign for these."""
    assert {provider for provider in PROVIDERS if registry.get_provider(provider).has_private_key} == PRIVATE


@pytest.mark.parametrize("recipient", ["ada@example.com", None])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_sample_is_read_as_one_event(provider, recipient):
    """The event has the requested type, message, recipient and time; a bounce is hard."""
    for type_ in samples.load_samples(provider):
        sent = make_request(provider, type_, recipient)
        (event,) = parse(provider, sent.body, sent.headers)
        expected = (type_, IDS.get(provider, "m-2"), recipient, NOW)
        assert (event.type, str(event.message_id), event.recipient, event.occurred_at) == expected
        assert (event.bounce == "hard") is (type_ == "bounced"), type_


@pytest.mark.parametrize("provider", SENDERS)
def test_a_sample_is_verified(provider):
    for type_ in samples.load_samples(provider):
        sent = make_request(provider, type_)
        verify(provider, sent.body, sent.headers, secret=secret_of(provider), url=url_of(provider), now=NOW)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_there_is_a_sample_of_every_type_that_a_provider_sends(provider):
    """`trigger` and its completion offer these, except events of types unknown to us."""
    types = {kind.type for kind in registry.get_provider(provider).table.kinds.values()}
    assert set(samples.load_samples(provider)) == types - {"unknown", ""}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_two_samples_are_two_events(provider):
    """Otherwise the second attempt would seem to do nothing."""
    ids, type_ = set(), next(iter(samples.load_samples(provider)))
    for second in (0, 1):
        request = make_request(provider, type_, at=NOW + dt.timedelta(seconds=second))
        ids |= {event.provider_event_id for event in parse(provider, request.body, request.headers)}
    assert len(ids) == 2


def test_a_message_id_that_looks_like_a_placeholder_is_an_id():
    sample = samples.make_sample("postmark", "opened", "{recipient}", "ada@example.com", NOW)
    assert (sample["MessageID"], sample["Recipient"]) == ("{recipient}", "ada@example.com")
