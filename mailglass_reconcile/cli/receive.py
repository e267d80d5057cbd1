"""The subcommand `receive`: run the receiver of webhooks as a process."""

from __future__ import annotations

import logging

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.startup import address_options, require_schema
from mailglass_reconcile.errors import ConfigurationError, install_command
from mailglass_reconcile.receiver import app
from mailglass_reconcile.settings import load_web_token

EXAMPLES = """\b
Examples:
  MAILGLASS_WEBHOOK_SECRETS=postmark=user:password,mailgun=KEY mailglass-reconcile receive
  MAILGLASS_WEBHOOK_SECRETS=@secrets.txt mailglass-reconcile receive --host 0.0.0.0 --port 8081
"""


@click.command(epilog=EXAMPLES)
@address_options(8_081)
def receive(host: str, port: int) -> None:
    """Receive providers' webhooks and record them. Needs the extra `webhooks`.

    Providers post to /PROVIDER, for example /sendgrid, after any prefix. Set MAILGLASS_WEBHOOK_SECRETS to
    provider=secret pairs, separated by commas, or to @FILE with one pair per line. For providers that don't sign, the
    secret is USER:PASSWORD. Each webhook is one line on standard error.

    GET /healthz returns 200 while the process runs. With MAILGLASS_WEB_TOKEN set, GET /metrics serves Prometheus.
    """
    try:
        from mailglass_reconcile import server  # noqa: PLC0415 - its library is an extra
    except ImportError:
        raise ConfigurationError(f"receive needs more packages: {install_command('webhooks')}") from None
    require_schema()
    runtime.load_imports()
    receiver = app.webhook_app()
    receiver.metrics_token = load_web_token(runtime.get_settings())
    logging.getLogger("mailglass_reconcile.receiver").setLevel(logging.INFO)
    server.run(receiver, host, port)
