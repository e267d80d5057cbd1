"""`webhook_view` with tenants, secrets and addresses of its own, and what `check` says of where it is mounted."""

import logging
from types import ModuleType

import pytest
from django.core.checks import run_checks
from django.db import connection, connections
from django.test import Client, override_settings
from django.urls import include, path, re_path
from django.views.decorators.cache import never_cache
from pydantic import SecretStr

import mailglass_reconcile
import senders
from anymail_sends import ANN
from mailglass_reconcile.contrib.django.views import webhook_view
from mailglass_reconcile.providers import registry
from mailglass_reconcile.webhooks import webhook_reader

pytestmark = pytest.mark.python_dependent

ROUTE = r"^webhooks/(?P<provider>[^/]+)/?$"
OPEN = {"RecordType": "Open", "MessageID": "m-1", "Recipient": ANN}
LOGINS = {"Basic bWU6YWNtZQ==": "acme", "Basic bWU6ZW1jYQ==": "emca"}
SECRETS = {tenant: {"postmark": f"me:{tenant}"} for tenant in LOGINS.values()}
ACME, EMCA = LOGINS
TENANTS = "SELECT tenant_id, count(*) FROM mailglass_events GROUP BY 1 ORDER BY 1"


def mount(*patterns, **settings):
    """Let the project have these URLs, and our webhooks' views outside of CSRF tokens."""
    urls = ModuleType("urls")
    urls.urlpatterns = list(patterns)
    return override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=[".shop.example"], **settings)


def of_host(request):
    """Return the tenant of a subdomain; none for any other."""
    tenant = request.get_host().partition(".")[0]
    return tenant if tenant in SECRETS else None


def of_path(request):
    """Return the tenant in the path."""
    return request.resolver_match.kwargs["tenant"]


def fail(*_arguments):
    """Fail, as a function that cannot reach its database."""
    raise KeyError(ANN)


def post(address, payload=OPEN, login=ACME, host="acme.shop.example", **more):
    """Return the status of the response to a webhook of Postmark's, posted by a client that has no CSRF token."""
    client = Client(raise_request_exception=False, enforce_csrf_checks=True)
    headers = {"authorization": login, "host": host}
    return client.post(address, payload, content_type="application/json", headers=headers, **more).status_code


def find_ids():
    """Return the ids of our errors in the project's URLs and secrets."""
    reported = [message for message in run_checks() if message.id.startswith("mailglass_reconcile.E")]
    return [message.id.partition(".")[2] for message in reported]


@pytest.mark.parametrize("secrets", [SECRETS, lambda provider, tenant: SECRETS[tenant].get(provider)])
def test_each_subdomain_is_a_tenant_with_its_own_secrets(db, app, anymail_settings, secrets):
    """MAILGLASS_TENANT is not asked; one tenant's secret is refused at the address of another."""
    view = webhook_view(tenant=of_host, secrets=secrets)
    with mount(re_path(ROUTE, view), MAILGLASS_TENANT=fail):
        assert find_ids() == []
        assert post("/webhooks/postmark") == 200
        assert post("/webhooks/postmark/", login=EMCA, host="emca.shop.example") == 200
        assert post("/webhooks/postmark", login=EMCA) == 401
        assert post("/webhooks/postmark", host="other.shop.example") == 404
        assert post("/webhooks/mailgun") == 404
    assert db.rows(TENANTS) == [("acme", 1), ("emca", 1)]


def test_a_webhook_is_recorded_for_the_tenant_whose_secret_has_verified_it(db, app, anymail_settings):
    """A second answer may be another one, as after a change of the table that the function reads."""
    answers = iter(["acme", "emca"])
    view = webhook_view(tenant=lambda request: next(answers), secrets=SECRETS)
    with mount(re_path(ROUTE, view)):
        assert post("/webhooks/postmark") == 200
    assert (db.rows(TENANTS), next(answers)) == ([("acme", 1)], "emca")


