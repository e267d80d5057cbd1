"""`explain`: origins of ids, remedies, the run that linked an event; and events that are not orphans."""

import datetime as dt
from uuid import UUID

import pytest
from pydantic import SecretStr

import commands
import factories
import mailglass_reconcile
import meter
import recording
from browsing import Visitor, app
from mailglass_reconcile import key_rule
from mailglass_reconcile.ops.explanation import Explanation, TriedId, explain, explain_message, facts
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.web.rendering import fact_text

pytestmark = pytest.mark.version_independent

WEEK = 7 * 86_400


def explain_event(db, event_id):
    """Explain an event."""
    return explain(db.database, UUID(event_id))


@pytest.mark.parametrize("attached", [True, False])
def test_why_a_mail_bounced_is_shown(db, attached):
    if attached:
        factories.delivery(db, "m-1")
    bounced = recording.event("m-1", "bounced", reject_reason="invalid", bounce="hard", smtp_status="550 5.1.1")
    with db.engine.begin() as connection:
        (recorded,) = recording.record(connection, bounced)
    explanation = explain(db.database, recorded.event_id)
    assert (explanation.reject_reason, explanation.bounce, explanation.smtp_status) == ("invalid", "hard", "550 5.1.1")
    stdout = commands.run_here("explain", str(recorded.event_id)).stdout
    assert "type       bounced\nbounce     hard\nreason     invalid\nSMTP       550 5.1.1\n" in stdout
    page = Visitor(app(db)).get(f"/events/{recorded.event_id}").text
    for name, value in (("Bounce", "hard"), ("Reason", "invalid"), ("SMTP", "550 5.1.1")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_what_another_writer_has_stored_of_a_bounce_shows_no_address(db):
    """Another writer's reason and SMTP reply may hold anything."""
    metadata = factories.postmark("m-1", bounce={"email": "ada@example.com"}, smtp_status="550 <ada@example.com>")
    id_ = factories.orphan(db, metadata, type="bounced", reject_reason="ada@example.com")
    explanation = explain_event(db, id_)
    assert (explanation.reject_reason, explanation.bounce, explanation.smtp_status) == (None, None, "550")
    assert "\nreason" not in commands.run_here("explain", id_).stdout


def test_every_id_names_the_place_that_it_was_read_from(db):
    """The places of the common ids and of the provider's rule are named; their values are not."""
    event = factories.orphan(
        db,
        {"provider": "SendGrid", "provider_message_id": "a@b", "sg_message_id": "c.filter01-1"},
        normalized_payload={"provider_message_id": ["not a text"]},
    )
    for swept in (False, True):
        if swept:
            mailglass_reconcile.reconcile()
        explanation = explain_event(db, event)
        assert (explanation.provider, explanation.rule) == ("sendgrid", "sendgrid/2.1")
        assert [(read.path, read.holds) for read in explanation.reads] == [
            ("metadata/provider_message_id", "string"),
            ("normalized_payload/provider_message_id", "array"),
            ("metadata/sg_message_id", "string"),
            ("metadata/smtp_message_id", None),
        ]
        assert [(row.id, row.read_from) for row in explanation.tried] == [
            ("a@b", "metadata/provider_message_id"),
            ("<a@b>", "metadata/provider_message_id"),
            ("c", "metadata/sg_message_id"),
            ("c.filter01-1", "metadata/sg_message_id"),
        ]
        assert explanation.candidate_ids == tuple(row.id for row in explanation.tried)


def test_an_id_that_a_rule_makes_of_several_values_has_no_single_place(db, monkeypatch):
    """Such an id is tried like any other; a rule that fails on a single value loses only the place."""
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))

    @key_rule("joined", reads=("metadata/a", "metadata/b"))
    def joined(a, b):
        return [a + b]

    event = factories.orphan(db, {"provider": "joined", "a": "x", "b": "y"})
    assert explain_event(db, event).tried == (TriedId("xy", None, 0),)


def test_a_named_delivery_says_what_keeps_it_from_being_the_right_one(db):
    factories.delivery(db, "x", tenant_id="other")
    factories.delivery(db, "x", provider="sendgrid", recipient="grace@example.com")
    factories.delivery(db, "x", recipient="grace@example.com")
    explanation = explain_event(db, factories.orphan(db, factories.postmark("x", recipient="Ada <ADA@example.com>")))
    assert {(row.same_tenant, row.same_provider, row.same_recipient) for row in explanation.candidates} == {
        (False, True, True),
        (True, False, False),
        (True, True, False),
    }


def test_the_times_at_which_a_sweep_looks_are_in_utc(db):
    young, open_, old = (
        factories.orphan(db, factories.postmark("x"), age_seconds=age) for age in (-200, 300, WEEK + 99)
    )
    for event, state in ((young, "waiting"), (open_, "unmatched"), (old, "expired")):
        explanation = explain_event(db, event)
        arrived, expires = (
            dt.datetime.fromisoformat(time) for time in (explanation.arrived_at, explanation.expires_at)
        )
        assert (explanation.state, explanation.verdict, arrived.tzinfo) == (state, "unmatched", dt.UTC)
        assert expires - arrived == dt.timedelta(days=7)
        if state == "expired":
            assert explanation.eligible_at is None
            assert "sweep --event" in " ".join(explanation.remedy)
            assert "a delivery of the event's tenant" in " ".join(explanation.remedy)
        else:
            assert dt.datetime.fromisoformat(explanation.eligible_at) - arrived == dt.timedelta(seconds=60)


