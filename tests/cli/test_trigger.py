"""`trigger`: a sample of each provider reaches a receiver over HTTP, or one line says why not."""

import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.routing import Host

from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.cli import command, main
from receivers import SECRETS, mount_receiver, setting
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import IDS, SENDERS
from serving import serve_here

pytestmark = pytest.mark.version_independent

STATE = "SELECT provider_message_id, last_event_type FROM mailglass_deliveries ORDER BY inserted_at"


def run_trigger(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(command, ["trigger", *arguments])


def test_a_sample_of_every_provider_reaches_its_delivery(db):
    setting(db, ",".join(f"{provider}={SECRETS[provider]}" for provider in SENDERS))
    with serve_here(mount_receiver(url=None)) as base:
        for provider in SENDERS:
            message_id = IDS.get(provider, "m-2")
            with db.engine.begin() as connection:
                sent = [Sent(recipient="ada@example.com", message_id=message_id)]
                recorded = record_send(connection, provider=provider, sent=sent)
            broadcast(recorded)
            result = run_trigger(provider, "opened", "--message-id", message_id, "--to", f"{base}/webhooks/{provider}")
            assert result.output == f"{provider}: opened for {message_id} was answered with 200\n"
    assert {state for _, state in db.rows(STATE)} == {"opened"}
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == len(SENDERS)


def test_the_recipient_of_a_sample_chooses_among_deliveries(db):
    """This is as in a real webhook; without a recipient, an id of several deliveries is ambiguous."""
    setting(db, f"postmark={SECRETS['postmark']}")
    people = ["ada@example.com", "bob@example.com"]
    with db.engine.begin() as connection:
        record_send(
            connection, provider="postmark", sent=[Sent(recipient=recipient, message_id="m") for recipient in people]
        )
    with serve_here(mount_receiver()) as base:
        to = ["--to", f"{base.replace('//', '//me:wrong@')}/webhooks/postmark", "--message-id", "m"]
        assert run_trigger("Postmark", "delivered", *to, "--recipient", "BOB@example.com").exit_code == 0
    rows = "SELECT recipient, last_event_type FROM mailglass_deliveries ORDER BY 1"
    assert [tuple(row) for row in db.rows(rows)] == [(people[0], "dispatched"), (people[1], "delivered")]


def test_a_tenant_s_subdomain_of_localhost_is_this_machine(db):
    """Browsers and curl know that; the server chooses by the name, which is the header Host."""
    setting(db, f"postmark={SECRETS['postmark']}")
    with serve_here(Starlette(routes=[Host("acme.localhost", mount_receiver(tenant="acme"))])) as base:
        to = f"{base.replace('//127.0.0.1', '//acme.localhost')}/webhooks/postmark"
        result = run_trigger("postmark", "opened", "--message-id", "m", "--to", to)
    assert result.output == "postmark: opened for m was answered with 200\n"
    assert db.value("SELECT tenant_id FROM mailglass_events") == "acme"


def test_without_an_address_it_posts_to_the_receivers_public_address(db):
    """The setting may contain a password, which is never printed."""
    with serve_here(mount_receiver()) as base:
        setting(db, f"postmark={SECRETS['postmark']}", webhook_url=f"{base.replace('//', '//me:hidden@')}/webhooks")
        result = run_trigger("postmark", "delivered", "--message-id", "m")
    assert result.output == "postmark: delivered for m was answered with 200\n"


def test_a_refusal_of_the_receiver_is_printed(db, capsys):
    """The secrets may differ; a redirect is not followed, because it would become a GET."""
    setting(db, "postmark=me:other")
    with serve_here(mount_receiver()) as base, pytest.raises(SystemExit) as error:
        main(["trigger", "postmark", "opened", "--message-id", "m", "--to", f"{base}/webhooks/postmark"])
    assert error.value.code == 1
    assert capsys.readouterr().err == "mailglass-reconcile: the receiver answered 401: invalid signature\n"
