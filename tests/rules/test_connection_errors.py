"""A server that cannot be reached: the setting, the place and the driver's first line, without user and password."""

import contextlib
import socket
import threading
import traceback
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url

from faults.proxy import postgres_proxy
from mailglass_reconcile import pubsub
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.connection_errors import Server
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.plugin import FAST
from waiting import wait_until

pytestmark = pytest.mark.long

USER, PASSWORD = "canary_user", "canary-password"
FEW = ("max_connections=4", "superuser_reserved_connections=0")
ROLES = ("asked", "limited", "kept_out", "refused")


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """A server that asks one role for a password, refuses one, and refuses one another database; its URL."""
    with servers.postgres_server(*FEW, *FAST) as server:
        roles = {name: f"{USER}_{name}" for name in ROLES}
        engine = sa.create_engine(make_url(server.url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for role in roles.values():
                connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            connection.exec_driver_sql(f"ALTER ROLE {roles['limited']} CONNECTION LIMIT 0")
            for name, statement in {"private": "REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "shut": CLOSED}.items():
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
                connection.exec_driver_sql(statement.format(name))
            rules = server.directory / "data" / "pg_hba.conf"
            lines = f"local all {roles['asked']} scram-sha-256\nlocal all {roles['refused']} reject\n"
            rules.write_text(lines + rules.read_text())
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        wait_until(
            lambda: "refused" in connection_error(replace_parts(server.url, user="asked", password=f"{PASSWORD}x"))
        )
        yield server.url


CLOSED = "ALTER DATABASE {} ALLOW_CONNECTIONS false"


def replace_parts(url: str, user: str = "", password: str = PASSWORD, database: str = "", **query: str) -> str:
    """Return *url* with other parts."""
    changed = make_url(url)
    changed = changed.set(username=f"{USER}_{user}", password=password) if user else changed
    changed = changed.set(database=database) if database else changed
    return changed.update_query_dict(query).render_as_string(hide_password=False)


def connection_error(url: str, **options: int) -> str:
    """Return the message of a failing connection, after checking that it is one line without user and password.

    *options* are those of the engine.
    """
    try:
        engines.connect(engines.create_engine(Settings(database_url=SecretStr(url)), **options)).close()
    except DatabaseUnavailableError as error:
        output, trace = str(error), "".join(traceback.format_exception(error))
    else:
        return "connected"
    assert "\n" not in output
    assert USER not in trace
    assert PASSWORD not in trace
    assert "MAILGLASS_DATABASE_URL" in output
    return output


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ({"user": "asked", "password": "canary-password-wrong"}, "the user or the password was refused"),
        ({"user": "asked", "password": ""}, "the user or the password was refused"),
        ({"user": "unknown"}, "the user or the password was refused"),
        ({"user": "refused"}, "pg_hba.conf rejects connection"),
        ({"user": "limited"}, "too many connections for role"),
        ({"user": "kept_out", "database": "private"}, "permission denied for database"),
        ({"database": "absent"}, "there is no such database"),
        ({"database": "shut"}, "is not currently accepting connections"),
        ({"canary_option": "1"}, "invalid connection option"),
        ({"sslmode": "canary"}, "invalid sslmode value"),
    ],
)
def test_refusals_of_a_server_are_classified(strict: str, parts: dict[str, str], cause: str) -> None:
    """A real server refuses over its socket; the line has the socket's folder, the port and the database."""
    output = connection_error(replace_parts(strict, **parts))
    assert cause in output
    assert f"at {make_url(strict).query['host']}, port 5432, database {parts.get('database', 'postgres')}:" in output


def test_the_right_password_connects(strict: str) -> None:
    """The faults above are thus real."""
    assert connection_error(replace_parts(strict, user="asked")) == "connected"


def test_a_server_without_free_connections_is_classified(strict: str) -> None:
    """It allows four."""
    engine = sa.create_engine(make_url(strict).set(drivername="postgresql+psycopg"), pool_size=5)
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(sa.exc.OperationalError):
            for _ in range(5):
                opened.enter_context(engine.connect())
        assert "too many clients already" in connection_error(strict)
    engine.dispose()
    wait_until(lambda: connection_error(strict) == "connected")


def test_missing_tls_of_a_server_is_classified(strict: str) -> None:
    """The connection uses TCP, where sslmode counts."""
    with postgres_proxy(strict) as (_, url):
        assert "server does not support SSL" in connection_error(replace_parts(url, sslmode="require"))


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a listener that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def rude() -> Iterator[int]:
    """The port of a listener that closes each connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_the_drivers_message_about_timeouts_and_closed_connections_is_repeated(silent: int, rude: int) -> None:
    """One server did not answer in time, the other closed the connection."""
    url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{silent}/x"
    assert "timeout" in connection_error(url, connect_seconds=2), "the minimum of libpq"
    assert "closed the connection" in connection_error(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{rude}/x")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/x", "at 127.0.0.1, port 1, database x: nothing listens there"),
        (f"postgresql://{USER}:{PASSWORD}@/x?host=/nowhere", "at /nowhere, port 5432, database x: nothing listens"),
        (
            f"postgresql://{USER}:{PASSWORD}@ssl.invalid/x",
            "at ssl.invalid, port 5432, database x: ",
        ),
        (f"postgresql://u:pw@{PASSWORD}@127.0.0.1/x", "more than one @"),
        (f"postgresql://u:pw@{PASSWORD}/x@127.0.0.1/y", "more than one @"),
    ],
)
def test_an_address_where_nothing_listens_is_named(url: str, words: str) -> None:
    """Port, socket and name are tried; a password with an @ is read as the host, so no place is shown then."""
    assert words in connection_error(url)


def redis_message(url: str) -> str:
    """Return the message about an unusable Redis."""
    client = pubsub.create_client(SecretStr(url), "MAILGLASS_REDIS_URL")
    with pytest.raises((RedisError, OSError)) as fault:
        client.ping()
    output = connection_errors.describe(fault.value, pubsub.server_of(client, "MAILGLASS_REDIS_URL"))
    assert "MAILGLASS_REDIS_URL" in output
    assert PASSWORD not in output
    assert USER not in output
    return output


def test_faults_of_redis_are_classified(silent: int, rude: int) -> None:
    """There is a real server with a password, and ports without a server."""
    with servers.redis("secret") as url:
        host = url.partition("@")[2].removesuffix("/0")
        for wrong in (f"redis://{USER}:{PASSWORD}@{host}/0", f"redis://:{PASSWORD}@{host}/0", f"redis://{host}/0"):
            assert "the user or the password was refused" in redis_message(wrong)
        assert f"port {host.partition(':')[2]}, database 77: there is no such" in redis_message(
            f"redis://:secret@{host}/77"
        )
    assert "at 127.0.0.1, port 1, database 0: nothing listens" in redis_message(f"redis://:{PASSWORD}@127.0.0.1:1/0")
    assert "at /nowhere, database 0: nothing listens" in redis_message("unix:///nowhere?db=0")
    assert "imeout" in redis_message(f"redis://:{PASSWORD}@127.0.0.1:{silent}/0")
    assert "onnection" in redis_message(f"redis://:{PASSWORD}@127.0.0.1:{rude}/0")


def test_quoted_parts_and_parts_with_an_at_sign_are_left_out() -> None:
    """Names of roles, in any language, and URLs are removed; the rest is one line."""
    server = Server("Postgres", "h", "MAILGLASS_DATABASE_URL")
    for words in (f'FATAL: »{USER}« "{USER}" „{USER}“ nicht erlaubt', f"Error connecting to {PASSWORD}@host.\nmore"):
        output = connection_errors.describe(ValueError(words), server)
        assert USER not in output
        assert PASSWORD not in output
        assert "\n" not in output
        assert output.endswith("; check MAILGLASS_DATABASE_URL and the server")
