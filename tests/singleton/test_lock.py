"""The sweep's lock without a worker: its key, its owner, its Redis, and its absence."""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa
from celery import Celery, group
from celery_singleton import DuplicateTaskError, Singleton
from kombu.exceptions import SerializerNotInstalled
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

import factories
import mailglass_reconcile
from faults.redis_servers import silent
from locks import KEY
from mailglass_reconcile import runtime, tasks
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.singleton.lock import PREFIX, LockBackend, running_token
from mailglass_reconcile.singleton.task import SweepTask
from mailglass_reconcile.store import engines
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.python_dependent

DATABASE_URL = "postgresql://nobody@192.0.2.1/nowhere"


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Undo a test's configuration."""
    yield
    mailglass_reconcile.configure()


def url_of(client: redis.Redis) -> str:
    """Return a client's URL."""
    where = client.get_connection_kwargs()
    return f"redis://:{where.get('password') or ''}@{where['host']}:{where['port']}/{where['db']}"


def app_on(lock: redis.Redis | str, **settings: object) -> Celery:
    """Return an application with an in-memory broker, and configure the process to keep the lock in *lock*."""
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
    """An argument may be a default, given by name or position, or absent, with any limit."""
    app = app_on(store)
    assert len({key(app), key(app, None), key(app, tenant_id=None), key(app, limit=7), key(app, None, 3)}) == 1
    assert key(app, "acme") == key(app, tenant_id="acme") == key(app, "acme", limit=1)


def test_tenants_and_deployments_have_keys_of_their_own(store):
    """A tenant may be named `all` or like a digest; schema and database distinguish deployments."""
    names = ["all", "None", "acme", "acme ", "tenant:acme", "", "\ud800", "ä"]
    lock_keys = [key(app_on(store), *([name] if name is not None else [])) for name in [None, *names]]
    other_schema = key(app_on(store, database_schema="mail"))
    other_database = key(app_on(store, database_url=f"{DATABASE_URL}2"))
    options = key(app_on(store, database_url=f"{DATABASE_URL}?application_name=beat"))
    assert len({*lock_keys, other_schema, other_database}) == len(names) + 3
    assert options == lock_keys[0]
    assert "acme" not in "".join(lock_keys)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((), {"limit": "7"}), ((), {"limit": True}), ((), {"tenant": "x"}), ((1, 2, 3), {})],
)
def test_wrong_arguments_are_refused_before_anything_is_queued(store, args, kwargs):
    """The caller gets a TypeError; there is no lock and no message."""
    app = app_on(store)
    with pytest.raises(TypeError):
        app.tasks[tasks.SWEEP_TASK].apply_async(args, kwargs)
    assert store.keys() == []


def test_the_second_request_gets_the_id_of_the_first(store):
    """The first is queued for a minute; the others, in any spelling, get its result object."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    first = task.delay()
    assert {task.delay(None).id, task.apply_async(kwargs={"limit": 3}).id} == {first.id}
    assert task.delay("acme").id != first.id
    assert all(50 < store.ttl(name) <= 60 for name in store.scan_iter())


def test_an_app_that_wants_an_error_for_a_duplicate_gets_one(store):
    """celery-singleton's own setting does this, with the id of the first request."""
    app = app_on(store)
    app.conf.singleton_raise_on_duplicate = True
    task = app.tasks[tasks.SWEEP_TASK]
    first = task.delay()
    with pytest.raises(DuplicateTaskError) as raised:
        task.delay(None)
    assert raised.value.task_id == first.id


def queued_messages(app: Celery, *queues: str) -> list[str]:
    """Return the queue of each message that waits in one of these."""
    with app.connection_for_write() as connection:
        return [name for name in queues for _ in range(connection.default_channel.queue_declare(name).message_count)]


