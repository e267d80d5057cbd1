"""`examples/plain`, as its README says."""

import pytest

import readme

pytestmark = [pytest.mark.long, pytest.mark.version_independent]


@pytest.mark.slow
def test_the_plain_script_prints_what_its_readme_shows(db, redis_url):
    """It is run twice, as a reader will: the second message has another id."""
    env = readme.environment(db, redis_url)
    readme.run("plain", readme.command("plain", "migrate").text, env)
    script = readme.command("plain", "python")
    for _ in range(2):
        assert readme.run("plain", script.text, env).strip() == script.output
    rows = db.rows("SELECT type, count(*) FROM mailglass_events GROUP BY type ORDER BY type")
    assert dict(map(tuple, rows)) == {"bounced": 2, "delivered": 2, "dispatched": 4, "opened": 2, "reconciled": 2}
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
