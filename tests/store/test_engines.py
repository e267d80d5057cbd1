"""The engine made from the settings."""

import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.testing.servers import free_port


def test_an_error_of_the_engine_hides_the_parameters(db):
    """They may be addresses: the statement is shown, its values are not."""
    with db.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.execute(sa.text("SELECT 1 / 0, CAST(:address AS text)"), {"address": "ada@example.com"})
    assert "SELECT 1 / 0" in str(caught.value)
    assert "ada@example.com" not in str(caught.value)


def test_a_url_with_several_hosts_connects_to_the_primary_beside_a_stopped_server(db):
    parameters = conninfo_to_dict(db.url)
    servers = f"host=127.0.0.1:{free_port()}&host={parameters['host']}:{parameters.get('port', 5432)}"
    url = f"postgresql://{parameters['user']}@/{parameters['dbname']}?{servers}&target_session_attrs=read-write"
    with engines.create_engine(Settings(database_url=url)).connect() as connection:
        assert connection.scalar(sa.text("SELECT current_database()")) == parameters["dbname"]


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql", "postgres"])
def test_a_url_of_a_platform_and_of_sqlalchemy_means_psycopg(scheme):
    url = engines.database_url(Settings(database_url=f"{scheme}://app:secret@db1/app?sslmode=require"))
    assert url.render_as_string(hide_password=False) == "postgresql+psycopg://app:secret@db1/app?sslmode=require"


@pytest.mark.parametrize("hosts", ["db1,db2", "db1:5432,db2:5433", "app:a,b@db1:5432,db2"])
def test_several_hosts_in_libpqs_form_are_refused_with_the_form_that_works(hosts):
    with pytest.raises(ConfigurationError, match=r"\?host=HOST1:5432&host=HOST2:5432") as caught:
        engines.database_url(Settings(database_url=f"postgresql://{hosts}/app?target_session_attrs=read-write"))
    assert "db1" not in str(caught.value)


def test_a_comma_in_a_password_is_no_second_host():
    assert engines.database_url(Settings(database_url="postgresql://app:a,b@db1:5432/app")).host == "db1"
