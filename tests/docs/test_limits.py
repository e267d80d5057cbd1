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
from mailglass_reconcile import PruneResult, SweepResult, celery, cli, schedule, server, telemetry
from mailglass_reconcile.cli import follow, serve
from mailglass_reconcile.handlers import execution, registration
from mailglass_reconcile.handlers.dispatcher import DispatchResult
from mailglass_reconcile.mailglass_compat import raw_webhooks, webhook_search
from mailglass_reconcile.ops import orphans
from mailglass_reconcile.ops.checks import mailglass as checked_mailglass
from mailglass_reconcile.ops.checks import recording
from mailglass_reconcile.pubsub import publisher
from mailglass_reconcile.receiver import admission, app
from mailglass_reconcile.record import after_commit
from mailglass_reconcile.rules import matching, providers, thresholds
from mailglass_reconcile.settings import MIN_TOKEN_CHARACTERS, Settings
from mailglass_reconcile.singleton import lock
from mailglass_reconcile.store import certificates, ledger, outbox, privileges, runs
from mailglass_reconcile.store.migration import session
from mailglass_reconcile.sweep import ranges, reconciler
from mailglass_reconcile.web import access
from mailglass_reconcile.webhooks import certificates as fetching
from mailglass_reconcile.webhooks import provider, registry, sns, wire
from mailglass_reconcile.webhooks.providers import mailgun

pytestmark = pytest.mark.version_independent

