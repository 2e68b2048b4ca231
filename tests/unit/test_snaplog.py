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
from core.snaplog import (
    Snapshot,
    SnapshotId,
    append,
    find,
    history,
    last_id,
    last_line,
    pages,
    snapshots,
)

EMPTY = VdiRecord(3, b"v" * 16, "disk")


def line(number: int, root: int = 0) -> LogRecord:
    return LogRecord(
        KIND_SNAPSHOT, number, root, number * 10, 2, number + 1, number + 2, f"#{number}"
    )


def tick(number: int) -> LogRecord:
    return replace(line(number), scheduled=True)


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
    root = pack_entry(80, 0, False)
    record = append(store, EMPTY, line(0, root))
    where = last_id(record)
    [snapshot] = snapshots(store, record)
    assert snapshot == Snapshot(3, record.uuid, where, 0, root, 2, 0, 1, 2, "#0")
    assert snapshot.root_block == 80
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


# -- retention -------------------------------------------------------------------------


def numbers(store: Blockstore, record: VdiRecord) -> list[int]:
    return [snapshot.time_ns for snapshot in snapshots(store, record)]


def test_lines_are_counted_through_all_pages(store: Blockstore) -> None:
    record, _ = log_of(store, 60)
    assert last_line(record) == 59
    assert [snapshot.line for snapshot in snapshots(store, record)] == list(range(59, -1, -1))


def test_only_scheduled_snapshots_are_retired(store: Blockstore) -> None:
    record = EMPTY
    for number in range(40):
        record = append(store, record, line(number) if number % 10 == 3 else tick(number))
    record = replace(record, log_retired=37)
    assert numbers(store, record) == [39, 38, 37, 33, 23, 13, 3]
    assert [snap.scheduled for snap in snapshots(store, record)] == [True] * 3 + [False] * 4


def test_pages_that_are_retired_are_not_read(store: Blockstore) -> None:
    """A snapshot that somebody took stays within reach, and nothing between it and the end."""
    record = EMPTY
    for number in range(50 * LOG_RECORDS):
        mine = number in {30 * LOG_RECORDS + 5, 10 * LOG_RECORDS}
        record = append(store, record, line(number) if mine else tick(number))
    assert [page.number for _, page in pages(store, record)] == list(range(48, -1, -1))
    blocks = {page.number: block for block, page in pages(store, record)}
    record = replace(record, log_retired=47 * LOG_RECORDS + 1)
    store.write_queued()
    needed = [48, 47, 30, 10, 0]
    for number in blocks.keys() - set(needed):
        store.device.pwritev(blocks[number] * BLOCK, [b"\xff" * BLOCK])
    assert [page.number for _, page in pages(store, record)] == needed
    kept = [*range(50 * LOG_RECORDS - 1, 47 * LOG_RECORDS, -1), 30 * LOG_RECORDS + 5]
    assert numbers(store, record) == [*kept, 10 * LOG_RECORDS]
    oldest = list(snapshots(store, record))[-1]
    assert find(store, record, oldest.id) == oldest


def test_tombstones_of_what_is_kept_are_kept(store: Blockstore) -> None:
    record, ids = log_of(store, 5)
    for number in range(200):
        record = append(store, record, tick(number + 5))
        if number == 100:
            record = append(store, record, tombstone(ids[2]))
    record = replace(record, log_retired=last_line(record) + 1)
    assert numbers(store, record) == [4, 3, 1, 0]


def test_a_log_from_before_there_were_schedules_stays_within_reach(store: Blockstore) -> None:
    """Its record and its pages have no pointer to what is kept: all that is in them is."""
    record = EMPTY
    for number in range(60):
        record = append(store, record, line(number))
        record = replace(record, log_kept=0, log_kept_number=0)
    store.write_queued()
    for number in range(60, 200):
        record = append(store, record, tick(number))
        old = replace(record, log_retired=last_line(record))
        assert numbers(store, old) == [number, *range(59, -1, -1)]
    assert sum(1 for _ in pages(store, old)) == 3


def test_pages_given_up_by_a_repair_are_not_jumped_to(store: Blockstore) -> None:
    record = append(store, EMPTY, line(0))
    for number in range(1, 100):
        record = append(store, record, tick(number))
    store.write_queued()
    first = [block for block, _ in pages(store, record)][-1]
    store.device.pwritev(first * BLOCK, [bytes(BLOCK)])
    retired = replace(record, log_retired=98)
    with pytest.raises(Corrupt):
        numbers(store, retired)
    assert numbers(store, replace(retired, log_first=1)) == [99, 98]


STEPS = st.one_of(
    st.none(),
    st.integers(0, 200),
    st.tuples(st.integers(1, 40), st.integers(1, 30)),
)


@given(st.lists(STEPS, max_size=60))
def test_the_log_with_retention_against_a_list(
    steps: list[int | tuple[int, int] | None],
) -> None:
    """None takes a snapshot, a number deletes one, a pair has a schedule take some and keep some.

    In the end whatever the walk does not reach is destroyed.
    """
    store = memory_store(256)
    record, alive, count = EMPTY, {}, 0  # type: ignore[var-annotated]
    for step in steps:
        if step is None:
            record = append(store, record, line(count))
            alive[count] = last_id(record)
            count += 1
        elif isinstance(step, int):
            if alive:
                number = list(alive)[step % len(alive)]
                record = append(store, record, tombstone(alive.pop(number)))
        else:
            for _ in range(step[0]):
                record = append(store, record, tick(count))
                alive[count] = last_id(record)
                count += 1
            ours = [snap for snap in snapshots(store, record) if snap.scheduled]
            for snapshot in ours[step[1] :]:
                del alive[snapshot.time_ns]
                record = replace(record, log_retired=max(record.log_retired, snapshot.line + 1))
    store.write_queued()
    reached = {block for block, _ in pages(store, record)}
    for block in range(256, 6 * 256):
        page = LogBlock.unpack(store.device.pread(block * BLOCK, BLOCK), store.sb.uuid)
        if page is not None and block not in reached:
            store.device.pwritev(block * BLOCK, [bytes(BLOCK)])
    assert [(s.time_ns, s.id) for s in snapshots(store, record)] == list(alive.items())[::-1]
    needed = sum(not page.scheduled for _, page in history(store, record))
    scheduled = sum(page.scheduled for _, page in history(store, record))
    assert len(reached) <= 1 + needed + 3 + (scheduled + needed) // LOG_RECORDS
