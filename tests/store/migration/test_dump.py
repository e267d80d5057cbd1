"""What `pg_dump` writes: the same before a migration and after a removal, and a restored dump is complete."""

import subprocess
import uuid
from collections.abc import Iterator

import pytest

from catalog import Installation, client, installation, live, url_of
from history import insert_history
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.testing import servers
from shapes import make_mailglass_tables

pytestmark = pytest.mark.slow


def dump(database: Installation, *options: str) -> str:
    """Return the dump, without the random key of its restriction and the version table's rows."""
    command = [client("pg_dump", database), *options, url_of(database)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def test_a_removal_leaves_the_dump_as_it_was(unmigrated):
    """Rows, comments and grants included."""
    database = unmigrated
    insert_history(database)
    before = dump(database)
    database.migrate()
    assert dump(database) != before
    database.remove()
    assert dump(database) == before


@pytest.fixture
def own_server_url() -> Iterator[str]:
    """A server of its own, because the names of the documented roles are fixed."""
    with servers.postgres() as url:
        yield url


@pytest.mark.parametrize(("schema", "shape"), [("public", "0.1.1"), ("mailglass", "2.x")])
def test_after_a_removal_our_roles_are_dropped_as_documented(own_server_url, schema, shape):
    """DROP OWNED takes back their privileges on what stays; those of other roles stay."""
    database = live(own_server_url, schema, shape)
    roles = privileges.documented_roles()
    database.run("".join(f"CREATE ROLE {name};" for name in [*roles, "app"]))
    database.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC; GRANT SELECT (id) ON mailglass_events TO app")
    before = dump(database)
    database.migrate()
    psql = [client("psql", database), "--no-psqlrc", "-q", url_of(database)]
    subprocess.run(psql, input=privileges.load_script(schema), text=True, check=True)
    database.remove()
    assert database.remove()[-1] == "nothing to do: there is nothing to remove"
    for name in roles:
        database.run(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert dump(database) == before


@pytest.mark.parametrize("shape", ["0.1.1", None])
def test_a_restored_dump_has_nothing_to_migrate(empty_database_url, make_database, drop_database, shape):
    """Stamps are in the dump; without comments, `migrate` makes functions and triggers again."""
    database = make_mailglass_tables(empty_database_url, shape) if shape else installation(empty_database_url)
    database.migrate()
    for options in ((), ("--no-comments",)):
        name = f"mgtest_{uuid.uuid4().hex[:12]}"
        try:
            restored = installation(make_database(name))
            psql = [client("psql", restored), "--no-psqlrc", "-q", "-v", "ON_ERROR_STOP=1", url_of(restored)]
            subprocess.run(psql, input=dump(database, *options), text=True, check=True, capture_output=True)
            assert restored.is_current() == (not options)
            restored.migrate()
            assert restored.is_current()
        finally:
            drop_database(name)
