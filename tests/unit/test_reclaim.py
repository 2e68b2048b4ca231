"""Collections: whose blocks are freed, what stays, and what goes back to the host."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.memory import MemoryDevice, RecordingDevice
from support.stores import live, memory_store, noise, poke, small_store

from core.blockstore import Blockstore
from core.check import check_store
from core.device import BlockDevice
from core.errors import Corrupt, InUse, NotSupported
from core.extent import read_bitmap
from core.format import BLOCK, BLOCK_MASK, DELETED, BitmapBlock, Superblock, VdiRecord
from core.lock_master import LockMaster
from core.radix import RadixMap
from core.reclaim import KEEP_DELETED, Account
from core.session import Session


@pytest.fixture
def path(tmp_path: Path) -> str:
    return small_store(tmp_path, 256)


@pytest.fixture
def session(path: str) -> Iterator[Session]:
    with Session.open(path) as session:
        yield session


def made(session: Session, name: str, blocks: int, at: int = 0) -> VdiRecord:
    """Make a VDI of 1 MiB with some blocks of data in it."""
    record = session.create(name, 1 << 20)
    return rewritten(session, record, blocks, at)


def rewritten(session: Session, record: VdiRecord, blocks: int, at: int = 0) -> VdiRecord:
    with session.opened(record) as vdi:
        vdi.write(at * BLOCK, noise(blocks * BLOCK, (record.name, blocks, at)))
    found = session.registry.get(record.id)
    assert found is not None
    return found


def clone(session: Session, name: str, of: str) -> VdiRecord:
    return session.create(name, parent=session.find_snapshot(of))


def delete(session: Session, *names: str) -> None:
    for name in names:
        session.delete(session.registry.find(name), snapshots=True)


def counted(account: Account) -> dict[str, int]:
    return {record.name: blocks for record, blocks in account.own}


def reached(session: Session, record: VdiRecord) -> set[int]:
    """The blocks of a VDI, by a walk of its own that shares nothing with the engine's."""
    store = session.store
    found = {record.log_block} - {0}
    roots = [(record.root, record.height)]
    roots += [(snap.root, snap.height) for snap in session.snapshots(record)]
    for root, height in roots:
        for visit in RadixMap(store, root, height).walk():
            found.add(visit.entry >> 1 & BLOCK_MASK)
            if visit.level == 0:
                found |= {entry >> 1 & BLOCK_MASK for entry in visit.entries.tolist() if entry}
    return found


def expected(session: Session) -> tuple[dict[str, int], int]:
    """What each deleted VDI has to itself, and what several have, block by block."""
    kept: set[int] = set().union(*(reached(session, r) for r in session.registry.vdis()))
    gone = {r.name: reached(session, r) - kept for r in session.registry.vdis(DELETED)}
    every = [block for blocks in gone.values() for block in blocks]
    own = {name: sum(every.count(block) == 1 for block in blocks) for name, blocks in gone.items()}
    return own, len(set(every)) - sum(own.values())


# -- whose -----------------------------------------------------------------------------


def test_an_empty_store_has_nothing_to_free(session: Session) -> None:
    plan = session.plan_collection()
    assert plan.account() == Account((), 0, 0)
    assert session.collect(plan) == 0


def test_a_deleted_vdi_has_its_data_its_nodes_and_its_log(session: Session) -> None:
    made(session, "stays", 3)
    record = made(session, "goes", 5)
    session.snapshot(record)
    delete(session, "goes")
    plan = session.plan_collection()
    account = plan.account()
    assert counted(account) == {"goes": 5 + 1 + 1}
    assert (account.shared, account.leftovers, account.total) == (0, 0, 7)
    assert session.collect(plan) == 7
    plan.give_back()
    assert check_store(session.store).unreachable == 0


def test_what_deleted_snapshots_and_trims_left_is_left_over(session: Session) -> None:
    record = made(session, "disk", 4)
    where = session.snapshot(record)
    rewritten(session, record, 4)
    session.collect()
    session.delete_snapshot(session.find_snapshot(str(where)))
    plan = session.plan_collection()
    account = plan.account()
    assert account == Account((), 0, 4 + 1)
    assert session.collect(plan) == 5
    assert live(session, "disk")[: 4 * BLOCK] == noise(4 * BLOCK, ("disk", 4, 0))


