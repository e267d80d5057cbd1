"""Reading ahead: the next slice is read on a second connection while the one before is linked."""

import threading
import time

import psycopg
import pytest

import mailglass_reconcile
from factories import insert_pairs
from mailglass_reconcile import reconcile
from mailglass_reconcile.rules.connection_errors import Server
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.background_iterator import run_ahead
from waiting import wait_until


def never():
    """Raise if called."""
    raise AssertionError


def test_the_next_item_is_computed_while_the_caller_works_on_the_one_before():
    """Only one is computed ahead, so memory holds two."""
    computed_items = []

    def items():
        for number in range(1, 4):
            computed_items.append(number)
            yield number

    with run_ahead(items(), never) as computed:
        for number in computed:
            wait_until(lambda number=number: len(computed_items) == min(3, number + 1))
    assert computed_items == [1, 2, 3]


def test_an_error_is_raised_where_its_item_would_be():
    """The caller has worked on all items before it."""

    def items():
        yield 1
        raise ZeroDivisionError

    observed = []
    with pytest.raises(ZeroDivisionError), run_ahead(items(), never) as computed:
        observed.extend(computed)
    assert observed == [1]


def test_the_statement_that_runs_ahead_is_cancelled_when_the_block_ends(db):
    """Ctrl-C, a lost lock and a deadline end a block in this way."""

    def items(connected):
        with connected.reading() as tx:
            yield tx.execute("SELECT 1").scalar_one()
            yield tx.execute("SELECT pg_sleep(600)").scalar_one()

    running = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
    )

    def interrupted():
        with (
            db.database.second_connection() as connected,
            run_ahead(items(connected), connected.cancel) as computed,
        ):
            assert next(computed) == 1
            wait_until(lambda: db.value(running) == 1)
            raise KeyboardInterrupt

    started_at = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started_at < 60
    assert db.value(running) == 0


def fill(db, count):
    """Insert orphans and their deliveries."""
    insert_pairs(db, [f"m-{n}" for n in range(count)])


def test_a_sweep_of_several_slices_reads_on_a_second_connection(db, set_limits, monkeypatch):
    """It leaves no thread."""
    set_limits(slice_orphans=4)
    threads = set()
    match_slice = reconciler.reading.match_slice

    def match_in_thread(*arguments, **options):
        threads.add(threading.current_thread())
        return match_slice(*arguments, **options)

    monkeypatch.setattr(reconciler.reading, "match_slice", match_in_thread)
    fill(db, 14)
    assert reconcile().linked == 14
    assert threads.isdisjoint({threading.main_thread()})
    assert not any(thread.is_alive() for thread in threads)


def test_a_sweep_that_gets_no_second_connection_does_without(db, set_limits):
    """The server may have no connection left."""
    set_limits(slice_orphans=4)
    fill(db, 10)
    opened = []

    def connect():
        if opened:
            raise psycopg.OperationalError("FATAL:  sorry, too many clients already")
        opened.append(psycopg.connect(db.url.replace("+psycopg", "")))
        return opened[0]

    engine = engines.create_engine_with(connect, lambda: Server("Postgres", "here", "DATABASES"))
    mailglass_reconcile.configure(engine=engine, settings=db.settings)
    result = reconcile()
    assert (result.status, result.linked) == ("ok", 10)
