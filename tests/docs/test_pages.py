"""Statements of the README and the pages that can be compared with the package."""

import ast
import builtins
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import pytest

import mailglass_reconcile
import pages
import processes

pytestmark = pytest.mark.version_independent

DOCS = pages.ROOT / "docs"
COMMAND = Path(sys.executable).with_name("mailglass-reconcile")
HEADINGS = re.compile(r"^#+ (.*)$", re.M)

READERS = {
    "django.md": "INSTALLED_APPS address message_id",
    "handlers.md": "update_crm",
    "live-updates.md": "refresh_all refresh",
    "api.md": "engine",
    "order-status.md": "call_postmark",
    "own-provider.md": "",
    "record-and-receive.md": "app engine provider body headers postmark address when webhook_id message_id",
    "providers.md": "engine to message domain ses brevo mailersend mailgun mailjet mailtrap"
    " mandrill postal postmark resend scaleway sendgrid sparkpost unisender_go azure smtp2go zeptomail",
    "celery.md": "app engine postmark",
    "production.md": "app",
    "tenants.md": "app",
    "upgrading.md": "context connection metadata",
}
"""What a reader has already when a page begins: names of their own, by page."""


def test_a_cell_of_a_table_is_a_phrase_or_whole_sentences():
    """Parts are not joined by semicolons, except in code."""
    joined = []
    for page in pages.PAGES:
        for number, line in enumerate(pages.BLOCK.sub("", page.read_text()).splitlines()):
            if line.startswith("|") and ";" in re.sub(r"`[^`]*`", "", line):
                joined.append(f"{page.name}, {number}: {line}")
    assert joined == []


@pytest.mark.parametrize("name", ["api.md", "command-line.md"])
def test_the_reference_has_no_default_that_is_none_and_no_brackets_twice(name):
    """An option without a help text would show `None`, a metavar with brackets would double them."""
    text = (DOCS / name).read_text()
    assert not re.search(r": None$|\[\[[A-Z]+_|\(default None", text, re.M)


def test_the_names_in_a_block_of_python_are_imported_on_its_page():
    """They are imported in it or in an earlier block, or are the reader's own, which this test lists."""
    missing = {}
    for page in pages.PAGES:
        bound = {*dir(builtins), *READERS.get(page.name, "").split()}
        for block in pages.blocks(page):
            if block.language != "python":
                continue
            tree = ast.parse(block.text.replace("(…)", "()").replace("…", ""))
            bound |= {
                item.id for item in ast.walk(tree) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)
            }
            bound |= {item.arg for item in ast.walk(tree) if isinstance(item, ast.arg)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
                    bound.add(node.name)
            used = {item.id for item in ast.walk(tree) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load)}
            if used - bound:
                missing[f"{page.name}:{block.line}"] = sorted(used - bound)
    assert missing == {}


def test_no_block_has_a_password_that_a_reader_may_forget_to_change():
    """Who pastes it gets a random one, or names a file or variable of their own."""
    blocks = [block for page in pages.PAGES for block in pages.blocks(page)]
    assert [f"{block.page}:{block.line}" for block in blocks if re.search(r"change-?me", block.text, re.I)] == []


SITE = {pages.README, pages.ROOT / "CHANGELOG.md"}
"""Pages of the site that stand outside docs/; docs/hooks.py changes links to them."""


def test_every_link_of_a_page_has_a_target():
    """It leads to a file and a heading of it; pages of the site link to its pages only."""
    broken = []
    for page in [*pages.PAGES, *pages.ROOT.glob("[CS]*.md"), *(pages.ROOT / "examples").rglob("*.md")]:
        root = DOCS if page in pages.PAGES else pages.ROOT
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            is_inside = file in {page, *SITE} or file.is_relative_to(root)
            if "://" not in target and not (is_inside and file.exists() and (not anchor or anchor in slugs(file))):
                broken.append(f"{page.relative_to(pages.ROOT)}: {target}")
    assert broken == []


@cache
def slugs(file):
    """Return the anchors of a page's headings."""
    return [re.sub(r"[^\w\- ]", "", match.lower()).replace(" ", "-") for match in HEADINGS.findall(file.read_text())]


def test_every_page_that_the_package_names_exists():
    """Docstrings, messages, schemas and alerts name files and headings, such as `docs/roles.md#create-them`."""
    named = set()
    for path in (pages.ROOT / "mailglass_reconcile").rglob("*.*"):
        if path.suffix in (".py", ".html", ".sql"):
            named |= set(re.findall(r"\bdocs/[\w./-]+\.\w+(?:#[\w-]+)?", path.read_text()))
        if path.suffix == ".py":
            named |= {
                f"docs/{node.args[0].value}"
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "docs_url"
            }
    assert {"docs/roles.md", "docs/celery.md#your-own-client", "docs/doctor.md#reports"} <= named
    for target in named:
        name, _, anchor = target.partition("#")
        assert (pages.ROOT / name).exists(), target
        assert not anchor or anchor in slugs(pages.ROOT / name), target


