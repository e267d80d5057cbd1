"""Completion with the Tab key, as the shell asks for it."""

import pytest
from click.shell_completion import ShellComplete

from mailglass_reconcile.cli import command

pytestmark = pytest.mark.version_independent


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["trigger"], "mail", ["mailersend", "mailgun", "mailjet", "mailtrap"]),
        (["trigger", "postmark"], "de", ["deferred", "delivered"]),
        (["trigger", "Postmark"], "del", ["delivered"]),
        (["trigger", "ses"], "", []),
        (["trigger", "pigeon"], "", []),
        (["orphans", "--provider"], "post", ["postal", "postmark"]),
        (["orphans", "--type"], "bo", ["bounced"]),
        (["sweep", "--provider"], "z", ["zeptomail"]),
    ],
    ids=str,
)
def test_providers_and_types_are_completed(words, incomplete, expected):
    """Of `trigger`, only types of which the provider has a sample."""
    shell = ShellComplete(command, {}, "mailglass-reconcile", "_MAILGLASS_RECONCILE_COMPLETE")
    assert sorted(item.value for item in shell.get_completions(words, incomplete)) == expected
