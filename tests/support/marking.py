"""How often a variant of a test runs: with `make test`, with each change in CI, or at night."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""Every test of the session's files, also those that `-m` leaves out."""


def mark_variants(find_mark: Callable[[Any], str | None], variants: Iterable[Any]) -> list[Any]:
    """Return the variants as parameters, each with the marker that the function names; a tuple is several values."""
    return [
        pytest.param(
            *(variant if isinstance(variant, tuple) else (variant,)),
            marks=[getattr(pytest.mark, name)] if (name := find_mark(variant)) else [],
        )
        for variant in variants
    ]


def slow_unless(is_quick: Callable[[Any], bool], variants: Iterable[Any]) -> list[Any]:
    """Leave all variants but the quick ones out of `make test`."""
    return mark_variants(lambda variant: None if is_quick(variant) else "slow", variants)


def nightly_unless(
    is_in_ci: Callable[[Any], bool], variants: Iterable[Any], is_quick: Callable[[Any], bool] | None = None
) -> list[Any]:
    """Leave all variants but some of the many that repeat a promise to `make nightly`.

    With *is_quick*, `make test` runs fewer than CI does; without it, what CI runs is as quick as its test.
    """

    def find_mark(variant: Any) -> str | None:
        if is_quick and is_quick(variant):
            return None
        return ("slow" if is_quick else None) if is_in_ci(variant) else "nightly"

    return mark_variants(find_mark, variants)
