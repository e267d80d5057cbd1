"""Samples: `trigger`'s webhooks are read and verified like the provider's own."""

import datetime as dt
import json

import pytest

from mailglass_reconcile.providers import registry
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.webhooks import parse, verify
from senders import IDS, PAYLOADS, PRIVATE, SENDERS, load_payloads, secret_of

pytestmark = pytest.mark.version_independent

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
URL = "https://shop.example/webhooks/it"


def test_only_providers_that_sign_with_a_private_key_have_no_samples():
    """Nobody else can sign for them."""
    assert {provider for provider in PROVIDERS if registry.get_provider(provider).has_private_key} == PRIVATE


@pytest.mark.parametrize("recipient", ["ada@example.com", None])
@pytest.mark.parametrize("provider", SENDERS)
def test_a_sample_is_verified_and_read_as_one_event(provider, recipient):
    """The event has the requested type, message, recipient and time; a bounce is hard."""
    message_id = IDS.get(provider, "m-2")
    record = registry.get_provider(provider)
    for type_, body in record.samples(message_id, recipient, AT).items():
        sent = record.sign(body, secret_of(provider), AT.timestamp(), URL)
        verify(provider, sent.body, sent.headers, secret=secret_of(provider), url=URL, now=AT)
        (event,) = parse(provider, sent.body, sent.headers)
        expected = (type_, message_id, recipient, AT)
        assert (event.type, str(event.message_id), event.recipient, event.occurred_at) == expected
        assert (event.bounce == "hard") is (type_ == "bounced"), type_


@pytest.mark.parametrize("provider", SENDERS)
def test_there_is_a_sample_of_every_type_that_a_provider_documents(provider):
    """Types with and without a payload are included, except those unknown to us."""
    record = registry.get_provider(provider)
    without_payload = json.loads((PAYLOADS / f"{provider}.json").read_text())["without_payload"]
    types = {event.type for event in load_payloads(provider)} | {
        record.table.kinds[row].type for row in without_payload
    }
    assert set(record.samples("m", None, AT)) == types - {"unknown", ""}


@pytest.mark.parametrize("provider", SENDERS)
def test_two_samples_are_two_events(provider):
    """Otherwise the second attempt would seem to do nothing."""
    record, ids = registry.get_provider(provider), set()
    for second in (0, 1):
        at = AT + dt.timedelta(seconds=second)
        request = record.sign(record.samples("m-2", None, at)["opened"], secret_of(provider), at.timestamp(), URL)
        ids |= {event.provider_event_id for event in parse(provider, request.body, request.headers)}
    assert len(ids) == 2
