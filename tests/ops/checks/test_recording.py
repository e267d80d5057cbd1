"""Deliveries without a report and silent providers, on Mailglass's tables and on ours."""

import datetime as dt
import math

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import mailglass_reconcile
import meter
from browsing import Visitor, app
from diagnosing import worst_finding
from factories import TENANT, delivery_row, insert, orphan_row, postmark
from mailglass_reconcile import (
    ConfigurationError,
    Sent,
    Settings,
    WebhookEvent,
    reconcile,
    record_send,
    record_webhook,
)
from mailglass_reconcile.ops import status
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING
from mailglass_reconcile.store.queries import provider_reports
from marking import slow_unless

pytestmark = pytest.mark.version_independent

SILENT = "no webhook"

COPIES = """
INSERT INTO mailglass_deliveries
SELECT copy.* FROM mailglass_deliveries AS d, generate_series(2, 300) AS n,
       jsonb_populate_record(d, jsonb_build_object('id', md5(concat(d.id, n)))) AS copy
"""


def make_dispatched_rows(hours_ago, number=1, **columns):
    """Return deliveries that were dispatched some hours ago, without a report."""
    at = str(dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(hours=hours_ago))
    return [
        delivery_row(
            f"m-{hours_ago}-{n}",
            **{"dispatched_at": at, "last_event_at": at, "age_seconds": hours_ago * 3_600, **columns},
        )
        for n in range(number)
    ]


def make_delivered_rows(hours_ago, number=1, **columns):
    """Return deliveries whose report came some hours ago."""
    return make_dispatched_rows(hours_ago, number, last_event_type="delivered", terminal=True, **columns)


def load_by_provider(db):
    """Return the reports of the sample by provider."""
    with db.database.reading() as tx:
        return {report.provider: report for report in provider_reports.load_reports(tx)}


def silent(db):
    """Return the problems that `status --check` reports about missing webhooks."""
    return [problem for problem in status.load_problems(db.database) if SILENT in problem]


def test_webhooks_that_have_stopped_are_found_everywhere(mailglass_db):
    """The check and the doctor show it until a webhook arrives, linked or not."""
    insert(mailglass_db, [*make_delivered_rows(50, 3), *make_dispatched_rows(40, 2), *make_dispatched_rows(2, 5)])
    assert load_by_provider(mailglass_db)[None][:3] == (None, 5, 2)
    [problem] = silent(mailglass_db)
    assert problem.startswith(
        "reports: no webhook has arrived for 2 days, although mail goes out: 2 of 5 deliveries checked"
    )
    assert worst_finding("reports").status == ERROR
    insert(mailglass_db, events=[orphan_row(postmark("m-40-0"))])
    assert silent(mailglass_db) == []
    reconcile()
    mailglass_db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 days'")
    assert silent(mailglass_db) == []
    assert worst_finding("reports").message.startswith("1 of 4 deliveries checked, dispatched more than 1 day ago")


def test_what_never_had_a_report_is_the_doctor_s_alone(mailglass_db):
    """Perhaps nobody has set up webhooks there."""
    insert(mailglass_db, make_dispatched_rows(40, 3))
    assert silent(mailglass_db) == []
    assert worst_finding("reports").status == WARNING
    assert "no webhook has ever arrived" in worst_finding("reports").message


@pytest.mark.parametrize(
    ("provider", "number", "grave"),
    slow_unless(
        ("postmark", 20, True).__eq__, [("postmark", 20, True), ("postmark", 19, False), ("homegrown", 20, False)]
    ),
)
def test_a_provider_whose_webhooks_never_came_is_unhealthy(db, provider, number, grave):
    """This takes 20 deliveries of a provider that reports deliveries; the dashboard shows the milder finding too."""
    mailglass_reconcile.reconcile()
    insert(db, make_dispatched_rows(40, number, provider=provider))
    assert len([problem for problem in status.load_problems(db.database) if "has ever arrived" in problem]) == grave
    finding = worst_finding("reports")
    assert finding.status == (ERROR if grave else WARNING)
    assert "if your webhooks report bounces only, set MAILGLASS_SILENCE_HOURS=infinity" in finding.remedy
    page = Visitor(app(db)).get("/").text
    assert f"No webhook of {provider} has ever arrived" in page
    assert ("1 warning" in page) is not grave


