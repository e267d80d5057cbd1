"""Signatures: right ones, and wrong ones: a changed bit, another provider's, another key's, expired ones."""

import base64
import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import processes
import senders
from mailglass_reconcile import ConfigurationError, MailglassReconcileError
from mailglass_reconcile.errors import install_command
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.builtin import scaleway, ses
from mailglass_reconcile.providers.certificates import CertificateStore
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.rules.humanize import format_duration
from mailglass_reconcile.webhooks import SignatureError, parse, verify
from senders import (
    ARN,
    AUTH,
    CERTIFICATE_URL,
    KEY,
    NOW,
    SCALEWAY_ARN,
    SCALEWAY_CERTIFICATE_URL,
    SVIX_SECRET,
    Posted,
    load_payloads,
    make_requests,
    notification,
    secret_of,
    sign_request,
    url_of,
)

EVERY_PROVIDER = pytest.mark.parametrize("provider", PROVIDERS)
FETCH = sns.fetch
BASIC = ("brevo", "mailjet", "postmark", "smtp2go", "sparkpost")
SIGNED = [provider for provider in PROVIDERS if provider not in BASIC]


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Let certificates come from a function of tests; return the addresses that it was asked for."""
    requests = []

    def fetch(url):
        requests.append(url)
        return senders.serve_certificate(url)

    monkeypatch.setattr(sns, "fetch", fetch)
    monkeypatch.setattr(sns, "certificates", CertificateStore())
    return requests


def check(provider, request: Posted, **changes):
    """Verify a request as its receiver does."""
    arguments = {"secret": secret_of(provider), "url": url_of(provider), "now": NOW, **changes}
    verify(provider, request.body, request.headers, **arguments)


def first(provider, **changes) -> Posted:
    """Return a request with the first payload of the documentation."""
    return make_requests(provider, [load_payloads(provider)[0].payload], **changes)[0]


@EVERY_PROVIDER
def test_a_right_signature_is_accepted_and_whatever_the_case_of_headers(provider):
    """Servers pass them in different cases."""
    for request in make_requests(provider, [event.payload for event in load_payloads(provider)]):
        check(provider, request)
        check(provider, Posted(request.body, {name.upper(): value for name, value in request.headers.items()}))


@pytest.mark.parametrize("provider", [provider for provider in SIGNED if provider not in ("azure", "mailgun")])
def test_one_bit_of_the_body_changed_is_refused(provider):
    """Each of the first hundred bytes and the last one are changed."""
    request = first(provider)
    for place in [*range(min(100, len(request.body))), len(request.body) - 1]:
        changed = bytearray(request.body)
        changed[place] ^= 1
        changed_body = bytes(changed)
        if provider in ("ses", "scaleway") and _same_message(changed_body, request.body):
            continue  # spaces between signed fields
        with pytest.raises(SignatureError):
            check(provider, Posted(changed_body, request.headers))


def _same_message(first: bytes, second: bytes) -> bool:
    try:
        return json.loads(first) == json.loads(second)
    except ValueError:
        return False


@EVERY_PROVIDER
def test_one_bit_of_the_signature_changed_is_refused(provider):
    """This includes signatures in the body."""
    request = first(provider)
    places = [name for name in request.headers if "ignature" in name or name == "Authorization"]
    if provider == "postal":
        places = ["X-Postal-Signature-256"]
    for name in places:
        value = request.headers[name]
        changed = value[:-4] + chr(ord(value[-4]) ^ 1) + value[-3:]
        with pytest.raises(SignatureError):
            check(provider, Posted(request.body, {**request.headers, name: changed}))
    if not places:
        document = json.loads(request.body)
        holder, name = {
            "mailgun": (document.get("signature"), "signature"),
            "unisender_go": (document, "auth"),
        }.get(provider, (document, "Signature"))
        holder[name] = holder[name][:-4] + ("A" if holder[name][-4] != "A" else "B") + holder[name][-3:]
        with pytest.raises(SignatureError):
            check(provider, Posted(json.dumps(document).encode(), request.headers))


@EVERY_PROVIDER
def test_another_providers_request_is_refused(provider):
    """This provider's secret is used."""
    for other_provider in PROVIDERS:
        if other_provider == provider or (provider in BASIC and other_provider in BASIC):
            continue
        with pytest.raises(SignatureError):
            check(provider, first(other_provider))


