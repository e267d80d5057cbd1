"""The public API for type checkers: mypy --strict and basedpyright read this file, nothing runs it.

An `ignore` that ignores nothing is an error for both, so each stands for an error that must be reported.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, Literal, assert_type
from uuid import UUID

import redis
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

import mailglass_reconcile
from mailglass_reconcile import (
    AsyncSubscription,
    DeliveryEvent,
    DispatchResult,
    Erased,
    EventMatch,
    Missed,
    Orphan,
    PruneResult,
    Recorded,
    RecordedDelivery,
    Sent,
    Settings,
    Subscription,
    SweepResult,
    Update,
    WebhookEvent,
    append,
    attempt_link,
    available,
    beat_schedule,
    broadcast,
    broadcast_async,
    configure,
    dispatch,
    erase,
    events_channel,
    find_orphans,
    key_rule,
    link,
    make_beat_schedule,
    on_event,
    prune,
    reconcile,
    reconcile_recent,
    record_send,
    record_webhook,
    subscribe,
    subscribe_async,
)
from mailglass_reconcile.tables import deliveries, events
from mailglass_reconcile.webhooks import (
    InvalidWebhookError,
    Refusal,
    SignatureError,
    UnknownProviderError,
    parse,
    receive,
    refusal,
    verify,
    webhook_app,
    webhook_reader,
)

assert_type(available(), bool)
assert_type(mailglass_reconcile.__version__, str)


def misspelling() -> None:
    """A misspelled name is an error, although `beat_schedule` is made on first use."""
    from mailglass_reconcile import reconcil  # type: ignore[attr-defined] # pyright: ignore # noqa: F401, PLC0415

    mailglass_reconcile.make_beat_shedule()  # type: ignore[attr-defined] # pyright: ignore


def configuring(engine: sa.Engine, client: redis.Redis) -> None:
    """An application may pass its own engine and client, or nothing."""
    configure()
    configure(engine, client, Settings(grace_seconds=30))
    configure(engine="postgresql://localhost/app")  # type: ignore[arg-type] # pyright: ignore


def sweeping() -> None:
    """Counts are integers, and a status is one of three."""
    result = reconcile("acme", 100)
    assert_type(result, SweepResult)
    assert_type(result.linked, int)
    assert_type(result.remaining, int | None)
    assert_type(result.status, Literal["ok", "partial", "failed"])
    assert_type(reconcile_recent(), SweepResult)
    assert_type(prune(), PruneResult)
    assert_type(dispatch(), DispatchResult)
    assert_type(dispatch().as_dict(), dict[str, int])
    reconcile(limit="100")  # type: ignore[arg-type] # pyright: ignore


def scheduling() -> None:
    """Entries have a task; seconds and intervals are schedules, a text is not."""
    assert_type(beat_schedule["mailglass-reconcile"]["task"], str)
    schedule: dict[str, Any] = {
        **beat_schedule,
        **make_beat_schedule(sweep=60.0, prune=dt.timedelta(days=1), recent=1.0),
    }
    schedule["own"] = {"task": "own", "schedule": 30.0}
    make_beat_schedule(queue="mail", fan_out=50_000, dispatch=10.0)
    make_beat_schedule(recent="1s")  # type: ignore[arg-type] # pyright: ignore
    beat_schedule["mailglass-reconcile"]["taks"]  # type: ignore[typeddict-item] # pyright: ignore


def recording(connection: sa.Connection, session: Session) -> None:
    """Both writers take a Connection or a Session, and any iterable."""
    sent = Sent(recipient="ada@example.com", message_id="m1")
    deliveries = record_send(connection, provider="postmark", sent=(accepted for accepted in [sent]))
    assert_type(deliveries, list[RecordedDelivery])
    assert_type(deliveries[0].delivery_id, UUID)
    now = dt.datetime.now(dt.UTC)
    event = WebhookEvent(
        type="bounced",
        provider_event_id="e1",
        message_id="m1",
        occurred_at=now,
        bounce="hard",
        smtp_status="550 5.1.1",
        smtp_message_id="<m1@mail.example.com>",
    )
    assert_type(event.bounce, Literal["hard", "soft"] | None)
    recorded = record_webhook(session, provider="postmark", events=[event])
    assert_type(recorded, list[Recorded])
    assert_type(recorded[0].delivery_id, UUID | None)
    broadcast(deliveries)
    broadcast(recorded)
    record_webhook(session, provider="postmark", events=[sent])  # type: ignore[list-item] # pyright: ignore
    assert_type(append(connection, tenant_id="acme", type="delivered", occurred_at=now), UUID | None)


def linking_by_hand(connection: sa.Connection, event: UUID, delivery: UUID) -> None:
    """A reason is required, an actor optional."""
    assert_type(link(connection, event, delivery, reason="ticket 4711", actor="ada"), Recorded)
    link(connection, event, delivery)  # type: ignore[call-arg] # pyright: ignore


def erasing(session: Session) -> None:
    """Arguments are keywords only, because a tenant and an address are both strings."""
    assert_type(erase(session, recipient="ada@example.com", tenant_id="acme"), Erased)
    erase(session, "ada@example.com")  # type: ignore[call-arg] # pyright: ignore


async def asynchronously(session: AsyncSession) -> None:
    """`run_sync` keeps the types."""
    recorded = await session.run_sync(record_webhook, provider="postmark", events=[])
    assert_type(recorded, list[Recorded])
    await broadcast_async(recorded)
    await broadcast_async(5)  # type: ignore[arg-type] # pyright: ignore


def looking(connection: sa.Connection) -> str | None:
    """Orphans and their decisions have types."""
    for orphan in find_orphans(connection, tenant_id="acme"):
        assert_type(orphan, Orphan)
        event_match = attempt_link(connection, orphan)
        assert_type(event_match, EventMatch)
        if event_match.state == "matched":
            return event_match.delivery_id
        if event_match.state == "unmached":  # type: ignore[comparison-overlap] # pyright: ignore
            break
    return None


class Base(DeclarativeBase):
    """An application's tables."""


