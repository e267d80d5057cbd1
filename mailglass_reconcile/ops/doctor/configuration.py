"""Whether the environment says what it means: settings that can be read, names that exist, modules that load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules.humanize import nearest, shown
from mailglass_reconcile.settings import ENV_PREFIX, Settings

OF_TESTS = f"{ENV_PREFIX}TEST_"


def settings() -> Iterator[Finding]:
    """Check that the settings can be read, and that no variable is one that nobody reads."""
    try:
        runtime.get_settings()
    except ConfigurationError as fault:
        yield error("settings", str(fault), "correct the variable that the message names")
        return
    unknown = list(unread(os.environ))
    yield from unknown
    if not unknown:
        yield ok("settings", "every MAILGLASS_* variable is known and has a value that can be used")


def unread(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for each variable with our prefix that nothing reads, with the one that was perhaps meant."""
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(environment):
        if not name.upper().startswith(ENV_PREFIX) or name.upper() in known or name.upper().startswith(OF_TESTS):
            continue
        meant = nearest(name, known, likeness=0.75)
        hint = f"; did you mean {meant}?" if meant else ""
        step = f"rename it to {meant}, or remove it" if meant else "remove it; docs/settings.md lists the settings"
        yield warning("settings", f"nothing reads the variable {shown(name)}{hint}", step)


def imports() -> Iterator[Finding]:
    """Check that the modules of MAILGLASS_IMPORTS can be imported."""
    names = [name.strip() for name in runtime.get_settings().imports.split(",") if name.strip()]
    try:
        runtime.load_imports()
    except ConfigurationError as fault:
        yield error("imports", str(fault), "correct MAILGLASS_IMPORTS, or install the module where this command runs")
        return
    yield ok("imports", f"MAILGLASS_IMPORTS: {', '.join(map(shown, names)) or 'none'}")
