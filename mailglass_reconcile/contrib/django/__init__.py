"""The Django app: `"mailglass_reconcile.contrib.django"` in `INSTALLED_APPS`; `docs/django.md` is its manual."""

from __future__ import annotations

from mailglass_reconcile.contrib.django.database import connection

__all__ = ["connection"]
