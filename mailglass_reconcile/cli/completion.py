"""Completion of providers and types of events with the Tab key."""

from __future__ import annotations

import click

from mailglass_reconcile.errors import UnknownProviderError
from mailglass_reconcile.providers import registry, samples
from mailglass_reconcile.rules.event_types import TYPES


def complete_provider(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of providers that begin with *incomplete*."""
    return [name for name in registry.PROVIDERS if name.startswith(incomplete)]


def complete_type(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the types of events that begin with *incomplete*."""
    return [name for name in sorted(TYPES) if name.startswith(incomplete)]


def complete_sample_type(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the types of which there is a sample by the provider on the command line."""
    try:
        definition = registry.get_provider(context.params["provider"])
    except UnknownProviderError:
        return []
    types = [] if definition.has_private_key else samples.load_samples(definition.name)
    return [type_ for type_ in types if type_.startswith(incomplete)]
