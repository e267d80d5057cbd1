"""Writes the generated blocks of the pages, and the JSON schemas.

`python docs/reference.py` writes them; with `--check`, it names the files that differ, and exits with 1. A block stands
between the comments `<!-- NAME: written by docs/reference.py -->` and `<!-- end -->`. A limit stands before a comment
that names it: `60<!-- store.tables.runs.RETENTION_DAYS -->`, or `two<!-- web.access.SESSION_SECONDS in hours -->`. The owner's
markers in pyproject.toml change the address to clone, the contacts, and the lines with `pip install`.
"""

from __future__ import annotations

import builtins
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import click
import growth_chart
import json_schemas
from prometheus_client.core import Metric

from bench.results import number
from mailglass_reconcile import exposition, telemetry
from mailglass_reconcile.cli import command
from mailglass_reconcile.ops.metrics import MetricsSnapshot
from mailglass_reconcile.providers import registry
from mailglass_reconcile.providers.provider import Provider
from mailglass_reconcile.receiver import metrics as receiver_metrics
from mailglass_reconcile.record import validation
from mailglass_reconcile.rules.event_types import TYPES
from mailglass_reconcile.rules.matching import MAX_ID_LENGTH
from mailglass_reconcile.rules.states import EVENT_STATES, MEANINGS, OPEN_STATES, OUTCOMES, SKIPPED
from mailglass_reconcile.settings import ENV_PREFIX, Settings
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.queries.selection import NewerOrphans
from mailglass_reconcile.web import metrics as dashboard_metrics

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CONDUCT = ROOT / "CODE_OF_CONDUCT.md"
OTHER_PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", CONDUCT, *sorted((ROOT / "examples").rglob("README.md")))
SCHEMAS = DOCS / "schemas"
FIGURES = DOCS.parent / "bench" / "figures.json"
PACKAGE = "mailglass_reconcile"
MARKED = re.compile(r"(<!-- ([\w -]+): written by docs/reference\.py -->\n)(.*?)(<!-- end -->)", re.S)
LIMIT = re.compile(r"([\w,]+)<!-- ([\w.]+\.\w+)(?: in ([\w ]+))? -->")
UNITS = {"kB": 1024, "MB": 1024 * 1024, "decimal MB": 1e6, "minutes": 60, "hours": 3_600, "days": 86_400}
WORDS = {2: "two", 5: "five", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve"}
WIDTH = 88
CLONE = re.compile(r"(git clone )\S+")
INSTALL = re.compile(r"""(pip install )(["']?)(?:(?:\.\./)?\.\.|PATH_OF_THE_CLONE|\.)((?:\[[\w,]+\])?)\2(?=[\s`]|$)""")
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.M)
ENTRY = re.compile(r"^([\w*]+): ", re.M)

NAMES = {
    "Recording": "record_send Sent RecordedDelivery record_webhook WebhookEvent Recorded append broadcast"
    " broadcast_async flush",
    "Receiving": "webhooks.webhook_app webhooks.receive webhooks.refusal webhooks.Refusal webhooks.parse"
    " webhooks.verify webhooks.webhook_reader contrib.django.views.webhook_view"
    " contrib.anymail.webhook_event contrib.anymail.sent",
    "Sweeping": "reconcile reconcile_recent SweepResult prune PruneResult key_rule",
    "One event or person": "find_orphans attempt_link Orphan EventMatch link erase Erased",
    "Tables": "tables include_object",
    "Handlers": "on_event DeliveryEvent dispatch DispatchResult",
    "Live updates": "subscribe subscribe_async Subscription AsyncSubscription Update Missed events_channel",
    "Tasks": "tasks.reconcile tasks.reconcile_recent tasks.prune tasks.dispatch beat_schedule make_beat_schedule available",
    "Configuration": "configure Settings",
    "Errors": "MailglassReconcileError ConfigurationError DatabaseUnavailableError DatabaseRefusedError"
    " RedisUnavailableError SchemaOutdatedError LedgerImmutableError InvalidEventError webhooks.InvalidWebhookError"
    " webhooks.SignatureError webhooks.UnknownProviderError",
}
"""The public names by section, as they are written after `mailglass_reconcile.`."""
DATA = {
    "beat_schedule": "The entries that `make_beat_schedule()` returns without options.",
    "Settings": "All settings as a read-only object. [Settings](settings.md) lists names and defaults.",
    "tables": "`from mailglass_reconcile.tables import deliveries, events` gives SQLAlchemy `Table` objects, in the schema"
    " of `MAILGLASS_DATABASE_SCHEMA`: select from them, join them with your own, or map a class to one"
    " (`__table__ = deliveries`), but never write to them. Others are `open_orphans`, `open_orphan_ids`, `handler_outbox`"
    " and `reconcile_runs`: [what they hold](concepts.md#the-tables). Compare their times with a `datetime` that has a time"
    " zone, not with `now()`.",
}
"""Descriptions of names whose docstring is not the place: a dict has none, and settings have their own page."""