@pytest.mark.parametrize(
    "arguments",
    [{"tenant": fail}, {"tenant": "acme", "secrets": fail}, {"tenant": lambda _: ""}],
    ids=["tenant", "secrets", "empty"],
)
def test_a_function_that_fails_is_answered_so_that_the_provider_repeats(db, app, anymail_settings, caplog, arguments):
    """Brevo repeats after 429 only."""
    secrets = {"MAILGLASS_WEBHOOK_SECRETS": {"postmark": "me:acme", "brevo": "me:acme"}}
    with mount(re_path(ROUTE, webhook_view(**{"secrets": secrets["MAILGLASS_WEBHOOK_SECRETS"], **arguments}))):
        assert post("/webhooks/postmark") == 503
        brevo = senders.load_payloads("brevo")[0].payload
        assert post("/webhooks/brevo", brevo) == 429
    assert db.rows(TENANTS) == []
    assert ANN not in caplog.text


def test_the_address_that_mandrill_signs_may_depend_on_the_request(db, app, anymail_settings):
    """Behind a proxy, the request's own address is another one."""
    base = senders.MANDRILL_URL.removesuffix("/mandrill/")
    (sent,) = senders.make_requests("mandrill", [senders.load_payloads("mandrill")[0].payload])
    secrets = {"mandrill": senders.secret_of("mandrill")}
    request = {**sent.for_anymail("/webhooks/mandrill"), "SERVER_NAME": "acme.shop.example"}
    for url, status in ((None, 401), ("https://elsewhere.example", 401), (lambda request: senders.MANDRILL_URL, 200)):
        with mount(re_path(ROUTE, webhook_view(tenant="acme", secrets=secrets, url=url))):
            assert Client(raise_request_exception=False).post(**request).status_code == status, (url, base)


def test_a_function_for_the_address_is_called_only_for_a_provider_that_signs_it(
    db, app, anymail_settings, monkeypatch, caplog
):
    """It may ask the database for the tenant's host, which a webhook of any other provider need not wait for."""
    monkeypatch.setattr(registry, "_custom_providers", {})
    webhook_reader("pigeon", read=lambda body, headers: [], verify=lambda body, headers, **_: None)
    secrets = {"postmark": "me:acme", "mandrill": senders.secret_of("mandrill"), "pigeon": "me:acme"}
    with mount(re_path(ROUTE, webhook_view(tenant="acme", secrets=secrets, url=fail))):
        assert [post(f"/webhooks/{name}") for name in ("postmark", "mandrill", "pigeon")] == [200, 503, 503]
    assert ANN not in caplog.text


@pytest.mark.parametrize(("provider", "status"), [("postmark", 200), ("mandrill", 400)])
def test_only_a_provider_that_signs_its_address_is_refused_for_a_foreign_host(
    db, app, anymail_settings, caplog, provider, status
):
    """A scanner can send any; the warning is not an error of ours, and Django itself answers it with 400."""
    view = webhook_view(tenant="acme", secrets={"postmark": "me:acme", "mandrill": senders.secret_of("mandrill")})
    with mount(re_path(ROUTE, view)):
        assert post(f"/webhooks/{provider}", host="scanner.invalid") == status
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (status == 400)


def test_a_tenant_of_the_host_refuses_a_foreign_host_as_django_does(db, app, anymail_settings, caplog):
    with mount(re_path(ROUTE, webhook_view(tenant=of_host, secrets=SECRETS))):
        assert post("/webhooks/postmark", host="scanner.invalid") == 400
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


OURS = "mailglass_reconcile.contrib.django.urls"
UNREAD = {
    "included": lambda: path("t/<slug:tenant>/webhooks/", include(OURS)),
    "a value": lambda: path("t/acme/webhooks/", include(OURS), {"tenant": "acme"}),
    "a group without a name": lambda: re_path(r"^t/([^/]+)/webhooks/([^/]+)$", webhook_view()),
    "a name": lambda: path("t/<slug:tenant>/webhooks/<provider>", webhook_view(tenant="acme")),
    "decorated": lambda: path("t/<slug:tenant>/webhooks/<provider>", never_cache(webhook_view(tenant="acme"))),
}
READ = {
    "a function": lambda: path("t/<slug:tenant>/webhooks/<provider>", webhook_view(tenant=of_path)),
    "decorated": lambda: path("t/<slug:tenant>/webhooks/<provider>", never_cache(webhook_view(tenant=of_path))),
    "without a provider": lambda: path("t/<slug:tenant>/webhooks/postmark", webhook_view(tenant=of_path)),
    "without a parameter": lambda: path("t/acme/webhooks/postmark", webhook_view()),
    "included": lambda: path("t/acme/webhooks/", include(OURS)),
}


