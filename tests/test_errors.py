"""Database errors are one clear line that names the setting and has nothing of the URL."""

import uuid

import pytest
from sqlalchemy.engine import make_url

from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    database_errors,
    install_command,
)
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner

CANARY = "c4n4ry"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (CANARY, ConfigurationError),
        (f"mysql://u:{CANARY}@localhost/x", ConfigurationError),
        (f"nonsense://u:{CANARY}@localhost/x", ConfigurationError),
        (f"postgresql://u:{CANARY}@localhost:port/x", ConfigurationError),
        (f"postgresql://{CANARY}:{CANARY}@127.0.0.1:1/x", DatabaseUnavailableError),
        (f"postgresql+psycopg2://u:{CANARY}@nowhere.invalid/x", DatabaseUnavailableError),
        (f"postgresql://u:{CANARY}@127.0.0.1:1/x?{CANARY}=1", DatabaseUnavailableError),
        (f"postgresql://u:{CANARY}@127.0.0.1:1/x?sslmode={CANARY}", DatabaseUnavailableError),
    ],
)
def test_an_unusable_url_is_one_line_that_names_the_setting(url, kind):
    """The text may be no URL, or one of another kind of database or of a missing server."""
    settings = Settings(database_url=url)
    with pytest.raises(kind, match="MAILGLASS_DATABASE_URL") as error:
        runner.find_missing_objects(engines.create_engine(settings), settings)
    output = f"{error.value} {error.value.__cause__} {settings}"
    assert CANARY not in output
    assert "\n" not in str(error.value)


def test_a_wrong_role_names_the_setting(empty_database_url):
    """The server's message, which has the name, is left out."""
    url = make_url(empty_database_url).set(username=CANARY + uuid.uuid4().hex)
    settings = Settings(database_url=url.render_as_string(hide_password=False))
    with pytest.raises(MailglassReconcileError, match="MAILGLASS_DATABASE_URL") as error:
        runner.migrate(engines.create_engine(settings), settings, lambda line: None)
    assert CANARY not in f"{error.value} {error.value.__cause__}"
    assert "\n" not in str(error.value)


def test_a_missing_url_names_the_setting():
    """The line says how to set it."""
    with pytest.raises(ConfigurationError, match="MAILGLASS_DATABASE_URL is not set"):
        engines.create_engine(Settings(database_url=None))


def test_the_console_script_sends_a_django_project_to_its_own_command(monkeypatch):
    """Following the advice to set a URL would make a second configuration, without the project's handlers."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    with pytest.raises(ConfigurationError, match=r"in a Django project with our app, run `manage\.py mailglass …`"):
        engines.database_url(Settings(database_url=None))


def test_a_cancelled_statement_is_not_an_unreachable_server(db):
    with (
        pytest.raises(DatabaseRefusedError, match="took too long"),
        database_errors(),
        db.engine.begin() as connection,
    ):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)")


def test_an_extra_is_installed_from_where_the_package_came(tmp_path, monkeypatch):
    """A package of an index has no `direct_url.json`; this one comes from its clone."""
    assert install_command("web") == "pip install '.[web]' in a clone of mailglass-reconcile"
    folder = tmp_path / "mailglass_reconcile-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: mailglass-reconcile\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert install_command("web") == "pip install 'mailglass-reconcile[web]'"
