"""The admin: what it shows and finds, that it is read-only, and that it is fast among many rows."""

import hashlib
import importlib
import re
import uuid
from urllib.parse import quote

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.serializers.base import DeserializedObject
from django.db import connection
from django.test import Client, override_settings

import factories
import mailglass_reconcile
import meter
from anymail_sends import ANN, STORY, Message
from anymail_webhooks import POSTMARK
from django_project import databases_name
from mailglass_reconcile.rules.humanize import escape_unprintable
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner

pytestmark = [pytest.mark.long, pytest.mark.python_dependent]

PLACE = "/admin/mailglass_reconcile"
EVENTS = "SELECT id FROM mailglass_events"
FOR_ANN = "SELECT count(*) FROM mailglass_deliveries WHERE lower(recipient) = lower(:ann)"
ROWS = 250_000
"""Of each kind; a scan of any table would read twice what is allowed, or more."""
FILL = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
                                  provider_message_id, last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('d' || n)::uuid, 'tenant-' || n % 50, 'python', 'transactional', 'r' || n || '@example.org', 'example.org',
       'postmark', 'm-' || n, 'dispatched', now(), now(), now()
  FROM generate_series(1, ROWS) AS n;
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, metadata)
SELECT md5('e' || n)::uuid, 'tenant-' || n % 50, md5('d' || n)::uuid, 'dispatched', now(), '{}'
  FROM generate_series(1, ROWS) AS n;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rank)
SELECT md5('o' || n)::uuid, 'tenant-' || n % 50, now() - n * interval '1 second', 'postmark', 1
  FROM generate_series(1, ROWS) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('o' || n)::uuid, 1, 'o-' || n FROM generate_series(1, ROWS) AS n;
ANALYZE mailglass_deliveries, mailglass_events, mailglass_open_orphans, mailglass_open_orphan_ids
"""


@pytest.fixture
def site(backends, admin_client):
    """The admin's pages for a superuser."""
    return admin_client


def text_of(response):
    """Return a page's text without tags."""
    assert response.status_code == 200
    return " ".join(re.sub(r"<[^>]*>", " ", response.content.decode()).split())


def read_listed_ids(site, page):
    """Return the ids on a page of a list."""
    response = site.get(f"{PLACE}/{page}")
    text_of(response)
    return {uuid.UUID(pk) for pk in re.findall(r"/([0-9a-f-]{36})/change/", response.content.decode())}


@pytest.fixture
def rows(db, app, backends, post):
    """Insert a delivery with earlier events, and an orphan without a delivery."""
    call_command("migrate", "contenttypes", verbosity=0)
    orphan = factories.orphan(db, factories.postmark("m-1"))
    event = POSTMARK.event("delivered", "<1-0@example.com>", ANN, 10)
    post(POSTMARK.requests([event]))
    mailglass_reconcile.reconcile()
    message = Message.send_accepted(POSTMARK, 1, [ANN])
    post(message.requests(*STORY[2:3]))
    return {"orphan": uuid.UUID(orphan), "delivery": db.value("SELECT id FROM mailglass_deliveries")}


def test_a_delivery_is_shown_with_its_events_and_what_was_linked_to_it(site, rows):
    """A linked event is shown as the orphan with its own type and time, and the time of the link."""
    page = text_of(site.get(f"{PLACE}/delivery/{rows['delivery']}/change/"))
    assert "View delivery" in page
    for event in ("opened March 1, 2026, noon", "delivered March 1, 2026, noon, linked", "dispatched"):
        assert event in page


def test_the_list_of_events_shows_the_delivery_of_a_linked_event(db, site, rows):
    """Its own row names none."""
    linked = db.value("SELECT id FROM mailglass_events WHERE delivery_id IS NULL AND id <> :id", id=rows["orphan"])
    delivery = f"/delivery/{rows['delivery']}/change/"
    for page in ("event/", f"event/?q={linked}", f"event/{linked}/change/"):
        assert str(rows["delivery"]) in text_of(site.get(f"{PLACE}/{page}"))
    assert text_of(site.get(f"{PLACE}/event/")).count(str(rows["delivery"])) == 4
    assert delivery in site.get(f"{PLACE}/event/{linked}/change/").content.decode()


def test_a_delivery_without_a_provider_is_shown_with_that_of_its_send(db, site, rows):
    """Tables that Mailglass made have such rows; the list and the page show it."""
    db.run("UPDATE mailglass_deliveries SET provider = NULL")
    provider = db.value("SELECT metadata ->> 'provider' FROM mailglass_events WHERE type = 'dispatched'")
    for page in ("delivery/", f"delivery/{rows['delivery']}/change/"):
        assert provider in text_of(site.get(f"{PLACE}/{page}")).split()
    db.broken.update({"I2", "I3", "I7"})