def test_blocks_that_a_live_clone_uses_are_not_counted(session: Session) -> None:
    base = made(session, "base", 6)
    session.snapshot(base, "s")
    copy = clone(session, "copy", "base@s")
    rewritten(session, copy, 2)
    session.delete(session.registry.find("copy"))
    contents = live(session, "base")
    account = session.plan_collection().account()
    assert counted(account) == {"copy": 2 + 1}
    assert (account.shared, account.leftovers) == (0, 0)
    session.collect()
    assert live(session, "base") == contents


def test_what_deleted_vdis_share_is_counted_apart(session: Session) -> None:
    base = made(session, "base", 6)
    session.snapshot(base, "s")
    for number in range(3):
        rewritten(session, clone(session, f"clone{number}", "base@s"), number + 1, number)
    rewritten(session, base, 1, 100)
    delete(session, "clone0", "clone1", "clone2", "base")
    own, shared = expected(session)
    assert shared > 0
    assert set(own.values()) >= {2, 3, 4}
    plan = session.plan_collection()
    account = plan.account()
    assert counted(account) == own
    assert (account.shared, account.leftovers) == (shared, 0)
    assert session.collect(plan) == account.total


def test_trees_of_several_levels_that_share_some_leaves(tmp_path: Path) -> None:
    """Clones change one leaf each and share the others, with the dead and with the living."""
    with Session.open(small_store(tmp_path, 1024)) as session:
        base = session.create("base", 64 << 20)
        with session.opened(base) as vdi:
            for leaf in range(8):
                vdi.write(leaf * 512 * BLOCK, noise(3 * BLOCK, leaf))
            vdi.snapshot("s")
        for number in range(4):
            rewritten(session, clone(session, f"c{number}", "base@s"), 2, number * 512)
        session.snapshot(session.registry.find("c1"), "t")
        rewritten(session, clone(session, "d", "c1@t"), 1, 5 * 512)
        delete(session, "d", "c0", "c1", "c2")
        own, shared = expected(session)
        account = session.plan_collection().account()
        assert counted(account) == own
        assert (account.shared, account.leftovers) == (shared, 0)
        session.delete(session.registry.find("c3"))
        delete(session, "base")
        own, shared = expected(session)
        plan = session.plan_collection()
        account = plan.account()
        assert counted(account) == own
        assert account.shared == shared
        assert session.collect(plan) == account.total
        plan.give_back()
        assert check_store(session.store).allocated == 0


@pytest.mark.parametrize("seed", range(12))
def test_any_family_of_clones_is_counted_block_by_block(tmp_path: Path, seed: int) -> None:
    """Random clones of clones, with data in some of eight leaves, some deleted."""
    rng = random.Random(seed)
    with Session.open(small_store(tmp_path, 1024)) as session:
        session.create("v0", 16 << 20)
        for number in range(1, 14):
            record = rng.choice(session.registry.vdis())
            for _ in range(rng.randrange(4)):
                rewritten(session, record, rng.randrange(1, 4), rng.randrange(8) * 512)
            where = session.snapshot(session.registry.find(record.name))
            if rng.random() < 0.7:
                clone(session, f"v{number}", str(where))
        for record in reversed(session.registry.vdis()):
            if rng.random() < 0.7 and not session.clones(record):
                session.delete(record, snapshots=True)
        own, shared = expected(session)
        plan = session.plan_collection()
        account = plan.account()
        assert counted(account) == own
        assert account.shared == shared
        assert session.collect(plan) == account.total
        plan.give_back()
        report = check_store(session.store)
        assert (report.damaged, report.unreachable) == (False, 0)


def test_accounting_changes_nothing(path: str) -> None:
    with Session.open(path) as session:
        made(session, "goes", 5)
        delete(session, "goes")
    before = Path(path).read_bytes()
    with Session.open(path) as session:
        plan = session.plan_collection()
        assert plan.account() == plan.account()
    assert Path(path).read_bytes() == before


def test_damage_of_a_deleted_vdi_is_freed_with_the_rest(path: str) -> None:
    with Session.open(path) as session:
        record = made(session, "goes", 5)
        delete(session, "goes")
    poke(path, record.root >> 1 & BLOCK_MASK, noise(BLOCK, 1))
    with Session.open(path) as session:
        plan = session.plan_collection()
        account = plan.account()
        assert counted(account) == {"goes": 0}
        assert account.leftovers == 6
        assert session.collect(plan) == 6


