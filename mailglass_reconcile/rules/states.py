"""Every state that a command, a count or the history of runs names; no module makes up another one."""

from __future__ import annotations

from typing import Literal, get_args

Verdict = Literal["matched", "unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch"]
"""What the rule says of an orphan; `matched` is what the next sweep links."""

OpenState = Literal["waiting", Verdict, "expired"]
"""The state of an orphan that is not linked: `waiting` in its grace period, `expired` after the maximum age."""

EventState = Literal[OpenState, "linked", "settled", "no_orphan", "missing", "unknown"]
"""What `explain` says of any event."""

Skipped = Literal["skipped_limit", "skipped_deadline", "skipped_held"]
"""Why a sweep left an orphan that matches, or did not look at it."""

Outcome = Literal[
    "linked",
    "unmatched",
    "unmatchable",
    "ambiguous",
    "tenant_mismatch",
    "recipient_mismatch",
    "skipped",
    "failed",
]
"""What became of each orphan that a sweep scanned; `skipped` is the sum of its three reasons."""

SweepStatus = Literal["ok", "partial", "failed"]
RunStatus = Literal[SweepStatus, "duplicate"]
"""How a run of the history ended; `duplicate` if the same sweep was queued or running already."""

FindingStatus = Literal["ok", "warning", "error"]
"""What the doctor says of a part of the installation."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
OPEN_STATES: tuple[OpenState, ...] = get_args(OpenState)
EVENT_STATES: tuple[EventState, ...] = get_args(EventState)
SKIPPED: tuple[Skipped, ...] = get_args(Skipped)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
