"""The subcommand `serve`: the page."""

from __future__ import annotations

import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules.wording import printable

EXAMPLES = """\b
Examples:
  mailglass-reconcile serve
  MAILGLASS_WEB_TOKEN="$(cat token)" mailglass-reconcile serve --host 0.0.0.0 --port 8443
  curl -H "Authorization: Bearer $(cat token)" http://mail.example.com:8443/readyz
"""


@click.command(epilog=EXAMPLES)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Listen on this address or name.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, metavar="PORT")
def serve(host: str, port: int) -> None:
    """Show in a browser how linking is going; the page only reads. Needs the extra `web`.

    Without a token, only this machine is served: set MAILGLASS_WEB_TOKEN before you give another --host.
    MAILGLASS_WEB_TENANT_TOKENS=acme=TOKEN,other=TOKEN shows to each tenant its own events and deliveries.
    """
    try:
        from mailglass_reconcile import server  # noqa: PLC0415 - its libraries are an extra
        from mailglass_reconcile.web import access, create_app  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError("serve needs more packages: pip install 'mailglass-reconcile[web]'") from None
    if not (access.Tokens(runtime.get_settings()) or access.is_loopback(host)):
        click.echo(
            f"mailglass-reconcile: {printable(host)} can be reached from other machines:"
            " set MAILGLASS_WEB_TOKEN first, or leave out --host",
            err=True,
        )
        sys.exit(2)
    runtime.database()
    runtime.load_imports(to_read=True)
    server.run(create_app(), host, port)
