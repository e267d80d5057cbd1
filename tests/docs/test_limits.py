"""Limits, defaults, ports and exit codes: each sentence with one agrees with the package."""

import dataclasses
import json
import re
from typing import get_args

import click
import pytest
import reference

import commands
import pages
from mailglass_reconcile import PruneResult, SweepResult, celery, cli, schedule, telemetry
from mailglass_reconcile.cli import serve
from mailglass_reconcile.handlers.dispatcher import DispatchResult
from mailglass_reconcile.providers import registry, signatures
from mailglass_reconcile.receiver import app
from mailglass_reconcile.rules import thresholds
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.tables import handler_jobs, ledger, runs

pytestmark = pytest.mark.version_independent

CELERY = (pages.ROOT / "docs/celery.md").read_text()
PAGES = {page.name: " ".join(page.read_text().split()) for page in [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md"]}


@pytest.mark.parametrize(
    "sentence",
    [
        f"Dead, after {reference.WORDS[handler_jobs.MOST_ATTEMPTS]} attempts",
        f"more than {ledger.DOCUMENT_BYTES // 1024} kB of text",
    ],
)
def test_the_doctors_page_names_the_limit_that_the_check_has(sentence):
    assert sentence in PAGES["doctor.md"]


def test_the_page_lists_the_columns_of_deliveries_that_a_dispatcher_reads():
    (required,) = [
        required
        for required in privileges.documented_privileges()
        if (required.role, required.object) == ("mailglass_dispatcher", "mailglass_deliveries")
    ]
    *columns, last = [f"`{column}`" for column in required.columns]
    assert f"Of `mailglass_deliveries` it may read only {', '.join(columns)} and {last}" in PAGES["handlers.md"]


def test_the_page_lists_the_providers_whose_signatures_may_be_of_any_age():
    definitions = [registry.get_provider(name) for name in registry.PROVIDERS]
    signed = [definition for definition in definitions if definition.signature is not signatures.Signature.IN_HEADERS]
    *titles, last = sorted(
        definition.title for definition in signed if definition.authentication.max_age_seconds is None
    )
    assert f"The signatures of {', '.join(titles)} and {last} have no age limit" in PAGES["security.md"]


def test_the_page_names_the_connections_of_a_receiver_and_of_a_dashboard():
    assert (app.THREADS + 1, serve.CONNECTIONS) == (9, 8)
    assert "nine for a receiver, eight for the dashboard" in PAGES["production.md"]


def test_the_waits_before_a_failed_job_runs_again_are_those_of_the_page():
    """They are in order."""
    delays = "5 seconds, 30 seconds, 2 minutes, 10 minutes, 1 hour, 4 hours, 12 hours and a day"
    assert f"retried after {delays}" in PAGES["handlers.md"]
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
    waits = [
        int(number.replace("a", "1")) * seconds[unit]
        for number, unit in re.findall(r"(\d+|a) (second|minute|hour|day)", delays)
    ]
    assert tuple(waits) == handler_jobs.DELAYS_SECONDS


def test_the_entries_of_beat_run_and_expire_as_the_page_says():
    """Their intervals and times; the queues are those of the bundled app."""
    entries = {entry["task"].rpartition(".")[2]: entry for entry in schedule.beat_schedule.values()}
    rows = re.findall(r"^\| `(\w+)`[^|]* \| [^|]* \| ([^|]*) \| ([^|]*) \|$", CELERY, re.M)
    assert {name: (when, expires) for name, when, expires in rows} == {
        "reconcile": ("every five minutes", "after five minutes"),
        "prune": ("daily at 03:00 UTC", "after an hour"),
        "dispatch": ("every ten seconds, or once a minute if beat's process imports no handler", "after one minute"),
        "reconcile_recent": ("never, unless you ask for it", "after its interval"),
    }
    assert (thresholds.SWEEP_INTERVAL_SECONDS, schedule.DISPATCH_SECONDS, schedule.IDLE_DISPATCH_SECONDS) == (
        300,
        10,
        60,
    )
    assert entries["dispatch"]["schedule"].seconds == schedule.DISPATCH_SECONDS
    assert (schedule.DISPATCH_EXPIRES_SECONDS, schedule.PRUNE_EXPIRES_SECONDS) == (60, 3_600)
    queues = set(re.findall(r"`(mailglass_\w+)`", CELERY.partition("three durable queues")[2][:120]))
    assert queues == {queue.name for queue in celery.app.conf.task_queues}


def test_each_process_listens_on_the_port_of_the_page():
    """`receive` listens on 8081, `serve` on 8080, both on this machine only."""
    defaults = {
        name: {option.name: option.default for option in commands.SUBCOMMANDS[name].params}
        for name in ("receive", "serve")
    }
    assert "listens on 127.0.0.1:8081 (`--host`, `--port`)" in PAGES["record-and-receive.md"]
    assert "serving on http://127.0.0.1:8080/" in PAGES["dashboard.md"]
    assert {name: (values["host"], values["port"]) for name, values in defaults.items()} == {
        "receive": ("127.0.0.1", 8081),
        "serve": ("127.0.0.1", 8080),
    }


def test_the_exit_codes_are_those_of_the_pages():
    """They are those of usage errors and interruptions; another test checks each command's."""
    assert "0 ok, 1 partial or failed, 2 wrong usage, 130 interrupted" in PAGES["command-line.md"]
    assert "0 (ok), 1 (partial or failed" in PAGES["production.md"]
    assert (click.UsageError.exit_code, cli.INTERRUPTED) == (2, 130)


def test_every_kind_and_origin_of_a_run_is_on_the_page():
    """The page has no other."""
    text = (pages.ROOT / "docs" / "concepts.md").read_text().partition("### Runs")[2]
    listed, _, origins = text.partition("The values of `origin`:")
    assert tuple(re.findall(r"^- `(\w+)`:", listed, re.MULTILINE)) == (
        "full",
        "range",
        "recent",
        "targeted",
        "prune",
        "dispatch",
    )
    assert set(re.findall(r"^- `(\w+)`:", listed, re.MULTILINE)) == {*runs.KINDS}
    assert set(re.findall(r"`(\w+)`", origins)) == {*get_args(runs.Origin)}


def test_the_attributes_of_spans_are_those_of_the_page():
    """All others are dropped; a sweep of each kind has a span."""
    text = PAGES["monitoring.md"].partition("### Spans")[2].partition("### Instruments")[0]
    table = text.partition("A sweep or dispatch that failed")[0]
    kinds = {*runs.KINDS} - {"prune", "dispatch"}
    assert set(re.findall(r"`(\w+)`", table)) == {"ok", "partial", "failed", *kinds}
    documented = set(re.findall(r"`(\w+\.[\w.]+)`", table))
    assert documented - {"mailglass_reconcile.sweep", "mailglass_reconcile.dispatch"} == telemetry.SPAN_ATTRIBUTES


@pytest.mark.parametrize("result", [SweepResult, PruneResult, DispatchResult], ids=lambda result: result.__name__)
def test_the_reference_has_exactly_the_fields_of_a_result(result):
    """Each has a line below the result's heading."""
    text = (pages.ROOT / "docs/api.md").read_text().partition(f"### {result.__name__}\n")[2].partition("\n#")[0]
    names = re.findall(r"^- `(\w+)`:", text, re.M)
    assert names == [field.name for field in dataclasses.fields(result)]


def test_the_page_names_what_dispatch_prints():
    """The page has each name of the schema, except counts and what is within a list."""
    schema = json.loads((pages.ROOT / "docs/schemas/dispatch.json").read_text())
    shapes = [schema["$defs"][shape["$ref"].rpartition("/")[2]] for shape in schema["anyOf"][1:]]
    printed = {name for shape in shapes for name in shape["properties"]}
    (row,) = re.findall(r"^\| `dispatch --json` \|.*$", (pages.ROOT / "docs/command-line.md").read_text(), re.MULTILINE)
    matches = set(re.findall(r"`(\w+)`", row))
    assert printed - {"waiting", "dead"} == matches


def test_every_option_that_a_page_names_is_one_of_its_subcommand():
    """It is in a command of a block, or in a sentence such as `sweep --dry-run`."""
    unknown, options_seen = {}, set()
    for page in pages.PAGES:
        for text in re.findall(r"`([^`\n]+)`|^ *\$ (.+)$", page.read_text(), re.MULTILINE):
            line = "".join(text)
            command = re.search(r"(?:mailglass-reconcile|manage\.py mailglass|mailglass \w+) (\w+)([^|&;>]*)", line)
            command = command or re.match(r"(\w+)( [^|&;>]*|$)", line)
            if command and command[1] in commands.SUBCOMMANDS:
                params = {option for param in commands.SUBCOMMANDS[command[1]].params for option in param.opts}
                options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", command[2])) - {"--help", "--version"}
                options_seen |= options
                if missing := options - params:
                    unknown[f"{page.name}: {command[0]}"] = missing
    assert unknown == {}
    assert len(options_seen) > 30


def test_every_variable_and_alert_that_a_page_names_exists():
    """They are settings, variables of the pytest plugin, and rules of Prometheus."""
    settings = {f"MAILGLASS_{name.upper()}" for name in Settings.model_fields}
    settings |= {
        f"MAILGLASS_TEST_{name}" for name in ("DATABASE_URL", "REDIS_URL", "POSTGRES_PROGRAMS", "REDIS_PROGRAM")
    }
    settings |= {
        "MAILGLASS_DATABASE_ALIAS",
        "MAILGLASS_DELIVERY",
        "MAILGLASS_TENANT_REQUIRED",
        "MAILGLASS_DATABASE_SHEMA",
    }  # Django's own, and an example's misspelling
    alerts = set(re.findall(r"alert: (\w+)", (pages.ROOT / "docs/monitoring/alerts.yml").read_text()))
    for page in pages.PAGES:
        text = page.read_text()
        assert (
            set(re.findall(r"\b_?(MAILGLASS_[A-Z_]*[A-Z])\b", text)) - {"MAILGLASS_RECONCILE_COMPLETE"} <= settings
        ), page
        assert set(re.findall(r"\b(MailglassReconcile[A-Z]\w+)\b", text)) - {"MailglassReconcileError"} <= alerts, page


def test_the_roles_of_the_pages_are_those_with_privileges():
    """The page on roles has each with its task, and the manifests have its login."""
    names = set(privileges.documented_roles())
    table = set(re.findall(r"^\| `(mailglass_\w+)` \|", (pages.ROOT / "docs/roles.md").read_text(), re.MULTILINE))
    assert table == names
    for page in ("roles.md", "kubernetes.md"):
        created = set(re.findall(r"CREATE ROLE (mailglass_\w+)", PAGES[page]))
        assert created - {"mailglass_owner", "mailglass_worker"} <= names


def test_the_tables_of_the_page_are_those_of_a_migrated_database(tx):
    """They are Mailglass's three and ours."""
    text = (pages.ROOT / "docs" / "concepts.md").read_text().partition("## The tables")[2].partition("### Runs")[0]
    rows = re.findall(r"^\| (`mailglass_[^|]*)\|", text, re.MULTILINE)
    listed = set(re.findall(r"`(mailglass_\w+)`", " ".join(rows)))
    names = tx.value("SELECT string_agg(tablename, ' ') FROM pg_tables WHERE tablename LIKE 'mailglass%'")
    assert listed == set(names.split())


def test_the_readme_names_every_provider():
    """Their number is right, and each has a section on the page on providers."""
    titles = sorted((registry.get_provider(name).title for name in registry.PROVIDERS), key=str.lower)
    listed = re.findall(r"\*\*(\d+) providers\*\*: (.*?), or \[your own\]", PAGES["README.md"])
    assert listed == [(str(len(titles)), f"{', '.join(titles[:-1])} and {titles[-1]}")]
    words = {17: "seventeen"}[len(titles)]
    assert f"{words.capitalize()} providers" in PAGES["own-provider.md"]
    assert f"webhooks of {words} providers" in " ".join((pages.ROOT / "CHANGELOG.md").read_text().split())
    headings = re.findall(r"^## (.+)$", (pages.ROOT / "docs/providers.md").read_text(), re.MULTILINE)
    assert [title for title in titles if title not in headings] == []
