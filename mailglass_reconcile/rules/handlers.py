"""The handlers of this process, by name: the database has their jobs under it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules.event_types import ALL, TYPES
from mailglass_reconcile.rules.events import DeliveryEvent
from mailglass_reconcile.rules.humanize import did_you_mean

Handler = Callable[[Any, DeliveryEvent], object]
H = TypeVar("H", bound=Handler)

MAX_NAME = 200
_NOT_RUN_BY_A_CALL = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class Registered(NamedTuple):
    """A handler, its name, the types it wants, and where its code stands."""

    name: str
    function: Handler
    types: frozenset[str]
    place: tuple[str, int] | None


_registered: dict[str, Registered] = {}


def on_event(*types: str, name: str | None = None) -> Callable[[H], H]:
    """Register the decorated function as a handler of events.

    It is called as `handler(connection, event)` for each event of these types that reaches a delivery, until it has
    succeeded. Its writes through *connection* are committed together with the record that it has succeeded, so it must
    not commit. If it raises, it is retried later. Only the processes that dispatch need to import its module.

    Args:
        types: Types of events, such as `bounced`; `*` is all of them.
        name: The handler's name in the database; None is its dotted path. If it changes, because you move or rename
            the function, run `mailglass-reconcile dispatch --rename OLD NEW`.

    Raises:
        ConfigurationError: A type is not known, the name is taken, or the function cannot be a handler.
    """
    wanted = frozenset(TYPES) if ALL in types else frozenset(map(_known, types))
    if not wanted:
        raise ConfigurationError("on_event needs at least one type, such as @on_event('bounced'); '*' is all of them")

    def register(function: H) -> H:
        called = name or _path(function)
        _check(called, function)
        place = _place(function)
        if name is None:
            called = _of_main(called, function, place)
        before = _registered.get(called)
        if before is not None and not _is_reloaded(before, function, place):
            at = f" (line {before.place[1]} of {before.place[0]})" if before.place else ""
            raise ConfigurationError(f"on_event: a handler {called} is registered already{at}: give this one a name=")
        both = wanted | before.types if before is not None and before.function is function else wanted
        _registered[called] = Registered(called, function, both, place)
        return function

    return register


def is_valid_name(name: str) -> bool:
    """Whether a handler may have a name."""
    return name.isprintable() and bool(name.strip()) and len(name) <= MAX_NAME


def types() -> frozenset[str]:
    """Return the types that have a handler in this process."""
    return frozenset().union(*(handler.types for handler in _registered.values()))


def handlers() -> list[Registered]:
    """Return the handlers of this process, in the order in which they were registered."""
    return list(_registered.values())


def handler(name: str) -> Registered:
    """Return the handler of a name, which this process has."""
    return _registered[name]


def _known(type_: object) -> str:
    if isinstance(type_, str) and type_ in TYPES:
        return TYPES[TYPES.index(type_)]  # a plain string, if the type is a member of an application's enumeration
    if callable(type_):
        raise ConfigurationError("on_event needs types: write @on_event('bounced') instead of @on_event")
    hint = did_you_mean(str(type_), TYPES, " ({})")
    raise ConfigurationError(f"on_event: {type_!r} is not a known type{hint}; known types: {', '.join(TYPES)}")


def _path(function: Handler) -> str:
    path = getattr(function, "__qualname__", "")
    if not path or "<lambda>" in path:
        raise ConfigurationError("on_event: a handler that is not a named function needs name=")
    return f"{_module(function)}.{path}"


def _module(function: Handler) -> str:
    """Return the name of a function's module; of one that runs by `python -m`, the name that others import it by."""
    spec = sys.modules["__main__"].__spec__ if function.__module__ == "__main__" else None
    return spec.name if spec else function.__module__


def _of_main(path: str, function: Handler, place: tuple[str, int] | None) -> str:
    """Return the name of a function whose module is loaded twice: as the program itself, and by its name."""
    main = f"__main__.{function.__qualname__}"
    twins = [
        one.name
        for one in _registered.values()
        if place is not None and one.place == place and one.name.endswith(f".{function.__qualname__}")
    ]
    if path == main:
        return twins[0] if twins else path
    if main in twins:
        del _registered[main]
    return path


def _check(name: str, function: Handler) -> None:
    if not is_valid_name(name):
        raise ConfigurationError(f"on_event: a handler's name must be 1 to {MAX_NAME} printable characters")
    if any(is_kind(function) for is_kind in _NOT_RUN_BY_A_CALL):
        raise ConfigurationError(
            f"on_event: {name} is asynchronous or a generator, so calling it would not run it: a handler must be an"
            " ordinary function"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ConfigurationError(f"on_event: {name} must take two arguments, connection and event") from None


def _is_reloaded(before: Registered, function: Handler, place: tuple[str, int] | None) -> bool:
    """Whether a function is the one that was registered before, or that of its module, which was loaded again.

    Functions that another function has made stand in one place and are different all the same.
    """
    made = "<locals>" in getattr(inspect.unwrap(function), "__qualname__", "")
    return before.function is function or (place is not None and before.place == place and not made)


def _place(function: Handler) -> tuple[str, int] | None:
    """Return file and line, which tell a module that is loaded again from a second function of the same name."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
