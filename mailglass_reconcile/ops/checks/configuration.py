"""Checks of the environment: settings that can be read, names that exist, modules that load."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, docs_url
from mailglass_reconcile.ops.checks.check import Finding, check, error, ok, warning
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.settings import ENV_PREFIX, VARIABLES, find_closest_variable

OF_TESTS = f"{ENV_PREFIX}TEST_"


@check("settings", needs="nothing")
def settings() -> Iterator[Finding]:
    """The settings can be read, and every variable with our prefix is one."""
    try:
        runtime.get_settings()
    except ConfigurationError as fault:
        yield error(str(fault), "correct the setting that the message names")
        return
    ours = [name for name in sorted(os.environ) if name.upper().startswith(ENV_PREFIX)]
    unknown = [name for name in ours if name.upper() not in VARIABLES and not name.upper().startswith(OF_TESTS)]
    for name in unknown:
        closest = find_closest_variable(name)
        question = f"; did you mean {closest}?" if closest else ""
        step = (
            f"rename it to {closest}, or remove it"
            if closest
            else f"remove it; {docs_url('settings.md')} lists the settings"
        )
        yield warning(f"nothing reads the variable {sanitize(name)}{question}", step)
    if not unknown:
        yield ok("every MAILGLASS_* variable is known and has a value that can be used")


@check("imports", needs="nothing")
def imports() -> Iterator[Finding]:
    """The modules of MAILGLASS_IMPORTS can be imported."""
    try:
        runtime.load_imports()
    except ConfigurationError as fault:
        yield error(str(fault), "correct MAILGLASS_IMPORTS, or install the module where this command runs")
    else:
        yield ok(f"MAILGLASS_IMPORTS: {sanitize(runtime.get_settings().imports) or 'none'}")


def has_broker_url() -> bool:
    """Return True if CELERY_BROKER_URL sets the broker of the bundled Celery app, which is Redis otherwise."""
    return bool(os.environ.get("CELERY_BROKER_URL"))
