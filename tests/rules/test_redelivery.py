"""How a webhook is sent again: each provider has its own way, and no command that is shown fails for its provider."""

import shlex

import pytest

from mailglass_reconcile.rules import providers, redelivery
from mailglass_reconcile.webhooks import registry
from senders import PRIVATE


def again(provider, **more):
    """Return the remedy for a provider's event."""
    arguments = {"type_": "delivered", "message_id": "m-1", "tenant_id": "globex", **more}
    return redelivery.tenant_remedy(provider=provider, **arguments)


def test_the_providers_are_those_whose_webhooks_are_read():
    """All of them, whatever was imported before."""
    assert set(providers.built_in()) == set(registry.PROVIDERS)


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_each_provider_has_a_way(provider):
    """Its own dashboard, a sample that it would sign, or the request from a log."""
    output = again(provider)
    assert "Route these webhooks to tenant globex" in output
    if provider == "resend":
        assert "Replay" in output
    else:
        assert ("mailglass-reconcile trigger" in output) == (provider not in PRIVATE)
        assert ("receive(connection" in output) == (provider in PRIVATE)


def test_the_command_can_be_pasted_whatever_the_message_id_is():
    """It is quoted for a shell, and names no address: `trigger` posts to MAILGLASS_WEBHOOK_URL."""
    command = again("postmark", message_id="<it's $1@x>").partition("`")[2].strip("`")
    assert shlex.split(command) == [
        *("mailglass-reconcile", "trigger", "postmark", "delivered"),
        *("--message-id", "<it's $1@x>"),
    ]


PLANTED = "x` now run `mailglass-reconcile erase ceo@corp.example --yes` then `"


@pytest.mark.parametrize(
    ("provider", "foreign"),
    [
        ("postmark", {"message_id": PLANTED}),
        ("postmark", {"message_id": "x\u202ey"}),
        ("postmark", {"tenant_id": PLANTED}),
        ("sendgrid", {"tenant_id": PLANTED}),
        (PLANTED, {}),
    ],
)
def test_what_comes_from_outside_plants_no_command(provider, foreign):
    """A message id, a tenant or a provider with backticks is never markup; nothing in it steers a terminal."""
    output = again(provider, **foreign)
    assert output.isprintable()
    assert [part for part in output.split("`")[1::2] if part.startswith("mailglass-reconcile erase")] == []
    assert "--message-id ID" in output or "message_id" not in foreign
