"""`manage.py mailglass …`: the command `mailglass-reconcile`, on the database that `DATABASES` has."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mailglass_reconcile import cli
from mailglass_reconcile.contrib.django.apps import COMMAND


class Command(BaseCommand):
    """Hands its arguments over; exit codes and output are those of `mailglass-reconcile`."""

    help = "mailglass-reconcile on the database of DATABASES; `manage.py mailglass help` lists the subcommands."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take everything from the subcommand on."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="subcommand …")

    def handle(self, *_args: Any, arguments: list[str], **_options: Any) -> None:
        """Run the subcommand; it ends with an exit code of its own."""
        wanted = ["--help"] if arguments[:1] in ([], ["help"]) else arguments
        cli.main(wanted, COMMAND)
