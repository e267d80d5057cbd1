"""`make freeze` in a copy of this checkout: its tests pass, and what a release must not change is refused."""

import os
import re
import subprocess
import sys

import pytest

import release
from freezing import VERSION, commit, copy_checkout, freeze, is_frozen
from revisions import HEAD, NEXT

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.version_independent]

REVISION = "alembic/versions/0001_initial.py"
ADDED = f"alembic/versions/{NEXT}_priority.py"
COLUMN = f'''"""A column."""

import sqlalchemy as sa
from alembic import op

from mailglass_reconcile.store.migration.operations import schema_name

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.add_column("mailglass_open_orphans", sa.Column("priority", sa.SmallInteger()), schema=schema_name())
'''
TRIGGER = r"(CREATE OR REPLACE TRIGGER mailglass_open_orphans_add.*?);"
TESTS = (
    *(f"tests/store/migration/test_{name}.py" for name in ("plan_as_sql", "released_steps", "removal", "runner")),
    *(
        "tests/store/schema/test_revision.py",
        "tests/contrib/django/test_migration_operations.py",
        "tests/tools/test_release.py",
    ),
)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A frozen copy of this checkout."""
    folder = tmp_path_factory.mktemp("frozen")
    folder.chmod(0o755)
    copy_checkout(folder)
    if not is_frozen(folder):
        result = freeze(folder)
        assert result.returncode == 0, result.stderr
        commit(folder)
    return folder


@pytest.fixture
def edit(frozen):
    """Replace text in a file of the frozen copy, or write a new file, until the test ends."""
    texts = {}

    def replace(name, pattern, replacement):
        path = frozen / name
        texts[path] = path.read_text() if path.exists() else None
        text, number = re.subn(pattern, replacement, texts[path] or "", count=1, flags=re.M | re.S)
        assert number == 1, f"{name} does not have {pattern}"
        path.write_text(text)

    yield replace
    for path, text in texts.items():
        if text is None:
            path.unlink()
        else:
            path.write_text(text)


def find_problems(folder):
    """Return what `make release` says about the schema."""
    return "; ".join(sentence for sentence in release.find_problems(folder, VERSION) if "pyproject" not in sentence)


def test_the_tests_of_migrations_pass_in_a_frozen_copy(frozen):
    """No test has the first revision's id of today, and the changelog is dated."""
    assert find_problems(frozen) == ""
    command = (sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command,
        cwd=frozen,
        env={**environment, "PYTHONPATH": str(frozen)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "refusal"),
    [
        (
            *(REVISION, "CREATE TABLE {schema}.mailglass_handled_types [(]", r"\g<0>\n  region text,"),
            f"^{REVISION} is not as it was released: restore it, and add a revision$",
        ),
        (
            *("alembic/schema/open_orphans.sql", TRIGGER, r"\1\n;"),
            f"^alembic/schema/open_orphans.sql: trigger .* is not as at revision {HEAD}: add a revision",
        ),
        (
            *("alembic/schema/linking.sql", r"mailglass_reconcile_link_v1.*?BEGIN", r"\g<0>\n  -- edited"),
            "^alembic/schema/linking.sql: function mailglass_reconcile_link_v1 differs from revision",
        ),
        (
            *(
                "alembic/schema/linking.sql",
                "step: function mailglass_reconcile_link_v1",
                "step: function mailglass_x_v1",
            ),
            "^alembic/schema: function mailglass_reconcile_link_v1 is gone since",
        ),
        (
            *("mailglass_reconcile/rules/event_types.py", '"subscribed",', r'\g<0>\n    "resubscribed",'),
            "function mailglass_reconcile_project_v1 differs from",
        ),
        ("mailglass_reconcile/store/schema/script.py", '"jit": "off",', r'\g<0>\n    "enable_material": "off",', "^$"),
    ],
    ids=["column", "trigger", "function edited", "function gone", "event type", "planner setting"],
)
def test_what_an_older_process_or_database_cannot_stand_is_refused(frozen, edit, name, pattern, replacement, refusal):
    """Another planner setting asks for no new function; another type of event does."""
    edit(name, pattern, replacement)
    assert re.search(refusal, find_problems(frozen))


def test_a_revision_allows_another_trigger_but_no_other_v1(frozen, edit):
    """It is not frozen yet, and freezing leaves the digests of those before."""
    edit(ADDED, "^", COLUMN.replace("\\", r"\\"))
    edit("alembic/schema/open_orphans.sql", TRIGGER, r"\1\n;")
    assert find_problems(frozen) == f"revision {NEXT} has no digests: run `make freeze`"


def test_a_checkout_that_cannot_be_frozen_gets_a_line_for_each_reason(frozen, edit):
    """It was changed since its last commit, and its changelog is dated already."""
    before = (frozen / "tests/support/released_steps.json").read_text()
    edit("README.md", "^", "edited")
    result = freeze(frozen)
    lines = result.stderr.splitlines()
    assert result.returncode == 1
    assert [line.removeprefix("nothing was changed: ")[:9] for line in lines] == ["the check", "CHANGELOG"]
    assert (frozen / "tests/support/released_steps.json").read_text() == before
