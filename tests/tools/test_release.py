"""The checks of `make release` and of the release workflow, on a copy of this checkout."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

import mailglass_reconcile
import release

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]
VERSION = mailglass_reconcile.__version__


@pytest.fixture
def checkout(tmp_path):
    """Copy what the checks read, with a first revision that is not frozen."""
    for folder in ("mailglass_reconcile", "alembic", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (first,) = (tmp_path / "alembic" / "versions").glob("0001*.py")
    first.rename(first.with_name("0001a_tables.py"))
    return tmp_path


def edit(path, *changes):
    text = path.read_text()
    for pattern, replacement in changes:
        text, number = re.subn(pattern, replacement, text, flags=re.M)
        assert number == 1, pattern
    path.write_text(text)


def fill_in(checkout):
    """Fill in the owner's markers, and date the changelog."""
    edit(checkout / "CHANGELOG.md", (rf"^## {re.escape(VERSION)} \(.*\)$", f"## {VERSION} (2026-12-03)"))
    edit(
        checkout / "pyproject.toml",
        ('^address = ""', 'address = "https://example.com/shop/mailglass"'),
        (r"^maintainers = \[\]", 'maintainers = ["Ada <ada@example.com>"]'),
        ("^on_pypi = false", "on_pypi = true"),
        ('^security = ""', 'security = "security@example.com"'),
    )


def test_a_checkout_that_is_not_ready_gets_a_line_for_each_problem(checkout, capsys):
    """The tag, the changelog, each of the owner's markers, and the first revision are named."""
    with pytest.raises(SystemExit) as stopped:
        release.stop_on_problems(checkout, "9.9.9")
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert all(line.startswith("not released: ") for line in lines)
    words = ["is not 9.9.9", "CHANGELOG", "in address", "in maintainers", "in on_pypi", "in security", "is not frozen"]
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * len(words)
    fill_in(checkout)
    (problem,) = release.find_problems(checkout, VERSION)
    assert problem.endswith(f"is not frozen: run `make freeze VERSION={VERSION}`")


def test_the_notes_of_a_release_are_its_section_of_the_changelog(checkout):
    """Its links lead to the files of the tag, also from a page of releases."""
    fill_in(checkout)
    edit(
        checkout / "CHANGELOG.md", (rf"^## {re.escape(VERSION)} ", f"## 9.9.9 (2027-01-01)\n\nOther.\n\n## {VERSION} ")
    )
    notes = release.format_notes(checkout, VERSION)
    assert notes.startswith("The first release.")
    assert "Other." not in notes
    assert f"](https://example.com/shop/mailglass/blob/v{VERSION}/docs/celery.md)" in notes
    assert "](docs/" not in notes


def test_a_version_that_is_none_is_a_wrong_usage(monkeypatch, capsys):
    """`make release` without VERSION comes here too."""
    for version in ("", "v0.1.0", "0.1"):
        monkeypatch.setattr("sys.argv", ["release.py", version])
        with pytest.raises(SystemExit) as stopped:
            release.main()
        assert (stopped.value.code, "set VERSION=" in capsys.readouterr().err) == (2, True)


def test_pre_commit_runs_what_the_session_lint_runs():
    """Both run the same three commands."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "noxfile.py").read_text().split("def lint(")[1].split("@nox")[0]
    commands = [" ".join(re.findall(r'"([^"]+)"', line)) for line in lint.splitlines() if "session.run(" in line]
    assert [hook["entry"] for hook in hooks] == [command.removesuffix(" .") for command in commands]
