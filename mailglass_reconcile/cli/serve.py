"""The subcommand `serve`: run the dashboard as a process."""

from __future__ import annotations

import secrets

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.startup import address_options, require_schema
from mailglass_reconcile.errors import ConfigurationError, WrongUsageError, install_command
from mailglass_reconcile.settings import load_web_token

EXAMPLES = """\b
Examples:
  MAILGLASS_WEB_TOKEN="$(cat token)" mailglass-reconcile serve --host 0.0.0.0 --port 8443
  printf 'header = "Authorization: Bearer %s"' "$(cat token)" | curl -K - http://mail.example.com:8443/readyz
"""

CONNECTIONS = 8
"""Size of the connection pool: as many as pages and probes read at the same time."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that can be reached from this machine only."""


@click.command(epilog=EXAMPLES)
@address_options(8_080)
def serve(host: str, port: int) -> None:
    """Serve the read-only dashboard. Needs the extra `web`.

    Anyone with the token MAILGLASS_WEB_TOKEN sees all tenants. If it is not set, the command prints a new token, and
    accepts only an address of this machine as --host.
    """
    try:
        from mailglass_reconcile import server  # noqa: PLC0415 - its libraries are an extra
        from mailglass_reconcile.web import app  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError(f"serve needs more packages: {install_command('web')}") from None
    token = load_web_token(runtime.get_settings())
    if token is None and host not in LOOPBACK:
        raise WrongUsageError(
            f"{host} can be reached from other machines: set MAILGLASS_WEB_TOKEN first, or leave out --host"
        )
    require_schema()
    runtime.load_imports(only_warn=True)
    if token is None:
        token = secrets.token_urlsafe(24)
        click.echo(f"sign in with this token, or set MAILGLASS_WEB_TOKEN to your own: {token}", err=True)
    server.run(app.application(token, runtime.pooled_engine(CONNECTIONS)), host, port)
