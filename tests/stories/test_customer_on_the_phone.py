"""A customer on the phone got no mail: on the dashboard, from the address to the command that helps."""

import html
import re

import pytest

import factories
import mailglass_reconcile
from browsing import Visitor, app

pytestmark = pytest.mark.version_independent

CUSTOMER = "ada@example.com"


class Operator:
    """Follows the links of the dashboard and reads its pages like a person."""

    def __init__(self, db):
        self.visitor, self.text = Visitor(app(db)), ""

    def search(self, address):
        """Type an address into the search."""
        self.read(self.visitor.ask("POST", "/find", data={"q": address}))

    def follow(self, kind, id_):
        """Follow a link that is on the page."""
        assert re.search(rf'href="\.{{1,2}}/{kind}/{id_}"', self.text), f"no link to {kind}/{id_}"
        self.read(self.visitor.get(f"/{kind}/{id_}"))

    def read(self, answer):
        """Return a page, after checking that it does not have the address."""
        assert answer.status_code == 200
        assert CUSTOMER not in answer.text
        self.text = answer.text

    @property
    def words(self):
        """Return the text of a page without markup."""
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", self.text)))

    @property
    def commands(self):
        """Return the commands on a page."""
        copied = map(html.unescape, re.findall(r'data-copy="([^"]+)"', self.text))
        return [text for text in copied if text.startswith("mailglass-reconcile")]


def test_the_event_came_under_another_tenant(db):
    """The delivery leads to the event of the wrong tenant, and the event to how the webhook is sent again."""
    delivery = factories.delivery(db, "m-1", recipient=CUSTOMER, tenant_id="acme", provider="postmark")
    event = factories.orphan(db, factories.postmark("m-1"), tenant_id="default", type="bounced")
    mailglass_reconcile.reconcile()
    operator = Operator(db)
    operator.search(CUSTOMER)
    operator.follow("deliveries", delivery)
    assert "1 open event of tenant default names its message id." in operator.words
    operator.follow("events", event)
    assert "Route these webhooks to tenant acme" in operator.words
    (command,) = operator.commands
    assert command.startswith("mailglass-reconcile trigger postmark bounced --message-id m-1")


def test_an_operator_chooses_between_two_deliveries_by_what_differs(db):
    """Each possible delivery has its mailable, time and state, and the command that links it."""
    deliveries = [factories.delivery(db, "m-1", recipient=CUSTOMER) for _ in range(2)]
    event = factories.orphan(db, factories.postmark("m-1"))
    mailglass_reconcile.reconcile()
    operator = Operator(db)
    operator.search(CUSTOMER)
    operator.follow("events", event)
    assert operator.words.count("Welcome dispatched, stored 4 minutes ago") == 2
    assert sorted(operator.commands) == sorted(
        f"mailglass-reconcile link {event} {delivery} --reason ''" for delivery in deliveries
    )
