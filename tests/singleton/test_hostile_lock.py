"""A lock that nobody will ever free, runs that meet themselves, and requests that somebody waits for."""

import os
import threading
import time
import uuid

import pytest
import redis
import sqlalchemy as sa
from celery import group
from celery_singleton import Singleton

import mailglass_reconcile
from conftest import wait_until
from mailglass_reconcile import runtime, tasks
from mailglass_reconcile.schedule import SWEEP_TASK
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.singleton import task as task_module
from mailglass_reconcile.singleton.lock import PREFIX, LockBackend
from mailglass_reconcile.singleton.task import SweepTask
from mailglass_reconcile.store import engines
from singleton.test_lock import KEY, app_on, store, unconfigured  # noqa: F401 - fixtures

NOT_TEXT = b"r\xff\xfe\x00"


def plant(client: redis.Redis, what: str) -> None:
    """Put something under the lock's key that no sweep of ours leaves there."""
    plants = {
        "without expiry": lambda: client.set(KEY, "rsomebody"),
        "for an hour": lambda: client.set(KEY, "rsomebody", ex=3_600),
        "no text": lambda: client.set(KEY, NOT_TEXT, ex=60),
        "a line": lambda: client.set(KEY, "rsome\nbody", ex=60),
        "a megabyte": lambda: client.set(KEY, "r" + "x" * 1_000_000, ex=60),
        "empty": lambda: client.set(KEY, "", ex=60),
        "a list": lambda: client.rpush(KEY, "rsomebody"),
    }
    plants[what]()


@pytest.mark.parametrize(
    "what", ["without expiry", "for an hour", "no text", "a line", "a megabyte", "empty", "a list"]
)
def test_a_lock_that_no_sweep_of_ours_left_is_taken_over(store, what, caplog):  # noqa: F811
    """By a request as by a run, for a minute, and without an error."""
    lock = LockBackend(store)
    plant(store, what)
    assert lock.take(KEY, "mine") == "mine"
    assert store.get(KEY) == b"rmine"
    assert 50 < store.ttl(KEY) <= 60
    store.delete(KEY)
    plant(store, what)
    assert lock.reserve(KEY, "mine") == "mine"
    assert caplog.records == []


def test_a_duplicate_that_lasts_longer_than_a_sweep_can_is_logged(store, monkeypatch, caplog):  # noqa: F811
    """Somebody keeps renewing the lock: the log names its holder and its key."""
    app_on(store, sweep_seconds=0.1)
    monkeypatch.setattr(task_module, "LOCK_SECONDS", 0)
    task = sweep_task()
    name = task.generate_lock(task.name, [], {})
    store.set(name, "rsomebody", ex=60)
    assert held_by(task, "run") == "somebody"
    assert caplog.records == []
    wait_until(lambda: held_by(task, "run") == "somebody" and caplog.records)
    assert "somebody" in caplog.text
    assert name in caplog.text
    store.delete(name)
    assert held_by(task, "run") is None
    store.set(name, "rsomebody", ex=60)
    caplog.clear()
    assert held_by(task, "run") == "somebody"
    assert caplog.records == []


def sweep_task():
    """Return the sweep's task, of the app that is current."""
    return tasks.reconcile


def held_by(task, id_: str, **headers: object) -> str | None:
    """Return whose duplicate a run with this id is, or None."""
    task.push_request(id=id_, args=[], kwargs={}, is_eager=False, headers=headers)
    try:
        with task.held() as hold:
            return hold.duplicate_of
    finally:
        task.pop_request()


def test_a_redelivery_of_a_running_sweep_is_its_duplicate_and_does_not_free_its_lock(store):  # noqa: F811
    """`acks_late` and a visibility timeout: the broker hands out the message of a sweep that still runs."""
    app_on(store)
    task = sweep_task()
    name = task.generate_lock(task.name, [], {})
    task.push_request(id="same", args=[], kwargs={}, is_eager=False, headers=None)
    with task.held() as hold:
        assert hold.duplicate_of is None
        assert held_by(task, "same") == "same"
        assert held_by(task, "other") == "same"
        assert store.exists(name)
    task.pop_request()
    assert not store.exists(name)


def test_the_first_of_two_runs_of_one_id_to_end_leaves_the_others_lock(store):  # noqa: F811
    """The first lost its lock for a minute, so both run: each frees its own lock only."""
    app_on(store)
    task = sweep_task()
    name = task.generate_lock(task.name, [], {})
    task.push_request(id="same", args=[], kwargs={}, is_eager=False, headers=None)
    first = task.held()
    first.__enter__()
    store.delete(name)
    second = task.held()
    assert second.__enter__().duplicate_of is None
    first.__exit__(None, None, None)
    assert store.exists(name)
    second.__exit__(None, None, None)
    task.pop_request()
    assert not store.exists(name)


