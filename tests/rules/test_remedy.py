"""Remedies: each provider's way to send a webhook again, and the steps of each state."""

import ast
import shlex

import pytest

from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.remedy import WrongTenant, find_steps, tenant_steps
from senders import PRIVATE

pytestmark = pytest.mark.version_independent


def remedy_of(provider, **more):
    """Return the remedy for a provider's event."""
    arguments = {"type": "delivered", "message_id": "m-1", "tenant_id": "globex", "in_mailglass": False, **more}
    return " ".join(tenant_steps(WrongTenant(provider=provider, **arguments)))


def test_the_providers_are_those_with_a_webhook_reader():
    """This does not depend on imports."""
    assert set(provider_rules.built_in()) == set(registry.PROVIDERS)


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_each_provider_has_a_way(provider):
    """It is its dashboard, a sample that we sign, or the request from a log."""
    output = remedy_of(provider)
    assert "route these webhooks to tenant globex" in output
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


@pytest.mark.parametrize("tenant", ["o'neil", "a\\b", "x', body=b'", "a`b", "x\u202ey"])
def test_the_call_can_be_pasted_with_any_tenant(tenant):
    """Its quotes end at the tenant's end: no other argument can be added, and it is that tenant."""
    call = remedy_of("sendgrid", tenant_id=tenant).rpartition(": `")[2].rstrip("`")
    assert call.isprintable()
    arguments = ast.parse(call, mode="eval").body.keywords
    assert [(word.arg, ast.literal_eval(word.value)) for word in arguments] == [("tenant_id", tenant)]


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


def test_many_events_of_a_wrong_tenant_have_a_recipe():
    """A campaign of 20,000 is not sent again one by one."""
    wrong = WrongTenant("globex", "m-1", "postmark", "delivered", in_mailglass=False)
    *_, last = find_steps("e-1", "tenant_mismatch", is_expired=False, wrong_tenant=wrong)
    assert "trouble.md#everything-is-tenant_mismatch" in last


def test_an_ambiguous_event_without_its_recipient_has_a_remedy_of_its_own():
    """Other ambiguous events may still get a delivery."""
    plain, lost = (find_steps("e-1", "ambiguous", is_expired=False, recipient_lost=lost) for lost in (False, True))
    assert plain != lost
    assert find_steps("e-1", "unmatched", is_expired=False) == find_steps(
        "e-1", "unmatched", is_expired=False, recipient_lost=True
    )


def test_an_expired_event_needs_the_remedy_of_its_state_and_a_sweep_that_includes_it():
    """Either of them alone would leave it open."""
    matched, unmatched, combined = (
        find_steps("e-1", state, is_expired=is_expired)
        for state, is_expired in (("matched", True), ("unmatched", False), ("unmatched", True))
    )
    assert combined == (*unmatched, *matched)
    assert matched == ("run `mailglass-reconcile sweep --event e-1`, which links it if its delivery exists",)


def test_only_mailglass_has_a_function_that_routes_webhooks():
    assert "resolve_webhook_tenant" in remedy_of("postmark", in_mailglass=True)
    assert "resolve_webhook_tenant" not in remedy_of("postmark")
