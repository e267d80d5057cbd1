"""JSON nested as deep as strangers like: each Python has limits of its own, and no provider's reader one."""

import contextlib
import json
from urllib.parse import quote_plus

import pytest

from mailglass_reconcile.providers import sns
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify
from senders import MANDRILL_URL, load_payloads, make_requests, secret_of, serve_certificate

pytestmark = pytest.mark.python_dependent

# Python 3.11 reads about 980 levels, and 3.13 about 10,000.
DEPTHS = [100, 900, *range(940, 1_000, 2), 1_500, 9_000, *range(9_960, 10_000, 2), 20_000, 100_000]


ENCODINGS = {"ses": json.dumps, "scaleway": json.dumps, "mandrill": lambda text: f'"{quote_plus(text)}"'}
"""How a body carries the JSON of an event, where it is not the body itself."""


@pytest.mark.parametrize("provider", PROVIDERS)
def test_deep_json_is_read_or_refused(provider, monkeypatch):
    """A webhook whose details are nested is an event like any other, and nothing is a RecursionError."""
    monkeypatch.setattr(sns, "fetch", serve_certificate)
    encode = ENCODINGS.get(provider, lambda text: f'"{text}"')
    [sent] = make_requests(provider, [{**load_payloads(provider)[0].payload, "deep": "DEPTH"}])
    place = encode('"DEPTH"')[1:-1].encode()
    numbers = set()
    for depth in DEPTHS:
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            deep = f"{opening * depth}0{closing * depth}"
            assert place in sent.body
            for body in (deep.encode(), sent.body.replace(place, encode(deep)[1:-1].encode())):
                with contextlib.suppress(SignatureError, InvalidWebhookError):
                    verify(provider, body, sent.headers, secret=secret_of(provider), url=MANDRILL_URL)
                with contextlib.suppress(InvalidWebhookError):
                    numbers.add(len(parse(provider, body, sent.headers)))
    assert 1 in numbers, "the event is read if Python can read it"
