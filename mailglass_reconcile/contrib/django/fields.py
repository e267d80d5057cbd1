"""Columns that Django has no field for."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db import models


class UTCDateTimeField(models.DateTimeField):
    """A `timestamp without time zone` in UTC, as an aware datetime; what Python cannot hold stays a text."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        """Read it as text: `infinity` and years after 9999 would fail in the driver."""
        return f"({sql})::text", params

    def from_db_value(self, value: str | None, *_others: Any) -> dt.datetime | str | None:
        """Return what Postgres wrote, in UTC."""
        try:
            return None if value is None else dt.datetime.fromisoformat(value).replace(tzinfo=dt.UTC)
        except ValueError:
            return value
