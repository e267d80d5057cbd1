"""What a command says in one line, and its exit code: errors, usage, hints, and results without rows."""

import doctest
import re
import shlex
import subprocess

import pytest

import commands
import factories
from database import Database
from senders import PRIVATE

pytestmark = pytest.mark.version_independent

NOBODY = "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10"
"""The id of no event and of no delivery."""

LONG_ID = "x" * 513
TRIGGER = "MAILGLASS_WEBHOOK_SECRETS=postmark=me:canary trigger --message-id m --to http://127.0.0.1:1/canary"
CHARACTERS = "MAILGLASS_DATABASE_SCHEMA: use a schema whose name has only letters, digits and underscores..."
ADDRESSED = "give an address, a message id or the id of an event or a delivery: 1 to 512 characters in one line"
ACME = "no event or delivery has tenant 'acne'"


Case = tuple[str, int, str, str]


def prints(typed: str, stdout: str = "", stderr: str = "", code: int = 0) -> Case:
    """Expect these outputs, in which `...` stands for any text."""
    return typed, code, stdout, stderr


def fails(typed: str, line: str, stdout: str = "") -> Case:
    """Expect one line on stderr that begins with the command's name, and exit code 1."""
    return prints(typed, stdout, f"mailglass-reconcile: {line}", 1)


def misused(typed: str, line: str) -> Case:
    """Expect such a line, below the usage that click prints for its own errors, and exit code 2."""
    return prints(typed, "", f"mailglass-reconcile: {line}", 2)