def test_a_list_takes_no_filter_from_its_query_string(site, rows):
    """With the view permission, addresses could be guessed letter by letter, each guess a scan of the table."""
    for lookup in ("recipient__iregex=^a", "recipient__startswith=a", "metadata__has_key=to", "tenant_id=acme"):
        for kind in ("delivery", "event", "openorphan"):
            assert site.get(f"{PLACE}/{kind}/?{lookup}").status_code == 400, (kind, lookup)


def test_lists_show_the_newest_and_find_what_is_named_exactly(db, site, rows):
    """The search matches an address, a message id, an event or a delivery as a whole."""
    value = db.value("SELECT provider_message_id FROM mailglass_deliveries")
    events = {row.id for row in db.rows(EVENTS)}
    of_delivery = events - {rows["orphan"]}
    for query in ("", f"?q={ANN}", f"?q={quote(value)}", f"?q={rows['delivery']}", "?q=%20"):
        assert read_listed_ids(site, f"delivery/{query}") == {rows["delivery"]}
    for query in ("?q=ann", "?q=m-1", f"?q={rows['orphan']}"):
        assert read_listed_ids(site, f"delivery/{query}") == set()
    assert read_listed_ids(site, "event/") == events
    assert (
        read_listed_ids(site, f"event/?q={rows['delivery']}")
        == read_listed_ids(site, f"event/?q={quote(value)}")
        <= of_delivery
    )
    assert (
        read_listed_ids(site, f"event/?q={rows['orphan']}") == read_listed_ids(site, "event/?q=m-1") == {rows["orphan"]}
    )
    assert read_listed_ids(site, "openorphan/") == {rows["orphan"]}
    assert (
        read_listed_ids(site, "openorphan/?q=m-1")
        == read_listed_ids(site, f"openorphan/?q={rows['orphan']}")
        == {rows["orphan"]}
    )
    assert read_listed_ids(site, "openorphan/?q=m-2") == set()


def test_an_open_orphan_has_the_state_in_which_a_sweep_left_it(site, rows):
    """The list and the page show it."""
    for page in ("openorphan/", f"openorphan/{rows['orphan']}/change/"):
        assert "unmatched" in text_of(site.get(f"{PLACE}/{page}"))


def _admin():
    """Return the admin's module, which requires Django to be set up."""
    return importlib.import_module("mailglass_reconcile.contrib.django.admin")


@pytest.mark.slow
def test_lists_are_filtered_among_the_newest_and_among_what_a_search_has_found(db, site, rows):
    """Filters are the last event and the state; the query string takes no other."""
    bounced = factories.delivery(db, "m-9", tenant_id="globex", last_event_type="bounced", provider="SendGrid")
    lost = factories.orphan(db, factories.sendgrid("m-8"), tenant_id="globex")
    delivery_ids = {rows["delivery"], uuid.UUID(bounced)}
    assert read_listed_ids(site, "delivery/") == delivery_ids
    for query in ("last=bounced", "last=bounced&q=m-9"):
        assert read_listed_ids(site, f"delivery/?{query}") == {uuid.UUID(bounced)}, query
    for query in ("last=complained", f"q={ANN}&last=bounced"):
        assert read_listed_ids(site, f"delivery/?{query}") == set(), query
    assert read_listed_ids(site, "openorphan/?is=unmatched") == {rows["orphan"]}
    assert read_listed_ids(site, "openorphan/?is=unseen") == {uuid.UUID(lost)}
    ids = [f"ffffffff-0000-4000-8000-{number:012d}" for number in range(_admin().LIMIT)]
    factories.insert(db, [factories.delivery_row(None, id=id_) for id_ in ids])
    newest = factories.delivery(db, "m-7", id="ffffffff-0000-4000-9000-000000000000", last_event_type="bounced")
    assert read_listed_ids(site, "delivery/?last=bounced") == {uuid.UUID(newest)}
    assert read_listed_ids(site, "delivery/?last=bounced&q=m-9") == {uuid.UUID(bounced)}
    page = site.get(f"{PLACE}/delivery/").content.decode()
    assert 'href="?last=bounced"' in page
    assert [site.get(f"{PLACE}/delivery/?{query}").status_code for query in ("tenant=globex", "by=sendgrid")] == [
        400
    ] * 2
    db.broken.update({"I2", "I7"})


