"""Redelivery: each provider's way to send a webhook again, with commands that work for it."""

import shlex

import pytest

from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules import provider_rules, redelivery
from senders import PRIVATE

pytestmark = pytest.mark.version_independent


def remedy_of(provider, **more):
    """Return the remedy for a provider's event."""
    arguments = {"type_": "delivered", "message_id": "m-1", "tenant_id": "globex", **more}
    return redelivery.tenant_remedy(provider=provider, **arguments)


def test_the_providers_are_those_with_a_webhook_reader():
    """This does not depend on imports."""
    assert set(provider_rules.built_in()) == set(registry.PROVIDERS)


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_each_provider_has_a_way(provider):
    """It is its dashboard, a sample that we sign, or the request from a log."""
    output = remedy_of(provider)
    assert "Route these webhooks to tenant globex" in output
    if provider == "resend":
        assert "Replay" in output
    else:
        assert ("mailglass-reconcile trigger" in output) == (provider not in PRIVATE)
        assert ("receive(connection" in output) == (provider in PRIVATE)


def test_the_command_can_be_pasted_with_any_message_id():
    """It is quoted for a shell and has no URL: `trigger` posts to MAILGLASS_WEBHOOK_URL."""
    command = remedy_of("postmark", message_id="<it's $1@x>").partition("`")[2].strip("`")
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
def test_foreign_values_cannot_inject_a_command(provider, foreign):
    """Backticks in a message id, tenant or provider are no markup, and no control character reaches a terminal."""
    output = remedy_of(provider, **foreign)
    assert output.isprintable()
    assert [part for part in output.split("`")[1::2] if part.startswith("mailglass-reconcile erase")] == []
    assert "--message-id ID" in output or "message_id" not in foreign