@pytest.mark.parametrize(
    ("deliveries", "events"),
    [
        (lambda: make_dispatched_rows(2, 19), 20),
        (lambda: make_dispatched_rows(2, 20), 19),
        (lambda: make_delivered_rows(3, 21) + make_dispatched_rows(2, 20), 20),
        (lambda: make_dispatched_rows(0.1, 20), 20),
        (lambda: make_dispatched_rows(30, 20), 20),
    ],
    ids=["few sends", "few events", "most are reported", "sent just now", "sent yesterday"],
)
def test_foreign_events_beside_sends_that_wait_are_not_unhealthy(db, deliveries, events):
    """Mail of other software on the same account matches nothing."""
    rows = [{**row, "provider": "postmark"} for row in deliveries()]
    insert(db, rows, [orphan_row(postmark(f"other-{n}")) for n in range(events)])
    reconcile()
    assert [problem for problem in status.load_problems(db.database) if "other message ids" in problem] == []


def test_each_provider_is_looked_at_by_itself(mailglass_db):
    """Spelling does not matter, one provider that reports does not hide a silent one, and unknown ones share a
    label.
    """
    insert(mailglass_db, make_delivered_rows(50, provider="postmark") + make_dispatched_rows(40, provider="Postmark"))
    insert(mailglass_db, make_delivered_rows(1, provider="sendgrid") + make_delivered_rows(30, provider="homegrown"))
    assert set(load_by_provider(mailglass_db)) == {"postmark", "sendgrid", "homegrown"}
    [problem] = silent(mailglass_db)
    assert "no webhook of postmark has arrived" in problem


AGE_SENDS = """
UPDATE mailglass_deliveries
   SET last_event_at = last_event_at - make_interval(hours => h.hours),
       dispatched_at = dispatched_at - make_interval(hours => h.hours),
       delivered_at = delivered_at - make_interval(hours => h.hours)
  FROM (VALUES ('m-1', 50), ('m-2', 40)) AS h (id, hours) WHERE h.id = provider_message_id
"""


def test_sends_on_mailglass_tables_are_grouped_by_the_provider_of_their_events(mailglass_db):
    """Their deliveries have no provider, so that Mailglass's ingest leaves them alone; their events name it."""
    with mailglass_db.engine.begin() as connection:
        for id_ in ("m-1", "m-2"):
            sends = [Sent(recipient="ada@example.com", message_id=id_)]
            record_send(connection, tenant_id=TENANT, provider="postmark", sent=sends)
        webhook_event = WebhookEvent(
            type="delivered", message_id="m-1", provider_event_id="1", occurred_at=dt.datetime.now(dt.UTC)
        )
        record_webhook(connection, tenant_id=TENANT, provider="postmark", events=[webhook_event])
    mailglass_db.run(AGE_SENDS)
    mailglass_db.broken.update({"I2", "I7"})
    [problem] = silent(mailglass_db)
    assert problem.startswith("reports: no webhook of postmark has arrived for 2 days")


@pytest.mark.parametrize(
    "rows",
    [
        make_dispatched_rows(2, 5) + make_delivered_rows(300),
        make_delivered_rows(50) + make_dispatched_rows(51, 3),
        make_dispatched_rows(24 * 9) + make_delivered_rows(24 * 10),
        make_dispatched_rows(40, last_event_type="failed", terminal=True, dispatched_at=None) + make_delivered_rows(50),
    ],
    ids=["mail is new", "a few of many", "long ago", "never dispatched"],
)
def test_what_is_no_silence(mailglass_db, rows):
    """A report after the dispatch, no mail for a week, or mail that left only now."""
    insert(mailglass_db, rows)
    assert silent(mailglass_db) == []


def test_an_open_that_mailglass_counted_is_a_report_and_no_webhook(mailglass_db):
    """Mailglass counts opens with a pixel of its own."""
    insert(
        mailglass_db,
        [*make_delivered_rows(60), *make_dispatched_rows(40), *make_dispatched_rows(1, last_event_type="opened")],
    )
    assert len(silent(mailglass_db)) == 1


