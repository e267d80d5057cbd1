"""OpenTelemetry's spans and metrics, with its SDK in memory and in a worker's processes."""

import logging

import pytest
from opentelemetry.trace import StatusCode

import mailglass_reconcile
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark
from faults.refusing import refusing
from handling import failing, leaving
from mailglass_reconcile import Settings, dispatch, prune, reconcile, reconcile_recent, telemetry
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep import reconciler
from observing import read_exports, tasks, values
from waiting import PATIENCE, wait_until

UNREACHABLE_DATABASE = Settings(database_url="postgresql://ada:CanaryDbPassword@127.0.0.1:1/none")


def test_a_sweep_is_a_span_with_its_counts(db, observed):
    """Its attributes have a namespace, so that no other instrumentation's have their names."""
    insert(db, [delivery_row("m-1")], [orphan_row(postmark(id_)) for id_ in ("m-1", "m-2", "m-3")])
    reconcile("acme")
    (span,) = [span for span in observed.spans() if span.name == "mailglass_reconcile.sweep"]
    assert dict(span.attributes) == {
        "mailglass.tenant_id": "acme",
        "mailglass.scanned_count": 3,
        "mailglass.linked_count": 1,
        "mailglass.remaining_orphan_count": 2,
        "mailglass.status": "ok",
        "mailglass.kind": "full",
    }
    assert span.instrumentation_scope.version == mailglass_reconcile.__version__
    assert span.status.status_code == StatusCode.UNSET


def test_a_sweep_counts_orphans_messages_itself_and_its_lag(db, observed):
    """Metrics have no tenant, and suitable buckets."""
    insert(db, [delivery_row("m-1")], [orphan_row(postmark(id_), age_seconds=120) for id_ in ("m-1", "m-2")])
    reconcile()
    assert observed.counts("orphans") == {"linked": 1, "unmatched": 1}
    assert observed.counts("messages") == {"published": 2}
    assert observed.counts("sweeps") == {"ok": 1}
    (lag,) = observed.metrics()["mailglass_reconcile.link.lag"]["data"]["data_points"]
    assert 120 <= lag["sum"] < 180
    assert (lag["count"], lag["explicit_bounds"]) == (1, list(telemetry.LAG_SECONDS))
    duration = observed.metrics()["mailglass_reconcile.sweep.duration"]
    assert duration["data"]["data_points"][0]["explicit_bounds"] == list(telemetry.DURATION_SECONDS)
    points = [point for metric in observed.metrics().values() for point in metric["data"]["data_points"]]
    assert {name for point in points for name in point["attributes"]} == {"outcome", "status"}
    assert {metric["unit"] for metric in observed.metrics().values()} == {"s", "{orphan}", "{message}", "{sweep}"}


def test_an_event_of_a_changed_format_is_counted_by_provider_and_type(observed):
    """An alert uses it."""
    telemetry.count_format_warning("mailersend", "delivered")
    (point,) = observed.metrics()["mailglass_reconcile.webhook_format_warnings"]["data"]["data_points"]
    assert (point["value"], point["attributes"]) == (1, {"provider": "mailersend", "type": "delivered"})


@pytest.mark.slow
def test_orphans_that_the_prune_removes_are_counted_as_expired(db, observed):
    """They will not be linked any more."""
    insert(db, [], [orphan_row(postmark("m-1"), age_seconds=8 * 86_400)])
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
    prune()
    assert observed.counts("orphans") == {"expired": 1}


@pytest.mark.parametrize("values_", [{"recipient": "ada@example.com"}, {"tenant_id": None}])
def test_an_attribute_that_is_not_on_the_list_is_not_set(observed, values_):
    """Spans and metrics enforce the list."""
    with telemetry.span("sweep") as span:
        telemetry.set_attributes(span, {**values_, "status": "ok"})
    telemetry.count_orphans({"ada@example.com": 1, "published": 1})
    telemetry.count_messages({"linked": 1, "failed": 1})
    assert observed.span_attributes() == [{"mailglass.status": "ok"}]
    assert observed.counts("orphans") == {}
    assert observed.counts("messages") == {"failed": 1}


