"""The file of settings for cron's shell and systemd: both read a documented value in the same way."""

import json
import re
import sys
from pathlib import Path

import pytest

import pages
import processes
from mailglass_reconcile.settings import ENV_PREFIX, Settings

pytestmark = pytest.mark.version_independent

[FILE] = [
    block.text for block in pages.blocks(pages.ROOT / "docs" / "production.md") if block.text.startswith("MAILGLASS_")
][:1]
SHOW = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
AWKWARD = [
    "postgresql://app:p%40ss@db/app?sslmode=require&application_name=mail",
    "redis://:a#b;c$HOME`d`@cache:6379/0",
    'two  words, "quoted" \\n and an = sign',
]


def read_by_shell(file: Path) -> dict[str, str]:
    """Return the environment of a command that loads the file as docs/production.md does: with `set -a` and `.`."""
    line = f"set -a; . {file}; {SHOW}"
    result = processes.run(["sh", "-c", line], {"PATH": "/usr/bin:/bin"})
    return {name: value for name, value in json.loads(result.stdout).items() if name.startswith(ENV_PREFIX)}


def read_by_systemd(file: Path) -> dict[str, str]:
    """Return the environment of a service with `EnvironmentFile=`, by the rules of systemd.exec(5)."""
    result = {}
    for line in file.read_text().splitlines():
        name, _, text = line.strip().partition("=")
        if not text or name.startswith(("#", ";")):
            continue
        value, quote, characters = "", "", iter(text.strip())
        for c in characters:
            if c == "\\" and quote != "'":
                value += next(characters, "")
            elif quote and c == quote:
                quote = ""
            elif not quote and c in "'\"":
                quote = c
            else:
                value += c
        result[name] = value
    return result


def test_a_shell_and_systemd_read_the_page_s_file_alike(tmp_path):
    """Every value is in single quotes and is that of an existing setting."""
    file = tmp_path / "mailglass.env"
    file.write_text(FILE)
    assert all(re.fullmatch(r"MAILGLASS_\w+='[^']+'", line) for line in FILE.splitlines())
    assert read_by_shell(file) == read_by_systemd(file) != {}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in read_by_shell(file)} <= set(Settings.model_fields)


@pytest.mark.parametrize("value", AWKWARD)
def test_text_in_single_quotes_is_read_unchanged(tmp_path, value):
    """Without quotes, or in double ones, a shell interprets some of it."""
    file = tmp_path / "mailglass.env"
    file.write_text(f"MAILGLASS_DATABASE_URL='{value}'\n")
    assert read_by_shell(file) == read_by_systemd(file) == {"MAILGLASS_DATABASE_URL": value}
