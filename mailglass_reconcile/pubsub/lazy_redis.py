"""redis-py, loaded at its first use: that takes a tenth of a second, and most commands connect to no Redis."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _OnFirstUse(ModuleType):
    """Stands for the module of its name; `isinstance` and `except` see that module's own classes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def load() -> None:
    """Import redis-py now: the second that a process has at its end would not suffice for it."""
    importlib.import_module("redis")


if TYPE_CHECKING:
    import redis
    import redis.asyncio.retry
    import redis.asyncio.sentinel
    import redis.backoff
    import redis.exceptions
    import redis.retry
    import redis.sentinel
else:
    redis = _OnFirstUse("redis")

__all__ = ["load", "redis"]