def test_one_beat_queues_a_sweep_for_each_of_two_databases(store):
    """Beat has the URL of one of them; workers of each consume their own queue."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    for _ in range(2):
        for queue in ("mail-eu", "mail-us"):
            task.apply_async(queue=queue, expires=300, headers={"mailglass_origin": "beat"})
    assert queued_messages(app, "mail-eu", "mail-us") == ["mail-eu", "mail-us"]


def test_a_run_for_one_database_frees_the_lock_that_a_process_of_another_took_when_it_queued_it(store):
    """The sender's key has the sender's database; the next request for that queue must not wait for its expiry."""
    app = app_on(store)
    queued = app.tasks[tasks.SWEEP_TASK].apply_async(queue="mail-us")
    (reserved,) = (name.decode() for name in store.scan_iter())
    app_on(store, database_url=f"{DATABASE_URL}2")
    assert find_holder(sweep_task(), queued.id, mailglass_reserved=reserved) is None
    assert store.keys() == []


def test_a_request_that_cannot_be_queued_frees_its_lock(store):
    """The broker refuses the message."""
    app = app_on(store)
    with pytest.raises(SerializerNotInstalled):
        app.tasks[tasks.SWEEP_TASK].apply_async(serializer="no such serializer")
    assert store.keys() == []


def test_only_its_token_extends_and_releases_it(store):
    """Another token changes nothing."""
    lock = LockBackend(store)
    own, foreign = running_token("a"), running_token("b")
    assert [lock.acquire(KEY, token) for token in (own, foreign)] == [None, "a"]
    store.expire(KEY, 5)
    lock.extend(KEY, foreign)
    lock.release(KEY, foreign)
    assert store.ttl(KEY) <= 5
    lock.extend(KEY, own)
    assert store.ttl(KEY) > 50
    lock.release(KEY, own)
    lock.extend(KEY, own)
    assert store.keys() == []


def test_a_run_renews_its_lock_and_frees_it(store):
    """The lock lives while the block runs; after it, whatever it raised, the lock is gone."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    task.singleton_backend.renew_seconds = 0.05
    task.push_request(id="run", args=["acme"], kwargs={}, is_eager=False, headers=None)

    def work() -> None:
        with task.holding_lock() as lease:
            assert lease.duplicate_of is None
            store.expire(key(app, "acme"), 5)
            wait_until(lambda: store.ttl(key(app, "acme")) > 50)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    task.pop_request()
    assert store.keys() == []


def test_a_queue_longer_than_a_minute_starves_no_sweep(store):
    """The first lock expired and the second is queued: the first runs all the same; one that never had it does not."""
    lock = LockBackend(store)
    assert lock.reserve(KEY, "first") is None
    store.delete(KEY)
    assert lock.reserve(KEY, "second") is None
    assert lock.acquire(KEY, running_token("from celery call")) == "second"
    assert lock.acquire(KEY, running_token("first"), reserved=True) is None
    assert lock.acquire(KEY, running_token("second"), reserved=True) == "first"


def test_a_lock_is_never_free_between_a_request_and_its_run(store):
    """Otherwise another request could be queued in between, only to be a duplicate."""
    lock = LockBackend(store)
    assert lock.reserve(KEY, "request") is None
    with store.monitor() as monitor:
        assert lock.acquire(KEY, token := running_token("request"), reserved=True) is None
        store.echo("end")
        commands = list(iter(lambda: monitor.next_command()["command"], "ECHO end"))
    assert any(command.lower().startswith("set ") for command in commands)
    assert not [command for command in commands if command.lower().startswith(("del ", "unlink "))]
    assert store.get(KEY).decode() == token
    assert 50 < store.ttl(KEY) <= 60


@pytest.mark.parametrize("retries", [0, 1])
def test_a_lost_reply_leaves_no_phantom_owner(store, retries):
    """Redis acquires the lock, and the caller gets no reply or finds its own token: its request is queued and runs."""
    with dropping_replies(store) as url:
        client = redis.Redis.from_url(url, socket_timeout=5, retry=Retry(NoBackoff(), retries))
        app = app_on(url)
        mailglass_reconcile.configure(redis=client, settings=Settings(database_url=DATABASE_URL))
        with app.connection_for_write() as connection:
            queue = connection.SimpleQueue("celery")
            queue.clear()
            result_ = app.tasks[tasks.SWEEP_TASK].delay()
            assert queue.get(timeout=PATIENCE).headers["id"] == result_.id
        client.connection_pool.disconnect()
    (name,) = store.keys()
    assert store.get(name).decode() == f"queued {result_.id}"
    assert LockBackend(store).acquire(name.decode(), running_token(result_.id), reserved=True) is None


def test_a_silent_redis_costs_a_second_and_a_warning(caplog):
    """Each request asks it at most twice, for half a second, and is queued; one outage is one warning."""
    with silent() as (port, accepted):
        app = app_on(f"redis://127.0.0.1:{port}/0")
        first, second = (app.tasks[tasks.SWEEP_TASK].delay() for _ in range(2))
        assert 1 <= len(accepted) <= 4
    assert first.id != second.id
    records = [record for record in caplog.records if record.name.startswith("mailglass_reconcile")]
    assert [record.levelno for record in records] == [logging.WARNING]