@EVERY_PROVIDER
def test_another_key_is_refused(provider):
    """The keys are of the right kind."""
    other_secrets = {
        "sendgrid": senders.public(senders.ec.generate_private_key(senders.ec.SECP256R1())),
        "postal": senders.public(senders.sns_key()),
        "resend": "whsec_" + base64.b64encode(b"another" * 4).decode(),
        "ses": f"{senders.ARN}-2",
        "scaleway": f"{SCALEWAY_ARN}-2",
        "azure": "Bearer of-another-header",
    }
    with pytest.raises(SignatureError):
        check(provider, first(provider), secret=other_secrets.get(provider, "another:key"))


@EVERY_PROVIDER
@pytest.mark.parametrize("secret", ["", "  "])
def test_an_empty_secret_is_a_configuration_error(provider, secret):
    """It would accept everybody, or nobody."""
    with pytest.raises(ConfigurationError):
        check(provider, first(provider), secret=secret)


def test_white_space_around_a_secret_is_not_part_of_it():
    """A secret from a file ends with a line break."""
    check("mailgun", first("mailgun"), secret=f" {senders.KEY}\n")


@pytest.mark.parametrize("provider", ["sendgrid", "postal", "resend", "postmark"])
def test_a_secret_of_another_kind_is_a_configuration_error(provider):
    """The error does not quote it."""
    with pytest.raises(ConfigurationError) as error:
        check(provider, first(provider), secret="c4n4ry!")  # noqa: S106
    assert "c4n4ry" not in str(error.value)


@pytest.mark.parametrize(
    ("provider", "minutes", "right"),
    [
        ("resend", 4, True), ("resend", 6, False), ("resend", -4, True), ("resend", -6, False),
        ("mailgun", 23 * 60, True), ("mailgun", 25 * 60, False), ("mailgun", -25 * 60, False),
        ("sendgrid", 60 * 24 * 30, True), ("ses", 60 * 24 * 30, True), ("mailtrap", 60 * 24 * 30, True),
    ],
)  # fmt: skip
def test_an_old_signature_is_refused_where_each_attempt_is_signed_anew(provider, minutes, right):
    """The limit is five minutes for Svix and a day for Mailgun; SNS repeats a notification with its first time."""
    request, now = first(provider), NOW + dt.timedelta(minutes=minutes)
    if right:
        check(provider, request, now=now)
    else:
        duration = format_duration(abs(minutes) * 60)
        with pytest.raises(SignatureError, match=f"{duration} {'before' if minutes > 0 else 'after'} this machine's"):
            check(provider, request, now=now)


@pytest.mark.parametrize("provider", ["resend", "mailgun"])
def test_a_wrong_signature_is_told_from_a_wrong_clock(provider):
    """The clock is blamed only for what the provider has signed."""
    wrong = {"resend": f"{SVIX_SECRET[:-1]}B", "mailgun": "another-key"}[provider]
    with pytest.raises(SignatureError, match="does not match"):
        check(provider, first(provider), now=NOW + dt.timedelta(hours=55), secret=wrong)


@pytest.mark.parametrize("provider", [provider for provider in SIGNED if provider != "azure"])
def test_a_captured_request_is_refused_after_the_greatest_age_of_its_record_and_before_that_accepted(provider):
    """Whoever has captured it may change any time in it. The reference shows the age; none is any age."""
    seconds = registry.get_provider(provider).authentication.max_age_seconds
    request, later = first(provider), NOW + dt.timedelta(seconds=seconds or 365 * 86_400)
    if seconds is None:
        check(provider, request, now=later)
        return
    later += dt.timedelta(minutes=1)
    times = (f"{int(NOW.timestamp())}", f"{int(later.timestamp())}")
    headers = {name: value.replace(*times) for name, value in request.headers.items()}
    edited = Posted(request.body.replace(*(time.encode() for time in times)), headers)
    assert edited != request
    for captured in (request, edited):
        with pytest.raises(SignatureError):
            check(provider, captured, now=later)
    check(provider, request, now=later - dt.timedelta(minutes=2))