@pytest.mark.parametrize(
    ("make_pattern", "status"),
    [
        *(pytest.param(pattern, 404, id=f"unread: {name}") for name, pattern in UNREAD.items()),
        *(pytest.param(pattern, 200, id=f"read: {name}") for name, pattern in READ.items()),
    ],
)
def test_a_parameter_of_the_path_that_nothing_reads_is_no_webhook_of_the_default_tenant(
    db, app, anymail_settings, configured, make_pattern, status
):
    """It is likely a tenant; an event that is stored for another one keeps it."""
    with mount(make_pattern()):
        assert post("/t/acme/webhooks/postmark") == status
        assert Client().get("/t/acme/webhooks/postmark", headers={"host": "a.shop.example"}).status_code == status
    assert sum(count for _, count in db.rows(TENANTS)) == (status == 200)


@pytest.fixture
def configured(db):
    """A secret for the views that have none of their own."""
    secrets = SecretStr("postmark=me:acme")
    mailglass_reconcile.configure(settings=db.settings.model_copy(update={"webhook_secrets": secrets}))
    yield
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


@pytest.mark.parametrize(
    ("secrets", "statuses", "runs"),
    [
        ({"postmark": "me:acme", "pigeon": "me:acme"}, [503, 503, 503], "x"),
        (lambda provider, tenant: "me:acme", [503, 503, 503], "x"),
        ({"postmark": "me:acme"}, [503, 404, 404], "x"),
    ],
    ids=["of its provider", "of any", "of others"],
)
def test_strangers_run_a_module_that_cannot_be_imported_only_once(
    db, app, anymail_settings, monkeypatch, tmp_path, secrets, statuses, runs
):
    """Nothing is recorded without its key rules. A name without a secret is not received, whatever the module has."""
    (tmp_path / "costly.py").write_text(
        "import pathlib\npathlib.Path(__file__ + '.runs').open('a').write('x')\n1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mailglass_reconcile.configure(settings=db.settings.model_copy(update={"imports": "costly"}))
    (tmp_path / "costly.py.runs").touch()
    with mount(re_path(ROUTE, webhook_view(tenant="acme", secrets=secrets))):
        assert [post(f"/webhooks/{name}") for name in ("postmark", "pigeon", "owl")] == statuses
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    assert (tmp_path / "costly.py.runs").read_text() == runs


@pytest.mark.parametrize(
    "arguments",
    [{"secrets": secrets} for secrets in ({"postmark": "me:"}, {}, "postmark=me:acme", SECRETS, None)],
    ids=["unusable", "none", "the text of the setting", "of tenants without a tenant", "none in the settings"],
)
def test_a_process_starts_without_usable_secrets_and_logs_one_error(db, app, anymail_settings, caplog, arguments):
    """The provider's own test of the address fails, too, and its webhooks come again."""
    with mount(re_path(ROUTE, webhook_view(**arguments))):
        assert find_ids() == ([] if arguments["secrets"] is None else ["E003"])
        caplog.clear()
        assert [post("/webhooks/postmark") for _ in range(3)] == [503] * 3
        assert Client().get("/webhooks/postmark", headers={"host": "a.shop.example"}).status_code == 503
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    db.broken.add("I9")  # the line names `@FILE`


def test_without_autocommit_a_webhook_is_answered_so_that_the_provider_repeats(
    db, app, anymail_settings, configured, monkeypatch, caplog
):
    """Nothing commits after the view, so Django would roll it back when it closes the connection."""
    connections.close_all()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    with mount(re_path(ROUTE, webhook_view())):
        assert post("/webhooks/postmark") == 503
    connections.close_all()
    assert db.rows(TENANTS) == []
    assert "autocommit is off in DATABASES['default']" in caplog.text