def test_damage_of_what_stays_frees_nothing(path: str) -> None:
    with Session.open(path) as session:
        record = made(session, "stays", 5)
        made(session, "goes", 5)
        delete(session, "goes")
    poke(path, record.root >> 1 & BLOCK_MASK, noise(BLOCK, 1))
    with Session.open(path) as session:
        with pytest.raises(Corrupt):
            session.collect()
        session.restore(session.registry.find_deleted("goes"))


# -- keeping deleted VDIs --------------------------------------------------------------


def test_deleted_vdis_may_be_kept(session: Session) -> None:
    base = made(session, "base", 4)
    where = session.snapshot(base, "s")
    rewritten(session, base, 4, 0)
    rewritten(session, clone(session, "copy", "base@s"), 2)
    contents = live(session, "copy")
    session.delete(session.registry.find("copy"))
    session.delete_snapshot(session.find_snapshot(str(where)))
    plan = session.plan_collection(KEEP_DELETED)
    assert plan.doomed == []
    assert session.collect(plan) == plan.account().total
    plan.give_back()
    session.restore(session.registry.find_deleted("copy"))
    assert live(session, "copy") == contents
    assert not check_store(session.store).damaged


# -- plans that do not hold any more ---------------------------------------------------


def test_what_was_written_after_the_marks_stays(session: Session) -> None:
    disk = made(session, "disk", 4)
    made(session, "goes", 9)
    delete(session, "goes")
    plan = session.plan_collection()
    rewritten(session, disk, 2, 50)
    session.create("new", 1 << 20)
    rewritten(session, session.registry.find("new"), 3)
    assert session.collect(plan) == plan.account().total == 10
    plan.give_back()
    assert live(session, "disk")[50 * BLOCK : 52 * BLOCK] == noise(2 * BLOCK, ("disk", 2, 50))
    assert live(session, "new")[: 3 * BLOCK] == noise(3 * BLOCK, ("new", 3, 0))
    assert not check_store(session.store).damaged


def test_what_is_freed_after_the_marks_is_used_only_when_they_do_not_matter_any_more(
    session: Session,
) -> None:
    disk = made(session, "disk", 40)
    free = session.store.allocator.free
    plan = session.plan_collection()
    with session.opened(disk) as vdi:
        vdi.trim(0, 1 << 20)
    assert session.store.allocator.free <= free
    session.collect(plan)
    assert session.store.allocator.free > free


def test_a_plan_that_another_one_followed_frees_nothing(session: Session) -> None:
    made(session, "goes", 4)
    delete(session, "goes")
    first = session.plan_collection()
    second = session.plan_collection()
    with pytest.raises(InUse, match="has changed since"):
        session.collect(first)
    assert session.collect(second) == 5
    with pytest.raises(InUse):
        session.collect(second)


def test_nothing_is_freed_of_a_vdi_restored_meanwhile(session: Session) -> None:
    made(session, "disk", 4)
    delete(session, "disk")
    contents = noise(4 * BLOCK, ("disk", 4, 0))
    plan = session.plan_collection()
    session.restore(session.registry.find_deleted("disk"))
    with pytest.raises(InUse):
        session.collect(plan)
    assert live(session, "disk")[: 4 * BLOCK] == contents


def test_nothing_is_given_back_before_it_is_free_or_when_it_is_used_again(
    session: Session,
) -> None:
    made(session, "disk", 4)
    delete(session, "disk")
    plan = session.plan_collection()
    with pytest.raises(InUse):
        plan.give_back()
    session.collect(plan)
    made(session, "new", 2)
    plan.give_back()
    with pytest.raises(InUse):
        plan.give_back()
    assert live(session, "new")[: 2 * BLOCK] == noise(2 * BLOCK, ("new", 2, 0))


# -- giving space back -----------------------------------------------------------------


def occupied(path: str) -> int:
    return os.stat(path).st_blocks * 512


def test_the_file_gets_smaller_by_what_was_freed(tmp_path: Path) -> None:
    path = small_store(tmp_path, 4096)
    with Session.open(path) as session:
        for name in ("one", "two", "three"):
            made(session, name, 250)
        session.store.device.flush()
        before = occupied(path)
        delete(session, "one", "three")
        plan = session.plan_collection()
        freed = session.collect(plan)
        assert freed >= 500
        assert occupied(path) >= before
        plan.give_back()
        assert before - occupied(path) >= freed * BLOCK - (64 << 10)
        assert live(session, "two")[: 250 * BLOCK] == noise(250 * BLOCK, ("two", 250, 0))
    with Session.open(path) as session:
        assert not check_store(session.store).damaged
        made(session, "four", 250)