def test_sendgrids_own_test_vector():
    """The vector is from test/unit/test_eventwebhook.py in github.com/sendgrid/sendgrid-python."""
    payload = {
        "email": "hello@world.com",
        "event": "dropped",
        "reason": "Bounced Address",
        "sg_event_id": "ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",
        "sg_message_id": "LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0",
        "smtp-id": "<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>",
        "timestamp": 1600112492,
    }
    body = json.dumps([payload], sort_keys=True, separators=(",", ":")).encode() + b"\r\n"
    headers = {
        "X-Twilio-Email-Event-Webhook-Timestamp": "1600112502",
        "X-Twilio-Email-Event-Webhook-Signature": (
            "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM="
        ),
    }
    key = (
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eN"
        "Ec6wEA3F+g=="
    )
    verify("sendgrid", body, headers, secret=key)
    (event,) = parse("sendgrid", body)
    assert (event.type, event.message_id) == ("suppressed", "LRzXl_NHStOGhQ4kofSm_A")
    verify("sendgrid", body, headers, secret=f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n")
    with pytest.raises(SignatureError):
        verify("sendgrid", body.strip(), headers, secret=key)


def test_svixs_own_test_vector():
    """It is from https://docs.svix.com/receiving/verifying-payloads/how-manual; a header may have several
    signatures.
    """
    right = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    headers = {"svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "svix-timestamp": "1614265330", "svix-signature": right}
    now = dt.datetime.fromtimestamp(1614265330, dt.UTC)
    body = b'{"test": 2432232314}'
    verify("resend", body, headers, secret=SVIX_SECRET, now=now)
    several = {**headers, "svix-signature": f"v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,x {right}"}
    verify("resend", body, several, secret=SVIX_SECRET, now=now)
    renamed = {name.replace("svix", "webhook"): value for name, value in headers.items()}
    verify("resend", body, renamed, secret=SVIX_SECRET, now=now)
    with pytest.raises(SignatureError):
        verify("resend", body, {**headers, "svix-signature": right.replace("v1", "v2")}, secret=SVIX_SECRET, now=now)


def test_signatures_of_svixs_library_are_accepted():
    """Resend tells its users to install it."""
    import svix.webhooks  # noqa: PLC0415 - takes half a second, in each of the processes that collect this module

    now, body = dt.datetime.now(dt.UTC), b'{"type": "email.sent"}'
    signature = svix.webhooks.Webhook(SVIX_SECRET).sign("msg_1", now, body.decode())
    headers = {"svix-id": "msg_1", "svix-timestamp": str(int(now.timestamp())), "svix-signature": signature}
    verify("resend", body, headers, secret=SVIX_SECRET)


def test_mailguns_primary_account_may_verify_its_subaccounts():
    """They have a `parent-signature`."""
    document = json.loads(first("mailgun").body)
    document["signature"] |= {"parent-signature": document["signature"]["signature"], "signature": "0" * 64}
    check("mailgun", Posted(json.dumps(document).encode(), {"Content-Type": "application/json"}))


def test_mailersends_ping_is_signed_with_a_public_secret_which_signs_nothing_else(monkeypatch):
    """MailerSend sends `webhook.test` before it saves a webhook, and expects a 200."""
    monkeypatch.setattr(senders, "KEY", "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G")
    ping = sign_request("mailersend", b'{"type": "webhook.test", "message": "This is a ping test message"}')
    event = first("mailersend")
    check("mailersend", ping, secret=KEY)
    with pytest.raises(SignatureError):
        check("mailersend", event, secret=KEY)


def test_postals_older_signature_counts_only_without_the_newer_one():
    """Postal before version 3 sends only that."""
    request = first("postal")
    older = {name: value for name, value in request.headers.items() if name != "X-Postal-Signature-256"}
    check("postal", Posted(request.body, older))
    with pytest.raises(SignatureError):
        check("postal", Posted(request.body, {**older, "X-Postal-Signature-256": older["X-Postal-Signature"]}))


def test_mandrill_needs_the_exact_url():
    """A trailing slash makes it another URL."""
    request = first("mandrill")
    for url in (url_of("mandrill")[:-1], "https" + url_of("mandrill")[4:], "http://testserver/mandrill/"):
        with pytest.raises(SignatureError):
            check("mandrill", request, url=url)
    with pytest.raises(ConfigurationError, match="public URL"):
        check("mandrill", request, url=None)


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
@pytest.mark.parametrize("provider", BASIC)
def test_user_name_and_password_are_those_of_the_url(provider, scheme):
    """Others are refused."""
    right = base64.b64encode(AUTH.encode()).decode()
    check(provider, Posted(b"{}", {"Authorization": f"{scheme} {right}"}))
    for wrong in (f"Bearer {right}", right, f"{scheme} {AUTH}", f"{scheme} {base64.b64encode(b'user:').decode()}"):
        with pytest.raises(SignatureError):
            check(provider, Posted(b"{}", {"Authorization": wrong}))


@pytest.mark.parametrize("provider", ["ses", "scaleway"])
@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("kind", ["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"])
def test_every_notification_of_sns_is_verified_with_a_certificate_that_is_fetched_once(
    provider, version, kind, published
):
    """SHA-1 and SHA-256 are tried, with a subject and without."""
    more = {"SubscribeURL": "https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription", "Token": "t"}
    payload = {"Type": kind, "Message": "m\n", **(more if kind != "Notification" else {})}
    check(provider, notification(provider, payload, version))
    if kind == "Notification":
        check(provider, notification(provider, {**payload, "Subject": "Häagen"}, version))
    count = len(published)
    check(provider, notification(provider, payload, version))
    assert len(published) == count == (1 if provider == "ses" else 2)


@pytest.mark.parametrize(
    "url",
    [
        CERTIFICATE_URL.replace("https", "http"),
        CERTIFICATE_URL.replace(".com", ".com.evil.example"),
        CERTIFICATE_URL.replace("https://", "https://evil.example/"),
        CERTIFICATE_URL.replace(".com", ".com@evil.example"),
        CERTIFICATE_URL.replace("eu-central-1", "s3"),
        CERTIFICATE_URL.replace("eu-central-1", "s3-us-west-2"),
        CERTIFICATE_URL.replace("eu-central-1", "eu-west-1"),
        CERTIFICATE_URL.replace(".com", ".com:8443"),
        CERTIFICATE_URL + "?x",
        CERTIFICATE_URL + "\n",
        CERTIFICATE_URL.removesuffix(".pem"),
        CERTIFICATE_URL.replace("0123", "012g"),
        CERTIFICATE_URL.replace("0123", "01230"),
        CERTIFICATE_URL.replace("Simple", "simple"),
        CERTIFICATE_URL.replace("/Simple", "/folder/Simple"),
        SCALEWAY_CERTIFICATE_URL,
        "https://messaging.s3.fr-par.scw.cloud/a.pem",
        "file:///etc/passwd.pem",
        7,
        None,
    ],
)
def test_a_certificate_comes_from_amazon_only_and_from_the_topics_region(url, published):
    """No other host is asked, and only for a file whose name is like those of its certificates."""
    document = json.loads(first("ses").body)
    with pytest.raises(SignatureError):
        check("ses", Posted(json.dumps({**document, "SigningCertURL": url}).encode(), {}))
    assert published == []


@pytest.mark.parametrize(
    "host",
    [
        "us-east-1.amazonaws.com",
        "eu-central-1.amazonaws.com",
        "us-gov-west-1.amazonaws.com",
        "ap-southeast-2.amazonaws.com",
        "eusc-de-east-1.amazonaws.eu",
    ],
)
def test_every_region_of_amazons_is_one(host, monkeypatch):
    """The names are as Amazon lists them; the last is the European Sovereign Cloud."""
    url = f"https://sns.{host}/SimpleNotificationService-6209c161c6221fdf56ec1eb5c821d112.pem"
    arn = f"arn:aws:sns:{host.partition('.')[0]}:123456789012:mail"
    monkeypatch.setattr(senders, "ARN", arn)
    monkeypatch.setattr(senders, "CERTIFICATE_URL", url)
    check("ses", first("ses"))


def scaleways(url):
    """Return a notification of Scaleway that names another certificate, without a signature."""
    return Posted(json.dumps({**json.loads(first("scaleway").body), "SigningCertURL": url}).encode(), {})


@pytest.mark.parametrize("host", ["fr-par", "nl-ams"])
@pytest.mark.parametrize("suffix", ["crt", "pem"])
def test_scaleways_certificate_has_the_address_that_its_documentation_shows(monkeypatch, host, suffix):
    """`https://messaging.s3.fr-par.scw.cloud/fr-par/sns/sns_certificate_183.crt`, on a host of any region.

    github.com/scaleway/docs-content, pages/topics-and-events/api-cli/python-node-topics-events.mdx;
    github.com/symfony/symfony/pull/65715.
    """
    url = f"https://messaging.s3.{host}.scw.cloud/fr-par/sns/sns_certificate_123.{suffix}"
    answers = {url: senders.serve_certificate(SCALEWAY_CERTIFICATE_URL)}
    monkeypatch.setattr(sns, "fetch", lambda address: answers.get(address) or senders.serve_certificate(address))
    check("scaleway", scaleways(url))


@pytest.mark.parametrize(
    "url",
    [
        SCALEWAY_CERTIFICATE_URL.replace("https", "http"),
        SCALEWAY_CERTIFICATE_URL.replace("/fr-par/", "/nl-ams/"),
        SCALEWAY_CERTIFICATE_URL.replace("messaging.", "mine."),
        SCALEWAY_CERTIFICATE_URL.replace("messaging.", "mine.messaging."),
        SCALEWAY_CERTIFICATE_URL.replace("messaging.s3.fr-par", "s3.fr-par").replace("/fr-par", "/mine/fr-par"),
        SCALEWAY_CERTIFICATE_URL.replace(".scw.cloud", ".scw.cloud.evil.example"),
        SCALEWAY_CERTIFICATE_URL.replace(".scw.cloud", ".scw.cloud@evil.example"),
        SCALEWAY_CERTIFICATE_URL.replace("/sns/", "/sns/../"),
        SCALEWAY_CERTIFICATE_URL.replace("sns_certificate_", ""),
        SCALEWAY_CERTIFICATE_URL + "?x",
        SCALEWAY_CERTIFICATE_URL + "\n",
        CERTIFICATE_URL,
        None,
    ],
)
def test_a_certificate_of_scaleways_comes_from_no_other_bucket_and_from_the_topics_region(url, published):
    """No other host is asked."""
    with pytest.raises(SignatureError):
        check("scaleway", scaleways(url))
    assert published == []


def test_scaleways_certificate_must_be_issued_by_its_authority(monkeypatch):
    """Its documentation says that the address is not enough."""
    own = senders.certificate("sns.mnq.srr.scw.cloud", senders.sns_key(), "Scaleway", senders.sns_key())
    answers = {SCALEWAY_CERTIFICATE_URL: own}
    monkeypatch.setattr(sns, "fetch", lambda url: answers.get(url) or senders.serve_certificate(url))
    with pytest.raises(SignatureError, match="issued"):
        check("scaleway", first("scaleway"))


def test_an_expired_certificate_of_scaleways_is_refused():
    """It may have been fetched before it expired; the next certificate has another address."""
    check("scaleway", first("scaleway"))
    with pytest.raises(SignatureError, match="expired"):
        check("scaleway", first("scaleway"), now=NOW + dt.timedelta(3_651))


def test_another_topic_is_refused_before_anything_is_fetched(published):
    """Amazon signs anybody's topic."""
    with pytest.raises(SignatureError, match="another topic"):
        check("ses", first("ses"), secret=ARN + "2")
    assert published == []


@pytest.mark.parametrize("answer", [TimeoutError("c4n4ry"), b"c4n4ry"], ids=["nothing", "no certificate"])
def test_a_certificate_that_cannot_be_fetched_is_no_wrong_signature(monkeypatch, answer):
    """SNS drops a webhook after a 401, and retries after a 503."""

    def fetch(url):
        if isinstance(answer, bytes):
            return answer
        raise answer

    monkeypatch.setattr(sns, "fetch", fetch)
    with pytest.raises(MailglassReconcileError, match="try again") as error:
        check("ses", first("ses"))
    assert not isinstance(error.value, SignatureError)
    assert "c4n4ry" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "host"),
    [(ses, "https://sns.eu-central-1.amazonaws.com"), (scaleway, "https://sns.mnq.fr-par.scaleway.com")],
    ids=["ses", "scaleway"],
)
def test_a_subscription_is_confirmed_by_one_get_and_a_notification_by_none(monkeypatch, module, host):
    """The address must be the provider's."""
    provider = module.__name__.rpartition(".")[2]
    path = "/?Action=ConfirmSubscription&TopicArn=a&Token=t"
    payload = {"Type": "SubscriptionConfirmation", "Message": "m", "Token": "t"}
    fetched = []
    monkeypatch.setattr(sns, "fetch", lambda address: fetched.append(address) or b"")

    def confirm(url):
        sns.confirm(
            registry.make_request(notification(provider, {**payload, "SubscribeURL": url}).body), module.SERVICE
        )

    confirm(host + path)
    sns.confirm(registry.make_request(first(provider).body), module.SERVICE)
    evil = [f"{host}.evil.example{path}", f"{host}@evil.example{path}", f"https://evil.example/{host}{path}", None]
    for url in [*evil, host.replace("https", "http") + path, f"{host}:8443{path}", "file:///etc/passwd"]:
        with pytest.raises(SignatureError):
            confirm(url)
    assert fetched == [host + path]


