"""Canaries in every field and URL never appear in logs, spans, metrics, stderr, results, errors or Redis."""

import json
import logging
import traceback
import uuid
from collections.abc import Iterator

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import factories
import mailglass_reconcile
import observing
import processes
from database import Database
from faults.refusing import refusing
from installation import Site
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from marking import nightly_unless
from recording import event, record
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

CANARIES = {
    "address": "canary.ada@canary-address.example",
    "subject": "CanarySubject",
    "html": "<b>CanaryHtml</b>",
    "database password": "CanaryDbPassword",
    "redis password": "CanaryRedisPassword",
    "broker password": "CanaryBrokerPassword",
}

COMMANDS = [("sweep", "--json"), ("status",), ("prune", "--json"), ("doctor",)]


class Capture:
    """All output: log records of every logger at DEBUG, spans, metrics, and messages in Redis."""

    def __init__(
        self,
        caplog: pytest.LogCaptureFixture,
        client: redis.Redis,
        heard: redis.client.PubSub,
        observed: observing.Observed,
    ) -> None:
        self._caplog, self._client, self._heard, self._observed = caplog, client, heard, observed
        self.more: list[str] = []

    def text(self) -> str:
        """Return all output as one text, with tracebacks."""
        formatter = logging.Formatter("%(message)s %(name)s")
        logs = [formatter.format(record) + repr(record.__dict__) for record in self._caplog.records]
        messages = [repr(m) for m in iter(lambda: self._heard.get_message(timeout=0.2), None)]
        stored = [repr(key) for key in self._client.scan_iter("*")]
        return "\n".join([*logs, *messages, *stored, self._observed.text(), *self.more])

    def add_error(self, error: BaseException) -> None:
        """Add an error as a crash reporter prints it: its chain, and its `repr`."""
        self.more += [repr(error), str(error), *traceback.format_exception(error)]


@pytest.fixture
def capture(caplog: pytest.LogCaptureFixture, redis_url: str, observed: observing.Observed) -> Iterator[Capture]:
    """Capture the package and its libraries at DEBUG, and check that no canary appears."""
    caplog.set_level(logging.DEBUG)
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as heard:
        heard.psubscribe("mailglass:*")
        heard.get_message(timeout=PATIENCE)
        captured = Capture(caplog, client, heard, observed)
        yield captured
        text = captured.text()
        assert [name for name, canary in CANARIES.items() if canary in text] == []


def plant(db: Database, orphans: int = 4) -> None:
    """Insert orphans and deliveries with canaries in every field that can have one."""
    for _ in range(orphans):
        text = uuid.uuid4().hex
        personal = {
            "email": CANARIES["address"],
            "recipient": CANARIES["address"],
            "subject": CANARIES["subject"],
            "html": CANARIES["html"],
        }
        factories.delivery(db, text, recipient=CANARIES["address"])
        factories.orphan(db, factories.postmark(text, **personal), normalized_payload=personal)
    factories.delivery(db, "elsewhere", recipient="somebody@example.com")
    factories.orphan(db, factories.postmark("elsewhere", recipient=CANARIES["address"]))
    factories.orphan(db, factories.postmark(CANARIES["address"]))
    db.run("UPDATE mailglass_deliveries SET metadata = CAST(:m AS jsonb)", m=json.dumps({"s": CANARIES["subject"]}))


@pytest.mark.guard
def test_a_sweep_that_links_and_classifies_says_nothing_of_them(db: Database, capture: Capture) -> None:
    """The result has counts, the messages ids, a type and a time."""
    plant(db)
    result = mailglass_reconcile.reconcile()
    assert result.linked == 4
    capture.more.append(repr(result))


STATES = ["22P02", "53100", "23514", "40001", "57P01", "25006"]


@pytest.mark.parametrize("state", nightly_unless(STATES[:2].__contains__, STATES))
def test_a_refused_batch_says_nothing_of_them(db: Database, capture: Capture, state: str) -> None:
    """Postgres's own message and detail have the row."""
    plant(db)
    refusing(db, state, "true")
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(f"""
            CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              RAISE SQLSTATE '{state}' USING MESSAGE = '{CANARIES["address"]}', DETAIL = '{CANARIES["subject"]}',
                HINT = '{CANARIES["html"]}';
            END $$""")
    try:
        capture.more.append(repr(mailglass_reconcile.reconcile()))
    finally:
        db.run("DROP FUNCTION refuse CASCADE")


