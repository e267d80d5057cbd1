"""Faults of Redis and of the lock, one at a time: the doctor names each, and its remedy fixes it."""

import json
import uuid
from collections.abc import Iterator
from functools import partial

import pytest
import redis
from celery import Celery
from sqlalchemy.engine import make_url

from database import Database
from diagnosing import report, use_settings, worst_finding
from mailglass_reconcile.celery import app as bundled
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING
from mailglass_reconcile.ops.checks.workers import Cluster
from mailglass_reconcile.pubsub import Subscription
from mailglass_reconcile.singleton.lock import PREFIX, lock_key
from mailglass_reconcile.testing import servers
from waiting import wait_until


@pytest.fixture
def own_redis(db: Database) -> Iterator[redis.Redis]:
    """Start a Redis for this test, and configure this process to use it."""
    with servers.redis() as url, redis.Redis.from_url(url) as client:
        use_settings(db, redis_url=url)
        yield client


def test_a_redis_that_is_away(db):
    """The finding names the cause; links are unaffected, and the database is checked."""
    use_settings(db, redis_url="redis://:canary@127.0.0.1:1/0")
    findings = {finding.check: finding for finding in report()}
    assert "127.0.0.1, port 1, database 0: nothing listens there" in findings["redis"].message
    assert (findings["redis"].status, findings["open_set"].status) == (ERROR, OK)
    assert "canary" not in str(findings)


def test_a_redis_that_is_a_replica(db, own_redis):
    """It accepts messages and delivers none; promoted to master, it is healthy."""
    own_redis.replicaof("127.0.0.1", 1)
    finding = worst_finding("redis")
    assert (finding.status, "is a replica" in finding.message) == (ERROR, True)
    own_redis.replicaof("NO", "ONE")
    assert worst_finding("redis").status == OK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "check", "status", "words"),
    [
        ("-publish", "redis_privileges", ERROR, "may not PUBLISH"),
        ("resetchannels", "redis_privileges", ERROR, "may not PUBLISH"),
        ("-evalsha", "lock_privileges", WARNING, "may not take locks"),
        ("-pexpire", "lock_privileges", WARNING, "may not take locks"),
        ("-pttl", "lock_privileges", WARNING, "may not take locks"),
        ("resetkeys", "lock_privileges", WARNING, "mailglass_reconcile:lock"),
    ],
)
def test_a_privilege_of_redis_that_is_missing(db, own_redis, missing, check, status, words):
    """The documented minimum suffices, without INFO; the remedy is the ACL command."""
    rights = f"~{PREFIX}* &mailglass:events:* +publish +set +get +pttl +pexpire +del +evalsha +script|load"
    own_redis.execute_command("ACL", "SETUSER", "mailglass", "on", ">secret", *rights.split())
    where = own_redis.connection_pool.connection_kwargs
    use_settings(db, redis_url=f"redis://mailglass:secret@{where['host']}:{where['port']}/0")
    with Subscription(own_redis, None, None) as heard:
        assert {finding.status for finding in report() if "redis" in finding.check or "lock" in finding.check} == {OK}
        own_redis.execute_command("ACL", "SETUSER", "mailglass", *missing.split())
        finding = worst_finding(check)
        assert (finding.status, words in finding.message) == (status, True)
        step = finding.remedy.replace("<this user>", "mailglass").replace("'", "").split()
        own_redis.execute_command(*step)
        assert worst_finding(check).status == OK
        own_redis.publish("mailglass:events:acme", '{"delivery_id": "d"}')
        assert next(heard).channel == "mailglass:events:acme", "what the doctor publishes is no message"


MISSING = {
    "-publish": "redis_privileges",
    "resetchannels": "redis_privileges",
    "-get": "lock_privileges",
    "-evalsha": "lock_privileges",
    "-llen": "worker",
    "-sadd -smembers": "worker",
}
"""Permissions that a user of Redis may lack, and the check that says so."""


@pytest.mark.slow
def test_one_missing_permission_of_redis_is_one_finding(site):
    """The checks of Celery use the same Redis, and once said each that they could not be made."""
    user, acl = f"doctor{uuid.uuid4().hex[:12]}", partial(site.redis.execute_command, "ACL")
    everything = ("~*", "&*", "+@all")
    acl("SETUSER", user, "on", ">secret", *everything)
    url = make_url(site.url).set(username=user, password="secret").render_as_string(hide_password=False)  # noqa: S106
    site.db.run(SWEPT_BY_BEAT)
    use_settings(site.db, redis_url=url)
    app = Celery("mailglass_reconcile", broker=url, set_as_current=False)
    app.conf.update({**bundled.conf.changes, "broker_url": url, "result_backend": url})

    def problems() -> list[tuple[str, str]]:
        findings = checks.diagnose(lambda: Cluster(app))
        return [(finding.check, finding.message) for finding in findings if finding.status != OK]

    with site.worker():
        assert problems() == []
        for missing, check in MISSING.items():
            acl("SETUSER", user, *missing.split())
            names = [name for name, _ in problems()]
            assert names == [check], missing
            acl("SETUSER", user, *everything)
        assert problems() == []
    acl("DELUSER", user)


SWEPT_BY_BEAT = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status)
VALUES (now(), now(), 'full', 'beat', 'ok')
"""


def test_what_the_doctor_publishes_is_json_and_no_update(db, own_redis):
    """A subscriber in another language reads every message of the pattern."""
    with own_redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("mailglass:events:*")
        wait_until(own_redis.pubsub_numpat)
        assert worst_finding("redis_privileges").status == OK
        messages = []
        wait_until(lambda: (message := listener.get_message(timeout=1)) and not messages.append(message["data"]))
    assert [json.loads(message) for message in messages] == [{"event": "test"}]


def test_a_redis_whose_memory_is_full(db, own_redis):
    """The lock cannot be acquired."""
    own_redis.config_set("maxmemory", 1)
    finding = worst_finding("lock_privileges")
    assert (finding.status, "memory is full" in finding.message) == (ERROR, True)
    own_redis.config_set("maxmemory", 0)
    assert worst_finding("lock_privileges").status == OK


@pytest.mark.parametrize(
    ("command", "check", "status", "consequence"),
    [
        ("PUBLISH", "redis_privileges", ERROR, "links are made, but not broadcast"),
        ("EVALSHA", "lock_privileges", WARNING, "sweeps run without their lock, perhaps twice"),
    ],
)
def test_a_command_of_redis_that_was_renamed(db, command, check, status, consequence):
    """Some hosts do so; the error's class alone would say nothing."""
    with servers.redis(None, f'rename-command {command} ""') as url:
        use_settings(db, redis_url=url)
        finding = worst_finding(check)
    assert finding.message == f"this Redis has no command {command}: {consequence}"
    assert (finding.status, "remove its `rename-command`" in finding.remedy) == (status, True)


def test_a_lock_s_key_is_the_one_of_the_task(db):
    """The doctor computes the key without importing Celery."""
    from mailglass_reconcile import tasks  # noqa: PLC0415 - the module that needs Celery

    assert tasks.reconcile.generate_lock("") == lock_key(None)
    assert tasks.reconcile.generate_lock("", ("acme",)) == lock_key("acme") != lock_key(None)
