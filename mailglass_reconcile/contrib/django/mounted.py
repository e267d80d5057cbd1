"""The views that the URLs of a project lead to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.conf import settings
from django.urls import URLResolver, get_resolver


class MountedView(NamedTuple):
    """A view of a project.

    Attributes:
        function: The view without its decorators: a function, or the class of one.
        patterns: The patterns of the project's URLs that lead to it.
    """

    function: Callable[..., Any]
    patterns: tuple[Any, ...]

    @property
    def route(self) -> str:
        """Its path, as the project's URLs have it."""
        return "".join(str(pattern.pattern) for pattern in self.patterns)

    @property
    def parameters(self) -> set[str]:
        """The names of the arguments that it gets from its path; a number is that of a group without a name."""
        names: set[str] = set()
        for pattern in self.patterns:
            regex = pattern.pattern.regex
            names |= {*regex.groupindex} or {str(number) for number in range(1, regex.groups + 1)}
            names |= {*(pattern.default_kwargs if isinstance(pattern, URLResolver) else pattern.default_args)}
        return names


def find_views() -> Iterator[MountedView]:
    """Yield all views of `ROOT_URLCONF`."""
    if getattr(settings, "ROOT_URLCONF", None):
        yield from _walk(get_resolver().url_patterns)


def _walk(patterns: Iterable[Any], parents: tuple[Any, ...] = ()) -> Iterator[MountedView]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, (*parents, pattern))
        else:
            view_class = getattr(pattern.callback, "view_class", None)
            yield MountedView(view_class or inspect.unwrap(pattern.callback), (*parents, pattern))
