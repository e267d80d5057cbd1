"""Alembic, imported without its INFO line for each of its plugins, seven in the log of a Django site's `migrate`."""

import logging

_plugins = logging.getLogger("alembic.runtime.plugins")
_level = _plugins.level
_plugins.setLevel(logging.WARNING)

from alembic import command, op  # noqa: E402
from alembic.config import Config  # noqa: E402
from alembic.util import CommandError  # noqa: E402

_plugins.setLevel(_level)

__all__ = ["CommandError", "Config", "command", "op"]
