"""Our times in Django's queries are right in every time zone, with and without USE_TZ."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from django.apps import apps
from django.db.models import Count, F, Max, OuterRef, Q, Subquery
from django.db.models.functions import ExtractHour, TruncDay
from django.test import override_settings

import factories

pytestmark = [pytest.mark.usefixtures("app"), pytest.mark.python_dependent]

UTC = dt.UTC
FIRST = dt.datetime(2026, 3, 1, 20, 30, tzinfo=UTC)
LAST = dt.datetime(2026, 3, 2, 1, 30, tzinfo=UTC)
"""In Tokyo, both are on the second of March."""


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def zone(request):
    """Set the project's time zone."""
    with override_settings(TIME_ZONE=request.param):
        yield ZoneInfo(request.param)


@pytest.fixture(params=[True, False], ids=["USE_TZ", "naive"])
def local(request, zone):
    """Return a time as the project reads it."""
    with override_settings(USE_TZ=request.param):
        yield (lambda time: time) if request.param else (lambda time: time.astimezone(zone).replace(tzinfo=None))


@pytest.fixture
def events(db):
    """The ledger's model, with two events of a delivery."""
    delivery_id = factories.delivery(db, "m-1")
    rows = [
        {**factories.orphan_row(factories.postmark("m-1"), type=type_), "occurred_at": at.replace(tzinfo=None)}
        for type_, at in (("opened", FIRST), ("clicked", LAST))
    ]
    for row in rows:
        row.update(delivery_id=delivery_id, needs_reconciliation=False)
    factories.insert(db, events=rows)
    db.broken.update({"I2", "I13"})
    return apps.get_model("mailglass_reconcile", "Event").objects


def test_a_time_is_read_and_compared_as_the_project_has_it(events, local):
    """It is compared with a literal, a list, a range and another column."""
    first, last = local(FIRST), local(LAST)
    assert [event.occurred_at for event in events.order_by("occurred_at")] == [first, last]
    assert events.get(occurred_at=first).type == "opened"
    assert events.get(occurred_at__in=[first, first - dt.timedelta(1)]).type == "opened"
    assert events.get(occurred_at__range=(last, last + dt.timedelta(1))).type == "clicked"
    assert events.filter(Q(occurred_at__gte=first), occurred_at__lte=F("occurred_at")).count() == 2
    assert events.aggregate(last=Max("occurred_at"))["last"] == last


def test_a_time_of_a_subquery_is_a_time(events, local):
    """The subquery is an annotation, in `__in`, or in a comparison."""
    last = (
        events.filter(stored_delivery_id=OuterRef("stored_delivery_id"))
        .order_by("-occurred_at")
        .values("occurred_at")[:1]
    )
    response = events.annotate(last=Subquery(last)).get(type="opened")
    assert response.last == local(LAST)
    assert events.get(occurred_at=Subquery(last)).type == "clicked"
    assert events.filter(occurred_at__in=events.filter(type="opened").values("occurred_at")).count() == 1


def test_a_day_and_an_hour_are_those_of_the_projects_time_zone(events, zone, local):
    """`__date`, `__hour` and the functions that group by them are tried."""
    first = FIRST.astimezone(zone)
    assert events.filter(occurred_at__hour=first.hour).count() == 1
    assert events.filter(occurred_at__date=first.date()).count() == 1 + (first.date() == LAST.astimezone(zone).date())
    days = events.annotate(day=TruncDay("occurred_at")).values("day").annotate(n=Count("id")).order_by("day")
    assert days[0]["day"] == local(first.replace(hour=0, minute=0))
    hours = set(events.annotate(hour=ExtractHour("occurred_at")).values_list("hour", flat=True))
    assert hours == {first.hour, LAST.astimezone(zone).hour}