def test_a_linked_event_names_when_it_was_linked_to_what_and_by_which_event(db):
    delivery = factories.delivery(db, "x")
    event = factories.orphan(db, factories.postmark("x"))
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    mailglass_reconcile.reconcile()
    explanation = explain_event(db, event)
    reconciled = db.value("SELECT id::text FROM mailglass_events WHERE type = 'reconciled'")
    assert (explanation.state, explanation.delivery_id, explanation.reconciled_by) == ("linked", delivery, reconciled)
    assert before < dt.datetime.fromisoformat(explanation.linked_at) <= dt.datetime.now(dt.UTC)


def test_keys_of_another_version_are_explained_as_the_next_sweep_computes_them(db):
    """The stored keys are outdated, so they are not shown."""
    event = factories.orphan(db, factories.postmark("x"))
    mailglass_reconcile.reconcile()
    db.run("UPDATE mailglass_open_orphans SET rank = 1")
    db.run("UPDATE mailglass_open_orphan_ids SET candidate_id = 'outdated'")
    assert explain_event(db, event).candidate_ids == ("x",)
    db.run("UPDATE mailglass_open_orphan_ids SET candidate_id = 'x'")


def test_an_event_whose_tenant_id_is_too_long_is_said_never_to_be_linked(db):
    """The open set leaves it out, and a repair does not add it."""
    event = factories.orphan(db, factories.postmark("m-1"), tenant_id="t" * 1_001)
    explanation = explain(db.database, UUID(event))
    assert explanation.state == "missing"
    assert explanation.sentence == "its tenant id has more than 1,000 characters; such events are never linked"
    assert not explanation.remedy


def test_an_orphan_that_arrived_in_the_far_future_is_explained(db):
    """An infinite arrival once caused a traceback."""
    orphan = factories.orphan(db, factories.postmark("x"))
    db.run("UPDATE mailglass_open_orphans SET arrived_at = 'infinity'")
    assert explain(db.database, UUID(orphan)).state == "waiting"
    db.run("UPDATE mailglass_open_orphans SET arrived_at = now()::timestamp")


def test_an_event_that_was_stored_with_its_delivery_is_attached(db):
    delivery = factories.delivery(db, "one")
    for asks in (True, False):
        row = factories.orphan_row(factories.postmark("one"), delivery_id=delivery, needs_reconciliation=asks)
        factories.insert(db, events=[row])
        explanation = explain(db.database, UUID(row["id"]))
        assert (explanation.state, explanation.delivery_id, explanation.candidate_ids) == ("attached", delivery, ())
        assert (explanation.provider, explanation.rule, explanation.reads) == ("postmark", None, ())


def test_the_password_of_the_webhook_address_is_printed_nowhere(db):
    """The remedy names the command, which reads the address from its own settings."""
    factories.delivery(db, "m@1", tenant_id="globex")
    event = factories.orphan(db, factories.postmark("m@1"), tenant_id="default")
    url = SecretStr("https://hooks:canary@mail.example.com/webhooks")
    visitor = Visitor(app(db, webhook_url=url))
    texts = [commands.run_here("explain", event).stdout, commands.run_here("explain", event, "--json").stdout]
    texts.append(visitor.get(f"/events/{event}").text)
    for text in texts:
        assert "trigger postmark delivered" in text
        assert "canary" not in text


def test_a_message_id_plants_no_command_that_can_be_copied(db):
    """Message ids and tenants come from outside, and must not end up in a command that an operator copies."""
    planted = "x` now run `mailglass-reconcile erase ceo@corp.example --yes` then `"
    factories.delivery(db, planted, tenant_id=planted)
    event = factories.orphan(db, factories.postmark(planted), tenant_id="default")
    page = Visitor(app(db)).get(f"/events/{event}").text
    assert 'data-copy="mailglass-reconcile erase' not in page
    assert "\nmailglass-reconcile erase" not in commands.run(db, "explain", event).stdout


@pytest.mark.parametrize("tenants", [("beryl", "coral"), ("coral", "beryl")])
def test_the_remedy_of_a_tenant_mismatch_names_the_tenant_of_a_delivery_with_the_events_provider(db, tenants):
    """Another provider's delivery with the same id is no cause of it."""
    of_provider, of_another = tenants
    factories.delivery(db, "m-1", tenant_id=of_provider, provider="postmark")
    factories.delivery(db, "m-1", tenant_id=of_another, provider="mailgun")
    orphan = factories.orphan(db, factories.postmark("m-1"))
    explanation = explain_event(db, orphan)
    assert explanation.state == "tenant_mismatch"
    assert of_provider in " ".join(explanation.remedy)
    assert of_another not in " ".join(explanation.remedy)


def test_the_events_of_a_message_are_explained_in_one_transaction(db):
    """So all explanations describe the same moment."""
    factories.delivery(db, "m-1")
    for age in (300, 400, 500):
        factories.orphan(db, factories.postmark("m-1"), age_seconds=age)
    with meter.statements(db.engine) as statements:
        explanations, _ = explain_message(db.database, "m-1")
    assert len(explanations) == 3
    assert len([text for text in statements if "pg_catalog.set_config" in text]) == 1


def test_an_unknown_time_is_a_dash_wherever_a_fact_is_shown():
    """A braced text that somebody wrote is shown as it is."""
    event = Explanation(factories.new_id(), "linked", "", linked_by="hand", reason="see {}", reconciled_by="r-1")
    shown_facts = {fact.name: (fact.plain_text, str(fact_text(fact))) for fact in facts(event)}
    assert shown_facts["arrived"] == ("-", "-")
    assert shown_facts["manually"] == ("an unknown user: see {}",) * 2