def test_a_client_that_an_application_configured_is_used_as_it_is(caplog):
    """Its timeouts apply: each use of the lock waits that long at most."""
    with silent() as (port, accepted):
        client = redis.Redis(port=port, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))
        mailglass_reconcile.configure(redis=client, settings=Settings(database_url=DATABASE_URL))
        app = Celery("adopter", broker="memory://", set_as_current=False)
        app.tasks[tasks.SWEEP_TASK].delay()
        assert 1 <= len(accepted) <= 4
    assert len(caplog.records) == 1


def test_a_client_that_decodes_responses_works(store):
    """The id of the other run is a text in either case."""
    decoding = LockBackend(redis.Redis.from_url(url_of(store), decode_responses=True))
    assert [decoding.acquire(KEY, running_token(name)) for name in "ab"] == [None, "a"]


def test_without_redis_the_sweep_runs(db, caplog):
    """Nothing listens: there is one warning, and the orphan is linked."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with socket.create_server(("127.0.0.1", 0)) as closed_socket:
        port = closed_socket.getsockname()[1]
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"redis_url": secret(f"redis://127.0.0.1:{port}/0")})
    )
    app = Celery("adopter", broker="memory://", set_as_current=False)
    task = app.tasks[tasks.SWEEP_TASK]
    task.push_request(id="run", args=[], kwargs={}, is_eager=False, headers=None)
    assert task.run()["linked"] == 1
    task.pop_request()
    assert sum("lock cannot be used" in record.message for record in caplog.records) == 1


def test_a_second_outage_is_logged_too(store, caplog):
    """There is one warning per outage, not per process."""
    broken = threading.Event()
    with dropping_replies(store, broken) as url:
        lock = LockBackend(redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)))
        for _ in range(2):
            broken.set()
            assert [lock.acquire(KEY, running_token(name)) for name in "ab"] == [None, None]
            broken.clear()
            assert lock.acquire(KEY, running_token("c")) == "a"
            store.delete(KEY)
        lock._client.connection_pool.disconnect()
    assert len(caplog.records) == 2


def test_two_apps_in_one_process_have_the_lock_that_is_configured_for_each(store, redis_url):
    """The library keeps one backend per process; here each app's lock is in its own Redis."""
    with redis.Redis.from_url(urlsplit(redis_url)._replace(path="/7").geturl()) as second_store:
        second_store.flushdb()
        app_on(store).tasks[tasks.SWEEP_TASK].delay()
        assert (len(store.keys()), len(second_store.keys())) == (1, 0)
        app_on(second_store).tasks[tasks.SWEEP_TASK].delay()
        assert (len(store.keys()), len(second_store.keys())) == (1, 1)
        second_store.flushdb()


@pytest.mark.parametrize(
    "url",
    ["rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0?ssl_cert_reqs=none", "redis+socket:///nowhere?virtual_host=3"],
)
def test_every_spelling_of_a_redis_url_works(url):
    """TLS and Celery's spelling of sockets are tried; that nothing listens is the only fault."""
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
    store.set(name, "running somebody")
    results = [task.delay().get(), task.apply().get(), task()]
    assert [row["status"] for row in results] == ["ok"] * 3
    assert store.get(name) == b"running somebody"
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"redis_url": secret("redis://127.0.0.1:1/0")})
    )
    assert task.delay().get()["status"] == "ok"


def test_a_process_that_only_asks_need_not_know_the_database(redis_url):
    """Without `MAILGLASS_DATABASE_URL` the request is queued, and its run acquires the lock."""
    mailglass_reconcile.configure(settings=Settings(database_url=None, redis_url=redis_url))
    app = Celery("adopter", broker="memory://", set_as_current=False)
    assert app.tasks[tasks.SWEEP_TASK].delay().id


def sweep_task():
    """Return the sweep's task of the current app."""
    return tasks.reconcile


def find_holder(task, id_: str, **headers: object) -> str | None:
    """Return the id of which a run with this id is a duplicate, or None."""
    task.push_request(id=id_, args=[], kwargs={}, is_eager=False, headers=headers)
    try:
        with task.holding_lock() as lease:
            return lease.duplicate_of
    finally:
        task.pop_request()


