"""Where Celery's autodiscovery looks for the tasks of an installed app."""

from __future__ import annotations

from mailglass_reconcile.tasks import prune, reconcile

__all__ = ["prune", "reconcile"]
