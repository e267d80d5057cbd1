"""What the README and the pages say that can be held against the package."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reference

import commands
import mailglass_reconcile
import pages
from faults.breaks import BREAKS
from mailglass_reconcile import webhooks
from mailglass_reconcile.rules.states import EVENT_STATES, OUTCOMES
from mailglass_reconcile.settings import ENV_PREFIX, Settings

DOCS = pages.ROOT / "docs"
COMMAND = Path(sys.executable).with_name("mailglass-reconcile")
HEADINGS = re.compile(r"^#+ (.*)$", re.M)


def table(page: str, column: str = r"`([^`]+)`") -> list[tuple[str, ...]]:
    """Return the rows of a page's tables whose first column is code, each as its columns."""
    rows = re.findall(rf"^\| {column} \|(.*)\|$", (DOCS / page).read_text(), re.M)
    return [(first, *(each.strip() for each in rest.split(" | "))) for first, rest in rows]


def test_every_state_that_a_command_prints_is_in_the_table():
    """Those of a sweep, of `status` and of `explain`, and no other."""
    states = [row[0] for row in table("concepts.md", r"`((?!mailglass)\w+)`")]
    assert set(states) == {*OUTCOMES, *EVENT_STATES}
    assert len(states) == len(set(states))


def test_every_setting_is_in_the_table_with_its_default():
    """In the words that an environment variable takes; one is Celery's own."""
    documented = {name: default.strip("`") for name, default, *_ in table("settings.md")}
    expected = {"CELERY_BROKER_URL": ""}
    for name, field in Settings.model_fields.items():
        default = getattr(field.default, "get_secret_value", lambda default=field.default: default)()
        unlimited = name.startswith("retention") and default is None
        written = str(default).lower() if isinstance(default, bool) else str(default)
        expected[ENV_PREFIX + name.upper()] = "infinity" if unlimited else "" if default is None else written
    assert documented == expected


def test_every_subcommand_is_in_the_table():
    """And none that there is not."""
    assert {row[0] for row in table("command-line.md")} == set(commands.SUBCOMMANDS)


def test_every_public_name_is_in_the_reference():
    """Those of the package and of its receivers; the version is no entry."""
    named = " ".join(reference.NAMES.values()).split()
    public = {*mailglass_reconcile.__all__, *(f"webhooks.{name}" for name in webhooks.__all__)} - {"__version__"}
    assert public == {name for name in named if not name.startswith("contrib.")}


@pytest.mark.parametrize(("page", "text"), [("api.md", reference.api), ("command-line.md", reference.subcommands)])
def test_the_reference_is_what_the_code_says(page, text):
    """Docstrings, signatures and options; `python docs/reference.py` writes it."""
    written = (DOCS / page).read_text()
    assert reference.with_reference(written, text()) == written, "run `python docs/reference.py`"


def test_every_check_of_the_doctor_is_in_the_table():
    """Under the name that a finding has."""
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", (DOCS / "doctor.md").read_text(), re.M))))
    checks = set()
    for path in (pages.ROOT / "mailglass_reconcile/ops/doctor").glob("*.py"):
        checks |= set(re.findall(r"\b(?:ok|warning|error|attempt)\(\s*\"(\w+)\"", path.read_text()))
    assert len(checks) > 20
    assert checks - named == set()


def test_the_page_says_in_how_many_ways_the_package_is_broken_on_purpose():
    """As many as there are."""
    assert f"{len(BREAKS)} deliberate breaks" in (DOCS / "guarantees.md").read_text()


def test_every_schema_of_the_json_output_is_in_the_table():
    """Each file is linked, and there is no other."""
    linked = set(re.findall(r"\(schemas/(\w+\.json)\)", (DOCS / "formats.md").read_text()))
    assert linked == {path.name for path in (DOCS / "schemas").iterdir()}


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.ROOT.glob("[CS]*.md")], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    """To a file, and to a heading of it; what the site shows links to docs/ alone."""
    within = DOCS if page in pages.PAGES else pages.ROOT
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file == page or file.is_relative_to(within), f"{target} leaves {within.name}/"
        assert file.exists(), target
        if anchor:
            slugs = [
                re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in HEADINGS.findall(file.read_text())
            ]
            assert anchor in slugs, target


def test_every_page_that_the_package_names_is_there():
    """In errors and docstrings, such as `docs/grants.md`; with its heading, if one is named."""
    named = set()
    for path in (pages.ROOT / "mailglass_reconcile").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"\bdocs/[\w./-]+\.\w+", node.value))
    assert named
    assert not [name for name in named if not (pages.ROOT / name).exists()]


@pytest.mark.slow
def test_the_cron_lines_hand_the_settings_of_their_file_to_the_command(db, tmp_path):
    """As cron runs them: by `sh`, in its own environment. Success prints nothing, or cron would mail it."""
    file = tmp_path / "mailglass.env"
    given = db.environment(db.settings.redis_url.get_secret_value())
    file.write_text("".join(f"{name}='{value}'\n" for name, value in given.items() if name.startswith("MAILGLASS_")))
    lines = re.findall(r"^\S+ +\S+ +\* +\* +\* +app +(.*)$", (DOCS / "sweeps.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        here = line.replace("/etc/mailglass.env", str(file)).replace("mailglass-reconcile", str(COMMAND))
        alone = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", here], env=alone, capture_output=True, text=True, check=True)
        assert done.stdout + done.stderr == ""
    runs = db.rows("SELECT kind, status FROM mailglass_reconcile_runs ORDER BY started_at")
    assert [tuple(run) for run in runs] == [("full", "ok"), ("prune", "ok")]


def test_every_command_with_beat_keeps_the_schedule_in_memory():
    """By default it is a pickle in the working directory, and with Python 3.13 SQLite's, which may be locked."""
    found = [
        line
        for page in pages.PAGES
        for line in re.findall(r"celery -A \w+ (?:worker -B|beat)[^`\n]*", page.read_text())
    ]
    assert found
    assert all("--scheduler celery.beat.Scheduler" in line for line in found)


def test_the_snippets_for_fastapi_stand_in_the_example():
    """Line by line, and recording takes at most ten of an adopter's own."""
    *recording, streaming = (block.text for block in pages.blocks(DOCS / "python.md") if block.language == "python")
    own = [line.strip() for text in recording for line in text.split("\n") if line.strip()]
    assert 5 <= len(own) <= 10
    for lines, name in ((own, "shop.py"), (map(str.strip, streaming.split("\n")), "updates.py")):
        there = {line.strip() for line in (pages.ROOT / "examples/fastapi" / name).read_text().split("\n")}
        assert set(lines) <= there


def test_a_package_index_shows_whole_addresses_once_the_project_has_one():
    """In every link and picture of the README that leads into docs/; until then, they stay as they are."""
    readme = pages.README.read_text()
    specification = importlib.util.spec_from_file_location("hatch_build", pages.ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    assert hook.addressed(readme, "") == readme
    shown = hook.addressed(readme, "https://example.com/x")
    assert "](docs/" not in shown
    assert "](https://example.com/x/raw/main/docs/race.svg)" in shown
    assert "](https://example.com/x/blob/main/docs/django.md)" in shown