def test_a_redelivery_of_a_running_sweep_is_its_duplicate_and_does_not_free_its_lock(store):
    """With `acks_late` and a visibility timeout, the broker delivers the message of a running sweep again."""
    app_on(store)
    task = sweep_task()
    name = task.generate_lock(task.name, [], {})
    task.push_request(id="same", args=[], kwargs={}, is_eager=False, headers=None)
    with task.holding_lock() as lease:
        assert lease.duplicate_of is None
        assert find_holder(task, "same") == "same"
        assert find_holder(task, "other") == "same"
        assert store.exists(name)
    task.pop_request()
    assert not store.exists(name)


def test_the_first_of_two_runs_of_one_id_to_end_leaves_the_others_lock(store):
    """The first lost its lock for a minute, so both run: each releases only its own."""
    app_on(store)
    task = sweep_task()
    name = task.generate_lock(task.name, [], {})
    task.push_request(id="same", args=[], kwargs={}, is_eager=False, headers=None)
    first = task.holding_lock()
    first.__enter__()
    store.delete(name)
    second = task.holding_lock()
    assert second.__enter__().duplicate_of is None
    first.__exit__(None, None, None)
    assert store.exists(name)
    second.__exit__(None, None, None)
    task.pop_request()
    assert not store.exists(name)


def test_a_range_that_loses_postgres_leaves_the_lock_of_the_divided_sweep_to_the_other_ranges(store):
    app_on(store)
    task, token = sweep_task(), running_token("divided")
    name = task.generate_lock(task.name, [], {})
    bounds, headers = {"after": "2000-01-01", "until": "infinity"}, {"mailglass_range_of": token}
    task.push_request(id="range", args=[], kwargs=bounds, is_eager=False, headers=headers)
    lost = DatabaseUnavailableError("the server is gone")
    lost.is_transient = True
    with pytest.raises(DatabaseUnavailableError), task.holding_lock():
        raise lost
    task.pop_request()
    assert (store.get(name), store.ttl(name) > 50) == (token.encode(), True)


