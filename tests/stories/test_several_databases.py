"""Two databases of one application, as in `examples/several-databases`: one beat, one Redis, a worker for each."""

import copy
import datetime as dt
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

import processes
import raw_webhooks
from database import Database
from faults.servers import Postgres, migrated_postgres
from installation import Site
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from processes import COMMAND
from scraping import scrape, value
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.python_dependent]

HANDLED_TYPES = "SELECT count(*) FROM mailglass_handled_types"
NOTED = "SELECT count(*) FROM public.noted"
RAW_WEBHOOKS = "SELECT count(*) FROM mailglass_webhook_events"


class Region:
    """A database, with the worker that consumes its queue."""

    def __init__(self, name: str, site: Site, db: Database, log: Path) -> None:
        log.touch()
        self.db, self.queue = db, f"mail-{name}"
        self.site = copy.copy(site)
        self.site.db, self.site.log = db, log
        self.site.environment = {**site.environment, "MAILGLASS_DATABASE_URL": db.url}
        db.run("CREATE TABLE public.noted (tenant text)")

    def worker(self, **settings: str):
        """Run the worker while the block runs."""
        return self.site.worker("-Q", self.queue, app="fast_fleet", **settings)

    def command(self, *arguments: str) -> int:
        """Run our command where the worker runs, and return its exit code."""
        environment = {**self.site.environment, "MAILGLASS_IMPORTS": "fast_fleet"}
        return processes.run([*COMMAND, *arguments], environment).returncode

    def has_linked(self, orphans: int) -> bool:
        """Return True if so many orphans are linked, and the handler has run for each."""
        return self.site.count_links() == self.db.value(NOTED) == orphans

    def count_sweeps(self) -> float:
        """Return the number of full sweeps, from the metrics of this database."""
        return value(scrape(self.db), "runs_total", kind="full", status="ok")


@pytest.fixture
def eu(site: Site, tmp_path: Path) -> Region:
    return Region("eu", site, site.db, tmp_path / "eu.log")


@pytest.fixture
def server() -> Iterator[Postgres]:
    """The other region's PostgreSQL, which can be stopped."""
    with migrated_postgres() as running:
        yield running


@pytest.fixture
def us(site: Site, server: Postgres, tmp_path: Path) -> Region:
    settings = Settings(database_url=server.url, redis_url=site.url)
    return Region(
        "us", site, Database(server.url, settings, engines.create_engine(settings), None), tmp_path / "us.log"
    )


@pytest.fixture
def fleet(site: Site, eu: Region, us: Region) -> Iterator[None]:
    """Both workers, and beat, which happens to have the environment of one of them."""
    with ExitStack() as stack:
        stack.enter_context(eu.worker(MAILGLASS_RETENTION_SUCCEEDED_DAYS="7"))
        stack.enter_context(us.worker())
        beat = ("beat", "-l", "info", "--scheduler", "celery.beat.Scheduler", "--pidfile=")
        stack.enter_context(site.celery(*beat, app="fast_fleet", until="beat: St"))
        wait_until(lambda: all(region.db.value(HANDLED_TYPES) for region in (eu, us)), PATIENCE)
        yield


@pytest.mark.usefixtures("fleet")
def test_each_database_is_swept_handled_pruned_and_checked_by_its_own_worker(eu, us):
    for region in (eu, us):
        raw_webhooks.insert(region.db, ago=10 * 86_400)
    eu.site.add(3)
    us.site.add(2, "emca")
    wait_until(lambda: eu.has_linked(3) and us.has_linked(2), PATIENCE)
    assert us.db.rows("SELECT DISTINCT tenant FROM public.noted") == [("emca",)]
    wait_until(lambda: eu.db.value(RAW_WEBHOOKS) == 0, PATIENCE)
    assert us.db.value(RAW_WEBHOOKS) == 1, "its worker has the default retention, 14 days"
    assert value(scrape(eu.db), "orphans_total", outcome="linked") == 3
    assert value(scrape(us.db), "orphans_total", outcome="linked") == 2
    for region in (eu, us):
        assert region.command("doctor") == region.command("status", "--check") == 0
        assert region.site.count_in_log("does not consume") == 0


def stop(server: Postgres, us: Region) -> Callable[[], None]:
    """Stop the server until the worker has noticed, and return what starts it."""
    server.stop()
    wait_until(lambda: us.site.count_in_log("cannot reach or use the database"), PATIENCE)
    return server.start


def freeze(server: Postgres, us: Region) -> Callable[[], None]:
    """Stop the server's processes, with every connection open, until tasks wait; return what continues them."""
    root = psutil.Process(int((server.directory / "data" / "postmaster.pid").read_text().split()[0]))
    root.suspend()  # first, so that it starts no other process and forgets none that ends
    children = root.children(recursive=True)
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: us.site.redis.llen(us.queue) > 3, PATIENCE)

    def thaw() -> None:
        for process in (*children, root):
            os.kill(process.pid, signal.SIGCONT)

    return thaw


@pytest.mark.usefixtures("fleet")
def test_an_application_records_in_the_database_of_the_connection_that_it_passes(eu, us):
    """This process is configured for the other one."""
    event = WebhookEvent(
        type="delivered", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="e-1", message_id="m-1"
    )
    with us.db.begin() as connection:
        early = record_webhook(connection, tenant_id="emca", provider="postmark", events=[event])
    broadcast(early)
    with us.db.begin() as connection:
        sent = [Sent(recipient="ada@example.com", message_id="m-1")]
        (delivery,) = record_send(connection, tenant_id="emca", provider="postmark", sent=sent)
    assert delivery.linked == 1
    wait_until(lambda: us.has_linked(1), PATIENCE)
    assert eu.db.value("SELECT count(*) FROM mailglass_events") == 0


@pytest.mark.parametrize("outage", [stop, freeze])
@pytest.mark.usefixtures("fleet")
def test_while_one_database_is_away_the_other_is_swept_on_time_and_afterwards_both_are(eu, us, server, outage):
    eu.site.add(1)
    us.site.add(1, "emca")
    wait_until(lambda: eu.has_linked(1) and us.has_linked(1), PATIENCE)
    end_outage = outage(server, us)
    try:
        before = eu.count_sweeps()
        eu.site.add(1)
        wait_until(lambda: eu.has_linked(2), 5)
        wait_until(lambda: eu.count_sweeps() >= before + 3, 10)
        assert value(scrape(us.db), "up") == 0
        assert eu.command("status", "--check") == 0
        assert eu.site.count_in_log("cannot reach") == 0
    finally:
        end_outage()
    us.site.add(2, "emca")
    wait_until(lambda: us.has_linked(3), PATIENCE)
    wait_until(lambda: us.site.redis.llen(us.queue) == 0, PATIENCE)
    assert us.command("status", "--check") == eu.command("doctor") == 0
