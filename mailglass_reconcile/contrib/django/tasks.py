"""Where Celery's autodiscovery looks for the tasks of an installed app."""

from __future__ import annotations

from mailglass_reconcile.tasks import dispatch, prune, reconcile, reconcile_recent

__all__ = ["dispatch", "prune", "reconcile", "reconcile_recent"]
