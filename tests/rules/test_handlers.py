"""Handlers: which callables are valid, under which name, for which types."""

import functools
import importlib
import sys

import pytest

import mailglass_reconcile
from mailglass_reconcile import ConfigurationError, on_event
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.event_types import TYPES

pytestmark = pytest.mark.version_independent


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def handler(connection, event):
    """Do nothing."""


def test_a_handler_s_name_is_its_dotted_path_unless_it_is_given():
    """The outbox stores it, so it must be the same in each process."""
    on_event("bounced")(handler)
    on_event("opened", name="audit")(handler)
    assert [
        (registered_handler.name, registered_handler.types) for registered_handler in registry.registered_handlers()
    ] == [
        (f"{__name__}.handler", {"bounced"}),
        ("audit", {"opened"}),
    ]
    assert registry.types_with_handlers() == {"bounced", "opened"}


def test_a_callable_that_is_no_function_needs_an_explicit_name():
    """It has no place in a file."""
    on_event("bounced", name="audit")(functools.partial(handler))
    assert [registered_handler.name for registered_handler in registry.registered_handlers()] == ["audit"]


def test_a_star_is_all_types_and_decorating_twice_adds_types():
    """`@on_event("bounced") @on_event("opened")` is one handler of both types."""
    on_event("*", name="all")(handler)
    assert registry.types_with_handlers() == set(TYPES)
    on_event("bounced")(on_event("opened")(handler))
    [stacked] = [
        registered_handler for registered_handler in registry.registered_handlers() if registered_handler.name != "all"
    ]
    assert stacked.types == {"bounced", "opened"}


@pytest.mark.parametrize(
    ("decorate", "words"),
    [
        (
            lambda: on_event("bounce")(handler),
            r"'bounce' is not a known type \(did you mean bounced\?\); known ",
        ),
        (lambda: on_event(handler), "write @on_event"),
        (lambda: on_event()(handler), "at least one type"),
        (lambda: on_event("bounced")(lambda connection, event: None), "needs name="),
        (lambda: on_event("bounced")(functools.partial(handler)), "needs name="),
        (lambda: on_event("bounced")(lonely), "must take two arguments"),
        (lambda: on_event("bounced")(asynchronous), "is asynchronous"),
        (lambda: on_event("bounced", name="a\nb")(handler), "printable"),
        (lambda: on_event("bounced", name=f"{__name__}.handler")(lambda c, e: None), "is registered already"),
    ],
)
def test_an_invalid_handler_is_refused_with_a_reason(decorate, words):
    """It is refused at registration, not at the first event."""
    on_event("bounced")(handler)
    with pytest.raises(ConfigurationError, match=words):
        decorate()


def lonely(event):
    """Take one argument."""


async def asynchronous(connection, event):
    """Return a coroutine that nobody awaits."""


MODULE = """
from mailglass_reconcile import on_event
@on_event("bounced")
def handle(connection, event): pass
"""


def test_a_module_that_is_loaded_again_replaces_its_handlers_and_a_second_of_the_name_is_refused(tmp_path, monkeypatch):
    """Otherwise a second function of a name would run instead of the first, unnoticed."""
    file = tmp_path / "reloaded_handlers.py"
    file.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = importlib.import_module("reloaded_handlers").handle
    assert importlib.reload(sys.modules["reloaded_handlers"]).handle is not first
    [registered_handler] = registry.registered_handlers()
    assert registered_handler.function is not first
    (tmp_path / "twofold_handlers.py").write_text(MODULE + MODULE)
    mailglass_reconcile.configure(settings=mailglass_reconcile.Settings(imports="twofold_handlers"))
    try:
        with pytest.raises(ConfigurationError, match=r"import twofold_handlers: .*registered already \(line 3"):
            mailglass_reconcile.dispatch()
    finally:
        mailglass_reconcile.configure()


def test_functions_made_by_another_function_need_explicit_names():
    """They are at one place in a file, like those of a reloaded module, but do different things."""

    def make_handler(answer):
        def handle(connection, event):
            return answer

        return handle

    on_event("bounced")(make_handler(1))
    with pytest.raises(ConfigurationError, match=r"is registered already .*give this one a name="):
        on_event("opened")(make_handler(2))
    on_event("opened", name="second")(make_handler(2))
    assert [registered_handler.function(None, None) for registered_handler in registry.registered_handlers()] == [1, 2]
