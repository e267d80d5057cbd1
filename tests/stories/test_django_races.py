"""The Django app between Anymail's own backends and views: a delivery ends the same in any order."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from anymail.signals import post_send
from django.apps import apps
from django.db import connections, transaction

from anymail_sends import ANN, BOB, STORY, Message
from anymail_webhooks import POSTMARK, RESEND, SENDGRID, SES
from mailglass_reconcile import Sent
from waiting import PATIENCE, settle

pytestmark = [
    pytest.mark.usefixtures("app", "backends"),
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]

LEDGER = "SELECT count(*) FROM mailglass_events"
OPEN = "SELECT count(*) FROM mailglass_open_orphans"


def run_in_thread(action, *arguments):
    """Run a function in another thread, which has its own connection like another request."""

    def run():
        try:
            return action(*arguments)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


def deliveries(db, message):
    """Return a message's deliveries without the time of the send."""
    result = message.deliveries(db)
    assert all(item.pop("dispatched_at") for item in result)
    return result


@contextmanager
def run_on_acceptance(provider, action):
    """Call a function with each message that a provider has accepted, before our app learns of it."""

    def receive(status, **_options):
        action(Message.from_status(provider, status))

    post_send.disconnect(dispatch_uid="mailglass_reconcile.on_post_send")
    post_send.connect(receive)
    apps.get_app_config("mailglass_reconcile").connect()
    yield
    post_send.disconnect(receive)


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(provider, id=provider.esp_name, marks=[] if provider is SENDGRID else pytest.mark.slow)
        for provider in (SENDGRID, RESEND, SES)  # events of all in one batch, one event a webhook, one event an address
    ],
)
def test_a_delivery_ends_the_same_before_during_and_after_the_commit_of_its_send(db, post, provider):
    """This holds after a retry of each request; only a send that is rolled back leaves its orphans."""
    to = [ANN] if provider is RESEND else [ANN, BOB]

    def post_story(message, story=STORY):
        return run_in_thread(post, message.requests(*story))

    after = Message.send_accepted(provider, 1, to)
    post_story(after)

    with run_on_acceptance(provider, post_story):
        before = Message.send_accepted(provider, 2, to)
    with run_on_acceptance(provider, post_story), transaction.atomic():
        before_in_a_transaction = Message.send_accepted(provider, 3, to)

    with transaction.atomic():
        during = Message.send_accepted(provider, 4, to)
        post_story(during)

    with transaction.atomic():
        split = Message.send_accepted(provider, 5, to)
        post_story(split, STORY[::-2])
    post_story(split, STORY[-2::-2])

    settle()
    expected = deliveries(db, after)
    last = [(ANN, "clicked"), (BOB, "bounced")]
    assert [(row["recipient"], row["last_event_type"]) for row in expected] == last[: len(to)]
    assert db.value(OPEN) == 0

    with transaction.atomic():
        undone = Message.send_accepted(provider, 6, to)
        orphans = len(post_story(undone))
        transaction.set_rollback(True)
    assert (deliveries(db, undone), db.value(OPEN)) == ([], orphans)

    ledger = db.value(LEDGER)
    messages = [after, before, before_in_a_transaction, during, split]
    for message in [*messages, undone]:
        post_story(message)
    settle()
    assert (db.value(LEDGER), db.value(OPEN)) == (ledger, orphans)
    assert [deliveries(db, message) for message in messages] == [expected] * len(messages)


def test_a_webhook_whose_own_transaction_is_open_while_the_send_commits_is_linked_by_its_own_commit(db, post):
    """Neither saw the other; the webhook's request looks again after its commit."""
    event, go_on = threading.Event(), threading.Event()

    def slowly(message):
        try:
            with transaction.atomic():
                post(message.requests(*STORY))
                event.set()
                assert go_on.wait(PATIENCE)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        futures = []
        with run_on_acceptance(
            SENDGRID, lambda message: (futures.append(threads.submit(slowly, message)), event.wait(PATIENCE))
        ):
            message = Message.send_accepted(SENDGRID, 1)
        assert [delivery["events"] for delivery in deliveries(db, message)] == [["dispatched"], ["dispatched"]]
        go_on.set()
        futures[0].result()
    settle()
    assert [delivery["last_event_type"] for delivery in deliveries(db, message)] == ["clicked", "bounced"]
    assert db.value(OPEN) == 0


def test_the_fixture_for_a_webhook_before_its_send_works_in_a_django_project(db, post, mailglass_webhook_first):
    """It locks Django's own database and leaves no connection behind."""
    will_be = Message(POSTMARK, [Sent(recipient=ANN, message_id="<1-0@example.com>")])
    message, _ = mailglass_webhook_first(
        lambda: Message.send_accepted(POSTMARK, 1, [ANN]), lambda: run_in_thread(post, will_be.requests(*STORY))
    )
    assert [delivery["last_event_type"] for delivery in deliveries(db, message)] == ["clicked"]
