"""An operator's installation: a database, a Redis, a broker, and workers and beats as processes."""

import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery

import factories
import processes
from mailglass_reconcile.schedule import SWEEP_TASK
from processes import Process
from waiting import PATIENCE, wait_until

SUPPORT = Path(__file__).parent
FLEET = SUPPORT.parents[1] / "examples" / "several-databases"
QUEUE = "mailglass_reconcile"
CALL = ("-m", "celery", "-A", "mailglass_reconcile", "call", SWEEP_TASK)
NUMBERS = itertools.count(1)


class Site:
    """An installation: a database, a Redis database, a broker, and the processes that use them."""

    def __init__(self, db, redis_url: str, log: Path) -> None:
        self.db = db
        self.url = urlsplit(redis_url)._replace(path=f"/{next(NUMBERS) % 7 + 1}").geturl()
        self.environment = {
            **db.environment(self.url),
            "PYTHONPATH": os.pathsep.join(map(str, [SUPPORT, *SUPPORT.parents[:2], FLEET])),
        }
        broker = os.environ.get("MAILGLASS_TEST_BROKER_URL")
        self.broker = broker or self.url
        if broker:
            self.environment["CELERY_BROKER_URL"] = broker
        self.forks = True
        """Whether its Celery processes are forked; else they are started."""
        self.log = log
        self.redis = redis.Redis.from_url(self.url)
        self.redis.flushdb()
        checked = "&ssl_cert_reqs=required" if self.url.startswith("rediss://") else ""  # Celery requires it
        broker = broker or self.url + checked
        self.client = Celery("client", broker=broker, backend=self.url + checked, set_as_current=False)

    def celery(
        self, *arguments: str, app: str = "mailglass_reconcile", until: str | None = " ready.", **more: str
    ) -> AbstractContextManager[Process]:
        """Run a Celery command while the block runs; its output goes to the log."""
        return processes.start(
            ["-m", "celery", "-A", app, *arguments],
            {**self.environment, **more},
            until=until,
            log=self.log,
            cwd=self.log.parent,
            session=True,
            forked=self.forks,
        )

    def worker(self, *arguments: str, pool: str = "prefork", **more: str):
        """Run a worker while the block runs, without the second in which it asks others for revoked tasks."""
        name = f"{uuid.uuid4().hex}@%h"  # RabbitMQ keeps a killed worker's own queue locked for a while
        options = ("-l", "info", "-n", name, "-P", pool, "-c", "2", "--without-mingle")
        return self.celery("worker", *options, *arguments, **more)

    def call(self, **kwargs: object) -> str:
        """Send a task by `celery call`, and return its id."""
        return self.run_python(*CALL, "--kwargs", json.dumps(kwargs))

    def run_python(self, *arguments: str, **more: str) -> str:
        """Run Python with these arguments as a process of the installation, and return its output."""
        result = processes.run(arguments, {**self.environment, **more})
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def send(self, *args: object, **options: object) -> str:
        """Send a task by `send_task` from an application without our modules, and return its id."""
        return self.client.send_task(SWEEP_TASK, args, **{"queue": QUEUE, **options}).id

    def result(self, task_id: str) -> dict:
        """Wait for a task's result, and return it."""
        result = self.client.AsyncResult(task_id)
        wait_until(result.ready, PATIENCE)  # polled, because Celery 5.5 can miss the message about a result
        return result.get()

    def count_in_log(self, words: str) -> int:
        """Return how often the log has these words."""
        return self.log.read_text().count(words)

    def count_links(self) -> int:
        """Return the number of linked orphans."""
        return self.db.count_links()

    def stored_results(self) -> list[dict]:
        """Return the stored results."""
        results = [json.loads(self.redis.get(name)) for name in self.redis.scan_iter("celery-task-meta-*")]
        return [result["result"] or {} for result in results]

    def sweep_results(self) -> list[dict]:
        """Return the stored results of tasks that swept."""
        return [result for result in self.stored_results() if "scanned" in result]

    def add(self, orphans: int, tenant: str = factories.TENANT) -> None:
        """Insert orphans with their deliveries."""
        factories.insert_pairs(self.db, orphans, tenant)

    def close(self) -> None:
        """Close the connections, because a result that is collected later has no server to unsubscribe from."""
        consumer = self.client.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None
        self.client.close()
        self.redis.close()

    @contextmanager
    def held_up(self, sql: str = "LOCK TABLE mailglass_open_orphans") -> Iterator[Callable[[], object]]:
        """Block sweeps by a lock, and yield a function that returns True once one waits for it."""
        with self.db.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql(sql)
            yield lambda: self.db.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )


@pytest.fixture
def site(db, redis_url, tmp_path) -> Iterator[Site]:
    """An installation without processes."""
    log = tmp_path / "log"
    log.touch()
    created = Site(db, redis_url, log)
    if created.broker != created.url:
        with created.client.connection_for_write() as connection:
            for queue in (QUEUE, "mailglass_maintenance", "celery"):
                connection.default_channel.queue_declare(queue, durable=True, auto_delete=False)
                connection.default_channel.queue_purge(queue)
    yield created
    created.close()
