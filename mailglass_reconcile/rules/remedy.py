"""The steps that let an event be linked, finished: with its id, its tenant and the command's name here."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from mailglass_reconcile.errors import docs_url, with_local_names
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import escape_unprintable, sanitize
from mailglass_reconcile.rules.states import MatchState

TENANT_ARGUMENTS = "tenant of webhook_app, tenant_id of receive or record_webhook, or MAILGLASS_TENANT"
"""Where an application says which tenant a webhook belongs to."""


class WrongTenant(NamedTuple):
    """The other tenant that has an event's delivery.

    Attributes:
        tenant_id: The tenant.
        message_id: The delivery's message id.
        provider: The event's provider.
        type: The event's type.
        in_mailglass: True if Mailglass writes the tables.
    """

    tenant_id: str
    message_id: str
    provider: str
    type: str
    in_mailglass: bool


def find_steps(
    event_id: str,
    state: MatchState,
    *,
    is_expired: bool,
    provider: str | None = None,
    has_candidates: bool = False,
    recipient_lost: bool = False,
    recipient_erased: bool = False,
    wrong_tenant: WrongTenant | None = None,
) -> tuple[str, ...]:
    """Return the steps that let an open or expired event be linked, in order; none if none is needed.

    Args:
        event_id: The event.
        state: The matcher's result for it.
        is_expired: True if no sweep checks it any more.
        provider: The event's provider.
        has_candidates: True if deliveries are listed with it, each with the command that links it.
        recipient_lost: True if the event's recipient is unknown.
        recipient_erased: True if the recipient of one of the deliveries was erased.
        wrong_tenant: For a `tenant_mismatch`, the tenant that has its delivery.
    """
    if wrong_tenant:
        many = f"to record many such events again at once: {docs_url('trouble.md#everything-is-tenant_mismatch')}"
        return tuple(map(with_local_names, (*tenant_steps(wrong_tenant), many)))
    command = f"`mailglass-reconcile link {event_id} DELIVERY_ID --reason ''`"
    listed = "each delivery with such an id is listed with its command" if has_candidates else command
    link_manually = f"if you know its delivery, link it manually: {listed}"
    steps = {
        "unmatched": "store a delivery of the event's tenant under one of these ids, with the event's provider or none;"
        f" if other software sent the message through your account, there will never be one; {link_manually}",
        "unmatchable": f"the event must name a provider, and have an id in one of the fields searched; {link_manually}",
        "ambiguous": "the event must name its recipient, or only one of the deliveries may have the event's provider;"
        f" {link_manually}",
        "recipient_mismatch": "store a delivery to the event's recipient under one of these ids; " + link_manually,
    }
    step = steps.get(state)
    if state in ("unmatched", "unmatchable") and provider_rules.mistyped(provider or ""):
        step = (
            "correct the provider's name where this webhook is recorded, and let the provider send it again, because a"
            f" stored event keeps its name; or {link_manually}"
        )
    if state == "ambiguous" and recipient_lost:
        step = f"no sweep will link it; check the deliveries listed, and {link_manually}"
    if state == "recipient_mismatch" and recipient_erased:
        step = f"nothing, if it is about a person who was erased; otherwise, {link_manually}"
    sweep = f"run `mailglass-reconcile sweep --event {event_id}`, which links it if its delivery exists"
    return tuple(with_local_names(step) for step in (step, sweep if is_expired else None) if step)


def tenant_steps(wrong_tenant: WrongTenant) -> tuple[str, str]:
    """Return the two steps that repair an event whose delivery belongs to another tenant.

    The message id and the tenant come from outside, so they are escaped: none can inject a command.
    """
    tenant = sanitize(wrong_tenant.tenant_id)
    in_mailglass = " (in Mailglass, resolve_webhook_tenant)" if wrong_tenant.in_mailglass else ""
    return (
        f"route these webhooks to tenant {tenant}, because a stored event keeps its tenant:"
        f" {TENANT_ARGUMENTS}{in_mailglass}",
        _redelivery_step(wrong_tenant),
    )


def _redelivery_step(wrong_tenant: WrongTenant) -> str:
    provider, message_id = wrong_tenant.provider, wrong_tenant.message_id
    definition = provider_rules.load_definition(provider)
    if definition and definition.redelivery:
        return definition.redelivery
    request = f"Have {provider_rules.title(provider)} send this webhook again. If it cannot,"
    if definition is None or definition.has_private_key:
        tenant = _literal(wrong_tenant.tenant_id)
        call = f"receive(connection, {_literal(provider)}, body, headers, tenant_id={tenant})"
        return f"{request} record the request from your log: `{call}`"
    is_plain = escape_unprintable(message_id) == message_id and "`" not in message_id
    words = [
        "mailglass-reconcile",
        "trigger",
        provider,
        sanitize(wrong_tenant.type),
        "--message-id",
        message_id if is_plain else "ID",
    ]
    return f"{request} send a sample, which gets the current time: `{shlex.join(words)}`"


def _literal(text: str) -> str:
    """Return a Python literal without a backtick, which would end the call in our sentence."""
    return repr(text).replace("`", "\\x60")
