"""Providers' webhooks: read, verified, received."""

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.webhooks.app import webhook_app
from mailglass_reconcile.webhooks.readers import webhook_reader
from mailglass_reconcile.webhooks.reading import parse, verify
from mailglass_reconcile.webhooks.receiving import receive

__all__ = ["InvalidWebhookError", "SignatureError", "parse", "receive", "verify", "webhook_app", "webhook_reader"]