def test_a_redirect_is_not_followed():
    """The host has been checked, and a redirect could lead to any other; the server is real."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/here" else 302)
            self.send_header("Location", "/here")
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_args):
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert FETCH(f"{address}/here") == b"here"
        with pytest.raises(OSError, match="302"):
            FETCH(f"{address}/there")
        server.shutdown()


def test_without_cryptography_its_absence_is_named():
    """Reading needs only the package; four providers' signatures need the extra `webhooks`."""
    script = """
import sys
sys.modules["cryptography"] = None
from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.webhooks import parse, verify
assert parse("sendgrid", b'[{"event": "open", "email": "a@b.c", "sg_event_id": "1"}]')[0].type == "opened"
headers = dict.fromkeys(("X-Twilio-Email-Event-Webhook-Signature", "X-Twilio-Email-Event-Webhook-Timestamp"), "1")
try:
    verify("sendgrid", b"[]", headers, secret="key")
except ConfigurationError as error:
    print(error)
"""
    result = processes.run(["-c", script], forked=False)
    assert install_command("webhooks") in result.stdout, result.stderr


def test_a_providers_module_is_imported_when_it_is_needed():
    script = """
import sys
from mailglass_reconcile.webhooks import parse
parse("postmark", b'{"RecordType": "Open", "MessageID": "m"}')
loaded = [name for name in sys.modules if name.startswith("mailglass_reconcile.providers.builtin.")]
assert loaded == ["mailglass_reconcile.providers.builtin.postmark"], loaded
"""
    result = processes.run(["-c", script], forked=False)
    assert result.returncode == 0, result.stderr
