"""A provider that changes its format is noticed: an event of a known type has neither id nor recipient."""

import json
import logging
from collections import Counter

import pytest

from mailglass_reconcile import telemetry
from mailglass_reconcile.providers import formats
from mailglass_reconcile.rules import log_throttle
from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

CHANGED = json.dumps({"type": "activity.delivered", "data": {"id": "7", "to": "ann@example.org"}}).encode()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Start with an empty throttle, like a new process."""
    monkeypatch.setattr(formats, "_throttle", log_throttle.LogThrottle())
    monkeypatch.setitem(telemetry._counts_of_providers, "format_warnings", Counter())


def warnings(caplog):
    """Return the warnings."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_event_of_a_known_type_with_neither_is_a_warning_that_names_provider_and_type(caplog):
    """The warning has no address."""
    assert parse("MailerSend", CHANGED) == []
    (line,) = warnings(caplog)
    assert line.startswith("an event of mailersend (delivered) has neither a message id nor a recipient")
    assert "ann" not in line


def test_it_is_one_warning_a_minute_for_each_provider_and_type_and_each_event_counts(caplog, monkeypatch):
    """A batch of a thousand is one line."""
    now = 100.0
    monkeypatch.setattr(log_throttle.time, "monotonic", lambda: now)
    batch = json.dumps([{"event": kind, "timestamp": 1} for kind in ("delivered", "delivered", "open")]).encode()
    for at, logged in ((100.0, 2), (159.0, 2), (160.0, 4)):
        now = at
        parse("sendgrid", batch)
        assert len(warnings(caplog)) == logged
    assert telemetry.counts_of_providers("format_warnings") == {("sendgrid", "delivered"): 6, ("sendgrid", "opened"): 3}
