"""A process under test that waits for a request a tenth of the product's time, so that no test waits half a minute.

Run as `python -m short_timeouts COMMAND ...` instead of `python -m mailglass_reconcile`, or named in
`MAILGLASS_IMPORTS`.
"""

from functools import partial

from mailglass_reconcile import cli
from mailglass_reconcile.receiver import app
from mailglass_reconcile.receiver.admission import AdmissionControl

app.AdmissionControl = partial(AdmissionControl, body_seconds=AdmissionControl.body_seconds / 10)

if __name__ == "__main__":
    cli.main()