@pytest.mark.slow
def test_an_idle_recent_sweep_reports_nothing(db, observed, caplog):
    """There may be ten a second; one that links is a span with its own start."""
    caplog.set_level(logging.INFO)
    reconcile_recent()
    assert (observed.spans(), observed.metrics(), caplog.records) == ([], {}, [])
    insert_pairs(db, ["m-1"], age_seconds=0)
    reconcile_recent()
    (span,) = observed.spans()
    assert (span.attributes["mailglass.kind"], span.attributes["mailglass.linked_count"]) == ("recent", 1)
    assert span.end_time - span.start_time > 1_000_000
    assert [r.message[:25] for r in caplog.records if r.name.startswith("mailglass")] == ["swept all tenants: linked"]


@pytest.mark.slow
def test_a_dry_run_reports_nothing(db, observed):
    """It links nothing either."""
    insert_pairs(db, ["m-1"])
    reconciler.prepare(dry_run=True).run()
    assert (observed.spans(), observed.metrics()) == ([], {})


def test_a_sweep_that_cannot_start_is_a_failed_span_with_the_class_of_its_error(observed):
    """The span has neither the error's text nor a traceback."""
    mailglass_reconcile.configure(engine=engines.create_engine(UNREACHABLE_DATABASE), settings=UNREACHABLE_DATABASE)
    try:
        with pytest.raises(mailglass_reconcile.DatabaseUnavailableError):
            reconcile()
    finally:
        mailglass_reconcile.configure()
    (span,) = observed.spans()
    assert dict(span.attributes) == {
        "mailglass.scanned_count": 0,
        "mailglass.linked_count": 0,
        "mailglass.status": "failed",
        "mailglass.kind": "full",
        "error.type": "DatabaseUnavailableError",
    }
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert observed.counts("sweeps") == {"failed": 1}


@pytest.mark.slow
def test_an_aborted_sweep_is_a_failed_span_and_one_line_in_the_log(db, observed, caplog):
    """It raises nothing, but the error's class is known."""
    caplog.set_level(logging.INFO)
    insert_pairs(db, ["m-1"])
    refusing(db, "57P01", "true")
    try:
        assert reconcile().status == "failed"
    finally:
        db.run("DROP FUNCTION refuse CASCADE")
    assert [(span["mailglass.status"], span["error.type"]) for span in observed.span_attributes()] == [
        ("failed", "DatabaseUnavailableError")
    ]
    lines = [r.message for r in caplog.records if "sweep failed" in r.message or "swept" in r.message]
    assert [line[:17] for line in lines] == ["the sweep failed:"]


@pytest.mark.slow
def test_a_dispatch_is_a_span_with_its_counts(handler_db, observed):
    """A handler's error is counted, and its text is nowhere."""
    leaving("one")
    failing("two", ValueError("ada@example.com"))
    insert_pairs(handler_db, ["m-1"])
    reconcile()
    dispatch()
    (span,) = [span for span in observed.spans() if span.name == "mailglass_reconcile.dispatch"]
    assert dict(span.attributes) == {
        "mailglass.handled_count": 1,
        "mailglass.failed_count": 1,
        "mailglass.dead_count": 0,
    }
    assert "ada@example.com" not in observed.text()


@pytest.mark.slow
def test_each_process_of_a_worker_reports_its_own_counts_once(site):
    """The pool is prefork, providers are made after the fork, and Celery's instrumentation surrounds our spans."""
    folder = site.log.parent
    with site.worker("-c", "2", app="observed_worker", OBSERVED=str(folder)):
        for _ in range(4):
            site.add(3)
            site.result(site.send())
        wait_until(lambda: _sum_links(folder) >= 12 and len(tasks(folder)) >= 4, PATIENCE)
    assert _sum_links(folder) == 12
    spans = read_exports(folder, "spans")
    sweeps = [span for span in spans if span["name"] == "mailglass_reconcile.sweep"]
    assert len(sweeps) == 4
    assert {span["parent_id"] for span in sweeps} == tasks(folder)


def _sum_links(folder):
    """Return the sum of links in the last exports of all processes."""
    result = 0
    for data in read_exports(folder, "metrics"):
        scopes = [scope for resource in data["resource_metrics"] for scope in resource["scope_metrics"]]
        for metric in [metric for scope in scopes for metric in scope["metrics"]]:
            if metric["name"] == "mailglass_reconcile.orphans":
                result += values(metric["data"]["data_points"])["linked"]
    return result
