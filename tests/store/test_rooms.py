"""Blocks that only so many processes may be in at a time, while the database stays free."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from aqx.store import Database
from aqx.store.lock import Lock


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(tmp_path / "search.duckdb", create=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_than_so_many_are_inside(db: Database, count: int):
    with contextlib.ExitStack() as inside:
        assert all(inside.enter_context(db.few_at_a_time(count)) for _ in range(count))
        outside = threading.Event()

        def enter() -> None:
            with db.few_at_a_time(count) as at_once:
                assert not at_once
                outside.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not outside.wait(0.3)
        with db.transaction() as con:  # others store meanwhile
            con.execute("INSERT INTO meta VALUES ('a', '1')")
        inside.close()
        assert outside.wait(30)
        waiting.join()
    with db.few_at_a_time(count) as at_once:
        assert at_once


def test_the_two_rooms_are_apart_and_whoever_has_waited_long_goes_on(db: Database):
    lock = Lock(str(db.path) + ".lock", str(db.path))
    with lock.one_at_a_time(0) as alone, lock.few_at_a_time(1, 0) as first:
        assert alone and first
        with lock.one_at_a_time(0.1) as again, lock.few_at_a_time(1, 0.1) as second:
            assert not again and not second


def test_a_place_is_free_again_after_an_error(db: Database):
    with pytest.raises(ZeroDivisionError), db.few_at_a_time(1):
        raise ZeroDivisionError
    with db.few_at_a_time(1) as at_once:
        assert at_once
