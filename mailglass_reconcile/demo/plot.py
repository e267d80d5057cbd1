"""The demo's plot: four waves of mail of two tenants, and among their webhooks those that must stay open."""

from __future__ import annotations

from mailglass_reconcile.demo.story import AMBIGUOUS, NO_DELIVERY, NO_ID, OTHER_TENANT, Cast, Mail, Wave, Webhook

SHOP = "acme"
PRESS = "globex"
TENANTS = (SHOP, PRESS)

READ = ("Delivery=delivered", "Open=opened")
CLICKED = (*READ, "Click=clicked")
RELAYED = ("processed=queued", "delivered=delivered")
ENGAGED = (*RELAYED, "open=opened", "click=clicked")


def waves() -> list[Wave]:
    """Return the plot; every call makes the same mails with the same provider ids."""
    cast = Cast()
    return [_brief(cast), _first(cast), _second(cast), _third(cast)]


def _brief(cast: Cast) -> Wave:
    """What happens all day: the webhook is a moment faster than the commit, and a recent sweep links it at once."""
    return Wave([cast.postmark_mail(SHOP, *READ), cast.sendgrid_mail(PRESS, "processed=queued")], brief=True)


def _first(cast: Cast) -> Wave:
    """Ordinary mail of both, and an event about mail that other software sent on the same account."""
    mails = [
        cast.postmark_mail(SHOP, *CLICKED),
        cast.postmark_mail(SHOP, *READ),
        cast.sendgrid_mail(PRESS, *ENGAGED),
        cast.sendgrid_mail(PRESS, *RELAYED),
    ]
    return Wave(mails, [cast.postmark(SHOP, cast.guid(), "Delivery", "delivered", NO_DELIVERY)])


def _second(cast: Cast) -> Wave:
    """A bounce and a deferral; one id for two recipients, which nothing tells apart; an id cut down to its suffix."""
    twins = _twins(cast)
    mails = [
        cast.postmark_mail(SHOP, "Bounce=bounced"),
        cast.sendgrid_mail(PRESS, "processed=queued", "deferred=deferred", "delivered=delivered"),
        *twins,
    ]
    ambiguous = cast.sendgrid(PRESS, cast.relayed(twins[0].message_id), "delivered", "delivered", AMBIGUOUS)
    malformed = cast.sendgrid(PRESS, "filter0093p1las1.9128.5717FB8127.0", "dropped", "rejected", NO_ID)
    return Wave(mails, [ambiguous, malformed])


def _third(cast: Cast) -> Wave:
    """A complaint; a mail whose transaction rolls back; a webhook stamped with the tenant `default`."""
    complained = cast.postmark_mail(SHOP, *READ, "SpamComplaint=complained")
    rolled_back = cast.postmark_mail(SHOP, "Delivery=delivered", commits=False)
    mails = [complained, cast.sendgrid_mail(PRESS, *ENGAGED), rolled_back]
    misdirected = cast.postmark("default", complained.message_id, "Open", "opened", OTHER_TENANT)
    stray = cast.sendgrid(PRESS, cast.relayed(cast.text(22)), "delivered", "delivered", NO_DELIVERY)
    return Wave(mails, [misdirected, stray])


def _twins(cast: Cast) -> tuple[Mail, Mail]:
    """Return two deliveries of one API call: the same id, another recipient each, and no webhook of their own."""
    one, other = cast.sendgrid_mail(PRESS), cast.sendgrid_mail(PRESS)
    return one, Mail(PRESS, one.message_id, other.recipient, ())


def all_webhooks(plot: list[Wave]) -> list[Webhook]:
    """Return every webhook of the plot."""
    return [webhook for wave in plot for webhook in wave.webhooks]
