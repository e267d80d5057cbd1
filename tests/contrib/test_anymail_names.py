"""Anymail's names of providers, and the module's requirements at run time."""

import importlib
import pkgutil

import anymail.backends
import pytest

import processes
from mailglass_reconcile.rules.provider_rules import canonical, spellings

pytestmark = pytest.mark.python_dependent

STORED = {
    "Amazon SES": "ses",
    "Brevo": "brevo",
    "MailerSend": "mailersend",
    "Mailgun": "mailgun",
    "Mailjet": "mailjet",
    "Mailtrap": "mailtrap",
    "Mandrill": "mandrill",
    "Postal": "postal",
    "Postmark": "postmark",
    "Resend": "resend",
    "Scaleway": "scaleway",
    "SendGrid": "sendgrid",
    "SendinBlue": "brevo",
    "SparkPost": "sparkpost",
    "Unisender Go": "unisender_go",
}
"""Anymail's `esp_name`, and the name under which rows are stored; Mailglass calls its providers so too."""
BACKENDS = [name for _, name, _ in pkgutil.iter_modules(anymail.backends.__path__) if not name.startswith("base")]

ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("django", "anymail", "celery"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from mailglass_reconcile.contrib.anymail import sent, webhook_event
"""


@pytest.mark.parametrize(("esp_name", "stored"), STORED.items(), ids=STORED)
def test_a_provider_is_stored_under_one_name_and_found_under_anymails(esp_name, stored):
    assert canonical(esp_name) == stored
    assert esp_name in spellings(stored)


@pytest.mark.parametrize("backend", BACKENDS)
def test_anymails_two_names_for_a_provider_are_one(backend):
    """One is the module's, in its settings and URLs; the other is `esp_name`."""
    module = importlib.import_module(f"anymail.backends.{backend}")
    assert canonical(module.EmailBackend.esp_name) == canonical(backend)


@pytest.mark.slow
def test_the_functions_need_neither_django_nor_anymail():
    """They read attributes only; a receiver's process has both packages, a worker may not."""
    result = processes.run(["-c", ALONE], forked=False)
    assert result.returncode == 0, result.stderr
