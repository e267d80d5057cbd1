"""`examples/flask`, started and used by its README."""

import re
import socket

import httpx
import pytest

import readme
from mailglass_reconcile.testing.servers import free_port
from waiting import PATIENCE

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

STATE = "SELECT last_event_type, terminal FROM mailglass_deliveries ORDER BY recipient DESC"


@pytest.mark.slow
def test_a_send_and_its_webhook_arrive(db, redis_url):
    """The commands of its README and of FastAPI's are run; bad requests get a short response."""
    env = {**readme.environment(db, redis_url), **readme.exports("fastapi")}
    readme.run("flask", readme.command("fastapi", "migrate").text, env)
    port = free_port()
    start = re.sub(r"--port \d+", f"--port {port}", readme.command("flask", "flask --app").text)
    base = f"http://127.0.0.1:{port}"
    with readme.start("flask", start, env, "Running on") as process:
        answer = readme.curl(readme.command("fastapi", "curl", "/messages").text, base).json()
        readme.trigger("fastapi", "delivered", base, answer["message_id"], env)
        assert db.rows(STATE) == [("dispatched", False), ("delivered", True)]
        login = readme.login("fastapi")
        wrong = [("postmark", "{}", None), ("postmark", "{", login), ("pigeon", "{}", login), ("mailgun", "{}", login)]
        responses = [httpx.post(f"{base}/webhooks/{name}", content=body, auth=auth) for name, body, auth in wrong]
        assert [response.status_code for response in responses] == [401, 400, 404, 404]
        large = f"POST /webhooks/postmark HTTP/1.1\r\nHost: x\r\nContent-Length: {6 * 1024 * 1024}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(large.encode())
            assert b" 413 " in connection.recv(4_096)
        assert "Traceback" not in process.output
