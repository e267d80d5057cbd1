"""Samples: what each provider sends for an event of each type, to try an installation without its account.

`builtin/NAME.json` has the bodies, before they are signed: documented and captured ones, with the keys that we or
Anymail read, and values of our own. Whole payloads, which prove that webhooks are read, are in the tests.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from mailglass_reconcile.providers import wire

_PLACEHOLDER = re.compile(r'"\{(\w+)\}"')


@cache
def load_samples(provider: str) -> dict[str, Any]:
    """Return a built-in provider's bodies by type of event, with placeholders."""
    samples: dict[str, Any] = json.loads((Path(__file__).parent / "builtin" / f"{provider}.json").read_text())
    return samples


def make_sample(provider: str, type_: str, message_id: str, recipient: str | None, at: dt.datetime) -> Any:
    """Return the body of a webhook about a message and a recipient, at a time."""
    values = {
        "message_id": message_id,
        "bare_message_id": message_id.strip("<>"),
        "message_number": int(message_id) if message_id.isdecimal() else message_id,
        "recipient": recipient,
        "event_id": wire.digest([type_, message_id, recipient, at])[:24],
        "time": at.isoformat(),
        "utc_time": f"{at:%Y-%m-%d %H:%M:%S}",
        "timestamp": at.timestamp(),
        "seconds": int(at.timestamp()),
        "seconds_text": str(int(at.timestamp())),
        "milliseconds": int(at.timestamp() * 1_000),
    }
    body = json.dumps(load_samples(provider)[type_])
    return json.loads(_PLACEHOLDER.sub(lambda match: json.dumps(values[match[1]]), body))
