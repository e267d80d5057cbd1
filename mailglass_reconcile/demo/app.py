"""The demo's Celery app: the one that comes along, with a full sweep every second in place of every five minutes,
and with recent sweeps, whose results the demo wants to see."""

from __future__ import annotations

import signal

from mailglass_reconcile.celery import app
from mailglass_reconcile.demo.sweeper import INTERVAL_SECONDS, RECENT_SECONDS
from mailglass_reconcile.schedule import make_beat_schedule
from mailglass_reconcile.testing.servers import ENDING_SIGNALS

signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)  # the demo holds them back while it starts the worker

app.conf.beat_schedule = make_beat_schedule(sweep=INTERVAL_SECONDS, recent=RECENT_SECONDS)
app.conf.beat_schedule["mailglass-reconcile-recent"]["options"] = {"expires": INTERVAL_SECONDS, "ignore_result": False}
app.conf.result_extended = True  # a result then says which task it is of
