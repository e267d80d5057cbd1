"""The tasks, in the module where Celery's autodiscovery looks for them."""

from __future__ import annotations

from mailglass_reconcile.tasks import dispatch, prune, reconcile, reconcile_recent

__all__ = ["dispatch", "prune", "reconcile", "reconcile_recent"]
