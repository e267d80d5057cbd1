"""A receiver that is mounted in an application, for plain uvicorn."""

from starlette.applications import Starlette

from mailglass_reconcile import runtime
from mailglass_reconcile.webhooks import webhook_app

runtime.load_imports()
shop = Starlette()
shop.mount("/webhooks", webhook_app())
