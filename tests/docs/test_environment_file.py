"""The file of settings that cron's shell and systemd read: a value as the page writes it means the same to both."""

import json
import re
import sys
from pathlib import Path

import pytest

import pages
import processes
from mailglass_reconcile.settings import ENV_PREFIX, Settings

[FILE] = [
    block.text for block in pages.blocks(pages.ROOT / "docs" / "deploy.md") if block.text.startswith("MAILGLASS_")
][:1]
SHOW = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
AWKWARD = [
    "postgresql://app:p%40ss@db/app?sslmode=require&application_name=mail",
    "redis://:a#b;c$HOME`d`@cache:6379/0",
    'two  words, "quoted" \\n and an = sign',
]


def by_shell(file: Path) -> dict[str, str]:
    """Return the environment of a command that loads the file as docs/deploy.md does: with `set -a` and `.`."""
    line = f"set -a; . {file}; {SHOW}"
    done = processes.run(["sh", "-c", line], {"PATH": "/usr/bin:/bin"})
    return {name: value for name, value in json.loads(done.stdout).items() if name.startswith(ENV_PREFIX)}


def by_systemd(file: Path) -> dict[str, str]:
    """Return the environment of a service with `EnvironmentFile=`, by the rules of systemd.exec(5)."""
    result = {}
    for line in file.read_text().splitlines():
        name, _, rest = line.strip().partition("=")
        if not rest or name.startswith(("#", ";")):
            continue
        value, quote, characters = "", "", iter(rest.strip())
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


def test_the_file_of_the_page_means_the_same_to_a_shell_and_to_systemd(tmp_path):
    """Every value is in single quotes, and names a setting that there is."""
    file = tmp_path / "mailglass.env"
    file.write_text(FILE)
    assert all(re.fullmatch(r"MAILGLASS_\w+='[^']+'", line) for line in FILE.splitlines())
    assert by_shell(file) == by_systemd(file) != {}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in by_shell(file)} <= set(Settings.model_fields)


@pytest.mark.parametrize("value", AWKWARD)
def test_whatever_stands_between_single_quotes_arrives_as_it_is(tmp_path, value):
    """Without them, or with double ones, a shell reads some of it in its own way."""
    file = tmp_path / "mailglass.env"
    file.write_text(f"MAILGLASS_DATABASE_URL='{value}'\n")
    assert by_shell(file) == by_systemd(file) == {"MAILGLASS_DATABASE_URL": value}
