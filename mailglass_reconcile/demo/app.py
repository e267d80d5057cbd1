"""The demo's Celery app: the bundled one, whose beat asks for recent sweeps only, with results that the demo reads."""

from __future__ import annotations

from mailglass_reconcile.celery import app
from mailglass_reconcile.demo.sweeper import RECENT_SECONDS
from mailglass_reconcile.schedule import make_beat_schedule

EXPIRES_SECONDS = 5

# A full sweep of beat's, every five minutes, would link now and then what the demo shows a recent one to link.
_entry = make_beat_schedule(recent=RECENT_SECONDS)["mailglass-reconcile-recent"]
_entry["options"] |= {"ignore_result": False, "expires": EXPIRES_SECONDS}  # a busy machine may be late
app.conf.beat_schedule = {"mailglass-reconcile-recent": _entry}
app.conf.result_extended = True  # a result then says which task it is of