ACCEPTED = {
    "`tenant_id`, `mailable`": f"1 to {MAX_ID_LENGTH} characters without control characters",
    "`provider`": "The same. A name that no rule knows is accepted, unless it is nearly a known one, such as `postmrk`.",
    "`metadata`": f"at most {validation.MAX_METADATA_BYTES:,} bytes as JSON, {validation.MAX_DEPTH} levels deep",
    "`Sent.message_id`": f"1 to {MAX_ID_LENGTH} characters or an integer, not the recipient's address",
    "`occurred_at`": "a `datetime` with a time zone, in the years 1 to 9999",
    "`provider_event_id`": f"A string or an integer, compared in full. The first {MAX_ID_LENGTH} characters are stored.",
    "`WebhookEvent.message_id`": "A string or an integer. If it is None, empty, too long or has control characters, the event"
    " can never be linked.",
}
"""What the docstrings do not say of the values that `record_send`, `record_webhook` and `append` accept."""
REPAIRED = {
    "NUL, half of a surrogate pair, or a control character in a recipient": "U+FFFD (`�`)",
    "NaN, Infinity": "`null`",
    f"a string or key of more than {validation.MAX_TEXT:,} characters in metadata": f"its first {validation.MAX_TEXT - 1:,} characters and `…`, of a key its first {validation.MAX_TEXT:,}",
    f"a `WebhookEvent.recipient` of more than {validation.MAX_RECIPIENT_LENGTH:,} characters": f"its first {validation.MAX_RECIPIENT_LENGTH:,}",
    "a stored `provider_event_id` that looks like an e-mail address": "its SHA-256",
    "a `message_id` or `smtp_message_id` that is the event's own recipient": "None",
    "`datetime`, `date`, `time`, `UUID`, a tuple in metadata": "its ISO 8601 string, its string, a list",
}
"""What becomes of a value that cannot be stored as it is."""

RESULTS = {
    *("RecordedDelivery", "Recorded", "Refusal", "Orphan", "EventMatch", "Erased", "Update", "Missed", "DeliveryEvent"),
    *("SweepResult", "PruneResult", "DispatchResult", "Subscription", "AsyncSubscription"),
}
"""Classes that only functions make: the page shows their attributes, and no signature."""
INNER = {"action", "self"}
"""Attributes for internal use, and a task's own first argument."""
STANDARD = {"Any", "Iterable", "Mapping", "Sequence", "UUID", "datetime", *dir(builtins)}
"""Types that a signature shows, with the public names."""
EXAMPLES = {
    "find_orphans": """
with engine.begin() as connection:
    for orphan in find_orphans(connection, tenant_id="acme"):
        print(orphan.event_id, attempt_link(connection, orphan).state)
""",
}
"""Examples of what no guide shows."""


def main(arguments: Sequence[str]) -> None:
    """Write each generated text, or, with `--check`, name the files that differ and exit with 1."""
    checking = "--check" in arguments
    differing = {path: text for path, text in generated().items() if not _is_written(path, text, checking=checking)}
    if not checking:
        for path, text in differing.items():
            path.write_text(text)
    elif differing:
        sys.exit(f"run `python docs/reference.py`, which changes {', '.join(sorted(path.name for path in differing))}")


def _is_written(path: Path, text: str, *, checking: bool) -> bool:
    """Return True if a file has a text; a check compares schemas without titles and descriptions."""
    if checking and path.parent == SCHEMAS and path.exists():
        return bool(json_schemas.essence(json.loads(path.read_text())) == json_schemas.essence(json.loads(text)))
    return path.exists() and path.read_text() == text


