"""The sweep's lock, without a worker: its key, its owner, its Redis, and what happens where there is none."""

import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from celery_singleton import DuplicateTaskError
from kombu.exceptions import SerializerNotInstalled
from redis.exceptions import ConnectionError as RedisConnectionError

import factories
import mailglass_reconcile
from conftest import wait_until
from mailglass_reconcile import tasks
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.singleton.lock import LockBackend

NUMBERS = itertools.count(8)
DATABASE_URL = "postgresql://nobody@192.0.2.1/nowhere"
KEY = "mailglass_reconcile:lock:test"


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """A database of the Redis server, empty, whose number no other test here has."""
    url = urlsplit(redis_url)._replace(path=f"/{NUMBERS.__next__() % 8 + 8}").geturl()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Undo what a test configures."""
    yield
    mailglass_reconcile.configure()


def url_of(client: redis.Redis) -> str:
    """Return a client's URL."""
    where = client.get_connection_kwargs()
    return f"redis://:{where.get('password') or ''}@{where['host']}:{where['port']}/{where['db']}"


def app_on(lock: redis.Redis | str, **settings: object) -> Celery:
    """Return an application with a broker in memory, and configure the process to keep the lock in *lock*."""
    url = lock if isinstance(lock, str) else url_of(lock)
    mailglass_reconcile.configure(settings=Settings(**{"database_url": DATABASE_URL, "redis_url": url, **settings}))
    app = Celery("adopter", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.finalize()
    return app


def key(app: Celery, *args: object, **kwargs: object) -> str:
    """Return the key of the lock for these arguments."""
    task = app.tasks[tasks.SWEEP_TASK]
    return task.generate_lock(task.name, args, kwargs)


def test_every_spelling_of_the_same_sweep_has_the_same_key(store):
    """A default, given by name, by position, or not at all; with any limit."""
    app = app_on(store)
    assert len({key(app), key(app, None), key(app, tenant_id=None), key(app, limit=7), key(app, None, 3)}) == 1
    assert key(app, "acme") == key(app, tenant_id="acme") == key(app, "acme", limit=1)


def test_tenants_and_deployments_have_keys_of_their_own(store):
    """A tenant named `all`, or like another's digest, is a tenant; a schema and a database tell deployments apart."""
    names = ["all", "None", "acme", "acme ", "tenant:acme", "", "\ud800", "ä"]
    here = [key(app_on(store), *([name] if name is not None else [])) for name in [None, *names]]
    other_schema = key(app_on(store, database_schema="mail"))
    other_database = key(app_on(store, database_url=f"{DATABASE_URL}2"))
    options = key(app_on(store, database_url=f"{DATABASE_URL}?application_name=beat"))
    assert len({*here, other_schema, other_database}) == len(names) + 3
    assert options == here[0]
    assert "acme" not in "".join(here)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((), {"limit": "7"}), ((), {"limit": True}), ((), {"tenant": "x"}), ((1, 2, 3), {})],
)
def test_wrong_arguments_are_refused_before_anything_is_queued(store, args, kwargs):
    """TypeError for the caller, no lock, no message."""
    app = app_on(store)
    with pytest.raises(TypeError):
        app.tasks[tasks.SWEEP_TASK].apply_async(args, kwargs)
    assert store.keys() == []


def test_the_second_request_learns_whose_duplicate_it_is(store):
    """The first is queued, for a minute; the others, in any spelling, get its result object."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    first = task.delay()
    assert {task.delay(None).id, task.apply_async(kwargs={"limit": 3}).id} == {first.id}
    assert task.delay("acme").id != first.id
    assert all(50 < store.ttl(name) <= 60 for name in store.scan_iter())


def test_an_app_that_wants_an_error_for_a_duplicate_gets_one(store):
    """celery-singleton's own setting, with the id of the first request."""
    app = app_on(store)
    app.conf.singleton_raise_on_duplicate = True
    task = app.tasks[tasks.SWEEP_TASK]
    first = task.delay()
    with pytest.raises(DuplicateTaskError) as raised:
        task.delay(None)
    assert raised.value.task_id == first.id


