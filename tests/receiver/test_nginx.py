"""The receiver behind a real nginx, with the lines of the deployment page: it passes on whole requests only."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import processes
from mailglass_reconcile.testing.servers import free_port
from receivers import first, receiving
from receivers import published as _published  # noqa: F401 - a fixture of every test
from strangers import BEHAVIOURS, MB, OF_THE_PROXY
from waiting import PATIENCE

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PAGE = Path(__file__).parents[2] / "docs/production.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.version_independent,
    pytest.mark.skipif(not NGINX, reason="nginx is not installed"),
]


@contextlib.contextmanager
def behind_nginx(receiver: str, folder: Path) -> Iterator[str]:
    """Run nginx with the page's lines in front of a receiver, without TLS; yield the address of its webhooks."""
    port = free_port()
    lines = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = re.sub(r".*ssl_certificate.*\n", "", lines)
    lines = lines.replace("listen 443 ssl", f"listen 127.0.0.1:{port}").replace("http://127.0.0.1:8081", receiver)
    folders = "".join(f"{name}_temp_path {folder / name};" for name in ("client_body", "proxy", "fastcgi"))
    folders += "".join(f"{name}_temp_path {folder / name};" for name in ("uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.getuid() == 0 else ''} daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        f" events {{ worker_connections 4096; }} http {{ access_log off; {folders} {lines} }}"
    )
    with processes.start([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], until=port, exit_code=0):
        yield f"http://127.0.0.1:{port}/webhooks"


def post(address: str, provider: str) -> int:
    """Post a signed webhook from another address than the strangers', and return the status."""
    request = first(provider)
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=250) as client:
        return client.post(f"{address}/{provider}", content=request.body, headers=request.headers).status_code


@pytest.mark.nightly
def test_strangers_leave_signed_webhooks_answered_and_the_receivers_log_quiet(db, tmp_path):
    """What a mounted application and plain uvicorn cannot limit, connections and heads among it, is nginx's."""
    (tmp_path / "nginx").mkdir()
    with receiving(db, tmp_path) as (base, process), behind_nginx(base, tmp_path / "nginx") as address:
        port = address.removeprefix("http://127.0.0.1:").partition("/")[0]
        for behaviour in [*OF_THE_PROXY, *BEHAVIOURS]:
            command = ["-m", "strangers", port, "/webhooks", behaviour]
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            with processes.start(command, env, until="open\n"):
                statuses = [post(address, provider) for provider in ("postmark", "sendgrid", "mailgun")]
            assert statuses == [200, 200, 200], behaviour
        assert "Traceback" not in process.stderr


def test_a_client_receives_the_response_to_a_body_that_the_receiver_does_not_read(db, tmp_path):
    """A body of at most 16 kB, which nginx sends with the head, gets the receiver's status.

    While nginx sends a larger one, the receiver may close the connection first; nginx then answers with 502.
    """
    (tmp_path / "nginx").mkdir()
    wrong = {"Authorization": "Basic bm86bm8="}
    with receiving(db, tmp_path) as (base, _), behind_nginx(base, tmp_path / "nginx") as address:
        for provider, headers, size, statuses in [
            ("postmark", first("postmark").headers, 6 * MB, {413}),
            ("postmark", wrong, 15_000, {401}),
            ("postmark", wrong, 4 * MB, {401, 502}),
            ("ses", {}, 300_000, {413, 502}),
        ]:
            answer = httpx.post(f"{address}/{provider}", content=bytes(size), headers=headers, timeout=PATIENCE)
            assert answer.status_code in statuses