def generated() -> dict[Path, str]:
    """Return the text that each page with a generated block, and each generated file, should have."""
    texts = blocks()
    pages = {page: with_owners_markers(page.read_text()) for page in (*OTHER_PAGES, *sorted(DOCS.glob("*.md")))}
    names = [match[2] for page in pages.values() for match in MARKED.finditer(page)]
    if sorted(names) != sorted(texts):
        raise SystemExit(f"blocks that no page has, or a page has twice: {sorted({*names} ^ {*texts}) or names}")
    files = {
        page: LIMIT.sub(with_limit, MARKED.sub(lambda match: match[1] + texts[match[2]] + match[4], text))
        for page, text in pages.items()
    }
    picture = growth_chart.draw(json.loads(FIGURES.read_text())["growth"])
    schemas = {SCHEMAS / f"{name}.json": text for name, text in json_schemas.texts().items()}
    return files | {DOCS / "growth.svg": picture} | schemas


def owners_markers() -> dict[str, Any]:
    """Return the owner's markers in pyproject.toml: `address`, `maintainers`, `on_pypi` and `security`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return dict(project["tool"]["hatch"]["metadata"]["hooks"]["custom"])


def with_owners_markers(
    text: str, address: str = owners_markers()["address"], *, on_pypi: bool = owners_markers()["on_pypi"]
) -> str:
    """Return a page whose `git clone` has the project's address, and which installs from the index once it is there."""
    if address:
        text = CLONE.sub(rf"\1{address}", text)
    return INSTALL.sub(r"\1\2mailglass-reconcile\3\2", text) if on_pypi else text


def security_contact() -> str:
    """Return the way to report a vulnerability."""
    address = owners_markers()["security"]
    private = f"write to <{address}>, or use" if address else "use"
    return (
        f"Please do not open a public issue: {private} the repository's private reporting"
        ' ("Report a vulnerability" on its Security page).\n'
    )


def conduct_contact() -> str:
    """Return the people to whom misconduct is reported."""
    people = owners_markers()["maintainers"]
    return f"Report misconduct to {' or '.join(people) or 'a maintainer'}, in private. Reports stay confidential.\n"


def with_limit(match: re.Match[str]) -> str:
    """Return a limit, in a word if the page has a word, and the comment that names it."""
    written, name, unit = match.groups()
    value = resolve_name(f"{PACKAGE}.{name}") / UNITS.get(unit, 1)
    if value != int(value):
        raise SystemExit(f"{name} is {value} {unit}")
    text = WORDS[int(value)] if written.isalpha() else f"{int(value):,}"
    return text + match[0].removeprefix(written)


def blocks() -> dict[str, str]:
    """Return the text of each generated block, by the name in its marker."""
    return {
        "functions": api(),
        "subcommands": subcommands(),
        "security contact": security_contact(),
        "conduct contact": conduct_contact(),
        "providers": links(),
        "accepted": two_columns("field", "accepted", ACCEPTED),
        "repaired": two_columns("value", "becomes", REPAIRED),
        "addresses": addresses(),
        "settings": settings(),
        "versions": versions(),
        "schemas": schemas(),
        "metrics": metrics(dashboard_metrics.families(EMPTY)),
        "metrics of a receiver": metrics(
            family for family in receiver_metrics.families() if family.name != f"{exposition.PREFIX}messages"
        ),
        "instruments": instruments(),
        "states": states(),
        **{name: reports(registry.get_provider(name)) for name in registry.PROVIDERS},
        "layers": layers(),
        "measured answers": measured_answers(),
        "measured costs": measured_costs(),
    }


def layers() -> str:
    """Return the layers of import-linter's contracts as a picture: those of the package, then of its folders."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = [contract for contract in project["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"]
    lines = []
    for contract in contracts:
        (container,) = contract["containers"]
        rows = [re.sub(r"[()]", "", layer).replace(":", "·") for layer in contract["layers"]]
        if container == PACKAGE:
            lines += rows
            continue
        folder = container.removeprefix(f"{PACKAGE}.").replace(".", "/")
        lines += textwrap.wrap(
            f"{folder}: {'  >  '.join(rows)}", 120, initial_indent="    ", subsequent_indent="        "
        )
    return "```text\n" + "\n".join(lines) + "\n```\n"


def two_columns(first: str, second: str, rows: Mapping[str, str]) -> str:
    """Return a table."""
    return f"| {first} | {second} |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())


ON_DISK = "a message with two webhook events: on disk"
MAILGLASS_LINKS = "tables Mailglass's: links"


def load_figures() -> dict[str, dict[str, Any]]:
    """Return the figures of the benchmark's last published runs, by name."""
    parts = json.loads(FIGURES.read_text()).values()
    return {figure["name"]: figure for part in parts for figure in part["figures"]}


