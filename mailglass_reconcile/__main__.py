"""`python -m mailglass_reconcile`: the command, for an environment whose scripts are not on the path."""

from __future__ import annotations

from mailglass_reconcile.cli import main

main()
