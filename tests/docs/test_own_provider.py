"""The file that the page shows for a provider of this package."""

import datetime as dt

import pages
from mailglass_reconcile.webhooks.registry import read, request_of

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def test_the_one_file_of_a_provider_reads_verifies_and_makes_samples():
    """Nothing else has to be written for that."""
    (block,) = [
        block for block in pages.blocks(pages.ROOT / "docs" / "own-provider.md") if "PROVIDER = Provider(" in block.text
    ]
    module: dict = {}
    exec(block.text, module)  # noqa: S102 - a page of ours
    provider = module["PROVIDER"]
    for type_, body in provider.samples("m-1", "ada@example.com", AT).items():
        signed = provider.sign(body, "change-me", AT.timestamp())
        request = request_of(signed.body, signed.headers)
        provider.authentication.verify(request, "change-me", AT.timestamp())
        (event,) = read(provider, request)
        assert (event.type, event.message_id, event.recipient, event.occurred_at) == (
            type_,
            "m-1",
            "ada@example.com",
            AT,
        )