def measured_answers() -> str:
    """Return what calls, sweeps and messages cost, as the last published runs of the benchmark measured it."""
    figures = load_figures()

    def value(name: str) -> str:
        return number(figures[name]["value"])

    def call(name: str) -> str:
        text = f"{value(name)} ms, {figures[name]['ratio']:.1f} times as long as the same work by hand"
        bare = figures.get(f"{name}, beside what leaves the race open")
        return text + (
            f", {bare['ratio']:.1f} times as long as a bare INSERT, which leaves the race open" if bare else ""
        )

    def rows(name: str) -> str:
        return f"{value(name)} a second, {figures[name]['ratio']:.2f} times as many as by hand"

    unmatched, backlog = "tables made here: {} sweep of 200,000 unmatched", "200,000 orphans, {}"
    return two_columns(
        "what",
        "cost",
        {
            "A webhook whose delivery exists": call("a webhook whose delivery exists"),
            "A webhook that is too early": call("a webhook that is too early"),
            "A send": call("a send"),
            "A send of 1,000 recipients": rows("a send of 1,000 recipients"),
            "A webhook of 500 events": rows("a webhook of 500 events whose deliveries exist"),
            "A backlog of 200,000 events": f"{value(backlog.format('one process'))} links a second with one process,"
            f" {value(backlog.format('two processes'))} with two",
            "The same on Mailglass's tables": f"{value(MAILGLASS_LINKS)} links a second",
            "200,000 events that match nothing": f"{value(unmatched.format('the first'))} s in the first sweep,"
            f" {value(unmatched.format('a later'))} s in each later one",
            "A message with two webhook events": f"{value(ON_DISK)} kB of disk",
            "A million messages, as WAL": f"{value('a day: WAL of recording')} GB, without full pages",
        },
    )


def measured_costs() -> str:
    """Return what a call and a message cost, in one sentence."""
    figures = load_figures()
    webhook, send = figures["a webhook whose delivery exists"], figures["a send"]
    disk = figures[ON_DISK]["value"]
    bare_webhook, bare_send = (
        figures[f"{name}, beside what leaves the race open"] for name in ("a webhook whose delivery exists", "a send")
    )
    text = (
        f"On two cores, a webhook takes {webhook['value']:.1f} ms: {webhook['ratio']:.1f} times equal work by hand,"
        f" {bare_webhook['ratio']:.1f} times an INSERT that leaves the race open."
        f" A send takes {send['value']:.1f} ms: {send['ratio']:.1f} and {bare_send['ratio']:.1f} times."
        f" A message with two events takes {disk:.1f} kB of disk."
    )
    return textwrap.fill(text, 120) + "\n"


def links() -> str:
    """Return a link to each provider's block."""
    definitions = map(registry.get_provider, registry.PROVIDERS)
    titles = sorted((definition.title for definition in definitions), key=str.lower)
    return " ·\n".join(f"[{title}](#{title.lower().replace(' ', '-')})" for title in titles) + "\n"


def reports(provider: Provider) -> str:
    """Return the line of a provider's block with the types and bounces that it never reports."""
    missing = [type_ for type_ in TYPES if type_ not in {*reported_types(provider), "unknown", "dispatched"}]
    bounces = {kind.bounce for kind in provider.table.kinds.values()} - {None}
    missing += [f"{word} bounces" for word in ("hard", "soft") if bounces and word not in bounces]
    return f"- **never reports**: {', '.join(missing)}\n"


ADDRESSES = {
    "mailglass_deliveries": {"recipient", "metadata", "last_error"},
    "mailglass_open_orphans": {"recipient"},
    "mailglass_webhook_events": {"raw_payload"},
}
"""The columns that hold e-mail addresses, by table."""
TABLES = {
    "mailglass_deliveries": "deliveries",
    "mailglass_open_orphans": "open events",
    "mailglass_webhook_events": "raw webhooks",
}
MADE_BY = {"": "", "made_by_migrate": " of tables made by migrate", "made_by_mailglass": " of tables made by Mailglass"}


