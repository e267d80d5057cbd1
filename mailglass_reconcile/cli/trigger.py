"""The subcommand `trigger`: send a sample webhook, to try an installation."""

from __future__ import annotations

import datetime as dt
import json

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.completion import complete_provider, complete_sample_type
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError, UnknownProviderError
from mailglass_reconcile.providers import registry, samples, sender
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.opening import public_url
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import did_you_mean, escape_unprintable

EXAMPLES = """\b
Examples:
  mailglass-reconcile trigger postmark delivered --message-id m-2 --to http://127.0.0.1:8081/postmark
  mailglass-reconcile trigger mailgun bounced --message-id '<m-3@example.com>' --recipient ada@example.com \\
    --to https://your.host/webhooks/mailgun
"""


@click.command(epilog=EXAMPLES)
@click.argument("provider", metavar="PROVIDER", shell_complete=complete_provider)
@click.argument("type_", metavar="TYPE", shell_complete=complete_sample_type)
@click.option("--message-id", required=True, metavar="ID", help="Message id with which your send is recorded.")
@click.option("--to", "url", metavar="URL", help="The whole URL of the webhook. Default: MAILGLASS_WEBHOOK_URL.")
@click.option("--recipient", metavar="ADDRESS", help="Recipient that the event names. By default it names none.")
def trigger(provider: str, type_: str, message_id: str, url: str | None, recipient: str | None) -> None:
    """Send a sample webhook, signed as the provider signs, to try an installation without its account.

    It is signed with the secret of MAILGLASS_WEBHOOK_SECRETS. TYPE is a type of event that the provider can send, such
    as delivered, opened or bounced. The receiver records it like any other webhook. SendGrid, Postal, Amazon SES and
    Scaleway sign with a private key, so their webhooks cannot be imitated.
    """
    try:
        definition = registry.load_provider(provider)
    except UnknownProviderError:
        raise click.UsageError(f"no such provider; known providers: {', '.join(registry.PROVIDERS)}") from None
    name = provider_rules.canonical(provider)
    sign = definition.authentication.sign
    if sign is None:
        raise ConfigurationError(_no_sample(name))
    types = sorted(samples.load_samples(name))
    if type_ not in types:
        suggestion = did_you_mean(type_, types, " ({})")
        raise click.UsageError(f"{name} sends no such type{suggestion}; it can send: {', '.join(types)}")
    secrets = secret_store.from_setting(runtime.get_settings()).get(provider)
    if not secrets:
        raise ConfigurationError(f"{secret_store.SETTING} has no secret for {name}")
    public_address = public_url(name)
    address, option = (public_address, "MAILGLASS_WEBHOOK_URL") if url is None else (url, "--to")
    if address is None:
        raise click.UsageError("give the webhook's URL with --to, or set MAILGLASS_WEBHOOK_URL")
    at = dt.datetime.now(dt.UTC)
    body = json.dumps(samples.make_sample(name, type_, message_id, recipient, at)).encode()
    request = sign(body, secrets[0], at.timestamp(), public_address or address)
    try:
        status, response = sender.post(address, request, option)
    except ValueError:
        raise click.UsageError(f"{option} must be a whole address, such as http://127.0.0.1:8081/postmark") from None
    if status != 200:
        raise MailglassReconcileError(f"the receiver answered {status}: {escape_unprintable(response)}")
    click.echo(f"{name}: {type_} for {escape_unprintable(message_id)} was answered with 200")


def _no_sample(provider: str) -> str:
    if provider in registry.PROVIDERS:
        return f"{provider} signs with a private key; let it send a test, in its dashboard"
    return f"{provider} is read by a reader of your own, and there is no sample of its webhooks"
