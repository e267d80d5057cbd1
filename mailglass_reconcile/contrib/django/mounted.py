"""The views that the URLs of a project lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.conf import settings
from django.urls import URLResolver, get_resolver


class MountedView(NamedTuple):
    """A view of a project.

    Attributes:
        view: The function that Django calls.
        module: The module of that function, or of its class.
        patterns: The patterns of the project's URLs that lead to it.
    """

    view: Callable[..., Any]
    module: str
    patterns: tuple[Any, ...]

    @property
    def route(self) -> str:
        """Its path, as the project's URLs have it."""
        return "".join(str(pattern.pattern) for pattern in self.patterns)

    @property
    def parameters(self) -> set[str]:
        """The names of the arguments that it gets from its path."""
        names: set[str] = set()
        for pattern in self.patterns:
            is_resolver = isinstance(pattern, URLResolver)
            names |= {*pattern.pattern.regex.groupindex}
            names |= {*(pattern.default_kwargs if is_resolver else pattern.default_args)}
        return names


def find_views() -> list[MountedView]:
    """Return all views of `ROOT_URLCONF`."""
    return list(_walk(get_resolver().url_patterns)) if getattr(settings, "ROOT_URLCONF", None) else []


def _walk(patterns: Iterable[Any], parents: tuple[Any, ...] = ()) -> Iterator[MountedView]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, (*parents, pattern))
        else:
            function = getattr(pattern.callback, "view_class", pattern.callback)
            yield MountedView(pattern.callback, function.__module__, (*parents, pattern))
