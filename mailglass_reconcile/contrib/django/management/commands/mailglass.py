"""`manage.py mailglass …`: the command `mailglass-reconcile` on the database of `DATABASES`."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mailglass_reconcile import cli
from mailglass_reconcile.contrib.django.apps import COMMAND


class Command(BaseCommand):
    """Passes its arguments on; exit codes and output are those of `mailglass-reconcile`."""

    help = "mailglass-reconcile on the database of DATABASES; `manage.py mailglass help` lists the subcommands."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Accept all arguments from the subcommand on."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="subcommand …")

    def handle(self, *_args: Any, arguments: list[str], **_options: Any) -> None:
        """Run the subcommand, which exits with its own code."""
        cli.main(["--help"] if arguments[:1] in ([], ["help"]) else arguments, COMMAND)
