"""The pages of runs and handlers: runs, the lock's holder, failing handlers and their next attempt."""

import html
import re
import time

import pytest
from pydantic import SecretStr

import factories
import mailglass_reconcile
from browsing import TOKEN, Visitor, app
from mailglass_reconcile import runtime
from mailglass_reconcile.singleton.lock import LockBackend, lock_key, queued_token, running_token
from mailglass_reconcile.web import create_app
from marking import slow_unless

pytestmark = pytest.mark.version_independent

IDLE = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, runs, linked, duration_ms)
SELECT now()::timestamp - n * interval '1 minute', now()::timestamp - n * interval '1 minute', 'recent', 'beat', 'ok',
       60, CASE WHEN n = 7 THEN 3 ELSE 0 END, 90
  FROM generate_series(1, CAST(:runs AS integer)) AS n
"""
FAILED = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error, duration_ms)
VALUES (now()::timestamp, now()::timestamp, 'full', 'beat', 'failed', 'DatabaseUnavailableError', 3000)
"""
OUTBOX = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, next_at, error,
                                      inserted_at, finished_at)
SELECT gen_random_uuid(), :handler, gen_random_uuid(), :type, :state, :attempts,
       now()::timestamp + interval '7 minutes', :error, now()::timestamp,
       CASE WHEN :state = 'dead' THEN now()::timestamp - interval '3 hours' END
  FROM generate_series(1, :events)