def test_a_request_that_cannot_be_queued_frees_its_lock(store):
    """The broker refuses the message."""
    app = app_on(store)
    with pytest.raises(SerializerNotInstalled):
        app.tasks[tasks.SWEEP_TASK].apply_async(serializer="no such serializer")
    assert store.keys() == []


def test_only_the_owner_renews_and_releases(store):
    """Anybody else's release and renewal change nothing; the owner may take it again."""
    lock = LockBackend(store)
    assert lock.take(KEY, "a") == lock.take(KEY, "b") == lock.take(KEY, "a") == "a"
    store.expire(KEY, 5)
    lock.renew(KEY, "b")
    lock.release(KEY, "b")
    assert store.ttl(KEY) <= 5
    lock.renew(KEY, "a")
    assert store.ttl(KEY) > 50
    lock.release(KEY, "a")
    lock.renew(KEY, "a")
    assert store.keys() == []


def test_a_run_renews_its_lock_and_frees_it(store, monkeypatch):
    """While the block works the lock lives on; after it, whatever it raised, there is none."""
    monkeypatch.setattr("mailglass_reconcile.singleton.lock.RENEW_SECONDS", 0.05)
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    task.push_request(id="run", args=["acme"], kwargs={}, is_eager=False, headers=None)

    def work() -> None:
        with task.held() as hold:
            assert hold.duplicate_of is None
            store.expire(key(app, "acme"), 5)
            wait_until(lambda: store.ttl(key(app, "acme")) > 50)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    task.pop_request()
    assert store.keys() == []


def test_a_queue_longer_than_a_minute_starves_no_sweep(store):
    """The first's lock has lapsed and the second is queued: the first runs all the same, one that never held it not."""
    lock = LockBackend(store)
    lock.reserve(KEY, "first")
    store.delete(KEY)
    assert lock.reserve(KEY, "second") == "second"
    assert lock.take(KEY, "from celery call") == "second"
    assert lock.take(KEY, "first", reserved=True) == "first"
    assert lock.take(KEY, "second", reserved=True) == "first"


def test_a_lost_reply_leaves_no_phantom_owner(store):
    """Redis takes the lock, the caller never hears: its own id holds it, so that its run goes ahead."""
    with dropping_replies(store) as url:
        app = app_on(url)
        asked = app.tasks[tasks.SWEEP_TASK].delay()
    (name,) = store.keys()
    assert store.get(name).decode() == f"q{asked.id}"
    assert LockBackend(store).take(name.decode(), asked.id, reserved=True) == asked.id


def test_a_silent_redis_costs_a_second_and_a_warning(caplog):
    """A server that accepts and never answers: each request is queued within a second; one outage, one warning."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        app = app_on(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        first, second = (app.tasks[tasks.SWEEP_TASK].delay() for _ in range(2))
        took = time.monotonic() - began
    assert first.id != second.id
    assert took < 2
    ours = [record for record in caplog.records if record.name.startswith("mailglass_reconcile")]
    assert [record.levelno for record in ours] == [logging.WARNING]


def test_an_applications_patient_client_costs_no_more(caplog):
    """A client that was handed over with long timeouts and retries is not waited for longer."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        patient = redis.Redis(port=silent.getsockname()[1], socket_timeout=30, decode_responses=True)
        mailglass_reconcile.configure(redis=patient, settings=Settings(database_url=DATABASE_URL))
        app = Celery("adopter", broker="memory://", set_as_current=False)
        began = time.monotonic()
        app.tasks[tasks.SWEEP_TASK].delay()
    assert time.monotonic() - began < 1.5
    assert len(caplog.records) == 1


def test_a_client_that_decodes_is_understood(store):
    """The id of the other run is a text in either case."""
    decoding = LockBackend(redis.Redis.from_url(url_of(store), decode_responses=True))
    assert decoding.take(KEY, "a") == decoding.take(KEY, "b") == "a"