PAGES = {page.name: " ".join(page.read_text().split()) for page in [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md"]}
MB = 1024 * 1024
WORDS = {2: "two", 5: "five", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve"}


def word(number: float) -> str:
    """Return a number as a page spells it."""
    return WORDS[int(number)]


def columns_of_dispatcher() -> str:
    """Return the delivery columns that the dispatcher may read, as a page lists them."""
    (grant,) = [grant for grant in privileges.DISPATCHER.grants if grant.object == "mailglass_deliveries"]
    *columns, last = [f"`{column}`" for column in grant.privileges["SELECT"].split()]
    return f"{', '.join(columns)} and {last}"


def providers_without_age() -> str:
    """Return the providers whose signatures may be of any age, as a page lists them."""
    records = [registry.get_provider(name) for name in registry.PROVIDERS]
    signed = [record for record in records if record.signature is not wire.Signature.IN_HEADERS]
    *titles, last = sorted(record.title for record in signed if record.authentication.max_age_seconds is None)
    return f"{', '.join(titles)} and {last}"


SENTENCES = [
    ("doctor.md", "of at least {} links of the last day, a tenth", checked_mailglass.LINKS_OF_A_DAY),
    ("with-mailglass.md", "was deleted, or stores more than {:.0f} MB", raw_webhooks.MAX_BYTES / 1e6),
    ("with-mailglass.md", "among those of the {} minutes before the event", word(webhook_search.BEFORE_SECONDS / 60)),
    (
        "security.md",
        "size of a body | {:.0f} MB. Amazon SES, Scaleway and Mailgun: {:.0f} kB",
        provider.MAX_BYTES / MB,
        sns.MAX_NOTIFICATION_BYTES / 1024,
    ),
    (
        "providers.md",
        "larger than {:.0f} MB. For Amazon SES, Scaleway and Mailgun {:.0f} kB",
        provider.MAX_BYTES / MB,
        mailgun.MAX_EVENT_BYTES / 1024,
    ),
    ("security.md", "nesting of JSON | {} levels", wire.MAX_DEPTH),
    ("security.md", "fields of a form | {:,}", wire.MAX_FIELDS),
    ("security.md", "time for a body to arrive | {:.0f} seconds", admission.BODY_SECONDS),
    ("security.md", "memory of all bodies | {:.0f} MB", admission.BUDGET_BYTES / MB),
    ("security.md", "bodies that have not arrived completely | {}", admission.MAX_INCOMPLETE),
    ("security.md", "bodies that wait for their signature inside to be checked | {}", admission.MAX_UNVERIFIED),
    (
        "security.md",
        "certificate | {} in a minute | one try every {:.0f} seconds. A webhook that waits longer than {:.0f} seconds",
        fetching.FAILURES,
        fetching.THROTTLE_SECONDS,
        fetching.WAIT_SECONDS,
    ),
    (
        "security.md",
        "we read up to {:.0f} MB more of it for at most {:.0f} seconds",
        app.DISCARDED_BYTES / MB,
        app.DISCARDED_SECONDS,
    ),
    ("security.md", "notifications that wait for a certificate | {}. In", admission.MAX_AWAITING_CERTIFICATE),
    ("security.md", "In Django's view and `receive` {}. | 503", fetching.MAX_QUEUED),
    ("security.md", "The signatures of {} have no age limit", providers_without_age()),
    ("security.md", "is stored, at most {} of them", certificates.MAX_ADDRESSES),
    ("concepts.md", "Amazon SES and Scaleway, at most {} |", certificates.MAX_ADDRESSES),
    ("security.md", "connections | {} | the one without progress", server.MAX_CONNECTIONS),
    ("security.md", "time for the request's head | {:.0f} seconds", server.HEAD_SECONDS),
    ("security.md", "lines in the head | {}", server.MAX_HEAD_LINES),
    ("security.md", "time for the client to read the answer | {:.0f} seconds", server.RESPONSE_SECONDS),
    ("dashboard.md", "at most {} connections", server.MAX_CONNECTIONS),
    ("dashboard.md", "a token of at least {} characters", MIN_TOKEN_CHARACTERS),
    ("dashboard.md", "after {} hours", word(access.SESSION_SECONDS / 3600)),
    ("security.md", "a token of at least {} characters", MIN_TOKEN_CHARACTERS),
    ("python.md", "works in {} threads", word(app.THREADS)),
    ("providers.md", "tokens, of the last {:,}", mailgun.MAX_TOKENS),
    ("recording.md", "At most {:,} events and message ids wait", after_commit.MAX_WAITING_IDS),
    ("recording.md", "left alone for {} seconds", word(after_commit.BACKOFF_SECONDS)),
    ("redis.md", "holds the messages of {:,} links", publisher.MAX_WAITING_LINKS),
    ("redis.md", "does not use Redis for {} seconds", word(publisher.BACKOFF_SECONDS)),
    ("handlers.md", "After {} seconds Postgres cancels", execution.HANDLER_SECONDS),
    ("handlers.md", "After {} attempts it is **dead**", word(outbox.MOST_ATTEMPTS)),
    (
        "handlers.md",
        "of the last {} days there are (it counts up to {:,})",
        registration.MISSED_DAYS,
        registration.MOST_MISSED,
    ),
    ("doctor.md", "Dead, after {} attempts", word(outbox.MOST_ATTEMPTS)),
    ("doctor.md", "has ended for {} minutes", thresholds.LATE_SECONDS // 60),
    ("doctor.md", "Nothing was pruned for {} days", word(thresholds.PRUNE_LATE_SECONDS / 86_400)),
    ("doctor.md", "none of {} deliveries has a report", recording.MANY),
    ("sweeps.md", "more than {:,} events uses two connections", reconciler.SLICE_ORPHANS),
    ("sweeps.md", "A tick checks at most {:,} events again", reconciler.MOST_CHECKED),
    ("sweeps.md", "cut into at most {} ranges", ranges.MOST_RANGES),
    ("sweeps.md", "expires within {} seconds", lock.LOCK_SECONDS),
    ("sweeps.md", "Running handlers get {} seconds", word(follow.FINISH_SECONDS)),
    ("deploy.md", "within {} seconds (`MAILGLASS_SWEEP_SECONDS`)", Settings.model_fields["sweep_seconds"].default),
    ("deploy.md", "{} for a receiver, {} for the dashboard", word(app.THREADS + 1), word(serve.CONNECTIONS)),
    (
        "handlers.md",
        "Of `mailglass_deliveries` it may read only {}",
        columns_of_dispatcher(),
    ),
    ("own-provider.md", "at most {} paths", word(providers.MAX_READS)),
    ("own-provider.md", "a string of 1 to {} characters", matching.MAX_ID_LENGTH),
    ("own-provider.md", "at most {} ids", matching.MAX_IDS),
    ("own-provider.md", "more than {:.0f} kB of text", ledger.DOCUMENT_BYTES / 1024),
    ("doctor.md", "more than {:.0f} kB of text", ledger.DOCUMENT_BYTES / 1024),
    ("trouble.md", "reads at most {:,} events of the ledger", orphans.MAX_EVENTS_READ),
    ("trouble.md", "With `--type`, a list compares at most {:,} events", orphans.MAX_ORPHANS_READ),
    ("with-mailglass.md", "waits at most {} ms for a lock", session.LOCK_TIMEOUT_MS),
    ("upgrading.md", "waits at most {} ms for a lock", session.LOCK_TIMEOUT_MS),
    ("concepts.md", "Rows older than {} days are added up", runs.RETENTION_DAYS),
]


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: f"{sentence[0]}: {sentence[1]}")
def test_a_page_names_the_limit_that_the_package_has(sentence):
    """Changing one requires changing the other."""
    page, text, *values = sentence
    assert text.format(*values) in PAGES[page]


def test_the_waits_before_a_failed_job_runs_again_are_those_of_the_page():
    """They are in order."""
    delays = "5 seconds, 30 seconds, 2 minutes, 10 minutes, 1 hour, 4 hours, 12 hours and a day"
    assert f"retried after {delays}" in PAGES["handlers.md"]
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
    waits = [
        int(number.replace("a", "1")) * seconds[unit]
        for number, unit in re.findall(r"(\d+|a) (second|minute|hour|day)", delays)
    ]
    assert tuple(waits) == outbox.DELAYS_SECONDS


def test_the_entries_of_beat_run_and_expire_as_the_page_says():
    """They run every five minutes, daily at 03:00 UTC, and every ten seconds; the queues are the bundled app's."""
    entries = {entry["task"].rpartition(".")[2]: entry for entry in schedule.beat_schedule.values()}
    assert "a sweep every five minutes, a prune daily at 03:00 UTC" in PAGES["sweeps.md"]
    assert (thresholds.SWEEP_INTERVAL_SECONDS, schedule.DISPATCH_SECONDS) == (300, 10)
    assert entries["dispatch"]["schedule"] == schedule.DISPATCH_SECONDS
    text = "A queued sweep expires after five minutes, a dispatch after one minute, a prune after an hour"
    assert text in PAGES["redis.md"]
    assert (schedule.DISPATCH_EXPIRES_SECONDS, schedule.PRUNE_EXPIRES_SECONDS) == (60, 3_600)
    queues = set(re.findall(r"`(mailglass_\w+)`", PAGES["redis.md"].partition("three durable queues")[2][:200]))
    assert queues == {queue.name for queue in celery.app.conf.task_queues}


def test_each_process_listens_on_the_port_of_the_page():
    """`receive` listens on 8081, `serve` on 8080, both on this machine only."""
    defaults = {
        name: {option.name: option.default for option in commands.SUBCOMMANDS[name].params}
        for name in ("receive", "serve")
    }
    assert "listens on 127.0.0.1:8081 (`--host`, `--port`)" in PAGES["providers.md"]
    assert "serving on http://127.0.0.1:8080/" in PAGES["dashboard.md"]
    assert {name: (values["host"], values["port"]) for name, values in defaults.items()} == {
        "receive": ("127.0.0.1", 8081),
        "serve": ("127.0.0.1", 8080),
    }


def test_the_exit_codes_are_those_of_the_pages():
    """They are those of usage errors and interruptions; another test checks each command's."""
    assert "0 ok, 1 partial or failed, 2 wrong usage, 130 interrupted" in PAGES["command-line.md"]
    assert "0 (ok), 1 (partial or failed" in PAGES["deploy.md"]
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
    """All others are dropped."""
    text = PAGES["monitoring.md"].partition("### Spans")[2].partition("### Instruments")[0]
    table = text.partition("A sweep or dispatch that failed")[0]
    documented = set(re.findall(r"`([\w.]+)`", table)) - {"ok", "partial", "failed", "full", "range", "recent"}
    assert documented - {"mailglass_reconcile.sweep", "mailglass_reconcile.dispatch"} == telemetry.SPAN_ATTRIBUTES


@pytest.mark.parametrize("result", [SweepResult, PruneResult, DispatchResult], ids=lambda result: result.__name__)
def test_the_reference_has_exactly_the_fields_of_a_result(result):
    """They are in sentences instead of a list; values of `status` are no fields."""
    fields = {field.name for field in dataclasses.fields(result)}
    names = set(re.findall(r"`(\w+)`", reference.DATA[result.__name__]))
    assert fields <= names <= fields | {"ok", "partial", "failed"}


def test_the_page_names_what_dispatch_prints():
    """The page has each name of the schema, except counts and what is within a list."""
    schema = json.loads((pages.ROOT / "docs/schemas/dispatch.json").read_text())
    printed = {name for shape in schema["oneOf"][1:] for name in shape["properties"]}
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
    names = {role.name for role in privileges.ROLES}
    table = set(re.findall(r"^\| `(mailglass_\w+)` \|", (pages.ROOT / "docs/roles.md").read_text(), re.MULTILINE))
    assert table == names
    for page in ("roles.md", "deploy.md"):
        created = set(re.findall(r"CREATE ROLE (mailglass_\w+)", PAGES[page]))
        assert created - {"mailglass_owner", "mailglass_worker"} <= names


def test_the_checks_of_django_are_those_of_the_page():
    """Their ids are compared."""
    code = (pages.ROOT / "mailglass_reconcile/contrib/django/checks.py").read_text()
    ids = set(re.findall(r"\"mailglass_reconcile\.([EW]\d{3})\"", code)) | set(re.findall(r"\"(E\d{3})\"", code))
    page = PAGES["django.md"].partition("## Checks")[2].partition("## ")[0]
    assert set(re.findall(r"\b([EW]\d{3})\b", page)) == ids


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
    listed = re.findall(r"\*\*(\d+) providers\*\*.*?does not sign: (.*?)\. You can", PAGES["README.md"])
    assert listed == [(str(len(titles)), f"{', '.join(titles[:-1])} and {titles[-1]}")]
    words = {17: "seventeen"}[len(titles)]
    assert f"{words.capitalize()} providers" in PAGES["own-provider.md"]
    assert f"webhooks of {words} providers" in " ".join((pages.ROOT / "CHANGELOG.md").read_text().split())
    headings = re.findall(r"^## (.+)$", (pages.ROOT / "docs/providers.md").read_text(), re.MULTILINE)
    assert [title for title in titles if title not in headings] == []
