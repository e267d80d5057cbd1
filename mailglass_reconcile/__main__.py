"""The command's entry point, also as `python -m mailglass_reconcile` where scripts are not on the path."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; Ctrl-C while libraries are imported exits as it does later."""
    try:
        from mailglass_reconcile import cli  # noqa: PLC0415 - see above

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
