"""Schedules of VDIs: what is dropped, that it is found again, and what becomes of its space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stores import noise, small_store

from core.check import check, check_store
from core.errors import BadRequest, NotFound
from core.format import (
    BLOCK,
    INCOMPAT_SCHEDULES,
    LOG_RECORDS,
    Superblock,
    VdiRecord,
    entry_block,
)
from core.schedule import MIN_INTERVAL_NS
from core.session import Session
from core.snaplog import pages
from core.tree import read_tree
from core.vdi import Vdi


@pytest.fixture
def path(tmp_path: Path) -> str:
    return small_store(tmp_path, 256)


@pytest.fixture
def session(path: str) -> Iterator[Session]:
    with Session.open(path) as opened:
        yield opened


def tick(vdi: Vdi, number: int) -> None:
    """One scheduled snapshot, named after what was written before."""
    vdi.write(number % 16 * BLOCK, number.to_bytes(8, "big"))
    vdi.snapshot(f"t{number}", scheduled=True)
    vdi.drop_scheduled()


def labels(session: Session, record: VdiRecord) -> list[str]:
    current = session.registry.get(record.id)
    assert current is not None
    return [snapshot.label for snapshot in session.snapshots(current)]


def test_a_schedule_is_durable(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        with session.opened(record) as vdi:
            assert vdi.schedule == (0, 0)
            vdi.set_schedule(MIN_INTERVAL_NS, 7)
            assert vdi.schedule == (MIN_INTERVAL_NS, 7)
    with Session.open(path, "read") as session:
        record = session.registry.find("base")
        assert (record.schedule_ns, record.schedule_keep) == (MIN_INTERVAL_NS, 7)


def test_an_impossible_schedule_is_refused(session: Session) -> None:
    with session.opened(session.create("base", 1 << 20)) as vdi:
        with pytest.raises(BadRequest, match="is not possible"):
            vdi.set_schedule(MIN_INTERVAL_NS - 1, 7)
        with pytest.raises(BadRequest, match="cannot keep 0"):
            vdi.set_schedule(MIN_INTERVAL_NS, 0)
        assert vdi.schedule == (0, 0)


def test_the_newest_are_kept_and_what_somebody_took(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 3)
        for number in range(200):
            tick(vdi, number)
            if number in (5, 90):
                vdi.snapshot(f"mine {number}")
    assert labels(session, record) == ["t199", "t198", "t197", "mine 90", "mine 5"]


def test_without_a_schedule_nothing_is_dropped(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 3)
        for number in range(3):
            tick(vdi, number)
        vdi.set_schedule(0, 0)
        for number in range(3, 6):
            tick(vdi, number)
    assert labels(session, record) == ["t5", "t4", "t3", "t2", "t1", "t0"]


def test_a_smaller_number_to_keep_holds_from_the_next_tick_on(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 50)
        for number in range(60):
            tick(vdi, number)
        vdi.set_schedule(MIN_INTERVAL_NS, 2)
        assert vdi.drop_scheduled() == 48
        assert vdi.drop_scheduled() == 0
    assert labels(session, record) == ["t59", "t58"]


def test_who_opens_the_vdi_next_goes_on_where_the_last_one_was(path: str) -> None:
    for start in range(0, 300, 30):
        with Session.open(path) as session:
            if not start:
                with session.opened(session.create("base", 1 << 20)) as vdi:
                    vdi.set_schedule(MIN_INTERVAL_NS, 40)
            record = session.registry.find("base")
            vdi = session.open_vdi(record)
            for number in range(start, start + 30):
                tick(vdi, number)
                session.commit([vdi])
            session.release(vdi)
        assert not check(path).damaged
    with Session.open(path) as session:
        session.collect()
        record = session.registry.find("base")
        assert labels(session, record) == [f"t{n}" for n in range(299, 259, -1)]
        for snapshot in session.snapshots(record):
            number = int(snapshot.label[1:])
            image = session.image(snapshot)
            for n in range(max(0, number - 15), number + 1):
                assert image.read(n % 16 * BLOCK, 8) == n.to_bytes(8, "big")
    assert check(path).unreachable == 0


def test_a_scheduled_snapshot_can_be_deleted_by_hand(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 4)
        for number in range(4):
            tick(vdi, number)
        session.commit([vdi])
        session.delete_snapshot(session.find_snapshot("base@t2"))
        session.delete_snapshot(session.find_snapshot("base@t0"))
        for number in range(4, 7):
            tick(vdi, number)
    assert labels(session, record) == ["t6", "t5", "t4", "t3"]
    current = session.registry.get(record.id)
    assert current is not None
    assert current.snapshots == 4


def test_what_retention_dropped_cannot_be_deleted_again(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 1)
        tick(vdi, 0)
        session.commit([vdi])
        old = session.find_snapshot("base@t0")
        tick(vdi, 1)
        with pytest.raises(NotFound, match="was deleted"):
            vdi.delete_snapshot(old)
        session.commit([vdi])
        with pytest.raises(NotFound):
            session.find_snapshot(str(old.id))
    assert labels(session, record) == ["t1"]


def test_dropped_pages_are_collected_and_their_blocks_used_again(path: str) -> None:
    """A hundred times more lines go through the log than there are blocks for them."""
    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        vdi = session.open_vdi(record)
        vdi.set_schedule(MIN_INTERVAL_NS, 30)
        vdi.snapshot("mine")
        blocks: set[int] = set()
        for number in range(60 * LOG_RECORDS):
            tick(vdi, number)
            if number % 50 == 0:
                session.commit([vdi])
                session.collect()
                blocks |= {block for block, _ in pages(session.store, vdi.record)}
        session.release(vdi)
        current = session.registry.get(record.id)
        assert current is not None
        assert current.log_number >= 60
        assert len(blocks) < 40, "blocks of pages that were dropped come again"
        assert len(list(pages(session.store, current))) <= 4
        assert labels(session, record)[-1] == "mine"
    report = check(path)
    assert not report.damaged
    assert report.snapshots == 31


def test_damage_in_a_dead_page_does_no_harm(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        with session.opened(record) as vdi:
            vdi.set_schedule(MIN_INTERVAL_NS, 100)
            for number in range(100):
                tick(vdi, number)
        current = session.registry.get(record.id)
        assert current is not None
        [*_, (dead, _), _] = pages(session.store, current)
        with session.opened(record) as vdi:
            vdi.set_schedule(MIN_INTERVAL_NS, 2)
            vdi.drop_scheduled()
        session.store.write(dead, [noise(BLOCK)])
        assert labels(session, record) == ["t99", "t98"]
    assert not check(path).damaged


def test_unsaved_says_whether_a_snapshot_would_be_another(session: Session) -> None:
    record = session.create("base", 1 << 20)
    vdi = session.open_vdi(record)
    assert not vdi.unsaved
    vdi.write(0, b"x" * BLOCK)
    assert vdi.unsaved
    vdi.snapshot()
    assert not vdi.unsaved
    vdi.write(1, b"y")
    session.commit([vdi])
    vdi.write(2, b"z")  # in place
    assert vdi.unsaved
    vdi.snapshot("two")
    session.commit([vdi])
    assert not vdi.unsaved
    vdi.trim(0, 1 << 20)
    assert vdi.unsaved
    vdi.snapshot()
    assert not vdi.unsaved
    vdi.resize(1 << 21)
    assert vdi.unsaved
    session.release(vdi)
    vdi = session.open_vdi(record)
    assert vdi.unsaved
    session.release(vdi)
    session.rollback(record, session.find_snapshot("base@two"))
    vdi = session.open_vdi(record)
    assert vdi.unsaved
    session.release(vdi)


def test_unsaved_after_the_vdi_was_opened_again(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.write(0, b"x")
        vdi.snapshot("s")
    with session.opened(record) as vdi:
        assert not vdi.unsaved
    session.rollback(record, session.find_snapshot("base@s"))
    with session.opened(record) as vdi:
        assert not vdi.unsaved


def test_a_store_with_a_schedule_says_so_to_older_programs(path: str) -> None:
    def features() -> int:
        sb = Superblock.unpack(Path(path).read_bytes()[:BLOCK])
        assert sb is not None
        copy = Superblock.unpack(
            Path(path).read_bytes()[sb.copy_block * BLOCK : (sb.copy_block + 1) * BLOCK]
        )
        assert copy == sb
        return sb.incompat & INCOMPAT_SCHEDULES

    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        session.schedule(record, 0, 0)
        assert features() == 0
        session.schedule(record, MIN_INTERVAL_NS, 3)
        assert features() == INCOMPAT_SCHEDULES
        sequence = session.store.sb.sequence
        session.schedule(record, 0, 0)
        session.schedule(record, MIN_INTERVAL_NS, 3)
        assert session.store.sb.sequence == sequence
    with Session.open(path) as session:
        found = session.registry.find("base")
        assert (found.schedule_ns, found.schedule_keep) == (MIN_INTERVAL_NS, 3)


def test_the_last_page_is_reached_by_the_pointer_to_what_is_kept(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 1)
        for number in range(3 * LOG_RECORDS + 2):
            tick(vdi, number)
    current = session.registry.get(record.id)
    assert current is not None
    assert current.log_kept_number == 0
    assert [page.number for _, page in pages(session.store, current)] == [0]
    assert current.log_previous >> 1 != current.log_kept >> 1
    assert entry_block(current.log_kept) == next(iter(pages(session.store, current)))[0]


def test_a_clone_of_a_dropped_snapshot_is_no_trouble(session: Session) -> None:
    record = session.create("base", 1 << 20)
    with session.opened(record) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 2)
        tick(vdi, 0)
        session.commit([vdi])
        clone = session.create("clone", parent=session.find_snapshot("base@t0"))
        for number in range(1, 3 * LOG_RECORDS):
            tick(vdi, number)
    session.collect()
    branch = read_tree(session.store).branches[record.id]
    assert branch.note == ""
    assert (branch.points[0].id, branch.points[0].state) == (
        (clone.parent_block, clone.parent_offset),
        "deleted",
    )
    assert session.live_image(clone).read(0, 8) == bytes(8)
    assert not check_store(session.store).damaged


def test_a_log_that_drops_more_than_it_has_is_damage(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        with session.opened(record) as vdi:
            vdi.snapshot("mine")
            vdi.amend(log_retired=2)
    [found] = [f.message for f in check(path).findings if f.severity == "damage"]
    assert "drops 2 lines of a snapshot log that is shorter" in found


def test_a_full_store_finds_the_room_of_what_was_dropped(path: str) -> None:
    """Much more is written than fits: what a schedule dropped makes room again and again."""
    with Session.open(path) as session:
        record = session.create("base", 1 << 20)
        with session.opened(record) as vdi:
            vdi.set_schedule(MIN_INTERVAL_NS, 3)
            for number in range(3 * session.store.sb.blocks // 256):
                vdi.write(0, noise(1 << 20, number))
                vdi.snapshot(scheduled=True)
                vdi.drop_scheduled()
                session.commit([vdi])
        assert session.live_image(session.registry.find("base")).read(0, 1 << 20) == noise(
            1 << 20, number
        )
    assert not check(path).damaged


def test_a_clone_does_not_hang_on_a_later_snapshot_with_the_id_of_its_own(
    session: Session,
) -> None:
    base = session.create("base", 16 * BLOCK)
    where = session.snapshot(base, "t")
    session.schedule(base, 10**9, 1)
    with session.opened(base) as vdi:
        tick(vdi, 0)
        tick(vdi, 1)
    assert session.registry.find("base").log_retired
    old = session.create("old", parent=session.find_snapshot("base@t"))
    assert read_tree(session.store).branches[old.id].parent == base.id
    with session.opened(old) as vdi:
        vdi.amend(created_ns=1)  # from a snapshot that had this place before
    tree = read_tree(session.store)
    assert tree.branches[old.id].parent is None
    assert tree.branches[old.id].note == f"clone of {base.id}@{where}, which is gone"
    assert session.clones_of(session.find_snapshot("base@t")) == []