def test_without_redis_the_sweep_runs(db, caplog):
    """Nobody listens: one warning, and the orphan is linked."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"redis_url": secret(f"redis://127.0.0.1:{port}/0")})
    )
    app = Celery("adopter", broker="memory://", set_as_current=False)
    task = app.tasks[tasks.SWEEP_TASK]
    task.push_request(id="run", args=[], kwargs={}, is_eager=False, headers=None)
    assert task.run()["linked"] == 1
    task.pop_request()
    assert sum("lock cannot be used" in record.message for record in caplog.records) == 1


def test_a_second_outage_is_told_too(store, caplog):
    """Once per outage, not once per process."""
    broken = threading.Event()
    with dropping_replies(store, broken) as url:
        lock = LockBackend(redis.Redis.from_url(url))
        for _ in range(2):
            broken.set()
            assert [lock.take(KEY, name) for name in "ab"] == ["a", "b"]
            broken.clear()
            assert lock.take(KEY, "c") == "a"
            store.delete(KEY)
        lock._client.connection_pool.disconnect()
    assert len(caplog.records) == 2


def test_two_apps_in_one_process_have_the_lock_that_is_configured_for_each(store, redis_url):
    """The library keeps one backend for the whole process; here, each app's lock is in its own Redis."""
    with redis.Redis.from_url(urlsplit(redis_url)._replace(path="/7").geturl()) as other:
        other.flushdb()
        app_on(store).tasks[tasks.SWEEP_TASK].delay()
        assert (len(store.keys()), len(other.keys())) == (1, 0)
        app_on(other).tasks[tasks.SWEEP_TASK].delay()
        assert (len(store.keys()), len(other.keys())) == (1, 1)
        other.flushdb()


@pytest.mark.parametrize(
    "url",
    ["rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0?ssl_cert_reqs=none", "redis+socket:///nowhere?virtual_host=3"],
)
def test_every_spelling_of_a_redis_url_is_understood(url):
    """Over TLS, or over a socket as Celery spells it: nobody listens, and that is all that is wrong."""
    task = app_on(url).tasks[tasks.SWEEP_TASK]
    backend = task.singleton_backend
    with pytest.raises(RedisConnectionError):
        backend._client.ping()
    assert backend._client.get_connection_kwargs()["db"] == (3 if "socket" in url else 0)


def test_eager_mode_needs_no_redis_and_frees_nobodys_lock(db, store):
    """`task_always_eager`, `.apply()` and a plain call sweep, whoever holds the lock."""
    app = Celery("adopter", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    task = app.tasks[tasks.SWEEP_TASK]
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"redis_url": secret(url_of(store))})
    )
    name = task.generate_lock(task.name)
    store.set(name, "rsomebody")
    ran = [task.delay().get(), task.apply().get(), task()]
    assert [one["status"] for one in ran] == ["ok"] * 3
    assert store.get(name) == b"rsomebody"
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"redis_url": secret("redis://127.0.0.1:1/0")})
    )
    assert task.delay().get()["status"] == "ok"


def test_a_process_that_only_asks_need_not_know_the_database(redis_url):
    """No `MAILGLASS_DATABASE_URL`: the request is queued, and its run meets the lock."""
    mailglass_reconcile.configure(settings=Settings(database_url=None, redis_url=redis_url))
    app = Celery("adopter", broker="memory://", set_as_current=False)
    assert app.tasks[tasks.SWEEP_TASK].delay().id


def secret(url: str) -> object:
    """Return a URL as the settings hold it."""
    return Settings(redis_url=url).redis_url


@contextmanager
def dropping_replies(store: redis.Redis, broken: threading.Event | None = None) -> Iterator[str]:
    """Forward to *store*, and while it is *broken* hang up on scripts in place of an answer; yield the URL."""
    where = store.get_connection_kwargs()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.create_connection((where["host"], where["port"])) as server:
                while asked := client.recv(65_536):
                    server.sendall(asked)
                    answer = server.recv(65_536)
                    if b"EVAL" in asked and (broken is None or broken.is_set()):
                        break
                    client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"redis://:{where.get('password') or ''}@127.0.0.1:{listener.getsockname()[1]}/{where['db']}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        wait_until(lambda: not thread.is_alive())
