"""The web process: it queues receipts, and receives the webhooks of every provider with a secret."""

from typing import Annotated

from fastapi import Body, FastAPI, status

from mailglass_reconcile.webhooks import webhook_app
from shop.mail import send_receipt

api = FastAPI()
api.mount("/webhooks", webhook_app())


@api.post("/receipts", status_code=status.HTTP_202_ACCEPTED)
def queue_receipt(to: Annotated[str, Body()]) -> dict[str, str]:
    """Queue a receipt. A real application checks the caller."""
    return {"task": send_receipt.delay(to).id}