class Delivery(Base):
    """A class that is mapped to a table of ours."""

    __table__ = deliveries
    recipient: Mapped[str]


def selecting(connection: sa.Connection, session: Session) -> list[str]:
    """A column is one of SQLAlchemy's; a table that is not there is an error."""
    from mailglass_reconcile.tables import delivery  # type: ignore[attr-defined] # pyright: ignore # noqa: F401, PLC0415

    assert_type(deliveries.c.recipient, sa.Column[Any])
    joined = deliveries.join(events, events.c.delivery_id == deliveries.c.id)
    statement = sa.select(deliveries.c.recipient, events.c.type).select_from(joined)
    types = dict(connection.execute(statement.where(events.c.occurred_at > dt.datetime.now(dt.UTC))).tuples().all())
    return [types[recipient] for recipient in session.scalars(sa.select(Delivery.recipient))]


@on_event("bouncd")  # type: ignore[arg-type] # pyright: ignore
def misspelled(connection: Any, event: DeliveryEvent) -> None:
    """A type that no event has is refused before the program runs."""


Sent(recipient="ada@example.com", message_id="m1", type="delivered")  # type: ignore[arg-type] # pyright: ignore


@on_event("bounced", "complained")
def suppress(connection: Any, event: DeliveryEvent) -> None:
    """A decorated handler keeps its own type."""
    assert_type(event.recipient, str | None)
    assert_type(event.bounce, Literal["hard", "soft"] | None)
    assert_type(event.smtp_status, str | None)
    assert_type(event.event_id, UUID)


@key_rule("acme", reads=["metadata/message_id"])
def acme(message_id: str | None) -> Iterator[str | None]:
    """An application's rule keeps its own type."""
    yield message_id


def listening() -> None:
    """Items are updates or gaps."""
    with subscribe("acme") as updates:
        assert_type(updates, Subscription)
        for update in updates:
            assert_type(update, Update | Missed)
            if isinstance(update, Missed):
                assert_type(update.since, dt.datetime)
    assert_type(events_channel("acme"), str)


async def listening_in_an_event_loop() -> None:
    """Items are updates or gaps in an event loop, too."""
    async with subscribe_async("acme") as updates:
        assert_type(updates, AsyncSubscription)
        async for update in updates:
            assert_type(update, Update | Missed)


def receiving(connection: sa.Connection, session: Session, engine: sa.Engine, headers: dict[str, str]) -> None:
    """A webhook is parsed, verified and recorded; an application is mounted."""
    assert_type(parse("sendgrid", b"[]"), list[WebhookEvent])
    verify("postmark", b"{}", headers, secret="user:password", now=dt.datetime.now(dt.UTC))  # noqa: S106
    verify("postmark", b"{}", headers)  # type: ignore[call-arg] # pyright: ignore
    assert_type(receive(connection, "postmark", b"{}", headers, tenant_id="acme"), list[Recorded])
    assert_type(receive(session, "mandrill", b"", headers, secret="k", url="https://a.example/"), list[Recorded])  # noqa: S106
    webhook_app(engine=engine, secrets={"postmark": "user:password", "mailgun": ["old", "new"]}, tenant="acme")
    webhook_app(tenant=lambda path: path.split("/")[1], url="https://a.example/webhooks")
    webhook_app(secrets="postmark=user:password")  # type: ignore[arg-type] # pyright: ignore
    webhook_app(secrets={"acme": {"postmark": "user:password"}, "emca": {"mailgun": "k"}})
    webhook_app(secrets=secret_of, tenant=lambda path: None)
    webhook_reader("acme", read=read_acme, verify=verify_acme)
    webhook_reader("acme", read=verify_acme, verify=verify_acme)  # type: ignore[arg-type] # pyright: ignore
    status, text, _ = assert_type(refusal("brevo", UnknownProviderError()), Refusal)
    assert_type((status, text), tuple[int, str])
    assert_type(SignatureError(), SignatureError)
    assert_type(InvalidWebhookError(), InvalidWebhookError)


def secret_of(provider: str, tenant: str) -> str | None:
    """Return the secret of a tenant."""
    return None


def read_acme(body: bytes, headers: Mapping[str, str]) -> list[WebhookEvent]:
    """Return the events of a custom provider."""
    return []


def verify_acme(body: bytes, headers: Mapping[str, str], *, secret: str, url: str | None, now: dt.datetime) -> None:
    """Verify a custom provider's signature."""
