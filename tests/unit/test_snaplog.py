"""The snapshot log: pages, tombstones, ids that never change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import memory_store

from core import snaplog
from core.blockstore import Blockstore
from core.errors import Corrupt, NoSpace
from core.format import (
    BLOCK,
    KIND_SNAPSHOT,
    KIND_TOMBSTONE,
    LOG_RECORDS,
    LogBlock,
    LogRecord,
    VdiRecord,
    entry_block,
    pack_entry,
)
from core.snaplog import Snapshot, SnapshotId, append, find, history, last_id, pages, snapshots

EMPTY = VdiRecord(3, b"v" * 16, "disk")


def line(number: int) -> LogRecord:
    root = pack_entry(100_000 + number, 0, False)
    return LogRecord(
        KIND_SNAPSHOT, number, root, number * 10, 2, number + 1, number + 2, f"#{number}"
    )


def tombstone(where: SnapshotId) -> LogRecord:
    return LogRecord(KIND_TOMBSTONE, 0, where.block, where.offset)


def log_of(
    store: Blockstore, count: int, record: VdiRecord = EMPTY
) -> tuple[VdiRecord, list[SnapshotId]]:
    ids = []
    for number in range(count):
        record = append(store, record, line(number))
        ids.append(last_id(record))
    return record, ids


@pytest.fixture
def store() -> Blockstore:
    return memory_store()


def test_an_empty_log(store: Blockstore) -> None:
    assert list(history(store, EMPTY)) == []
    assert list(snapshots(store, EMPTY)) == []
    assert find(store, EMPTY, SnapshotId(0, 0)) is None


def test_a_line_says_all_about_a_snapshot(store: Blockstore) -> None:
    record, [where] = log_of(store, 1)
    root = pack_entry(100_000, 0, False)
    [snapshot] = snapshots(store, record)
    assert snapshot == Snapshot(3, record.uuid, where, 0, root, 2, 0, 1, 2, "#0")
    assert snapshot.root_block == 100_000
    assert str(where) == f"{where.block}.0"
    assert store.sb.holds_payload(where.block)


def test_the_newest_page_takes_no_write_of_its_own(store: Blockstore) -> None:
    record, ids = log_of(store, LOG_RECORDS)
    assert record.log_previous == 0
    assert store.device.pread(record.log_block * BLOCK, BLOCK) == bytes(BLOCK)
    assert ids == [SnapshotId(record.log_block, n) for n in range(LOG_RECORDS)]


def test_ids_stay_when_the_page_moves_out(store: Blockstore) -> None:
    record, ids = log_of(store, 60)
    store.write_queued()
    assert [where for where, _ in history(store, record)] == ids[::-1]
    assert [snapshot.label for snapshot in snapshots(store, record)] == [
        f"#{n}" for n in reversed(range(60))
    ]
    assert [block for block, _ in pages(store, record)] == [ids[24].block, ids[0].block]
    for number, where in enumerate(ids):
        found = find(store, record, where)
        assert found is not None
        assert found.time_ns == number


def test_a_tombstone_hides_one_snapshot_and_changes_nothing(store: Blockstore) -> None:
    record, ids = log_of(store, 50)
    before = list(history(store, record))
    for where in (ids[0], ids[30], ids[49]):
        record = append(store, record, tombstone(where))
    labels = {snapshot.label for snapshot in snapshots(store, record)}
    assert labels == {f"#{n}" for n in range(50)} - {"#0", "#30", "#49"}
    assert find(store, record, ids[30]) is None
    assert list(history(store, record))[3:] == before


def test_ten_thousand_snapshots() -> None:
    store = memory_store(1024)
    record, ids = log_of(store, 10_000)
    record = append(store, record, tombstone(ids[5]))
    store.write_queued()
    store.queue(ids[-1].block, b"")  # the newest page must not be looked for there
    assert len(set(ids)) == 10_000
    assert sum(1 for _ in snapshots(store, record)) == 9_999
    assert record.log_number == 10_000 // LOG_RECORDS
    assert len(record.page) == 10_000 % LOG_RECORDS + 1


@given(st.lists(st.one_of(st.none(), st.integers(0, 200)), max_size=120))
def test_the_log_against_a_list(steps: list[int | None]) -> None:
    """None takes a snapshot, a number deletes one of those there are."""
    store = memory_store()
    record, alive, count = EMPTY, {}, 0  # type: ignore[var-annotated]
    for step in steps:
        if step is None:
            record = append(store, record, line(count))
            alive[last_id(record)] = count
            count += 1
        elif alive:
            where = list(alive)[step % len(alive)]
            record = append(store, record, tombstone(where))
            del alive[where]
    assert [(s.id, s.time_ns) for s in snapshots(store, record)] == list(alive.items())[::-1]


def test_a_full_store_refuses_a_page_and_leaves_the_log(store: Blockstore) -> None:
    record, ids = log_of(store, LOG_RECORDS)
    store.allocator.reserve(store.allocator.free, urgent=True)
    while True:
        try:
            store.allocator.reserve(1, urgent=True)
        except NoSpace:
            break
    with pytest.raises(NoSpace, match="the blockstore is full"):
        append(store, record, line(99))
    assert [where for where, _ in history(store, record)] == ids[::-1]
    store.allocator.unreserve(1)
    record = append(store, record, line(99))
    assert sum(1 for _ in history(store, record)) == LOG_RECORDS + 1


def test_a_damaged_page_names_its_block(store: Blockstore) -> None:
    record, ids = log_of(store, 60)
    store.write_queued()
    bad = ids[0].block
    store.device.pwritev(bad * BLOCK, [b"\xff" * BLOCK])
    lines = history(store, record)
    assert [next(lines)[0] for _ in range(36)] == ids[:23:-1]
    with pytest.raises(Corrupt, match=f"block {bad}: is not what the pointer to it promises"):
        next(lines)


def test_a_page_of_another_place_is_refused(store: Blockstore) -> None:
    """A checked pointer that leads to a whole page, but not to the one it should."""
    record, _ = log_of(store, 60)
    store.write_queued()
    for wrong in (
        replace(record, id=4),
        replace(record, log_number=record.log_number + 1),
    ):
        with pytest.raises(Corrupt) as caught:
            list(history(store, wrong))
        assert f"of the snapshot log of VDI {wrong.id}" in caught.value.message
        assert caught.value.block == entry_block(record.log_previous)


def test_pages_given_up_by_a_repair_are_not_looked_for(store: Blockstore) -> None:
    record, ids = log_of(store, 60)
    store.write_queued()
    store.device.pwritev(ids[0].block * BLOCK, [bytes(BLOCK)])
    repaired = replace(record, log_first=1)
    assert [where for where, _ in history(store, repaired)] == ids[:23:-1]


def test_pages_are_chained_by_checked_pointers(store: Blockstore) -> None:
    record, ids = log_of(store, 60)
    store.write_queued()
    block = entry_block(record.log_previous)
    page = LogBlock.unpack(store.device.pread(block * BLOCK, BLOCK), store.sb.uuid)
    assert page is not None
    assert (page.vdi, page.number) == (3, 1)
    assert entry_block(page.previous) == ids[0].block
    assert snaplog.last_id(record).offset == 60 - 2 * LOG_RECORDS - 1
