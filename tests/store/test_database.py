"""Ids made by this package."""

import os
import time
import uuid

from mailglass_reconcile.store.database import uuid7s


def test_ids_are_uuids_of_version_7_that_sort_by_their_millisecond():
    """They follow RFC 9562 and are unique."""
    before = time.time_ns() // 1_000_000
    texts = uuid7s(1_000)
    ids = [uuid.UUID(text) for text in texts]
    assert list(map(str, ids)) == texts
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, uuid.RFC_4122)}
    assert all(before <= id_.int >> 80 <= time.time_ns() // 1_000_000 for id_ in ids)
    assert len({id_.int & (2**62 - 1) for id_ in ids}) == len(ids)


def test_a_forked_child_makes_other_ids_than_its_parent():
    """Otherwise the ledger would take two events for one."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sender, " ".join(uuid7s(3)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(receiver) as pipe:
        os.close(sender)
        words = pipe.read().split()
    assert len(words) == 3
    assert {id_[-16:] for id_ in words}.isdisjoint(id_[-16:] for id_ in uuid7s(3))
