"""`mailglass-reconcile serve` as a process."""

import re
import socket

import httpx
import pytest
from pydantic import SecretStr

import mailglass_reconcile
import processes
from browsing import TOKEN
from mailglass_reconcile.cli import main
from serving import serve

SIGNED_IN = {"authorization": f"Bearer {TOKEN}"}


WITHOUT_EXTRA = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "starlette":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from mailglass_reconcile.cli import main
main()
"""


@pytest.mark.slow
def test_sigterm_ends_it_even_if_the_database_hangs(db):
    """It exits with 0 and without output when the statement that waits for a lock ends; the page works until then."""
    with serve(db.environment()) as (process, address), db.engine.connect() as holder:
        assert httpx.get(address, headers=SIGNED_IN).status_code == 200
        assert httpx.get(f"{address}/healthz", headers={"host": "x.example"}).text == "alive\n"
        holder.exec_driver_sql("LOCK TABLE mailglass_open_orphans")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as asking:
            asking.sendall(
                f"GET /orphans HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            process.wait_for(db.find_waiting)
            assert process.stop() == 0
        assert process.stderr == f"serving on {address}/; press Ctrl-C to stop\n"


def serve_with_error(capsys, *arguments):
    """Run the command in this process, and return its exit code and its line on stderr."""
    with pytest.raises(SystemExit) as error:
        main(["serve", *arguments])
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    return error.value.code, stderr


def test_where_it_cannot_listen_it_says_why_in_one_line(db, capsys):
    token = {"web_token": SecretStr(TOKEN)}
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        for arguments, settings, expected in [
            (["--port", str(occupied.getsockname()[1])], token, "Address already in use"),
            (["--host", "nowhere.invalid"], token, "cannot listen on nowhere.invalid"),
            (["--host", "nowhère.invalid"], token, "cannot listen on nowhère.invalid"),
            (["--host", "nowhere..invalid"], token, "cannot listen on nowhere..invalid: it is not the name of a host"),
            (["--host", "192.0.2.1"], token, "Cannot assign requested address"),
            ([], {"database_url": None}, "MAILGLASS_DATABASE_URL is not set"),
            ([], {"web_token": SecretStr("secret")}, "MAILGLASS_WEB_TOKEN: use at least 16 characters"),
        ]:
            engine = db.engine if settings.get("database_url", db) else None
            mailglass_reconcile.configure(engine=engine, settings=db.settings.model_copy(update=settings))
            code, output = serve_with_error(capsys, *arguments)
            assert (code, expected in output) == (1, True), output


@pytest.mark.slow
def test_without_a_token_it_makes_one_and_prints_it_once(db):
    """An open page on this machine would be open to everybody behind its proxy."""
    with serve(db.environment(), token="") as (process, address):
        output = re.fullmatch(
            r"sign in with this token, or set MAILGLASS_WEB_TOKEN to your own: (\S{32})\nserving on .*\n",
            process.stderr,
        )
        assert httpx.get(address).status_code == 401
        assert httpx.get(address, headers={"authorization": f"Bearer {output[1]}"}).status_code == 200
        assert process.stop() == 0
        assert process.stderr == output[0]


def test_its_help_shows_no_command_that_shows_the_token(capsys):
    """While a command runs, every user of the machine can read its arguments."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    output = capsys.readouterr().out
    assert "curl" in output
    assert not re.search(r"curl[^\n|]* -H", output)


@pytest.mark.slow
def test_with_a_token_it_listens_everywhere(db):
    with serve(db.environment(), "--host", "0.0.0.0") as (_, address):  # noqa: S104
        place = address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert httpx.get(place).status_code == 401
        assert httpx.get(place, headers=SIGNED_IN).status_code == 200


@pytest.mark.slow
def test_without_its_extra_one_line_says_what_to_install(db):
    result = processes.run(["-c", WITHOUT_EXTRA, "serve"], db.environment(), forked=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.endswith("pip install '.[web]' in a clone of mailglass-reconcile\n")
