"""`examples/mailglass`, as its README says."""

from urllib.parse import urlsplit

import pytest

import readme
from database import Database
from factories import delivery_row, insert, orphan_row, postmark
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

LINKED = "SELECT count(*) FROM mailglass_events WHERE type = 'reconciled'"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["2.x"])
def test_mailglass_s_events_are_linked_within_seconds(unmigrated, redis_url, tmp_path):
    """The schema is that of the README."""
    insert(unmigrated, [delivery_row("m-1"), delivery_row("m-2")], [orphan_row(postmark("m-1"))])
    url = unmigrated.settings.database_url.get_secret_value()
    db = Database(url, unmigrated.settings, unmigrated.engine, None)
    env = readme.environment(db, urlsplit(redis_url)._replace(path="/8").geturl()) | readme.exports("mailglass")
    readme.run("mailglass", readme.command("mailglass", "migrate").text, env)
    dry = readme.run("mailglass", readme.command("mailglass", "--dry-run").text, env)
    assert dry.startswith("would link 1 of 1 open event")
    worker = readme.command("mailglass", "worker").text.replace("/tmp/", f"{tmp_path}/")  # noqa: S108 - the README's
    with readme.start("mailglass", worker, env, " ready."):
        insert(unmigrated, [], [orphan_row(postmark("m-2"), age_seconds=0)])
        wait_until(lambda: unmigrated.values(LINKED) != [0], PATIENCE)
