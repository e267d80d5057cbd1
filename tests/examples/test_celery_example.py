"""`examples/celery`, as its README says."""

import sys
from urllib.parse import urlsplit

import pytest

import readme
from factories import insert_pairs
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

OF_THE_SHOP = """
import shop
print(sorted(shop.app.conf.beat_schedule), shop.count_stock.delay().get(timeout=60))
"""


@pytest.mark.slow
def test_an_application_with_a_celery_app_of_its_own_sweeps_beside_its_own_tasks(db, redis_url, tmp_path):
    """The schedule has the entries of both, and `delay()` is answered there."""
    insert_pairs(db, ["m-1"])
    env = readme.environment(db, urlsplit(redis_url)._replace(path="/9").geturl())
    readme.run("celery", readme.command("celery", "migrate").text, env)
    worker = readme.command("celery", "worker").text.replace("/tmp/", f"{tmp_path}/")  # noqa: S108 - the README's
    with readme.start("celery", worker, env, " ready."):
        assert "'status': " in readme.run("celery", readme.command("celery", "python").text, env)
        wait_until(lambda: db.count_links() == 1)  # by that sweep, or by one that beat queued a moment earlier
        printed = readme.run("celery", f"{sys.executable} -c '{OF_THE_SHOP}'", env)
    assert (
        printed
        == "['count-stock', 'mailglass-reconcile', 'mailglass-reconcile-dispatch', 'mailglass-reconcile-prune'] 42\n"
    )