def addresses() -> str:
    """Return in which tables each role sees e-mail addresses, from its privileges."""
    rows = ["| role | sees e-mail addresses in |", "|---|---|", "| owner | all tables |"]
    for role in privileges.documented_roles():
        seen = ", ".join(sorted(_tables_with_addresses(role))) or "no table"
        rows.append(f"| `{role}` | {seen} |")
    return "\n".join(rows) + "\n"


def _tables_with_addresses(role: str) -> Iterator[str]:
    for required in privileges.documented_privileges():
        addresses = ADDRESSES.get(required.object, set())
        seen = addresses & {*required.columns} if required.columns else addresses
        if required.role == role and required.privilege == "SELECT" and seen:
            yield TABLES[required.object] + MADE_BY[required.condition]


MORE_ON_STATES = {
    "linked": " `linked_unchecked` counts those whose [recipient could not be read](with-mailglass.md#recipients).",
    "ambiguous": " With Mailglass: or its [raw webhook](with-mailglass.md#recipients) has not been read yet.",
    "recipient_mismatch": " Or the recipient of one of them was erased.",
    "failed": " Later sweeps check them last.",
}
"""What a page says of a state beside the words that commands print."""
LINK = "[link it manually](#link-it-manually)"
LATE = "Wait for the next sweep. After 10 minutes, see [`sweeps`](doctor.md#sweeps)."
STEPS = {
    "matched": LATE,
    "unseen": LATE,
    "unmatched": "[compare the ids](#everything-is-unmatched)",
    "unmatchable": "`explain` shows the fields: correct the provider's name, or [write a key rule](own-provider.md)",
    "ambiguous": f"[record the recipient](#ambiguous-after-a-campaign), or {LINK}",
    "tenant_mismatch": "[record the right tenant](#everything-is-tenant_mismatch)",
    "recipient_mismatch": f"record one delivery per recipient, or {LINK}",
    "skipped": "Wait for the next sweep. If each one skips them, see [`linking`](doctor.md#linking).",
    "failed": "the log has the SQLSTATE",
    "expired": f"`sweep --event`, or {LINK}",
    "missing": "`mailglass-reconcile prune`",
    "unknown": "check the id",
}


CELERYS_OWN = "| `CELERY_BROKER_URL` | | Celery's own setting: the broker of the bundled app, if it is not `MAILGLASS_REDIS_URL` |"


