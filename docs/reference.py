"""Writes the reference into `api.md` and `command-line.md`: `python docs/reference.py`.

What a reader on GitHub sees comes from the docstrings and the options of the command; a test compares both.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mailglass_reconcile.cli import command

DOCS = Path(__file__).parent
PACKAGE = "mailglass_reconcile"
BEGIN, END = "<!-- reference: written by docs/reference.py -->\n", "<!-- end -->"
WIDTH = 88
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.M)
ENTRY = re.compile(r"^([\w*]+): ", re.M)
TITLES = {"Args": "Arguments"}

NAMES = {
    "Recording": "record_send Sent RecordedDelivery record_webhook WebhookEvent Recorded append broadcast"
    " broadcast_async",
    "Receiving": "webhooks.webhook_app webhooks.receive webhooks.parse webhooks.verify webhooks.webhook_reader"
    " webhooks.InvalidWebhookError webhooks.SignatureError contrib.anymail.webhook_event contrib.anymail.sent",
    "Sweeping": "reconcile reconcile_recent SweepResult prune PruneResult key_rule",
    "Looking, and acting on one event or person": "find_orphans attempt_link Orphan link erase Erased",
    "Handlers": "on_event DeliveryEvent dispatch",
    "Broadcasts": "subscribe subscribe_async Update Missed events_channel",
    "Celery and configuration": "beat_schedule make_beat_schedule available configure Settings include_object",
    "Errors": "MailglassReconcileError ConfigurationError DatabaseUnavailableError DatabaseRefusedError"
    " RedisUnavailableError SchemaOutdatedError LedgerImmutableError InvalidEventError",
}
"""The public names by section, as they are written after `mailglass_reconcile.`."""
DATA = {"beat_schedule": "The entries that `make_beat_schedule()` makes without options."}
"""What is no function and no class, and what it is."""


def main() -> None:
    """Write both pages."""
    for name, text in (("api.md", api()), ("command-line.md", subcommands())):
        page = DOCS / name
        page.write_text(with_reference(page.read_text(), text))


def with_reference(page: str, text: str) -> str:
    """Return a page with *text* between its markers."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + text + rest[rest.index(END) :]


def api() -> str:
    """Return signature and description of each public name, by section."""
    parts = [f"## {title}\n\n" + "\n".join(map(_name, names.split())) for title, names in NAMES.items()]
    return "\n".join(parts)


def _name(path: str) -> str:
    module, _, name = f"{PACKAGE}.{path}".rpartition(".")
    named = getattr(import_module(module), name)
    if name in DATA:
        return f"### {name}\n\n{DATA[name]}\n"
    return f"### {name}\n\n{_signature(name, named)}{''.join(_described(inspect.getdoc(named) or ''))}"


def _signature(name: str, named: Any) -> str:
    """Return a block with the signature; nothing for an error, and for settings, whose fields are described."""
    if isinstance(named, type) and (issubclass(named, Exception) or hasattr(named, "model_fields")):
        return ""
    signature = inspect.signature(named)
    parameters, starred = [], False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not starred:
            parameters.append("*")
        starred = starred or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        default = "" if one.default is one.empty else f" = {one.default!r}"
        star = "*" if one.kind is one.VAR_POSITIONAL else ""
        parameters.append(f"{star}{one.name}: {_annotation(one.annotation)}{default}")
    returned = "" if isinstance(named, type) else f" -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) > WIDTH:
        line = f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){returned}"
    return f"```text\n{line}\n```\n\n"


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return str(getattr(annotation, "__forward_arg__", None) or annotation.__name__)


def _described(docstring: str) -> Iterator[str]:
    """Yield a docstring's text, and each of its sections as a list."""
    text, *sections = SECTION.split(docstring)
    yield text.strip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        lines = textwrap.dedent(body.strip("\n"))
        if title == "Returns":
            yield f"\n**Returns**: {' '.join(lines.split())}\n"
            continue
        entries = ENTRY.split(lines)[1:]
        yield f"\n**{TITLES.get(title, title)}**\n\n"
        for entry, meaning in zip(entries[::2], entries[1::2], strict=True):
            yield f"- `{entry}`: {' '.join(meaning.split())}\n"


def subcommands() -> str:
    """Return what each subcommand does, with its options and examples, as sections of a page."""
    parts = []
    for name in command.list_commands(click.Context(command)):
        one = command.get_command(click.Context(command), name)
        if one is None:
            continue
        options = "".join(f"- `{_usage(param)}`: {param.help}\n" for param in _options(one))
        usage = " ".join(["mailglass-reconcile", name, *["[OPTIONS]"] * bool(options), *_arguments(one)])
        examples = f"\n```text\n{textwrap.dedent(one.epilog.replace(chr(8), '')).strip()}\n```\n" if one.epilog else ""
        parts.append(
            f"## {name}\n\n`{usage}`\n\n{inspect.cleandoc(one.help or '')}\n\n{options}{examples}".rstrip("\n") + "\n"
        )
    return "\n".join(parts)


def _options(one: click.Command) -> list[click.Option]:
    return [param for param in one.params if isinstance(param, click.Option) and not param.hidden]


def _usage(option: click.Option) -> str:
    """Return an option as it is written, with the words that it takes."""
    if option.is_flag:
        return option.opts[0]
    if isinstance(option.type, click.Choice):
        return f"{option.opts[0]} {'|'.join(map(str, option.type.choices))}"
    return f"{option.opts[0]} {option.metavar or option.type.name.upper()}"


def _arguments(one: click.Command) -> list[str]:
    found = [param for param in one.params if isinstance(param, click.Argument)]
    words = [param.metavar or (param.name or "").upper() for param in found]
    return [word if param.required else f"[{word}]" for word, param in zip(words, found, strict=True)]


if __name__ == "__main__":
    main()
