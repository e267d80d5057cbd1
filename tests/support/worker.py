"""A Celery application as an adopter has one, for the tests that start workers: `celery -A worker worker`.

`WORKER_SWEEP_SECONDS` sets beat's interval, and `WORKER_RECENT_SECONDS` that of recent sweeps; the process's own
engine, where `WORKER_POOLED` is set, keeps connections open before the fork, as an adopter's does; `WORKER_SENTINEL` is
the port of the Sentinel that knows where Redis is.
"""

import os
from urllib.parse import urlsplit

import sqlalchemy as sa
from celery import Celery
from celery.signals import worker_ready
from redis.sentinel import Sentinel

import mailglass_reconcile
from mailglass_reconcile import runtime
from mailglass_reconcile.store import engines

settings = mailglass_reconcile.Settings()
redis_url = settings.redis_url.get_secret_value()
app = Celery("adopter", broker=redis_url, backend=redis_url)
app.autodiscover_tasks(["mailglass_reconcile"])
app.conf.update(
    beat_schedule={"own": {"task": "own", "schedule": 3_600.0}},
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
app.conf.beat_schedule |= mailglass_reconcile.make_beat_schedule(
    sweep=float(os.environ.get("WORKER_SWEEP_SECONDS", "3600")),
    recent=float(os.environ["WORKER_RECENT_SECONDS"]) if "WORKER_RECENT_SECONDS" in os.environ else None,
)

if "WORKER_SENTINEL" in os.environ:
    port, where = int(os.environ["WORKER_SENTINEL"]), urlsplit(redis_url)
    by_sentinel = f"sentinel://:{where.password}@127.0.0.1:{port}{where.path}"
    closed = {"password": where.password}
    app.conf.update(
        broker_url=by_sentinel,
        broker_transport_options={"master_name": "mymaster", "sentinel_kwargs": closed},
        result_backend=by_sentinel,
        result_backend_transport_options={"master_name": "mymaster", "sentinel_kwargs": closed},
    )
    sentinels = Sentinel([("127.0.0.1", port)], sentinel_kwargs=closed)
    master = sentinels.master_for("mymaster", db=int(where.path[1:]), password=where.password)
    mailglass_reconcile.configure(redis=master)

if "WORKER_POOLED" in os.environ:
    engine = sa.create_engine(engines.database_url(settings), pool_size=1, max_overflow=0)
    mailglass_reconcile.configure(engine=engine, settings=settings)
    with engine.connect() as before_fork:
        parents_pid = before_fork.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


@app.task(name="backend")
def backend() -> list[int]:
    """Return the id of this process, of its database session, and of the session opened before the fork."""
    with runtime.get_engine().connect() as connection:
        return [os.getpid(), connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one(), parents_pid]


@worker_ready.connect
def ready(**unused: object) -> None:
    """Report the start to the test."""
    print("READY", flush=True)  # noqa: T201
