"""Certificates from a file instead of Amazon's and Scaleway's servers, for `MAILGLASS_IMPORTS` of a process under
test.
"""

import json
import os
from pathlib import Path

from mailglass_reconcile.providers import sns

_ANSWERS = json.loads(Path(os.environ["TEST_CERTIFICATES"]).read_text())


def fetch(url: str) -> bytes:
    """Return the file's certificate for an address."""
    if url not in _ANSWERS:
        raise OSError("no such address")
    return _ANSWERS[url].encode()


sns.fetch = fetch
