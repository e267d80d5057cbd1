"""Variants of tests that `make test` runs, and those that only `make test-all` runs."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(is_quick: Callable[[Any], bool], variants: Iterable[Any]) -> list[Any]:
    """Return the variants as parameters, of which those that are not quick are slow; a tuple is several values."""
    return [
        pytest.param(
            *(variant if isinstance(variant, tuple) else (variant,)),
            marks=() if is_quick(variant) else pytest.mark.slow,
        )
        for variant in variants
    ]