def test_many_sends_without_a_report_do_not_hide_that_there_were_reports(mailglass_db):
    """The last reports are read from another index than the newest deliveries."""
    insert(mailglass_db, make_delivered_rows(24 * 30, 3) + make_dispatched_rows(30, 300))
    assert len(silent(mailglass_db)) == 1
    assert load_by_provider(mailglass_db)[None].deliveries == provider_reports.SAMPLE


@pytest.mark.parametrize("days", [30, 4])
def test_on_our_tables_many_sends_do_not_hide_when_there_were_reports(db, days):
    """Some deliveries before each day of the last week are read; the sends of a day are more than a sample."""
    insert(db, make_delivered_rows(24 * days, 3) + make_dispatched_rows(30, 300))
    [problem] = silent(db)
    assert problem.startswith(
        f"reports: no webhook has arrived for {days} days, although mail goes out: 100 of 100 deliveries"
    )


def test_a_small_provider_whose_webhooks_never_came_is_seen_beside_a_large_one(db):
    """Its 25 deliveries are older than the last 10,000 of the same tenant."""
    insert(db, make_dispatched_rows(60, 25, provider="resend"))
    insert_large(db, make_delivered_rows(30, provider="ses"))
    reconcile()
    [problem] = silent(db)
    assert problem.startswith(
        "reports: no webhook of resend has ever arrived, although mail goes out: 25 of 25 deliveries"
    )


def test_a_small_tenant_whose_webhooks_never_came_is_seen_beside_a_large_one(db):
    """The webhooks of the same provider arrive for the other tenant, also some that match nothing."""
    expect_small_tenant(db)


@pytest.mark.slow
def test_on_mailglass_s_tables_a_small_tenant_is_seen_beside_a_large_one(mailglass_db):
    """Mailglass's index on the tenant and the last event serves."""
    expect_small_tenant(mailglass_db)


def expect_small_tenant(db):
    """Plant 25 deliveries of a tenant without a webhook beside 10,000 of another one, and expect one problem."""
    small = {"provider": "postmark", "tenant_id": "small"}
    insert(db, make_dispatched_rows(60, 25, **small), [orphan_row(postmark("unknown"))])
    insert_large(db, make_delivered_rows(30, provider="postmark"))
    reconcile()
    [problem] = silent(db)
    assert problem.startswith(
        "reports: no webhook of postmark has ever arrived for tenant 'small', although mail goes out: none of 25"
        " deliveries checked has a report"
    )
    insert(db, events=[orphan_row(postmark("other"), tenant_id="small")])
    reconcile()
    assert silent(db) == []


LARGE = """
INSERT INTO mailglass_deliveries
SELECT copy.* FROM mailglass_deliveries AS d, generate_series(2, 10000) AS n,
       jsonb_populate_record(d, jsonb_build_object('id', md5(concat(d.id, n)),
                                                   'provider_message_id', 'copy-' || n)) AS copy
 WHERE d.id = CAST(:id AS uuid)
"""


def insert_large(db, rows):
    """Insert a delivery ten thousand times."""
    insert(db, rows)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.text(LARGE), {"id": rows[0]["id"]})


def test_the_setting_is_hours_or_infinity(mailglass_db, monkeypatch):
    """With infinity, no statement is sent."""
    insert(mailglass_db, [*make_delivered_rows(50), *make_dispatched_rows(40)])
    for hours, problems in (("30", 1), ("45", 0), ("0.5", 1), ("infinity", 0)):
        monkeypatch.setenv("MAILGLASS_SILENCE_HOURS", hours)
        more = {"database_schema": mailglass_db.settings.database_schema, "redis_url": mailglass_db.settings.redis_url}
        settings = Settings(database_url=mailglass_db.settings.database_url, **more)
        mailglass_reconcile.configure(engine=mailglass_db.engine, settings=settings)
        assert (
            len(
                [
                    problem
                    for problem in status.load_problems(mailglass_reconcile.runtime.database())
                    if SILENT in problem
                ]
            )
            == problems
        )
    assert worst_finding("reports").status == OK
    for wrong in ("0", "-1", "nan", "never"):
        monkeypatch.setenv("MAILGLASS_SILENCE_HOURS", wrong)
        with pytest.raises(ConfigurationError, match="MAILGLASS_SILENCE_HOURS"):
            Settings(database_url=SecretStr("postgresql://x/y"))


