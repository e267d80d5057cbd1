"""A process that prunes by a retention (`prune`) or erases a person (`erase ADDRESS`), in batches of two rows.

Settings come from the environment. With `RETIRER_DIES_AT=N` the process kills itself at the N-th of its fail points.
"""

import os
import sys

import mailglass_reconcile
from faults.sweeper import die_at
from mailglass_reconcile import runtime
from mailglass_reconcile.record import erasure
from mailglass_reconcile.store.limits import Limits

if __name__ == "__main__":
    runtime.set_limits(Limits(batch_rows=2, retention_rows=2))
    die_at(int(os.environ.get("RETIRER_DIES_AT", "0")))
    if sys.argv[1] == "prune":
        mailglass_reconcile.prune()
    else:
        erasure.erase_with(runtime.database(), erasure.validate_erasure(sys.argv[2]))