def test_a_recording_that_the_database_refuses_says_nothing_of_them(db: Database, capture: Capture) -> None:
    """The error has the SQLSTATE, and not the message of the application's trigger."""
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              RAISE EXCEPTION '{CANARIES["address"]}' USING DETAIL = '{CANARIES["subject"]}';
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION refuse()""")
    try:
        refused = pytest.raises(mailglass_reconcile.DatabaseRefusedError, match="SQLSTATE P0001")
        with refused as caught, db.engine.begin() as connection:
            record(connection, event("one", recipient=CANARIES["address"]))
        capture.add_error(caught.value)
    finally:
        db.run("DROP FUNCTION refuse CASCADE")


def test_a_statement_that_fails_while_reading_says_nothing_of_them(db: Database, capture: Capture) -> None:
    """The table is dropped during the sweep."""
    plant(db)
    db.run("ALTER TABLE mailglass_deliveries RENAME TO gone")
    try:
        result = mailglass_reconcile.reconcile()
        capture.more.append(repr(result))
    except mailglass_reconcile.MailglassReconcileError as error:
        capture.add_error(error)
    finally:
        db.run("ALTER TABLE gone RENAME TO mailglass_deliveries")


@pytest.mark.guard
def test_an_unreachable_or_refusing_database_says_nothing_of_its_password(db: Database, capture: Capture) -> None:
    """The port is wrong, the database does not exist, or the URL is invalid."""
    password = CANARIES["database password"]
    absent = make_url(db.url).set(password=password, database="absent").render_as_string(hide_password=False)
    for url in (
        f"postgresql://ada:{password}@127.0.0.1:1/x",
        absent,
        f"mysql://ada:{password}@localhost/x",
        f"postgresql://ada:{password}@[broken/x",
        f"{password}",
        f"postgresql://ada:{password}@localhost:port/x",
        f"postgresql+nodriver://ada:{password}@localhost/x",
    ):
        settings = Settings(database_url=SecretStr(url), redis_url=db.settings.redis_url)
        capture.more.append(repr(settings))
        try:
            mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
            mailglass_reconcile.reconcile()
        except mailglass_reconcile.MailglassReconcileError as error:
            capture.add_error(error)
        else:
            raise AssertionError("nothing was there to sweep")
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


def test_an_unreachable_or_refusing_redis_says_nothing_of_its_password(db: Database, capture: Capture) -> None:
    """Nothing listens, or the password is wrong; broadcasts are lost, links are not."""
    host = db.settings.redis_url.get_secret_value().partition("://")[2]
    password = CANARIES["redis password"]
    for number, url in enumerate((f"redis://:{password}@127.0.0.1:1/0", f"redis://ada:{password}@{host}")):
        plant(db) if number == 0 else factories.orphan(db, factories.postmark("elsewhere"))
        settings = db.settings.model_copy(update={"redis_url": SecretStr(url)})
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        result = mailglass_reconcile.reconcile()
        assert result.linked > 0
        assert result.publish_failed == 2 * result.linked
        capture.more.append(repr(result))
    for url in (f"http://:{password}@x/0", f"redis://:{password}@x:port/0", password):
        settings = db.settings.model_copy(update={"redis_url": SecretStr(url)})
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        with pytest.raises(mailglass_reconcile.ConfigurationError) as caught:
            mailglass_reconcile.reconcile()
        capture.add_error(caught.value)
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"MAILGLASS_DATABASE_URL": f"postgresql://ada:{CANARIES['database password']}@127.0.0.1:1/x"},
        {"MAILGLASS_REDIS_URL": f"redis://:{CANARIES['redis password']}@127.0.0.1:1/0"},
        {"MAILGLASS_REDIS_URL": f"redis://:{CANARIES['redis password']}@x:port/0"},
        {"CELERY_BROKER_URL": f"amqp://ada:{CANARIES['broker password']}@127.0.0.1:1//"},
        {"MAILGLASS_DATABASE_URL": f"postgresql://ada:{CANARIES['database password']}@[x"},
        {"MAILGLASS_BATCH_SIZE": CANARIES["subject"]},
    ],
)
@pytest.mark.parametrize("command", nightly_unless((COMMANDS[0],).__eq__, [(command,) for command in COMMANDS]))
def test_the_commands_print_none_of_them(
    db: Database, redis_url: str, capture: Capture, broken: dict[str, str], command: tuple[str, ...]
) -> None:
    plant(db)
    code = (
        "import sys, logging; logging.basicConfig(level=0); from mailglass_reconcile.cli import main; sys.exit(main())"
    )
    result = processes.run(["-c", code, *command], {**db.environment(redis_url), **broken})
    capture.more += [result.stdout, result.stderr]


FAULTS = ["refused", "no database", "none", "gone", "wrong call", "no redis"]


@pytest.mark.parametrize("fault", nightly_unless(FAULTS[:2].__contains__, FAULTS))
def test_a_worker_keeps_none_of_them_in_its_results_its_log_or_redis(site: Site, capture: Capture, fault: str) -> None:
    """At DEBUG, a sweep links, fails on its rows, raises, gets wrong arguments, or loses a server."""
    plant(site.db)
    more = {
        "no redis": {"MAILGLASS_REDIS_URL": f"redis://:{CANARIES['redis password']}@127.0.0.1:1/0"},
        "no database": {"MAILGLASS_DATABASE_URL": f"postgresql://a:{CANARIES['database password']}@127.0.0.1:1/x"},
    }.get(fault, {})
    if fault == "refused":
        refusing(site.db, "22P02", "true")
    if fault == "gone":
        site.db.run("ALTER TABLE mailglass_deliveries RENAME TO gone")
    more["CELERY_BROKER_URL"] = site.broker
    more["OBSERVED"] = str(site.log.parent)
    with site.worker("-l", "debug", app="observed_worker", **more):
        answer = site.client.AsyncResult(site.send(*([1.5] if fault == "wrong call" else [])))
        if fault == "no redis":  # nor is there a server for the result
            wait_until(
                lambda: site.count_links() == 4 and site.count_in_log("redis.exceptions.ConnectionError"), PATIENCE
            )
        else:
            wait_until(answer.ready, PATIENCE)
            expected = {"none": "ok", "refused": "partial"}.get(fault)
            assert (answer.result["status"] if answer.state == "SUCCESS" else None) == expected
            capture.more += [repr(answer.result), str(answer.traceback)]
        # The result is stored before the child exports its metrics and then its spans, the task's own last.
        wait_until(lambda: observing.tasks(site.log.parent), PATIENCE)
    for name in site.redis.scan_iter("celery-task-meta-*"):
        capture.more.append(repr(site.redis.get(name)))
    capture.more.append(site.log.read_text())
    capture.more += [repr(observing.read_exports(site.log.parent, word)) for word in ("spans", "metrics")]
    if fault == "gone":
        site.db.run("ALTER TABLE gone RENAME TO mailglass_deliveries")
    if fault == "refused":
        site.db.run("DROP FUNCTION refuse CASCADE")