def settings() -> str:
    """Return each setting's variable, default and meaning, from the docstring of `Settings`."""
    docstring = (inspect.getdoc(Settings) or "").partition("Attributes:\n")[2]
    _, *parts = ENTRY.split(textwrap.dedent(docstring))
    rows = ["| variable | default | what it sets |", "|---|---|---|"]
    for name, meaning in zip(parts[::2], parts[1::2], strict=True):
        default = getattr(Settings.model_fields[name].default, "get_secret_value", lambda name=name: _default(name))()
        cell = f" `{default}`" if default else ""
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` |{cell} | {with_links(' '.join(meaning.split()))} |")
    return "\n".join([*rows, CELERYS_OWN]) + "\n"


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    if default is None:
        return "infinity" if name.startswith("retention") else ""
    return str(default).lower() if isinstance(default, bool) else str(default)


EMPTY = MetricsSnapshot(
    totals=[],
    history=SimpleNamespace(counted_at=None, groups=None, last_success={}),
    newer=NewerOrphans(0, 0.0, at_least=False),
    lag_seconds=0.0,
    triggers=True,
    outbox=SimpleNamespace(waiting=0, failing=0, dead=0, overdue_seconds=0),
    findings=[],
)


def metrics(families: Iterable[Metric]) -> str:
    """Return each metric with its labels; a scrape has its help."""
    rows = ["| metric | labels |", "|---|---|"]
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        rows.append(f"| `{name}` | {labels}{' ' * bool(labels)}|")
    return "\n".join(rows) + "\n"


def instruments() -> str:
    """Return each instrument of OpenTelemetry; an exporter has its description."""
    meter = Mock()
    telemetry.make_instruments(meter)
    rows = ["| instrument | kind |", "|---|---|"]
    for call, (name, unit, _), _ in meter.mock_calls:
        kind = "histogram, s" if unit == "s" else call.removeprefix("create_")
        rows.append(f"| `{name}` | {kind} |")
    return "\n".join(rows) + "\n"


NEWEST = {
    "PostgreSQL": ("15", "18"),
    "Redis": ("6.2", "8.0"),
    "Valkey": ("9.1", "9.1"),
    "celery": "5.7",
    "sqlalchemy": "2.1",
    "psycopg": "3.3",
    "redis": "8.1",
    "alembic": "1.20",
    "django": "6.1",
    "django-anymail": "15.2",
    "starlette": "1.10",
    "uvicorn": "0.54",
    "cryptography": "50.0",
}
"""The newest version that CI runs; of servers the lowest too."""


def versions() -> str:
    """Return the lowest and the newest versions, from `pyproject.toml`."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(text for name in ("django", "web", "webhooks") for text in extras[name])]
    lowest = dict(re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text).groups() for text in needed)
    pythons = re.findall(r"Python :: (\d\.\d+)", " ".join(project["classifiers"]))
    rows = ["| | lowest | newest |", "|---|---|---|", f"| Python | {pythons[0]} | {pythons[-1]} |"]
    for name, newest in NEWEST.items():
        low, high = newest if isinstance(newest, tuple) else (lowest[name], newest)
        rows.append(f"| {name if isinstance(newest, tuple) else f'`{name}`'} | {low} | {high} |")
    return "\n".join(rows) + "\n"


FOLLOW = "| `follow --json` | A line per sweep that did something. | [sweep.json](schemas/sweep.json) |"


def schemas() -> str:
    """Return what each command prints as JSON, from the titles of the schemas."""
    rows = ["| command | prints | schema |", "|---|---|---|"]
    for name, (title, _) in sorted(json_schemas.PRINTED.items()):
        shape, command_line, notes = re.fullmatch(
            r"(What|A line of) `mailglass-reconcile (.+?)`(?: prints)?(?:; (.*))?", title
        ).groups()
        prints = sentences("; ".join(filter(None, ["one object" if shape == "What" else "one object per line", notes])))
        rows.append(f"| `{command_line}` | {prints} | [{name}.json](schemas/{name}.json) |")
    return "\n".join([*rows, FOLLOW]) + "\n"


def states() -> str:
    """Return what each state of an event means, and what to do."""
    rows = ["| state | what it means | what to do |", "|---|---|---|"]
    for state in dict.fromkeys((*OUTCOMES, *OPEN_STATES, *EVENT_STATES)):
        meaning = sentences(MEANINGS[state].sentence) + MORE_ON_STATES.get(state, "")
        if state == "skipped":
            meaning += f" {', '.join(f'`{name}`: {MEANINGS[name].short}' for name in SKIPPED)}."
        rows.append(f"| `{state}` | {meaning} | {STEPS.get(state, 'nothing')} |")
    return "\n".join(rows) + "\n"


def sentences(text: str) -> str:
    """Return a finding's phrase as sentences."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in text.split("; "))


def reported_types(provider: Provider) -> set[str]:
    """Return the types that a provider's events can have; an event without a row in its table is `unknown`."""
    return {kind.type for kind in provider.table.kinds.values() if kind.type} | {"unknown"}


def api() -> str:
    """Return signature and description of each public name, by section."""
    parts = [f"## {title}\n\n" + "\n".join(map(_name, names.split())).rstrip("\n") for title, names in NAMES.items()]
    return with_links("\n\n".join(parts)) + "\n"


def with_links(text: str) -> str:
    """Return a docstring's text with links to the pages that it names, such as `docs/roles.md`."""
    return re.sub(r"`docs/(([\w-]+)\.md(?:#[\w-]+)?)`", r"[\2](\1)", text)


def _name(path: str) -> str:
    name, value = path.rpartition(".")[2], resolve_name(f"{PACKAGE}.{path}")
    if isinstance(value, type) and issubclass(value, Exception):
        return f"- **`{name}`**: {' '.join((inspect.getdoc(value) or '').split())}"
    if path.startswith("tasks."):
        return _task(path, value)
    example = f"\n```python\n{EXAMPLES[name].strip()}\n```\n" if name in EXAMPLES else ""
    if name in DATA:
        return f"### {name}\n\n{DATA[name]}\n{example}"
    described = "".join(_described(inspect.getdoc(value) or ""))
    return f"### {name}\n\n{_signature(name, value)}{described}{example}"


def _task(path: str, task: Any) -> str:
    """Return the signature and description of a Celery task, its expiry, and whether its result is stored."""
    described = "".join(_described(inspect.getdoc(task.run) or ""))
    result = "Its result is not stored" if task.ignore_result else "Its result is stored"
    facts = f"A queued request expires after {task.expires} seconds. {result}.\n"
    return f"### {path}\n\n{_signature(path.rpartition('.')[2], task.run)}{described}\n{facts}"


def _signature(name: str, value: Any) -> str:
    """Return a block with the signature, nothing for what a function returns: types only of what must be passed."""
    if name in RESULTS:
        return ""
    signature = inspect.signature(value)
    parameters, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parameters.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        text = f"{star}{parameter.name}"
        if parameter.default is not parameter.empty:
            text += "={}" if "factory" in repr(parameter.default) else f"={parameter.default!r}"
        elif parameter.name != "connection" and (kind := _public(parameter.annotation)):
            text += f": {kind}"
        parameters.append(text)
    kind = "" if isinstance(value, type) else _public(signature.return_annotation)
    returned = f" -> {kind}" if kind else ""
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) > WIDTH:
        lines = textwrap.wrap(", ".join(parameters), WIDTH, initial_indent="    ", subsequent_indent="    ")
        line = f"{name}(\n" + "\n".join(lines) + f"\n){returned}"
    return f"```text\n{line}\n```\n\n"


def _public(annotation: Any) -> str:
    """Return an annotation in which every name is public, or Python's own; otherwise nothing."""
    text = str(getattr(annotation, "__forward_arg__", None) or annotation).replace("dt.datetime", "datetime")
    public = STANDARD.union(path.rpartition(".")[2] for names in NAMES.values() for path in names.split())
    return text if {*re.findall(r"\w+", text)} <= public else ""


def _returned(body: str) -> str:
    return f"\n**Returns**: {' '.join(body.split())}\n"


def _described(docstring: str) -> Iterator[str]:
    """Yield a docstring's text, and each of its sections as a list."""
    text, *sections = SECTION.split(docstring)
    yield text.strip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        lines = textwrap.dedent(body.strip("\n"))
        if title == "Returns":
            yield _returned(body)
            continue
        parts = ENTRY.split(lines)[1:]
        entries = [
            f"- `{name}`: {' '.join(meaning.split())}\n"
            for name, meaning in zip(parts[::2], parts[1::2], strict=True)
            if name not in INNER
        ]
        yield ("\n**Raises**\n\n" if title == "Raises" else "\n") + "".join(entries)


GUIDES = {
    "sweep": "celery.md",
    "follow": "production.md#follow",
    "migrate": "upgrading.md",
    "status": "monitoring.md#without-prometheus",
    "find": "trouble.md#from-an-address-to-an-answer",
    "orphans": "trouble.md#states-of-an-event",
    "erase": "personal-data.md#erase-a-person",
    "explain": "trouble.md#my-delivery-stays-dispatched",
    "doctor": "doctor.md",
    "link": "trouble.md#link-it-manually",
    "listen": "live-updates.md",
    "dispatch": "handlers.md",
    "prune": "personal-data.md#retention",
    "receive": "record-and-receive.md#as-a-process",
    "trigger": "record-and-receive.md#try-it-on-localhost",
    "rekey": "own-provider.md",
    "serve": "dashboard.md",
}
"""The page that shows how to use a subcommand."""


def subcommands() -> str:
    """Return a table of the subcommands, with the first sentence of each one's help and a guide."""
    rows = ["| command | | guide |", "|---|---|---|"]
    context = click.Context(command)
    for name in command.list_commands(context):
        if (subcommand := command.get_command(context, name)) is not None:
            purpose = sentences(inspect.cleandoc(subcommand.help or "").partition("\n")[0].rstrip("."))
            guide = f"[{GUIDES[name].partition('.')[0]}]({GUIDES[name]})" if name in GUIDES else ""
            rows.append(f"| `{name}` | {purpose} | {guide}{' ' * bool(guide)}|")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
