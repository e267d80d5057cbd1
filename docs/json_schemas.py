"""The JSON Schema of what each command prints, from the dataclasses that it prints; `reference.py` writes the files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic needs it before Python 3.12
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from mailglass_reconcile import Erased, PruneResult, SweepResult
from mailglass_reconcile.handlers.dispatcher import DispatchResult
from mailglass_reconcile.ops.checks import Finding
from mailglass_reconcile.ops.deliveries import DeliverySummary
from mailglass_reconcile.ops.explanation import Explanation
from mailglass_reconcile.ops.handler_jobs import HandlerJob, JobGroup
from mailglass_reconcile.ops.prune_preview import Preview
from mailglass_reconcile.ops.status import Status
from mailglass_reconcile.pubsub.subscriber import Update
from mailglass_reconcile.rules.states import EventState, OpenState
from mailglass_reconcile.store.queries.orphan_lists import ListedEvent

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def printed(hint: Any, *, omit: tuple[str, ...] = (), **changed: Any) -> Any:
    """Return a type as JSON has it: a dataclass is an object that has each of its fields, with its docstring's words.

    Args:
        hint: A dataclass, or a type that is made of them.
        omit: Fields of the dataclass that are not printed.
        changed: Fields that are printed in addition, or that have fewer or more values.
    """
    if dataclasses.is_dataclass(hint) or is_typeddict(hint) or hasattr(hint, "_fields"):
        notes = dict(_ATTRIBUTE.findall((inspect.getdoc(hint) or "").partition("Attributes:\n")[2]))
        fields = {name: type_ for name, type_ in {**get_type_hints(hint), **changed}.items() if name not in omit}
        return TypedDict(
            hint.__name__,
            {
                name: Annotated[printed(type_), Field(description=" ".join(notes[name].split()))]
                if name in notes
                else printed(type_)
                for name, type_ in fields.items()
            },
        )
    arguments = tuple(argument if argument is Ellipsis else printed(argument) for argument in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return Union[arguments]  # noqa: UP007 - its members are not known here
    return get_origin(hint)[arguments] if get_origin(hint) in (list, tuple, dict) else hint


def _object(name: str, **fields: Any) -> Any:
    return TypedDict(name, {field: printed(type_) for field, type_ in fields.items()})


_Meta = _object(
    "Meta",
    event_id=str,
    reconciled_from_event_id=NotRequired[str],  # a message about an attached event has none
    type=str,
    occurred_at=str,
    tenant_id=str,
)
_Message = _object("Message", event=Literal["delivery_updated"], delivery_id=str, event_type=str, meta=_Meta)
_Handler = _object("Handler", handler=str, type=str)
_Step = Literal[tuple(field.name for field in dataclasses.fields(PruneResult) if field.name != "failures")]

PRINTED: dict[str, tuple[str, Any]] = {
    "dispatch": (
        "What `mailglass-reconcile dispatch --json` prints; with --waiting or --dead the list of that name, `groups`"
        " and `total`; with --retry `retried`, with --replay `replayed`; with --forget `forgotten`"
        " and `deleted`",
        printed(DispatchResult)
        | _object("Waiting", waiting=list[HandlerJob], groups=list[JobGroup], total=int)
        | _object("Dead", dead=list[HandlerJob], groups=list[JobGroup], total=int)
        | _object("Retried", retried=int)
        | _object("Replayed", replayed=int)
        | _object("Forgotten", forgotten=list[_Handler], deleted=int),
    ),
    "doctor": (
        "What `mailglass-reconcile doctor --json` prints",
        _object("Report", findings=list[printed(Finding, omit=("because", "is_unchecked"))]),
    ),
    "erase": (
        "What `mailglass-reconcile erase --json` prints; with --dry-run, what it would erase",
        printed(Erased),
    ),
    "explain": (
        "What `mailglass-reconcile explain --json` prints; with --message-id or a delivery's id a line per event, or"
        " per delivery if there are none",
        printed(Explanation, event_id=str | None, state=EventState | None, delivery=DeliverySummary | None),
    ),
    "find": (
        "A line of `mailglass-reconcile find --json`",
        printed(DeliverySummary, kind=Literal["delivery"], id=str)
        | printed(ListedEvent, kind=Literal["event"], id=str, summary=str),
    ),
    "listen": ("A line of `mailglass-reconcile listen --json`", printed(Update, message=_Message)),
    "orphans": (
        "A line of `mailglass-reconcile orphans --json`",
        printed(ListedEvent, state=OpenState, summary=str),
    ),
    "prune": ("What `mailglass-reconcile prune --json` prints", printed(PruneResult, status=Literal["ok", "partial"])),
    "prune_step": ("A line of `mailglass-reconcile prune --dry-run --json`", printed(Preview, step=_Step)),
    "status": ("What `mailglass-reconcile status --json` prints", printed(Status)),
    "sweep": ("What `mailglass-reconcile sweep --json` prints", printed(SweepResult)),
}
"""By the file's name: its title, and the type of what is printed."""


class _WithoutFieldTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def texts() -> dict[str, str]:
    """Return the text of each schema, by its file's name."""
    result = {}
    for name, (title, type_) in PRINTED.items():
        schema = TypeAdapter(type_).json_schema(schema_generator=_WithoutFieldTitles, mode="serialization")
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
        result[name] = json.dumps({**head, **schema, "title": title}, indent=1) + "\n"
    return result


def essence(schema: Any, *, has_names: bool = False) -> Any:
    """Return a schema without titles and descriptions; *has_names* is true if the keys are names of fields."""
    if isinstance(schema, dict):
        return {
            key: essence(value, has_names=not has_names and key in ("properties", "$defs"))
            for key, value in schema.items()
            if has_names or key not in ("title", "description")
        }
    return [essence(value) for value in schema] if isinstance(schema, list) else schema