@pytest.mark.slow
def test_the_cron_lines_pass_the_settings_of_their_file_to_the_command(db, tmp_path):
    """`sh` runs them in cron's environment. Success prints nothing, or cron would mail it."""
    handlers = tmp_path / "shop" / "handlers.py"
    handlers.parent.mkdir()
    handlers.write_text(
        "from mailglass_reconcile import on_event\n\n"
        '@on_event("delivered", name="audit")\n'
        "def audit(connection, event):\n    pass\n"
    )
    file = tmp_path / "mailglass.env"
    settings_of_test = {**db.environment(), "MAILGLASS_IMPORTS": "shop.handlers"}
    file.write_text(
        "".join(f"{name}='{value}'\n" for name, value in settings_of_test.items() if name.startswith("MAILGLASS_"))
    )
    lines = re.findall(r"^\S+ +\S+ +\* +\* +\* +app +(.*)$", (DOCS / "production.md").read_text(), re.MULTILINE)
    names = [re.findall(r"mailglass-reconcile (\w+)", line) for line in lines]
    assert names == [["sweep"], ["dispatch"], ["prune"], ["status"]]

    def output(line):
        local_line = line.replace("/opt/app/.venv/bin/mailglass-reconcile", str(COMMAND))
        local_line = local_line.replace("/opt/app", str(tmp_path)).replace("/etc/mailglass.env", str(file))
        result = processes.run(["sh", "-c", local_line], {"PATH": "/usr/bin:/bin"})
        return result.stdout + result.stderr

    assert output(lines[-1]).startswith("unhealthy: "), "no sweep has run"
    assert output(lines[0]).startswith("WARNING: handler audit is new: "), "once, with the command for earlier events"
    assert [output(line) for line in lines] == [""] * len(lines)
    assert db.value("SELECT count(*) FROM mailglass_handled_types WHERE handler = 'audit'") == 1
    runs = db.rows("SELECT kind, status FROM mailglass_reconcile_runs ORDER BY started_at")
    assert [tuple(run) for run in runs] == [("full", "ok"), ("full", "ok"), ("dispatch", "ok"), ("prune", "ok")]


def test_no_page_or_example_replaces_the_schedule_of_an_application():
    """An assignment of our entries alone deletes those that the application has."""
    folders = (pages.PAGES, (pages.ROOT / "examples").rglob("*.py"))
    replacing = re.compile(r"beat_schedule\s*=\s*(?:make_)?beat_schedule\b", re.I)
    assert [page.name for folder in folders for page in folder if replacing.search(page.read_text())] == []


def test_only_the_app_without_entries_of_an_application_keeps_its_schedule_in_memory():
    """Beat restarts with each deployment; in memory it would never send an application's entry with a long interval."""
    folders = (pages.PAGES, (pages.ROOT / "examples").rglob("*.*"))
    texts = [page.read_text() for folder in folders for page in folder if page.suffix in (".md", ".py")]
    commands = [match for text in texts for match in re.finditer(r"celery -A (\w+) (?:worker -B|beat)[^`\n]*", text)]
    assert len(commands) > 5
    for command in commands:
        assert ("celery.beat.Scheduler" in command[0]) is (command[1] == "mailglass_reconcile"), command[0]


def test_the_snippets_for_async_code_are_those_of_the_example():
    """They stream to a browser."""
    (block,) = [item for item in pages.section(DOCS / "live-updates.md", "In a browser") if item.language == "python"]
    texts = {line.strip() for line in (pages.ROOT / "examples/fastapi/updates.py").read_text().split("\n")}
    assert {line.strip() for line in block.text.split("\n")} - texts == set()


def test_a_package_index_gets_links_to_the_tag_of_the_version_once_the_project_has_an_address():
    """Each link and picture of the README to a file is made absolute; until then, they do not change."""
    readme = pages.README.read_text()
    specification = importlib.util.spec_from_file_location("hatch_build", pages.ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    assert hook.read_version(pages.ROOT) == mailglass_reconcile.__version__
    assert hook.addressed(readme, "", "0.1.0") == readme
    readme_of_index = hook.addressed(readme, "https://example.com/x", "0.1.0")
    assert set(re.findall(r"\]\((?!https://|#)[^)]*", readme_of_index)) == set()
    assert "](https://example.com/x/raw/v0.1.0/docs/race.svg)" in readme_of_index
    assert "](https://example.com/x/blob/v0.1.0/docs/django.md)" in readme_of_index
    assert hook.addressed("[a](CHANGELOG.md) [b](#b) [c](https://c.example)", "https://x.example", "1.0.0") == (
        "[a](https://x.example/blob/v1.0.0/CHANGELOG.md) [b](#b) [c](https://c.example)"
    )
    assert hook.urls("", "0.1.0") == {}
    assert hook.urls("https://x.example", "0.1.0")["Changes"] == "https://x.example/blob/v0.1.0/CHANGELOG.md"


def test_each_example_is_named_by_a_page():
    """Its reader comes from there; the README of the examples lists all."""
    folders = {path.parent.name for path in (pages.ROOT / "examples").glob("*/README.md")}
    texts = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert folders - set(re.findall(r"`examples/([\w-]+)", texts)) == set()
    listed = re.findall(r"^\| \[`([\w-]+)/`\]", (pages.ROOT / "examples/README.md").read_text(), re.MULTILINE)
    assert set(listed) == folders