@pytest.mark.slow
def test_the_sample_costs_the_same_however_many_rows_there_are(mailglass_db):
    """With a hundred tenants of three hundred deliveries each, no table is read whole."""
    mailglass_db.run("ALTER TABLE mailglass_deliveries DISABLE TRIGGER witness")
    insert(mailglass_db, [{**make_dispatched_rows(40, tenant_id=f"t-{n}")[0], "message_id": None} for n in range(100)])
    mailglass_db.run(COPIES)
    mailglass_db.run("ANALYZE")
    with meter.plans(mailglass_db.engine, "seen AS") as plan:
        load_by_provider(mailglass_db)
    assert not plan.whole
    assert 0 < plan.buffers < 8_000
    assert math.isfinite(load_by_provider(mailglass_db)[None].silent_seconds or 0) is False


def refuse(db, tenant_id: str = "", *, minutes: int = 90) -> None:
    """Store that webhooks of postmark were refused, the first some minutes ago, the last one now."""
    db.run(
        "INSERT INTO mailglass_reconcile_refusals (provider, tenant_id, since, last_at, refused, failed, cause) VALUES"
        " ('postmark', :tenant, now()::timestamp - make_interval(mins => :minutes), now()::timestamp, 3, 0, 'clock')",
        tenant=tenant_id,
        minutes=minutes,
    )


@pytest.mark.parametrize(
    ("tenant_id", "minutes", "columns", "status_"),
    [
        ("", 90, {}, ERROR),
        (TENANT, 90, {}, ERROR),
        ("other", 90, {}, WARNING),
        ("", 50, {}, WARNING),
        ("", 9, {}, OK),
        ("", 90, {"provider": "ses"}, WARNING),
        ("", 90, {"last_event_type": "delivered", "terminal": True}, WARNING),
    ],
    ids=["error", "of a tenant", "another tenant's mail", "mail before", "not for long", "other mail", "with a report"],
)
def test_refused_webhooks_are_an_error_only_if_mail_since_has_no_report(db, tenant_id, minutes, columns, status_):
    """Anybody can post to a provider's address, also for ten minutes."""
    insert(db, make_dispatched_rows(1, **{"provider": "postmark", **columns}))
    refuse(db, tenant_id, minutes=minutes)
    finding = worst_finding("webhooks")
    assert finding.status == status_, finding
    assert (f"tenant {tenant_id!r}" in finding.message) is bool(tenant_id)


def test_refused_webhooks_of_many_tenants_are_one_finding(db):
    """The tenant with mail is named."""
    insert(db, make_dispatched_rows(1, provider="postmark"))
    for tenant_id in ("first", TENANT, "last"):
        refuse(db, tenant_id)
    refuse(db, "second", minutes=95)
    [problem] = [problem for problem in status.load_problems(db.database) if problem.startswith("webhooks: ")]
    assert problem.startswith(
        f"webhooks: every webhook of postmark for tenant '{TENANT}' for 1 hour was refused: 3, the"
    )


@pytest.mark.slow
def test_on_mailglass_s_tables_refused_webhooks_are_an_error_too(mailglass_db):
    """Of its deliveries, the events name the provider."""
    with mailglass_db.engine.begin() as connection:
        record_send(
            connection,
            tenant_id=TENANT,
            provider="postmark",
            sent=[Sent(recipient="ada@example.com", message_id="m-1")],
        )
    mailglass_db.broken.update({"I2", "I7"})
    mailglass_db.run(
        "UPDATE mailglass_deliveries SET dispatched_at = now()::timestamp - interval '1 hour',"
        " last_event_at = now()::timestamp - interval '1 hour'"
    )
    refuse(mailglass_db)
    assert worst_finding("webhooks").status == ERROR