def test_a_delivery_an_event_and_an_open_orphan_show_what_explain_says(db, site, rows):
    """The verdict as of now is at the top of each page."""
    event = db.value("SELECT id FROM mailglass_events WHERE type = 'dispatched'")
    for page, words in {
        f"openorphan/{rows['orphan']}": "unmatched: no delivery has a matching id yet To link it: store a delivery",
        f"event/{rows['orphan']}": "unmatched: no delivery has a matching id yet",
        f"event/{event}": "attached: it was stored with its delivery",
    }.items():
        text = text_of(site.get(f"{PLACE}/{page}/change/"))
        assert re.search(rf"Explanation: {re.escape(words)}", text), page
    page = site.get(f"{PLACE}/openorphan/{rows['orphan']}/change/").content.decode()
    assert "unmatched: no delivery has a matching id yet<br>To link it: store a delivery" in page
    assert "Summary: opened" in text_of(site.get(f"{PLACE}/delivery/{rows['delivery']}/change/"))


def test_a_list_says_how_many_or_that_they_are_the_first(site, rows, monkeypatch):
    """Not the newest: ids of deliveries may be random. No page links to a history, because there is none."""
    assert "1 delivery" in text_of(site.get(f"{PLACE}/delivery/"))
    monkeypatch.setattr(_admin().ShortPaginator, "count", 1_000)
    assert "the first 1,000 deliveries" in text_of(site.get(f"{PLACE}/delivery/"))
    page = site.get(f"{PLACE}/delivery/{rows['delivery']}/change/").content.decode()
    assert "history" not in page.lower()
    assert site.get(f"{PLACE}/delivery/{rows['delivery']}/history/").status_code == 404


def test_nothing_can_be_added_changed_or_deleted(db, site, rows):
    """This holds for a superuser too."""
    before = db.rows("SELECT d, e FROM mailglass_deliveries AS d, mailglass_events AS e")
    pages = {"delivery": rows["delivery"], "event": rows["orphan"], "openorphan": rows["orphan"]}
    for model, pk in pages.items():
        for page in ("add", f"{pk}/change", f"{pk}/delete"):
            assert site.post(f"{PLACE}/{model}/{page}/", {"type": "delivered"}).status_code == 403
        assert site.get(f"{PLACE}/{model}/add/").status_code == 403
    assert db.rows("SELECT d, e FROM mailglass_deliveries AS d, mailglass_events AS e") == before


def log_in_viewer(get_response):
    """Log in a user who may view deliveries only, as a middleware."""

    def respond(request):
        request.user = get_user_model()(pk=2, username="eve", is_staff=True)
        request.user._perm_cache = {"mailglass_reconcile.view_delivery"}
        return get_response(request)

    return respond


def test_a_person_is_erased_by_somebody_who_may_delete_deliveries(db, site, rows):
    """A question with the address comes first; users without the permission have no such action."""
    delivery_id = factories.delivery(
        db, recipient=ANN.upper(), tenant_id=db.value("SELECT tenant_id FROM mailglass_deliveries")
    )
    save_superuser()
    form = {"action": "erase_recipients", "_selected_action": str(rows["delivery"])}
    place = f"{PLACE}/delivery/"
    cookies = "django.contrib.messages.storage.cookie.CookieStorage"
    by = "django.contrib.messages.middleware.MessageMiddleware"
    with override_settings(MIDDLEWARE=[f"{__name__}.log_in_viewer", by], MESSAGE_STORAGE=cookies):
        eve = Client()
        eve.post(place, {**form, "confirmed": "yes"})
        assert "erase_recipients" not in eve.get(place).content.decode()
    assert db.value(FOR_ANN, ann=ANN) == 2
    with override_settings(MIDDLEWARE=["django_project.as_superuser", by], MESSAGE_STORAGE=cookies):
        site = Client()
        assert "erase_recipients" in site.get(place).content.decode()
        assert ANN in text_of(site.post(place, form))
        assert db.value(FOR_ANN, ann=ANN) == 2
        result = text_of(site.post(place, {**form, "confirmed": "yes"}, follow=True))
        assert "Erased an address from 2 deliveries" in result
        assert "Not reached: metadata" in result
        assert site.post(f"{place}{delivery_id}/delete/").status_code == 403
    assert db.value("SELECT count(*) FROM mailglass_deliveries WHERE recipient LIKE '%@erased.invalid'") == 2
    (entry,) = db.rows("SELECT user_id, object_id, object_repr, change_message FROM django_admin_log")
    assert entry[:3] == (1, str(rows["delivery"]), str(rows["delivery"]))
    assert entry.change_message == "Erased the recipient from 2 deliveries, 0 open events and 0 raw webhooks."


def save_superuser():
    """Store the user of the admin's client, to whom the entries of its log belong."""
    for label in ("auth", "admin"):
        call_command("migrate", label, verbosity=0)
    apps.get_model("contenttypes", "ContentType").objects.clear_cache()  # ids of another test's database
    get_user_model()(pk=1, username="root", is_staff=True, is_superuser=True).save()


