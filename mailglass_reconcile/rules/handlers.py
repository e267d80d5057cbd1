"""Registry of this process's handlers by name, under which the database stores their jobs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules.event_types import ALL, TYPES, ProviderType, SenderType
from mailglass_reconcile.rules.events import DeliveryEvent
from mailglass_reconcile.rules.humanize import did_you_mean

Handler = Callable[[Any, DeliveryEvent], object]
H = TypeVar("H", bound=Handler)

MAX_NAME = 200
_NOT_CALLABLE_DIRECTLY = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class RegisteredHandler(NamedTuple):
    """A handler with its name, its event types, and the file and line of its code."""

    name: str
    function: Handler
    types: frozenset[str]
    location: tuple[str, int] | None


_registered: dict[str, RegisteredHandler] = {}


def on_event(*types: SenderType | ProviderType | Literal["*"], name: str | None = None) -> Callable[[H], H]:
    """Register the decorated function as a handler of events.

    It is called as `handler(connection, event)` for each event of these types that reaches a delivery, until it has
    succeeded. It must not commit. If it raises, it is retried later.

    Args:
        types: Types of events, such as `bounced`; `*` means all types.
        name: The handler's name in the database; None is its dotted path. If you move or rename the function, set it to
            the old path, or its waiting jobs stay there.

    Raises:
        ConfigurationError: A type is not known, the name is taken, or the function cannot be a handler.
    """
    event_types = frozenset(TYPES) if ALL in types else frozenset(map(_validate_type, types))
    if not event_types:
        raise ConfigurationError("on_event needs at least one type, such as @on_event('bounced'); '*' means all types")

    def register(function: H) -> H:
        handler_name = name or _dotted_path(function)
        _validate_handler(handler_name, function)
        location = _source_location(function)
        if name is None:
            handler_name = _resolve_main_name(handler_name, function, location)
        existing = _registered.get(handler_name)
        if existing is not None and not _is_reloaded(existing, function, location):
            at = f" (line {existing.location[1]} of {existing.location[0]})" if existing.location else ""
            raise ConfigurationError(
                f"on_event: a handler {handler_name} is registered already{at}: give this one a name="
            )
        is_same = existing is not None and existing.function is function
        all_types = event_types | existing.types if existing is not None and is_same else event_types
        _registered[handler_name] = RegisteredHandler(handler_name, function, all_types, location)
        return function

    return register


def types_with_handlers() -> frozenset[str]:
    """Return the event types that have a handler in this process."""
    return frozenset().union(*(get_handler.types for get_handler in _registered.values()))


def registered_handlers() -> list[RegisteredHandler]:
    """Return this process's handlers, in the order of their registration."""
    return list(_registered.values())


def get_handler(name: str) -> RegisteredHandler:
    """Return this process's handler of a name."""
    return _registered[name]


def _validate_type(type_: object) -> str:
    if isinstance(type_, str) and type_ in TYPES:
        return TYPES[TYPES.index(type_)]  # a plain string, even if the type is a member of an application's enumeration
    if callable(type_):
        raise ConfigurationError("on_event needs types: write @on_event('bounced') instead of @on_event")
    hint = did_you_mean(str(type_), TYPES, " ({})")
    raise ConfigurationError(f"on_event: {type_!r} is not a known type{hint}; known types: {', '.join(TYPES)}")


def _dotted_path(function: Handler) -> str:
    path = getattr(function, "__qualname__", "")
    if not path or "<lambda>" in path:
        raise ConfigurationError("on_event: a handler that is not a named function needs name=")
    return f"{_module_name(function)}.{path}"


def _module_name(function: Handler) -> str:
    """Return the name of a function's module; if it runs as `python -m`, the name by which others import it."""
    spec = sys.modules["__main__"].__spec__ if function.__module__ == "__main__" else None
    return spec.name if spec else function.__module__


def _resolve_main_name(path: str, function: Handler, location: tuple[str, int] | None) -> str:
    """Return one name for a function whose module is loaded twice: as the program itself, and by an import."""
    main_path = f"__main__.{function.__qualname__}"
    same_code = [
        handler.name
        for handler in _registered.values()
        if location is not None and handler.location == location and handler.name.endswith(f".{function.__qualname__}")
    ]
    if path == main_path:
        return same_code[0] if same_code else path
    if main_path in same_code:
        del _registered[main_path]
    return path


def _validate_handler(name: str, function: Handler) -> None:
    if not name.isprintable() or not name.strip() or len(name) > MAX_NAME:
        raise ConfigurationError(f"on_event: a handler's name must be 1 to {MAX_NAME} printable characters")
    if any(is_kind(function) for is_kind in _NOT_CALLABLE_DIRECTLY):
        raise ConfigurationError(
            f"on_event: {name} is asynchronous or a generator, so calling it would not run it: a handler must be an"
            " ordinary function"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ConfigurationError(f"on_event: {name} must take two arguments, connection and event") from None


def _is_reloaded(existing: RegisteredHandler, function: Handler, location: tuple[str, int] | None) -> bool:
    """Return True if a function is the registered one, or the same code in a reloaded module.

    Functions defined inside another function share their location, but are different functions.
    """
    is_local = "<locals>" in getattr(inspect.unwrap(function), "__qualname__", "")
    return existing.function is function or (location is not None and existing.location == location and not is_local)


def _source_location(function: Handler) -> tuple[str, int] | None:
    """Return a function's file and line: they tell a reloaded module from a second function of the same name."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
