"""A message's deliveries in Django's queries: found by our index, which has their ids as hashes."""

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.models import F, Q

import factories

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def deliveries(db):
    """The deliveries' model, with two of one message."""
    for message_id in ("m-1", "m-1", "m-2", None):
        factories.delivery(db, message_id)
    return apps.get_model("mailglass_reconcile", "Delivery").objects


def test_an_id_is_found_by_our_index(deliveries):
    """Without a provider, which Mailglass does not store."""
    wanted = deliveries.filter(provider_message_id="m-1")
    assert wanted.count() == 2
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
        assert "Index Scan using mailglass_deliveries_reconcile_idx" in wanted.explain().replace("Bitmap ", "")


def test_other_comparisons_of_an_id_are_what_they_were(deliveries):
    """Several ids, none, another column, and what is not equal."""
    assert deliveries.filter(provider_message_id__in=["m-1", "m-2"]).count() == 3
    assert deliveries.filter(provider_message_id=None).count() == 1
    assert deliveries.filter(provider_message_id=F("provider_message_id")).count() == 3
    assert deliveries.exclude(provider_message_id="m-1").count() == 2
    assert deliveries.filter(Q(provider_message_id="m-2") | Q(provider_message_id="m-3")).count() == 1
