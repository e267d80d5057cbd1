"""How a webhook is sent again: each provider has its own way, and no command that is shown fails for its provider."""

import shlex

import pytest

from mailglass_reconcile.rules import providers, resending
from mailglass_reconcile.webhooks import registry, sending


def again(provider, **more):
    """Return what to do about a provider's event."""
    given = {"type_": "delivered", "message_id": "m-1", "tenant_id": "globex", "url": None, **more}
    return resending.remedy(provider=provider, **given)


def test_the_providers_are_those_whose_webhooks_are_read():
    """And those that sign with a private key are those of which `trigger` has no sample."""
    assert set(providers.built_in()) == set(registry.PROVIDERS)
    assert {name for name in registry.PROVIDERS if sending.sender(name) is None} == resending.PRIVATE_KEYS


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_each_provider_has_a_way(provider):
    """Its own dashboard, a sample that it would sign, or the request from a log."""
    said = again(provider)
    assert "make such webhooks arrive for tenant globex" in said
    if provider == "resend":
        assert "Replay" in said
    else:
        assert ("mailglass-reconcile trigger" in said) == (provider not in resending.PRIVATE_KEYS)
        assert ("receive(connection" in said) == (provider in resending.PRIVATE_KEYS)


def test_the_command_can_be_pasted_whatever_the_message_id_is():
    """It is quoted for a shell, and goes to the receiver's public address, if that is set."""
    command = again("postmark", message_id="<it's $1@x>", url="https://hooks.example/w/").partition("`")[2].strip("`")
    assert shlex.split(command) == [
        *("mailglass-reconcile", "trigger", "postmark", "delivered"),
        *("--message-id", "<it's $1@x>", "--to", "https://hooks.example/w/postmark"),
    ]
