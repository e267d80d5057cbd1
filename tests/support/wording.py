"""What people read of the package: messages, docstrings of public names, help, and the page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

import mailglass_reconcile
from mailglass_reconcile import webhooks
from mailglass_reconcile.cli import command
from mailglass_reconcile.contrib import anymail

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mailglass_reconcile"
SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|WHERE|FROM pg_|SET LOCAL|GRANT|redis\.call)\b")
LEAST_WORDS = 3


def messages() -> Iterator[tuple[str, str]]:
    """Yield each string of the code that is a sentence, with its place; docstrings and SQL are none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in inner and (text := _text(node)) and len(text.split()) >= LEAST_WORDS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def _text(node: ast.AST) -> str:
    """Return a string's text, `{}` in place of what is put into it; empty for anything else, and for SQL."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
    else:
        parts = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
    text = "".join(map(str, parts))
    return "" if SQL.search(text) else text


def descriptions() -> Iterator[tuple[str, str]]:
    """Yield the docstring of each public name, and the help of each subcommand and option."""
    for module, names in (
        (mailglass_reconcile, mailglass_reconcile.__all__),
        (webhooks, webhooks.__all__),
        (anymail, ("sent", "webhook_event")),
    ):
        for name in names:
            named = getattr(module, name)
            if not isinstance(named, str | dict):
                yield name, named.__doc__
    for name in command.list_commands(click.Context(command)):
        subcommand = command.get_command(click.Context(command), name)
        yield f"help of {name}", subcommand.help
        yield from ((f"help of {name} {one.name}", one.help) for one in subcommand.params if getattr(one, "help", None))


def pages() -> Iterator[tuple[str, str]]:
    """Yield the templates of the page in the browser, and the pages of Markdown without code."""
    for path in sorted([*PACKAGE.rglob("*.html"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        yield str(path.relative_to(ROOT)), re.sub(r"`[^`\n]*`", "`code`", path.read_text())