def test_what_others_freed_is_given_back_too(tmp_path: Path) -> None:
    """Trims, and a collection for want of space, or one that a crash cut off."""
    path = small_store(tmp_path, 4096)
    with Session.open(path) as session:
        record = made(session, "disk", 250)
        with session.opened(record) as vdi:
            vdi.trim(0, 1 << 20)
        session.collect()
        before = occupied(path)
        plan = session.plan_collection()
        assert session.collect(plan) == 0
        plan.give_back()
        assert before - occupied(path) >= 240 * BLOCK


def test_bitmaps_are_durable_before_space_is_given_back(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(session, "goes", 20)
    delete(session, "goes")
    plan = session.plan_collection()
    session.collect(plan)
    calls: list[str] = []
    device, allocator = session.store.device, session.store.allocator

    def discard(offset: int, length: int) -> None:
        del offset, length
        calls.append("discard")
        assert not any(extent.changed for extent in allocator._held())

    flush = device.flush
    monkeypatch.setattr(device, "discard", discard)
    monkeypatch.setattr(device, "flush", lambda: (calls.append("flush"), flush()))
    plan.give_back()
    assert calls[:2] == ["flush", "discard"]
    assert calls.count("flush") == 1


def given_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The blocks that are given back from now on, each once."""
    gone: set[int] = set()
    real = session.store.device.discard

    def discard(offset: int, length: int) -> None:
        blocks = set(range(offset // BLOCK, (offset + length) // BLOCK))
        assert not blocks & gone
        gone.update(blocks)
        real(offset, length)

    monkeypatch.setattr(session.store.device, "discard", discard)
    return gone


def taking_space(session: Session) -> set[int]:
    """The blocks for data and nodes that take space in the file of a store."""
    taken = session.store.device.taken(0, session.store.sb.size)
    assert taken is not None
    blocks = (block for low, high in taken for block in range(low // BLOCK, -(-high // BLOCK)))
    return {block for block in blocks if session.store.sb.holds_payload(block)}


def test_no_block_that_is_reached_is_given_back(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made(session, "base", 9)
    session.snapshot(base, "s")
    rewritten(session, base, 3, 2)
    rewritten(session, clone(session, "copy", "base@s"), 2, 70)
    made(session, "goes", 9)
    delete(session, "goes")
    kept = set().union(*(reached(session, record) for record in session.registry.vdis()))
    plan = session.plan_collection()
    session.collect(plan)
    gone, taken = given_back(session, monkeypatch), taking_space(session)
    assert plan.give_back() == len(gone)
    assert not gone & kept
    assert taken - kept <= gone
    assert taking_space(session) == taken & kept


def bitmaps_read(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The extents whose bitmaps are read from now on."""
    looked_at: set[int] = set()

    def read(device: BlockDevice, sb: Superblock, extent: int) -> list[BitmapBlock]:
        looked_at.add(extent)
        return read_bitmap(device, sb, extent)

    monkeypatch.setattr("core.extent.read_bitmap", read)
    monkeypatch.setattr("core.give_back.read_bitmap", read)
    return looked_at


class Counting(MemoryDevice):
    """A disk that counts what is given back."""

    discarded = 0

    def discard(self, offset: int, length: int) -> None:
        self.discarded += length
        super().discard(offset, length)


def collected(session: Session) -> int:
    """Collect and give back; return the blocks given back."""
    with closing(session.plan_collection()) as plan:
        session.collect(plan)
        return plan.give_back()


def test_a_disk_gives_back_what_was_ever_used_and_once_a_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extent, extents = 4096, 200
    device = Counting(extent * extents * BLOCK)
    session = Session(memory_store(extent, extents, device), LockMaster())
    sb = session.store.sb
    looked_at = bitmaps_read(monkeypatch)
    made(session, "stays", 20)
    made(session, "goes", 20)
    delete(session, "goes")
    assert collected(session) == device.discarded // BLOCK == extent - sb.overhead - 21
    assert collected(session) == 0
    made(session, "more", 10)
    assert collected(session) == extent - sb.overhead - 21 - 11
    assert collected(session) == 0
    session.close()
    again = Session(Blockstore(device, LockMaster()), LockMaster())
    assert collected(again) == extent - sb.overhead - 21 - 11
    assert collected(again) == 0
    assert looked_at <= {1, 2}  # the second is held ready for work that frees space


def test_what_was_used_again_while_space_went_back_goes_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Counting(4096 * 6 * BLOCK)
    session = Session(memory_store(4096, 6, device), LockMaster())
    made(session, "goes", 20)
    delete(session, "goes")
    real = device.discard

    def discard(offset: int, length: int) -> None:
        real(offset, length)
        monkeypatch.undo()
        made(session, "meanwhile", 5)

    monkeypatch.setattr(device, "discard", discard)
    assert collected(session)
    delete(session, "meanwhile")
    session.collect()
    first = min(run[0] for run in session.store.allocator.free_runs(1))
    assert first in device.pages  # of the VDI that was deleted
    assert collected(session)
    assert first not in device.pages


def test_a_file_gives_back_all_that_takes_space_for_nothing(tmp_path: Path) -> None:
    path = small_store(tmp_path, 4096)
    with Session.open(path) as session:
        made(session, "stays", 20)
        made(session, "goes", 20)
        delete(session, "goes")
    Path(path).write_bytes(Path(path).read_bytes())  # no holes any more
    with Session.open(path) as session:
        assert collected(session) == 5 * (4096 - session.store.sb.overhead) - 21
        assert len(taking_space(session)) == 21
        assert collected(session) == 0
        assert not check_store(session.store).damaged


def test_a_collection_is_in_proportion_to_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_store(tmp_path, 4096, 1000)  # 16 GiB
    with Session.open(path) as session:
        made(session, "stays", 20)
    looked_at = bitmaps_read(monkeypatch)
    with Session.open(path) as session:

        def discard(offset: int, length: int) -> None:
            pytest.fail(f"{length} bytes at {offset} were given back")

        monkeypatch.setattr(session.store.device, "discard", discard)
        assert collected(session) == 0
    assert looked_at <= {1, 2}  # the second is held ready for work that frees space


def test_leaks_in_an_extent_whose_claim_was_lost_are_found() -> None:
    """A crash may lose the header and keep the bitmap that was written with it."""
    device = MemoryDevice(64 * 6 * BLOCK)
    session = Session(memory_store(64, 6, device), LockMaster())
    formatted = dict(device.pages)
    made(session, "disk", 20)
    session.close()
    start = session.store.sb.extent_start(1)
    device.pages = {**formatted, **{n: device.pages[n] for n in range(start + 2, start + 4)}}
    session = Session(Blockstore(device, LockMaster()), LockMaster())
    assert (session.collect(), session.collect()) == (21, 0)


def test_a_bitmap_that_is_wrong_costs_nothing(path: str) -> None:
    with Session.open(path) as session:
        record = made(session, "disk", 20)
    with Session.open(path) as session:
        blocks = sorted(reached(session, record))
        session.store.allocator.borrow(1)
        session.store.allocator.release(blocks[3:9])  # free, it says
        before = session.live_image(record).read(0, 1 << 20)
        assert collected(session) == 0
        assert session.live_image(record).read(0, 1 << 20) == before


def test_a_snapshot_that_is_read_stays_until_that_ends(session: Session) -> None:
    record = made(session, "disk", 4)
    where = session.snapshot(record)
    image = session.image(session.find_snapshot(str(where)))
    rewritten(session, record, 5)
    session.delete_snapshot(session.find_snapshot(str(where)))
    plan = session.plan_collection()
    assert session.collect(plan) == 0
    plan.give_back()
    assert image.read(0, 4 * BLOCK) == noise(4 * BLOCK, ("disk", 4, 0))
    del image, plan
    gc.collect()
    assert session.collect() == 5


def test_a_file_system_without_holes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def discard(_offset: int, _length: int) -> None:
        raise NotSupported("there are no holes")

    made(session, "goes", 3)
    delete(session, "goes")
    plan = session.plan_collection()
    assert session.collect(plan) == 4
    monkeypatch.setattr(session.store.device, "discard", discard)
    with pytest.raises(NotSupported):
        plan.give_back()
    made(session, "new", 3)
    assert not check_store(session.store).damaged


def test_the_recording_device_takes_what_is_given_back_for_a_write() -> None:
    """The crash tests rely on it: a hole may be torn and lost like anything else."""
    device = RecordingDevice(4 * BLOCK, {1: noise(BLOCK)})
    device.discard(BLOCK, 2 * BLOCK)
    assert device.unflushed == [(1, [bytes(BLOCK)] * 2)]
