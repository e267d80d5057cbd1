"""A process under test that waits for a request a tenth of the product's time, so that no test waits half a minute.

Run as `python -m short_timeouts COMMAND ...` instead of `python -m mailglass_reconcile`, or named in
`MAILGLASS_IMPORTS`.
"""

from mailglass_reconcile import cli, server
from mailglass_reconcile.receiver import admission

server.HEAD_SECONDS /= 10
server.BODY_SECONDS /= 10
admission.BODY_SECONDS /= 10

if __name__ == "__main__":
    cli.main()
