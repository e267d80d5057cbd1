"""Message ids in Django's queries are found by our index, which has their hashes."""

import re

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.models import F, Q

import factories

pytestmark = [pytest.mark.usefixtures("app"), pytest.mark.python_dependent]


@pytest.fixture
def deliveries(db):
    """The deliveries' model, with two of one message."""
    for message_id in ("m-1", "m-1", "m-2", None):
        factories.delivery(db, message_id)
    return apps.get_model("mailglass_reconcile", "Delivery").objects


@pytest.mark.parametrize("lookup", [{"provider_message_id": "m-1"}, {"provider_message_id__in": ["m-1", None, "m-3"]}])
def test_an_id_is_found_by_our_index(deliveries, lookup):
    """The query has no provider, which Mailglass does not store."""
    of_message = deliveries.filter(**lookup)
    assert of_message.count() == 2
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
        assert re.search(r"Index Scan (using|on) mailglass_deliveries_reconcile_idx", of_message.explain())


def test_other_comparisons_of_an_id_are_what_they_were(deliveries):
    """Several ids, no id, another column and inequality are tried."""
    assert deliveries.filter(provider_message_id__in=["m-1", "m-2"]).count() == 3
    assert deliveries.filter(provider_message_id__in=deliveries.values("provider_message_id")).count() == 3
    assert deliveries.filter(provider_message_id__in=["m-2", F("recipient")]).count() == 1
    assert deliveries.filter(provider_message_id__in=[]).count() == 0
    assert deliveries.exclude(provider_message_id__in=["m-1", "m-3"]).count() == 2
    assert deliveries.filter(provider_message_id=None).count() == 1
    assert deliveries.filter(provider_message_id=F("provider_message_id")).count() == 3
    assert deliveries.exclude(provider_message_id="m-1").count() == 2
    assert deliveries.filter(Q(provider_message_id="m-2") | Q(provider_message_id="m-3")).count() == 1