CASES = [
    misused("swep", "no such command 'swep'; did you mean sweep?"),
    misused("nothing", "no such command 'nothing'"),
    misused("--nothing", "No such option..."),
    # settings
    fails("MAILGLASS_DATABASE_URL= migrate", "MAILGLASS_DATABASE_URL is not set; set it to a postgresql:// URL..."),
    fails("MAILGLASS_DATABASE_URL= follow", "MAILGLASS_DATABASE_URL is not set; set it to a postgresql:// URL..."),
    fails("MAILGLASS_DATABASE_URL= sweep", "MAILGLASS_DATABASE_URL is not set; set it to a postgresql:// URL..."),
    fails("MAILGLASS_DATABASE_URL=not-a-url sweep", "...MAILGLASS_DATABASE_URL..."),
    fails("MAILGLASS_DATABASE_URL=mysql://u:canary@h/d sweep", "...MAILGLASS_DATABASE_URL..."),
    fails("MAILGLASS_DATABASE_URL=postgresql://u:canary@127.0.0.1:1/d sweep", "...MAILGLASS_DATABASE_URL..."),
    fails("MAILGLASS_DATABASE_URL=postgresql://127.0.0.1:1/x follow", "cannot connect to Postgres..."),
    fails("MAILGLASS_DATABASE_SCHEMA=elsewhere sweep", "...need MAILGLASS_DATABASE_SCHEMA..."),
    fails("MAILGLASS_DATABASE_SCHEMA=nowhere follow", "...need MAILGLASS_DATABASE_SCHEMA..."),
    *(misused(f"{shlex.quote(f'MAILGLASS_DATABASE_SCHEMA={name}')} status", CHARACTERS) for name in (
        "mail glass", 'mail"glass', "mail-glass", "p%s:x",
    )),
    fails("MAILGLASS_GRACE_SECONDS=canary sweep", "...MAILGLASS_GRACE_SECONDS..."),
    fails("MAILGLASS_REDIS_URL=http://:canary@x sweep", "...MAILGLASS_REDIS_URL..."),
    fails("MAILGLASS_REDIS_URL=redis://:canary@127.0.0.1:1/0 listen --json",
          "cannot connect to Redis at 127.0.0.1, port 1, database 0: nothing listens there...MAILGLASS_REDIS_URL..."),
    # sweep
    misused("sweep --limit 0", "Invalid value for '--limit': 0 is not in the range x>=1."),
    misused("sweep --limit x", "Invalid value for '--limit': 'x' is not a valid integer range."),
    misused("sweep --dry", "No such option..."),
    misused("sweep acme", "Got unexpected extra argument (acme)"),
    misused("sweep --verbose", "--verbose needs --dry-run"),
    misused("sweep --dry-run --verbose --json", "--verbose and --json exclude each other"),
    *(misused(f"sweep {target}", "no terminal to confirm on: pass --yes, or --dry-run to see what would be linked")
      for target in (f"--event {NOBODY}", "--provider postmark", "--since 0s", "--until 0s")),
    *(misused(f"sweep --event {NOBODY} --yes {other}",
              "--event excludes --tenant, --limit, --delivery, --provider, --since and --until")
      for other in ("--tenant a", "--limit 1", f"--delivery {NOBODY}", "--provider ses", "--since 0s", "--until 0s")),
    misused(f"sweep --delivery {NOBODY} --tenant acme", "--delivery and --tenant exclude each other"),
    fails(f"sweep --event {NOBODY} --yes", f"...{NOBODY}..."),
    fails(f"sweep --delivery {NOBODY} --yes", f"...{NOBODY}..."),
    prints("sweep --provider ses --yes", "nothing to link: no open event is selected"),
    prints("sweep --tenant acne", "nothing to do: there are no open events of tenant 'acne'", ACME),
    prints("sweep --tenant beril", "nothing to do: there are no open events of tenant 'beril'",
           "no event or delivery has tenant 'beril'"),
    # status
    prints("status --tenant acne", "...", ACME),
    prints("status --tenant acne --json", "...", ACME),
    prints("status --tenant acme", "..."),
    prints("status --tenant acme --json", "..."),
    misused("status --check --json", "--check and --json exclude each other"),
    # explain
    misused("explain", "pass an EVENT_ID, a DELIVERY_ID or --message-id"),
    misused("explain x", "Invalid value for '[EVENT_ID | DELIVERY_ID]': 'x' is not a valid UUID."),
    prints(f"explain {NOBODY}", f"{NOBODY}: unknown\nno event in the ledger has this id...", code=1),
    fails("explain --message-id m-2", "no open event and no delivery has this message id"),
    # find
    misused("find - <<< ''", ADDRESSED),
    misused(f"find {LONG_ID}", ADDRESSED),
    prints("find m-9", "no delivery and no open event has this id", code=1),
    prints("find m-1 --tenant acne", "no delivery and no open event of this tenant has this id", ACME, code=1),
    prints("find canary@example.com", "no delivery and no open event has this address. If your application sent the..."
           " look for its message id there:\n  mailglass-reconcile find MESSAGE_ID", code=1),
    # orphans
    misused("orphans --state lost", "Invalid value for '--state': 'lost' is not one of..."),
    misused("orphans --limit 0", "Invalid value for '--limit': 0 is not in the range 1<=x<=10000."),
    misused("orphans --expired --state matched", "--expired and --state cannot be combined"),
    misused(f"orphans --after {NOBODY}", "Invalid value for --after: ..."),
    misused("orphans --recipient - <<< canary", "--recipient needs an e-mail address, such as ada@example.com"),
    misused("orphans --recipient - <<< ''", "--recipient needs an e-mail address, such as ada@example.com"),
    misused("orphans --expired --recipient - <<< canary@example.com",
            "the recipient of an expired event is no longer known: leave out --recipient"),
    prints("orphans --type bounce", "none", "no event has the type bounce; did you mean bounced?"),
    prints("orphans --provider sendgird", "none", "no rule knows sendgird; did you mean sendgrid?"),
    prints("orphans --provider 'Amazon SES'", "none"),
    prints("orphans --provider something-else", "none"),
    prints("orphans --tenant acne", "none", ACME),
    prints("orphans --tenant globex", "none"),
    prints("orphans --expired", "none"),
    prints("orphans --tenant beryl", "...  unseen\n...", "1 orphan; no full sweep has ended yet\n  1 unseen: beryl"),
    prints("orphans --tenant beryl --json", "{...}"),
    # dispatch
    misused("dispatch --waiting --dead",
            "--waiting, --dead, --retry, --replay and --forget exclude each other"),
    misused("dispatch --replay bounced", "--replay needs --since, such as --since 7d, and --since needs --replay"),
    misused("dispatch --handler flaky", "--handler needs --waiting, --dead, --retry, --replay or --forget"),
    misused("dispatch --forget", "--forget needs a type, such as --forget bounced, or --handler"),
    prints("dispatch --waiting", "", "0 jobs of handlers wait"),
    prints("dispatch --dead", "", "0 jobs of handlers are dead"),
    prints("dispatch --retry", "0 jobs will be tried again"),
    fails(f"dispatch --retry {NOBODY}", f"no job of event {NOBODY} is dead or failing: see `mailglass-reconcile"
          " dispatch --dead` and `mailglass-reconcile dispatch --waiting`", "0 jobs will be tried again"),
    fails("dispatch --forget nothing --yes", "no dispatcher has registered a handler of 'nothing'..."),
    # link, erase, migrate
    misused(f"link {NOBODY} {NOBODY} --reason r",
            "no terminal to confirm on: pass --yes, or --dry-run to see what would be linked"),
    misused(f"link {NOBODY} {NOBODY} --reason ''", "...reason..."),
    misused("erase canary@example.com", "no terminal to confirm on: pass --yes, or --dry-run to count the rows"),
    prints("migrate --remove", "will stay unlinked: 2 open events; ...",
           "mailglass-reconcile: no terminal to confirm on: nothing was removed; pass --yes to remove it", 2),
    misused("migrate --plan --check", "--plan, --check, --grants and --remove exclude each other"),
    misused("migrate --yes", "--yes can only be used with --remove"),
    # follow, serve
    misused("follow --interval 0", "Invalid value for '--interval': ..."),
    misused("follow --interval 61", "Invalid value for '--interval': ..."),
    *(misused(f"serve --host {host}",
              f"{host} can be reached from other machines: set MAILGLASS_WEB_TOKEN first, or leave out --host")
      for host in ("0.0.0.0", "::", "192.0.2.1", "mail.example.com")),  # noqa: S104
    # trigger
    misused(f"{TRIGGER} pigeon delivered", "no such provider; known providers: azure, brevo, ..."),
    misused(f"{TRIGGER} postmark deliverd", "postmark sends no such type (did you mean delivered?); it can..."),
    misused(f"{TRIGGER} resend autoresponded", "resend sends no such type; it can send: ..."),
    fails(f"{TRIGGER} mailgun opened", "MAILGLASS_WEBHOOK_SECRETS has no secret for mailgun"),
    fails(f"{TRIGGER} postmark opened", "nothing answers at the address of --to (ConnectionRefusedError)"),
    fails(f"{TRIGGER} postmark opened --to http://shop.invalid/postmark",
          "cannot resolve the host shop.invalid of --to"),
    misused(f"{TRIGGER} postmark opened --to localhost:8081/postmark", "--to must be a whole address..."),
    misused(f"{TRIGGER} postmark opened --to http://[::1/postmark", "--to must be a whole address..."),
    *(fails(f"{TRIGGER} {provider} opened", f"{provider} signs with a private key; let it send a test...")
      for provider in sorted(PRIVATE)),
    # the last one, because it changes the state of an orphan
    prints("sweep --tenant beryl", "linked 0 of 1 open event of tenant 'beryl' in ..."),
]  # fmt: skip
"""A command as it is typed, perhaps after variables and with an input, and what it says.

In all of them `canary` is a secret or somebody's address.
"""