@pytest.mark.slow
@pytest.mark.parametrize("tenant", ["acme\x07\u202egro", "t" * 600], ids=["control characters", "long"])
def test_a_delivery_of_an_odd_tenant_is_erased(db, site, rows, tenant):
    """Another program may write any text; the question shows it escaped."""
    delivery_id = factories.delivery(db, recipient="eve@example.com", tenant_id=tenant)
    save_superuser()
    form = {"action": "erase_recipients", "_selected_action": delivery_id}
    with override_settings(
        MIDDLEWARE=["django_project.as_superuser", "django.contrib.messages.middleware.MessageMiddleware"],
        MESSAGE_STORAGE="django.contrib.messages.storage.cookie.CookieStorage",
    ):
        question = text_of(Client().post(f"{PLACE}/delivery/", form))
        assert escape_unprintable(tenant) in question
        Client().post(f"{PLACE}/delivery/", {**form, "confirmed": "yes"})
    assert db.value("SELECT recipient FROM mailglass_deliveries WHERE id = :id", id=delivery_id).endswith(
        "@erased.invalid"
    )


def test_no_page_obeys_characters_that_a_stranger_has_chosen(db, site, rows):
    """A right-to-left override would show another address than the one that is stored."""
    odd = "a\x1b[2J\u202emoc.elpmaxe"
    delivery_id = factories.delivery(db, odd, tenant_id=odd, recipient=odd, provider=odd)
    orphan = factories.orphan(db, factories.postmark("m-8", note=odd), tenant_id=odd, reject_reason=odd)
    for page in (
        *("delivery/", f"delivery/{delivery_id}/change/", "event/", f"event/{orphan}/change/"),
        *("openorphan/", f"openorphan/{orphan}/change/"),
    ):
        content = site.get(f"{PLACE}/{page}").content.decode()
        assert not {"\x1b", "\u202e"}.intersection(content), page
        assert "u202emoc" in content, page


def test_a_model_refuses_to_write(db, rows):
    events = apps.get_model("mailglass_reconcile", "Event").objects
    event = events.get(type="opened")
    for write in (
        event.save,
        event.delete,
        lambda: events.create(pk=uuid.uuid4()),
        lambda: events.bulk_create([event]),
        lambda: events.update(type="clicked"),
        lambda: events.bulk_update([event], ["type"]),
        lambda: events.filter(pk=event.pk).delete(),
        lambda: events.update_or_create({"type": "clicked"}, pk=event.pk),
        lambda: event.delivery.history().update(type="clicked"),
        event.delivery.delete,
        lambda: DeserializedObject(event).save(),
    ):
        with pytest.raises(TypeError, match=r"record_send|loaddata"):
            write()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_page_reads_little_however_many_rows_there_are(empty_database_url, site):
    """Every statement uses an index and reads a few hundred buffers."""
    settings = Settings(database_url=empty_database_url)
    engine = engines.create_engine(settings)
    runner.migrate(engine, settings, lambda line: None)
    with engine.begin() as setup_connection:
        setup_connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for statement in FILL.replace("ROWS", str(ROWS)).split(";"):
            setup_connection.exec_driver_sql(statement.replace("%", "%%"))
    ids = [str(uuid.UUID(hashlib.md5(f"{kind}777".encode()).hexdigest())) for kind in "deo"]  # noqa: S324
    with databases_name(empty_database_url):
        call_command("migrate", "contenttypes", verbosity=0)
        for page in (
            *("delivery/", "delivery/?p=20", "event/", "event/?p=20", "openorphan/", "openorphan/?p=20"),
            *("delivery/?q=r777@example.org", "delivery/?q=m-777", "delivery/?q=nobody", f"delivery/?q={ids[0]}"),
            *("event/?q=m-777", f"event/?q={ids[0]}", f"event/?q={ids[1]}", "event/?q=o-777", "event/?q=nothing"),
            *("openorphan/?q=o-777", f"openorphan/?q={ids[2]}", "openorphan/?q=nothing"),
            *(f"delivery/{ids[0]}/change/", f"event/{ids[1]}/change/", f"openorphan/{ids[2]}/change/"),
        ):
            with meter.plans(connection.connection) as plan:
                text_of(site.get(f"{PLACE}/{page}"))
            most = 10_000 if "@" in page else 2_500  # an address is searched in events too
            assert 0 < plan.buffers < most, page
        for page in (*("delivery/?last=bounced", "delivery/?last=complained", "openorphan/?is=unmatched"),):
            with meter.plans(connection.connection) as plan:
                text_of(site.get(f"{PLACE}/{page}"))
            assert 0 < plan.buffers < 16_000, page  # a thousand rows, each by its id
            assert not plan.whole, page
