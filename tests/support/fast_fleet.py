"""The app of `examples/several-databases` with a handler, and a schedule of a second: `celery -A fast_fleet worker`."""

import sqlalchemy as sa
from fleet import app

from mailglass_reconcile import DeliveryEvent, on_event

for entry in app.conf.beat_schedule.values():
    entry["schedule"] = 1.0


@on_event("delivered")
def note(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Write into a table of the handled event's database."""
    connection.execute(sa.text("INSERT INTO public.noted VALUES (:tenant)"), {"tenant": event.tenant_id})
