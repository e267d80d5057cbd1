"""The demo's plot: the mail of its three acts, and among their webhooks those that must stay open."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.demo.story import Act, Cast, Webhook
from mailglass_reconcile.rules.matching import AMBIGUOUS, TENANT_MISMATCH, UNMATCHABLE, UNMATCHED

SHOP = "acme"
PRESS = "globex"
TENANTS = (SHOP, PRESS)
OTHERS = "default"

SUFFIX = "filter0093p1las1.9128.5717FB8127.0"


class Plot(NamedTuple):
    """The three acts."""

    race: Act
    link: Act
    open: Act

    @property
    def webhooks(self) -> list[Webhook]:
        """Every webhook of the plot."""
        return [webhook for act in self for webhook in act.webhooks]


def plot() -> Plot:
    """Return the plot; every call makes the same mails with the same provider ids."""
    cast = Cast()
    race = Act(
        [
            cast.postmark_mail(SHOP, "Delivery=delivered", "Open=opened"),
            cast.postmark_mail(SHOP, "Bounce=bounced"),
            cast.sendgrid_mail(PRESS, "processed=queued", "delivered=delivered"),
        ]
    )
    link = Act([cast.sendgrid_mail(PRESS, "delivered=delivered", "click=clicked")])
    twins = cast.twins(PRESS)
    both = cast.relayed(twins[0].message_id)
    rolled_back = cast.postmark_mail(SHOP, "Delivery=delivered", commits=False)
    strays = [
        cast.postmark(SHOP, cast.guid(), "Delivery=delivered", "mail of other software", UNMATCHED),
        cast.sendgrid(PRESS, both, "delivered=delivered", "one id for mail 5 and 6", AMBIGUOUS),
        cast.sendgrid(PRESS, SUFFIX, "dropped=rejected", "an id cut down to its suffix", UNMATCHABLE),
        cast.postmark(OTHERS, race.mails[0].message_id, "Open=opened", f"mail 1, but tenant {OTHERS}", TENANT_MISMATCH),
    ]
    return Plot(race, link, Act([*twins, rolled_back], strays))