@pytest.fixture
def rows(db: Database) -> Database:
    """An open event of acme whose delivery is there, and one of beryl whose provider is misspelled."""
    factories.delivery(db, "m-1")
    factories.orphan(db, factories.postmark("m-1"))
    factories.orphan(db, {"provider": "sendgird", "message_id": "m"}, tenant_id="beryl")
    factories.delivery(db, "m-3", tenant_id="globex")
    return db


def unless_like(text: str, pattern: str) -> str:
    """Return the pattern if the text is like it, and else the text, which a failed assertion shows."""
    text = text.removesuffix("\n")
    return pattern if doctest.OutputChecker().check_output(pattern, text, doctest.ELLIPSIS) else text


def run_as_typed(db: Database, typed: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the table."""
    line, _, text = typed.partition(" <<< ")
    words = shlex.split(line)
    arguments = [word for word in words if not word.startswith("MAILGLASS_")]
    variables = dict(word.split("=", 1) for word in words if word.startswith("MAILGLASS_"))
    return commands.run_unchecked(db, *arguments, stdin=text.strip("'"), **variables)


def test_a_command_says_in_a_line_what_is_wrong_and_links_nothing(rows: Database, subtests: pytest.Subtests) -> None:
    for typed, code, stdout, stderr in CASES:
        with subtests.test(typed):
            result = run_as_typed(rows, typed)
            printed = result.stderr
            if code == 2:  # below the usage, if click knows the subcommand
                printed = re.sub(r"\AUsage: .*\nTry .*\n\n", "", printed)
            outputs = unless_like(result.stdout, stdout), unless_like(printed, stderr)
            assert (result.returncode, *outputs) == (code, stdout, stderr)
            assert "canary" not in result.stdout + result.stderr
    assert rows.count_links() == 0