def test_a_request_for_later_neither_expires_nor_swallows_one_for_now(store):
    """`countdown=600` has no expiry; a request for now runs and expires like the schedule's."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("celery")
        queue.clear()
        later = task.apply_async(countdown=600)
        now = task.delay()
        sent = [queue.get(timeout=PATIENCE).headers for _ in range(2)]
    assert now.id != later.id
    assert {row["id"]: row["expires"] is None for row in sent} == {later.id: True, now.id: False}


def test_the_tasks_expire_as_beats_entries_do():
    """An outdated tick is dropped, also if a scheduler stores the entries without an expiry."""
    entries = mailglass_reconcile.make_beat_schedule().values()
    assert [entry["options"]["expires"] for entry in entries] == [300, 3_600, 60]
    assert [tasks.reconcile.expires, tasks.prune.expires, tasks.dispatch.expires] == [300, 3_600, 60]


@pytest.mark.parametrize("name", [tasks.PRUNE_TASK, tasks.DISPATCH_TASK, tasks.RECENT_TASK])
def test_another_task_that_is_asked_for_later_does_not_expire(store, name):
    """A request may set an expiry itself; one for now expires."""
    app = app_on(store)
    task = app.tasks[name]
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("celery")
        queue.clear()
        for options in ({"countdown": 7_200}, {}, {"countdown": 1, "expires": 9}):
            task.apply_async(**options)
        sent = [queue.get(timeout=PATIENCE).headers["expires"] is None for _ in range(3)]
    assert sent == [True, False, False]


def test_a_member_of_a_group_is_queued_under_its_own_id(store):
    """In a group, chord or chain something waits for its id, so its run returns `duplicate`."""
    app = app_on(store)
    task = app.tasks[tasks.SWEEP_TASK]
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("celery")
        queue.clear()
        group_result = group(task.s(), task.s()).apply_async()
        sent = [queue.get(timeout=PATIENCE).headers["id"] for _ in range(2)]
    assert sent == [result.id for result in group_result.results]


def test_the_thread_that_renews_a_lock_ends_with_its_sweep(store):
    """This holds however the sweep ends: a thread left by each would fill a worker that lives for weeks."""
    before = set(threading.enumerate())
    lock = LockBackend(store)
    with lock.renewing(KEY, "running a", lambda: False):
        (renewing,) = [item for item in threading.enumerate() if item not in before and item.name == f"renew {KEY}"]
    renewing.join(PATIENCE)
    assert not renewing.is_alive()


def test_after_a_fork_a_child_opens_its_own_connections_and_leaves_the_parents(db):
    """The engine is the application's: the parent's session lives on, and the child opens its own."""
    engine = sa.create_engine(engines.database_url(db.settings), pool_size=1, max_overflow=0)
    mailglass_reconcile.configure(engine=engine, settings=db.settings)
    with engine.connect() as connection:
        parents = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        runtime.dispose_after_fork()
        with runtime.get_engine().connect() as connection:
            childs = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        os.write(writing, str(childs).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        childs = int(answer.read())
    os.waitpid(child, 0)
    assert childs != parents
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() == parents
    engine.dispose()


def test_after_a_fork_an_engine_of_our_own_needs_nothing():
    """Nothing is configured, so nothing connects."""
    with silent() as (port, accepted):
        mailglass_reconcile.configure(settings=Settings(database_url=f"postgresql://nobody@127.0.0.1:{port}/nowhere"))
        runtime.dispose_after_fork()
        assert accepted == []


def test_what_of_the_library_still_runs_is_what_the_docs_list(store, monkeypatch):
    """They are its base class, its setting and its error; its backend, which would use another Redis, is never made."""
    asking = app_on(store).tasks[tasks.SWEEP_TASK]
    monkeypatch.setattr("celery_singleton.singleton.get_backend", lambda config: pytest.fail("the library's backend"))
    task = sweep_task()
    assert isinstance(task._get_current_object(), Singleton)
    inherited = {name for name in vars(Singleton) if not name.startswith("__") and name not in vars(SweepTask)}
    assert inherited == {
        "on_duplicate",
        "_raise_on_duplicate",
        "raise_on_duplicate",
        "singleton_config",
        "_singleton_config",
        "_singleton_backend",
        "unique_on",
        "lock_expiry",
        # They call methods of the library's backend, which ours has not.
        "release_lock",
        "unlock",
        "lock_and_run",
        "aquire_lock",
        "get_existing_task_id",
    }
    assert [find_holder(task, word) for word in ("a", "b")] == [None, None]
    assert asking.delay().id == asking.delay().id


def test_the_documented_acl_is_enough_for_the_lock(store, caplog):
    """A user with these commands and keys acquires, extends and releases it; if one is missing, the log names them."""
    where = store.get_connection_kwargs()
    name = f"least{uuid.uuid4().hex}"
    least = ("on", ">pw", "resetkeys", f"~{PREFIX}*", "nocommands", "+select")
    commands = ("+set", "+get", "+pttl", "+pexpire", "+del", "+evalsha", "+script|load")
    store.script_flush()
    try:
        store.execute_command("ACL", "SETUSER", name, *least, *commands)
        lock = LockBackend(redis.Redis(port=where["port"], db=where["db"], username=name, password="pw"))  # noqa: S106
        token = running_token("a")
        assert [lock.acquire(KEY, contender) for contender in (token, running_token("b"))] == [None, "a"]
        store.expire(KEY, 5)
        lock.extend(KEY, token)
        assert store.ttl(KEY) > 50
        lock.release(KEY, token)
        assert store.keys() == []
        assert caplog.records == []
        store.execute_command("ACL", "SETUSER", name, "-pttl")
        assert [lock.acquire(KEY, running_token(word)) for word in ("a", "b")] == [None, None]
        (record,) = caplog.records
        assert "SET, GET, PTTL, PEXPIRE, DEL, EVALSHA and SCRIPT LOAD" in record.getMessage()
    finally:
        store.execute_command("ACL", "DELUSER", name)


def secret(url: str) -> object:
    """Return a URL in the form of the settings."""
    return Settings(redis_url=url).redis_url


@contextmanager
def dropping_replies(store: redis.Redis, broken: threading.Event | None = None) -> Iterator[str]:
    """Forward to *store*, and while *broken*, or once, close the connection instead of the reply to SET; yield the
    URL.
    """
    where = store.get_connection_kwargs()
    listener = socket.create_server(("127.0.0.1", 0))
    dropped: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.create_connection((where["host"], where["port"])) as server:
                while data := client.recv(65_536):
                    server.sendall(data)
                    answer = server.recv(65_536)
                    if b"\r\nSET\r\n" in data and (broken.is_set() if broken else not dropped):
                        dropped.append(data)
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
