"""A snapshot every 10 ms under a writer: each is a moment between two of its requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.fake_locks import wait_for
from support.stores import small_store
from support.tap import RawClient, tap_process

from core.check import check
from core.format import BLOCK
from core.schedule import MIN_INTERVAL_NS
from core.session import Session

BLOCKS = 512
SECONDS = 3.0
KEEP = 60
LONGEST = 5
"""Blocks that one request may write."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = small_store(tmp_path, 8192, 12)
    with Session.open(path) as session:
        record = session.create("counted", BLOCKS * BLOCK)
        session.snapshot(record, "by hand")
        session.schedule(record, MIN_INTERVAL_NS, KEEP)
    return path


def place(number: int) -> tuple[int, int]:
    """Where request `number` writes: first block and count."""
    count = 1 + number % LONGEST
    return number * 7 % (BLOCKS - count), count


def write(
    client: RawClient, seconds: float, number: int = 0, enough: Callable[[], bool] = lambda: True
) -> int:
    """Write blocks full of the number of the request, one after the other; return the last.

    It takes so many seconds at least, and until it is enough.
    """
    end = time.monotonic() + seconds
    while True:
        number += 1
        first, count = place(number)
        data = number.to_bytes(8, "little") * (count * BLOCK // 8)
        assert client.write(first * BLOCK, data) == 0
        if time.monotonic() >= end:
            if enough():
                return number
            end = time.monotonic() + 0.1


def count(store: str) -> int:
    """How many snapshots there are, with that by hand; the tap may be taking some."""
    with Session.open(store, "read") as session:
        return session.registry.find("counted").snapshots


def taken(store: str) -> list[np.ndarray]:
    """What the scheduled snapshots hold, a number for each 8 bytes, oldest first."""
    found = []
    with Session.open(store, "read") as session:
        for snapshot in session.snapshots(session.registry.find("counted")):
            if snapshot.scheduled:
                raw = session.image(snapshot).read(0, BLOCKS * BLOCK)
                found.append(np.frombuffer(raw, np.int64).reshape(BLOCKS, -1))
    return found[::-1]


def assert_moments(snapshots: list[np.ndarray], last: int) -> None:
    """Replay the requests: each snapshot must be what there was after some of them."""
    disk, done = np.zeros(BLOCKS, np.int64), 0
    for snapshot in snapshots:
        blocks = snapshot[:, 0]
        assert (snapshot == blocks[:, None]).all(), "a block is torn"
        moment = int(blocks.max())
        assert done < moment <= last, "not newer than the snapshot before"
        for number in range(done + 1, moment + 1):
            first, count = place(number)
            disk[first : first + count] = number
        done = moment
        assert (blocks == disk).all(), f"not the contents after request {moment}"


@pytest.mark.slow
def test_every_snapshot_is_a_moment_between_two_requests(store: str) -> None:
    with tap_process(store) as tap, RawClient(tap.unix) as client:
        last = write(client.go("counted"), SECONDS, enough=lambda: count(store) > KEEP)
    snapshots = taken(store)
    assert len(snapshots) == KEEP
    assert_moments(snapshots, last)
    report = check(store)
    assert not report.damaged
    assert report.snapshots == KEEP + 1


@pytest.mark.slow
def test_what_is_not_written_to_gets_no_snapshot(store: str) -> None:
    with tap_process(store) as tap, RawClient(tap.unix) as client:
        client.go("counted")
        time.sleep(0.1)
        assert client.write(0, b"once" * 1024) == 0
        wait_for(lambda: count(store) > 1)
        time.sleep(0.3)
    assert len(taken(store)) == 1


@pytest.mark.slow
def test_a_killed_tap_leaves_moments(store: str) -> None:
    """And the next one goes on where it was, in the same log."""
    last = 0
    for _ in range(3):
        with tap_process(store) as tap, RawClient(tap.unix) as client:
            last = write(client.go("counted"), 0.7, last, lambda: count(store) > 1)
            tap.kill()
        before = check(store)
        assert not before.damaged
        assert 1 < before.snapshots <= KEEP + 1
        snapshots = taken(store)
        last = max(int(snapshot.max()) for snapshot in snapshots)
        with Session.open(store) as session:  # what was lost in the crash is written again
            record = session.registry.find("counted")
            session.rollback(record, next(session.snapshots(record)))
            session.collect()
        assert_moments(snapshots, last)