"""


def words(text):
    """Return a page without markup."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def rows(text, table):
    """Return the rows of a table's body, without markup."""
    body = text.partition(f'id="{table}"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    return [words(row).strip() for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)]


@pytest.fixture
def planted_runs(db):
    """Insert twenty minutes of recent sweeps, one of which linked, a full sweep and a failed one."""
    factories.orphan(db, factories.postmark("nobody's"))
    db.run(IDLE, runs=20)
    mailglass_reconcile.reconcile()
    db.run(FAILED)


def test_idle_recent_sweeps_do_not_fill_the_overview(db, planted_runs):
    """They were once ten of the ten last runs."""
    result = rows(Visitor(app(db)).get("/").text, "runs")
    assert [re.search(r"(full|recent)", row)[1] for row in result] == ["full", "full", "recent"]


def test_the_page_of_runs_has_kinds_statuses_errors_and_counts(db, planted_runs):
    """Filters are in the URL; durations have one unit in a table."""
    visitor = Visitor(app(db))
    result = rows(visitor.get("/runs").text, "runs")
    assert len(result) == 3
    assert "failed DatabaseUnavailableError" in result[0]
    assert "nothing linked, 1 unmatched" in result[1]
    assert "60 by beat ok 3 linked" in result[2]
    assert "Took (s)" in visitor.get("/runs").text
    assert len(rows(visitor.get("/runs?idle=yes").text, "runs")) == 22
    assert len(rows(visitor.get("/runs?kind=recent").text, "runs")) == 20
    assert len(rows(visitor.get("/runs?status=failed").text, "runs")) == 1
    assert "No run matches." in visitor.get("/runs?status=duplicate").text
    assert visitor.get("/runs?kind=other").status_code == 400
    assert visitor.get("/runs?before=x").status_code == 400
    assert visitor.get("/runs?kind=&status=ok").headers["location"] == "runs?status=ok"


def test_pages_of_runs_link_to_the_next_and_none_is_empty(db):
    """No run is listed twice."""
    db.run(IDLE, runs=50)
    path, listed = "/runs?kind=recent", 0
    assert 'rel="next"' not in Visitor(app(db)).get(path).text
    db.run(FAILED.replace("'full'", "'recent'"))
    visitor = Visitor(app(db))
    while path:
        text = visitor.get(path).text
        result = rows(text, "runs")
        assert result
        listed += len(result)
        following = re.search(r'rel="next" href="./([^"]+)"', text)
        path = html.unescape(f"/{following[1]}") if following else None
    assert listed == 51


def test_the_lock_of_sweeps_says_who_holds_it_and_since_when(db):
    visitor = Visitor(app(db))
    lock, key, token = LockBackend(runtime.get_redis()), lock_key(None), running_token("4711")
    assert "Free: the next sweep can start." in visitor.get("/runs").text
    lock.reserve(key, "4711")
    text = words(Visitor(app(db)).get("/runs").text).replace("  ", " ")
    assert re.search(r"Queued by task 4711 since (now|\d seconds? ago)", text)
    lock.release(key, queued_token("4711"))
    lock.acquire(key, token)
    text = words(Visitor(app(db)).get("/runs").text)
    assert re.search(r"Held by task 4711 since (now|\d seconds? ago) \d{4}-", text)
    assert "unless the run renews it" in text
    lock.release(key, token)
    unreachable = app(db, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    assert "The lock cannot be read" in Visitor(unreachable).get("/runs").text


@pytest.mark.parametrize(
    "value",
    slow_unless(
        ("x", "running a b nan").__contains__,
        ["running", "queued", "x", "", "running a b nan", "running a b 1e300", "running a b ²"],
    ),
)
def test_a_foreign_value_of_the_lock_is_an_unknown_holder(db, value):
    """Anybody with access to Redis may set it; the page shows what it can."""
    client = runtime.get_redis()
    client.set(lock_key(None), value, px=60_000)
    answer = Visitor(app(db)).get("/runs")
    client.delete(lock_key(None))
    assert answer.status_code == 200
    assert re.search(r"by task (unknown|a) since", words(answer.text))


def test_a_holder_has_its_time_of_acquisition(db):
    """Renewing the lock does not change it."""
    lock, key, token = LockBackend(runtime.get_redis()), lock_key(None), running_token("4711")
    lock.acquire(key, token)
    lock.extend(key, token)
    holder = mailglass_reconcile.singleton.lock.load_sweep_holder()
    assert (holder.task_id, holder.is_queued) == ("4711", False)
    assert holder.acquired_at == pytest.approx(time.time(), abs=5)
    lock.release(key, token)
    assert mailglass_reconcile.singleton.lock.load_sweep_holder() is None


def test_handlers_are_shown_by_type_error_and_handler_with_the_next_attempt(db):
    """Dead jobs come first, then failing ones, then waiting ones."""
    db.broken.add("I14")
    visitor = Visitor(app(db))
    assert "No job of a handler waits." in visitor.get("/handlers").text
    for handler, type_, state, attempts, error, events in (
        ("shop.note", "opened", "waiting", 0, None, 5),
        ("shop.suppress", "bounced", "waiting", 4, "ConnectTimeout", 2),
        ("shop.suppress", "bounced", "dead", 9, "IntegrityError", 3),
    ):
        db.run(OUTBOX, handler=handler, type=type_, state=state, attempts=attempts, error=error, events=events)
    text = Visitor(app(db)).get("/handlers").text
    result = rows(text, "handlers")
    assert result[0] == "dead shop.suppress bounced IntegrityError never; died 3 hours ago 3"
    assert result[1] == "failing shop.suppress bounced ConnectTimeout in 6 minutes 2"
    assert result[2].startswith("waiting shop.note opened none")
    assert 'data-copy="mailglass-reconcile dispatch --retry"' in text
    assert len(re.findall(r'href="\./events/', text)) == 5


@pytest.mark.parametrize("chosen", [True, False])
def test_the_lock_is_an_alarm_only_if_a_redis_was_configured(db, chosen):
    """The dashboards of docker-compose.yml and kubernetes.yml have no Redis on purpose."""
    unreachable = {"redis_url": SecretStr("redis://127.0.0.1:1/0"), "web_token": SecretStr(TOKEN)}
    settings = db.settings.model_copy(update=unreachable)
    if not chosen:
        settings.__pydantic_fields_set__.discard("redis_url")
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    page = Visitor(create_app()).get("/runs").text.partition('id="lock"')[2].partition("</section>")[0]
    assert ("alarm" in page, "Not shown: the dashboard has no MAILGLASS_REDIS_URL." in page) == (chosen, not chosen)
