"""What the README says that can be held against the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

from mailglass_reconcile.ops.sentences import SENTENCES
from mailglass_reconcile.sweep.result import STATES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMAND = Path(sys.executable).with_name("mailglass-reconcile")


def test_every_state_that_a_command_prints_is_in_the_table():
    """Those of a sweep, of `status` and of `explain`, and no other."""
    rows = re.findall(
        r"^\| `(\w+)` \| [\w, ;]+ \|", README.partition("## What an orphan's state means")[2], re.MULTILINE
    )
    assert set(rows) == {*STATES, *SENTENCES}
    assert len(rows) == len(set(rows))


def test_the_cron_lines_hand_the_settings_of_their_file_to_the_command(db, tmp_path):
    """As cron runs them: by `sh`, with an environment of its own, the settings in a file without `export`."""
    file = tmp_path / "mailglass.env"
    given = db.environment(db.settings.redis_url.get_secret_value())
    file.write_text("".join(f"{name}='{value}'\n" for name, value in given.items() if name.startswith("MAILGLASS_")))
    commands = re.findall(r"^\S+ +\S+ +\* +\* +\* +app +(.*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        here = command.replace("/etc/mailglass.env", str(file)).replace("mailglass-reconcile", str(COMMAND))
        alone = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", here], env=alone, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout).get("status", "ok") == "ok"


def test_every_command_with_beat_says_where_the_schedule_is_kept():
    """By default it is a pickle in the working directory, which beat loads at its next start."""
    commands = re.findall(r"celery -A \w+ (?:worker -B|beat)[^`\n]*", README)
    assert commands
    assert all("--schedule /" in command for command in commands)


def test_the_snippets_for_plain_python_and_fastapi_stand_in_the_examples():
    """Line by line, and there are at most ten of an adopter's own."""
    recording = README.partition("**Recording sends and webhooks**")[2].partition("Whichever comes first")[0]
    plain, fastapi = recording.split("**In FastAPI**")
    for snippets, example in ((plain, "plain/mail.py"), (fastapi, "fastapi/shop.py")):
        lines = "".join(re.findall(r"```python\n(.*?)```", snippets, re.DOTALL)).split("\n")
        own = [line.strip() for line in lines if line.strip()]
        there = {line.strip() for line in (ROOT / "examples" / example).read_text().split("\n")}
        assert 5 <= len(own) <= 10
        assert set(own) <= there
