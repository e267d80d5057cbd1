"""Server-sent events: a browser sees what happens to a delivery as soon as it happens."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from mailglass_reconcile import Missed, subscribe_async

REFRESH = "event: refresh\ndata: {}\n\n"
"""The browser should read the delivery: it has just connected, or may have missed something."""

router = APIRouter()


@router.get("/deliveries/{delivery_id}/updates")
async def updates(delivery_id: uuid.UUID) -> StreamingResponse:
    """Stream one delivery's updates. A real application checks whether the user may see them."""
    return StreamingResponse(stream(delivery_id), media_type="text/event-stream")


async def stream(delivery_id: uuid.UUID) -> AsyncIterator[str]:
    """Yield one event per update, and a comment if there is none, so that no proxy closes the connection."""
    async with subscribe_async("default", delivery_id) as updates:
        yield REFRESH
        while True:
            try:
                update = await asyncio.wait_for(anext(updates), 15)
            except TimeoutError:
                yield ": nothing new\n\n"
            else:
                yield REFRESH if isinstance(update, Missed) else f"data: {json.dumps(update.message)}\n\n"
