"""Which variants of a test `make test` runs, and which only `make test-all`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(is_quick: Callable[[Any], bool], variants: Iterable[Any]) -> list[Any]:
    """Return the variants as parameters of a test, those that are not quick marked slow; a tuple is several values."""
    return [
        pytest.param(
            *(variant if isinstance(variant, tuple) else (variant,)),
            marks=() if is_quick(variant) else pytest.mark.slow,
        )
        for variant in variants
    ]