def test_a_request_for_later_neither_expires_nor_swallows_one_for_now(store):  # noqa: F811
    """`countdown=600` has no expiry; who asks for a sweep now gets one, which expires like a schedule's."""
    app = app_on(store)
    task = app.tasks[SWEEP_TASK]
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("celery")
        queue.clear()
        later = task.apply_async(countdown=600)
        now = task.delay()
        sent = [queue.get(timeout=5).headers for _ in range(2)]
    assert now.id != later.id
    assert {one["id"]: one["expires"] is None for one in sent} == {later.id: True, now.id: False}


def test_beats_entries_expire_and_the_tasks_have_no_expiry_of_their_own():
    """A tick that is out of date is dropped; a request for later is not."""
    entries = mailglass_reconcile.make_beat_schedule().values()
    assert [entry["options"]["expires"] for entry in entries] == [300, 3_600, 60]
    assert tasks.reconcile.expires is tasks.prune.expires is tasks.dispatch.expires is None


def test_a_member_of_a_group_is_queued_under_its_own_id(store):  # noqa: F811
    """A duplicate in a group, a chord or a chain: somebody waits for its id, so its run says whose duplicate it is."""
    app = app_on(store)
    task = app.tasks[SWEEP_TASK]
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("celery")
        queue.clear()
        asked = group(task.s(), task.s()).apply_async()
        sent = [queue.get(timeout=5).headers["id"] for _ in range(2)]
    assert sent == [one.id for one in asked.results]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("release_lock", ()),
        ("unlock", (KEY,)),
        ("lock_and_run", (KEY,)),
        ("aquire_lock", (KEY, "id")),
        ("get_existing_task_id", (KEY,)),
    ],
)
def test_what_the_library_offers_and_our_lock_cannot_do_says_so(store, name, arguments):  # noqa: F811
    """Freeing anybody's lock, or asking before taking: a clear error in place of an AttributeError."""
    app_on(store)
    store.set(KEY, "rsomebody", ex=60)
    with pytest.raises(NotImplementedError, match=f"{name}.*docs/sweeps.md"):
        getattr(sweep_task(), name)(*arguments)
    assert store.get(KEY) == b"rsomebody"


def test_the_thread_that_renews_a_lock_ends_with_its_sweep(store, monkeypatch):  # noqa: F811
    """However the sweep ends: a thread left per sweep would fill a worker that lives for weeks."""
    before = set(threading.enumerate())
    lock = LockBackend(store)
    with lock.kept(KEY, "a"):
        (renewing,) = [one for one in threading.enumerate() if one not in before and one.name == f"renew {KEY}"]
    renewing.join(5)
    assert not renewing.is_alive()


def test_after_a_fork_a_child_opens_its_own_connections_and_leaves_the_parents(db):
    """The engine that an application configured: the parent's session lives on, the child's is another."""
    engine = sa.create_engine(engines.database_url(db.settings), pool_size=1, max_overflow=0)
    mailglass_reconcile.configure(engine=engine, settings=db.settings)
    with engine.connect() as connection:
        parents = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        runtime.after_fork()
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
    """Nothing is configured: there is nothing to forget, and nothing connects."""
    mailglass_reconcile.configure(settings=Settings(database_url="postgresql://nobody@192.0.2.1/nowhere"))
    began = time.monotonic()
    runtime.after_fork()
    assert time.monotonic() - began < 1


def test_what_of_the_library_still_runs_is_what_the_docs_list(store, monkeypatch):  # noqa: F811
    """Its base class, its setting, its error; its own backend, which would connect to another Redis, is never made."""
    asking = app_on(store).tasks[SWEEP_TASK]
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
    }
    assert [held_by(task, one) for one in ("a", "b")] == [None, None]
    assert asking.delay().id == asking.delay().id


def test_the_rights_that_the_docs_name_are_enough_for_the_lock(store, caplog):  # noqa: F811
    """A real user with these commands on these keys takes, renews and frees it; with one less, the log names them."""
    where = store.get_connection_kwargs()
    name = f"least{uuid.uuid4().hex}"
    least = ("on", ">pw", "resetkeys", f"~{PREFIX}*", "nocommands", "+select", "+eval")
    commands = ("+get", "+pttl", "+set", "+expire", "+del")
    try:
        store.execute_command("ACL", "SETUSER", name, *least, *commands)
        lock = LockBackend(redis.Redis(port=where["port"], db=where["db"], username=name, password="pw"))  # noqa: S106
        assert lock.take(KEY, "a") == lock.take(KEY, "b") == "a"
        lock.renew(KEY, "a")
        lock.release(KEY, "a")
        assert store.keys() == []
        assert caplog.records == []
        store.execute_command("ACL", "SETUSER", name, "-pttl")
        assert [lock.take(KEY, one) for one in ("a", "b")] == ["a", "b"]
        (record,) = caplog.records
        assert "EVAL, GET, PTTL, SET, EXPIRE and DEL" in record.getMessage()
    finally:
        store.execute_command("ACL", "DELUSER", name)
