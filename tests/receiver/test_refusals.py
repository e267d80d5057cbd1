"""The response to each error, for the application, Django's view, and views of adopters."""

import pytest

from mailglass_reconcile import ConfigurationError, DatabaseUnavailableError, InvalidEventError
from mailglass_reconcile.providers.certificates import UnavailableError
from mailglass_reconcile.receiver import admission
from mailglass_reconcile.rules import log_throttle
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, UnknownProviderError, refusal

pytestmark = pytest.mark.version_independent

RETRY = {"retry-after": "30"}
BASIC = {"www-authenticate": 'Basic realm="webhooks"'}


@pytest.mark.parametrize(
    ("error", "status", "azure", "brevo"),
    [
        (UnknownProviderError("no secret"), 404, 404, 404),
        (SignatureError("wrong"), 401, 503, 401),
        (InvalidWebhookError("no JSON"), 400, 400, 400),
        (InvalidEventError("no time zone"), 400, 400, 400),
        (ConfigurationError("the secret is empty"), 503, 503, 429),
        (DatabaseUnavailableError("no database"), 503, 503, 429),
        (UnavailableError("no certificate"), 503, 503, 429),
        (admission.OverloadedError(), 503, 503, 429),
        (admission.BodyTimeoutError(), 408, 408, 429),
        (admission.ClientDisconnectedError(), 400, 400, 400),
        (admission.MethodNotAllowedError(), 405, 405, 405),
        (admission.ForeignHostError(), 400, 400, 400),
        (RuntimeError("c4n4ry"), 503, 503, 429),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_repetition_may_cure_is_answered_so_that_the_provider_repeats(error, status, azure, brevo, caplog):
    """Event Grid never repeats after 401, Brevo never after a 5xx; a name that is no provider's is like most."""
    answers = [refusal(name, error) for name in ("Postmark", "pigeon", "azure", "brevo") * 3][:4]
    assert [answer.status for answer in answers] == [status, status, azure, brevo]
    for answer in answers:
        assert answer.headers == {401: BASIC, 503: RETRY}.get(answer.status, answer.headers)
        assert answer.text
    assert answers[3].headers == (RETRY if answers[0].status == 503 else answers[3].headers)
    assert len(caplog.records) == 4, "one line for each provider and cause"
    assert "c4n4ry" not in caplog.text
    assert "Traceback" not in caplog.text


def test_each_cause_is_logged_once_a_minute(caplog, monkeypatch):
    """An exception that nobody has raised has no place to name."""
    at = 100.0
    monkeypatch.setattr(log_throttle.time, "monotonic", lambda: at)
    for time in (100.0, 130.0, 160.0):
        at = time
        for error in (SignatureError("no header"), SignatureError("too old"), UnknownProviderError("no secret")):
            refusal("Postmark", error)
        refusal("someone@example.com", UnknownProviderError("no such provider"))
        refusal("postmark", ValueError("c4n4ry"))
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "a webhook of postmark was refused: no header",
        "a webhook of postmark was refused: too old",
        "a webhook of postmark was answered with 404: no secret",
        "a webhook was answered with 404: its address ends with no provider's name, but a name that looks like an"
        " address",
        "a webhook of postmark was not recorded: ValueError",
    ]
