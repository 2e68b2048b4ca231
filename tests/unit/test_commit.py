"""The commit protocol by what reaches the device: order, number of flushes, and failures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from support.bench import contents, empty_store
from support.memory import MemoryDevice, Pages, RecordingDevice

from core.blockstore import Blockstore
from core.check import check_store
from core.errors import Bug, Fenced, IoFailed, NoSpace
from core.extent_disk import bitmap_pairs
from core.format import BLOCK, VdiRecord
from core.lock_master import LockMaster
from core.registry import Registry
from core.session import Session
from core.vdi import Vdi

SIZE = 64 * BLOCK


class FailingDevice(RecordingDevice):
    """A device whose flush number `fail_at` (from 0) fails once, and loses what it had."""

    fail_at = -1

    def flush(self) -> None:
        if self.flushes == self.fail_at:
            self.flushes += 1
            self.unflushed = []
            raise IoFailed("the disk is broken")
        super().flush()


class World:
    """A session on a device in memory, with one VDI that is open."""

    def __init__(self) -> None:
        pages = empty_store()
        self.device = FailingDevice(64 * 6 * BLOCK, pages)
        self.session = self.open(self.device)
        self.device.always = range(self.session.store.sb.extent_blocks)  # see `without_room`
        self.record = self.session.create("one", SIZE)
        self.vdi = self.session.open_vdi(self.record)
        self.vdi.write(0, contents(4 * BLOCK, 1))
        self.commit()

    @staticmethod
    def open(device: RecordingDevice) -> Session:
        locks = LockMaster()
        return Session(Blockstore(device, locks), locks)

    def commit(self, *vdis: Vdi) -> None:
        self.session.commit(vdis or [self.vdi])

    def counts(self) -> tuple[int, int]:
        return self.device.flushes, self.device.writes

    def reread(self, pages: Pages) -> bytes:
        """What another session finds in these pages."""
        session = self.open(RecordingDevice(self.device.size, pages))
        assert not check_store(session.store).damaged
        record = session.registry.find("one")
        return session.live_image(record).read(0, record.size)


@pytest.fixture
def world() -> World:
    return World()


def after(before: tuple[int, int], world: World) -> tuple[int, int]:
    """How many (flushes, writes) there were since."""
    flushes, writes = world.counts()
    return flushes - before[0], writes - before[1]


# -- what a commit costs ------------------------------------------------------------------


def test_a_commit_of_metadata_is_two_flushes(world: World) -> None:
    world.vdi.write(8 * BLOCK, contents(BLOCK, 2))
    before = world.device.flushes
    world.commit()
    assert world.device.flushes - before == 2


def test_several_vdis_share_two_flushes(world: World) -> None:
    new = [world.session.create(name, SIZE) for name in ("two", "three")]
    vdis = [world.vdi, *map(world.session.open_vdi, new)]
    for number, vdi in enumerate(vdis):
        vdi.write(BLOCK * 9, contents(BLOCK, 10 + number))
    before = world.device.flushes
    world.commit(*vdis)
    assert world.device.flushes - before == 2


def test_a_commit_of_data_alone_is_one_flush_and_no_write(world: World) -> None:
    world.vdi.write(BLOCK, contents(BLOCK, 3))
    before = world.counts()
    world.commit()
    assert after(before, world) == (1, 0)


def test_a_commit_of_nothing_still_flushes(world: World) -> None:
    before = world.counts()
    world.commit()
    assert after(before, world) == (1, 0)


def test_a_snapshot_of_an_idle_vdi_is_one_block(world: World) -> None:
    world.vdi.snapshot("first")  # takes the block that the log will move to
    world.commit()
    world.commit()
    written: list[int] = []
    world.device.on_write = lambda first, run: written.extend(range(first, first + len(run)))
    before = world.counts()
    world.vdi.snapshot("second")
    world.commit()
    assert after(before, world) == (2, 1)
    assert written == [world.session.store.sb.vdi_slot(0, world.vdi.record.sequence % 2)]


def test_records_come_after_a_flush_of_all_they_refer_to(world: World) -> None:
    table, bitmaps = range(2, 64), range(66, 68)
    seen: list[str] = []

    def note(first: int, _: object) -> None:
        kind = "record" if first in table else "bitmap" if first in bitmaps else "block"
        seen.append(kind)

    world.device.on_write = note
    world.device.on_flush = lambda: seen.append("flush")
    world.vdi.write(20 * BLOCK, contents(2 * BLOCK, 4))
    world.commit()
    assert "block" in seen
    assert seen[-4:] == ["flush", "bitmap", "record", "flush"]
    assert "record" not in seen[:-4]


def test_superseded_blocks_are_free_only_when_no_record_leads_to_them(world: World) -> None:
    allocator = world.session.store.allocator
    world.vdi.trim(0, 4 * BLOCK)
    free = allocator.free
    world.commit()
    assert allocator.free <= free
    world.vdi.repeat()
    pending = world.session.begin_commit([world.vdi])
    pending.sync()
    assert allocator.free <= free
    pending.finish()
    assert allocator.free >= free + 4
    world.vdi.repeat()
    assert not world.vdi.changed, "both records say the same"


def test_the_bitmap_of_a_commit_is_in_both_slots(world: World) -> None:
    world.vdi.write(20 * BLOCK, contents(2 * BLOCK, 4))
    world.commit()
    store = Blockstore(MemoryDevice(world.device.size, world.device.durable))
    assert all(pair.are_twins for pair in bitmap_pairs(store.device, store.sb, 1))


# -- fencing ------------------------------------------------------------------------------


def take_over(world: World) -> VdiRecord:
    """Let another session commit to the VDI behind the back of this one."""
    other = replace(world.vdi.record, sequence=world.vdi.record.sequence + 1, token=99)
    Registry(world.session.store).write(other)
    world.device.flush()
    return other


def test_a_late_commit_fails(world: World) -> None:
    world.vdi.write(10 * BLOCK, contents(BLOCK, 5))
    other = take_over(world)
    with pytest.raises(Fenced):
        world.commit()
    assert world.session.registry.get(0) == other


def test_a_fenced_session_writes_nothing_more(world: World) -> None:
    world.vdi.write(10 * BLOCK, contents(BLOCK, 5))
    take_over(world)
    with pytest.raises(Fenced):
        world.commit()
    before = world.counts()
    with pytest.raises(IoFailed, match="nothing more is written"):
        world.vdi.write(0, contents(BLOCK, 6))
    with pytest.raises(IoFailed, match="nothing more is written"):
        world.commit()
    with pytest.raises(IoFailed, match="nothing more is written"):
        world.session.create("two", SIZE)
    world.session.close()
    assert after(before, world) == (0, 0)


def test_a_change_of_the_token_alone_fences(world: World) -> None:
    world.vdi.write(10 * BLOCK, contents(BLOCK, 5))
    same_sequence = replace(world.vdi.record, token=world.vdi.record.token + 1)
    Registry(world.session.store).write(same_sequence)
    with pytest.raises(Fenced):
        world.commit()


def test_a_lost_grant_fences(world: World) -> None:
    world.vdi.write(10 * BLOCK, contents(BLOCK, 5))
    world.vdi.close()
    with pytest.raises(Fenced, match="no longer held"):
        world.commit()


def test_without_the_fence_a_late_commit_would_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fencing tests would see if the check were skipped."""
    monkeypatch.setattr("core.commit.Commit._check_fence", lambda *_: None)
    world.vdi.write(10 * BLOCK, contents(BLOCK, 5))
    other = take_over(world)
    world.commit()
    assert world.session.registry.get(0) != other


# -- a flush that fails -------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_a_failed_flush_is_never_followed_by_success(world: World, number: int) -> None:
    durable = world.reread(world.device.durable)
    world.vdi.write(10 * BLOCK, contents(BLOCK, 7))
    world.device.fail_at = world.device.flushes + number
    with pytest.raises(IoFailed, match="broken"):
        world.commit()
    for _ in range(2):
        with pytest.raises(IoFailed, match="nothing more is written"):
            world.commit()
    with pytest.raises(IoFailed):
        world.vdi.write(0, contents(BLOCK, 8))
    writes = world.device.writes
    world.session.close()
    assert world.device.writes == writes
    assert world.reread(world.device.durable) == durable


@pytest.mark.parametrize("metadata", [False, True])
def test_nothing_is_written_to_a_store_that_was_replaced(world: World, metadata: bool) -> None:
    world.vdi.write(0, contents(BLOCK, 2))
    if metadata:
        world.vdi.snapshot()
    writes = world.device.writes

    def replaced() -> None:
        raise IoFailed("the store was replaced while it was open")

    world.device.verify = replaced  # type: ignore[method-assign]  # as a file's does
    with pytest.raises(IoFailed, match="was replaced"):
        world.session.commit([world.vdi])
    assert world.device.writes == writes
    with pytest.raises(IoFailed, match="nothing more is written after a failure"):
        world.vdi.write(0, contents(BLOCK, 3))


class Unthought(Exception):
    """Something that nobody expects."""


def raising(*_: object) -> None:
    raise Unthought("forged")


@pytest.mark.parametrize("where", ["freeze", "record", "release"])
def test_what_nobody_thought_of_fails_one_vdi_only(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    other = world.session.open_vdi(world.session.create("two", SIZE))
    for vdi in (world.vdi, other):
        vdi.write(4 * BLOCK, contents(4 * BLOCK, 2))
    with monkeypatch.context() as patch:
        if where == "freeze":
            patch.setattr(world.vdi.map, "_freeze", raising)
        elif where == "record":
            pack = VdiRecord.pack
            patch.setattr(VdiRecord, "pack", lambda r, *a: raising() if r.id == 0 else pack(r, *a))
        else:
            release = world.session.store.allocator.release
            world.vdi._superseded.append(5)
            patch.setattr(
                world.session.store.allocator,
                "release",
                lambda freed: raising() if 5 in freed else release(freed),
            )
        with pytest.raises(Bug, match=r"VDI 0: .*internal error: Unthought: forged"):
            world.commit(world.vdi, other)
    assert world.session.store.failed is None
    with pytest.raises(Bug):
        world.vdi.write(0, contents(BLOCK, 3))
    other.write(0, contents(4 * BLOCK, 3))
    world.commit(other)
    pages = world.device.durable
    session = world.open(RecordingDevice(world.device.size, pages))
    assert not check_store(session.store).damaged
    image = session.live_image(session.registry.find("two"))
    assert image.read(0, 4 * BLOCK) == contents(4 * BLOCK, 3)
    kept = session.live_image(session.registry.find("one")).read(0, 8 * BLOCK)
    late = contents(4 * BLOCK, 2) if where == "release" else bytes(4 * BLOCK)
    assert kept == contents(4 * BLOCK, 1) + late
    with suppress(Bug):  # unless it has been told already
        world.session.release(world.vdi)
    again = world.session.open_vdi(world.session.registry.find("one"))
    assert again.read(0, 8 * BLOCK) == kept
    again.write(0, contents(BLOCK, 4))
    world.commit(again)


def test_a_failed_flush_of_data_alone_stops_writing(world: World) -> None:
    world.vdi.write(0, contents(BLOCK, 9))
    world.device.fail_at = world.device.flushes
    with pytest.raises(IoFailed, match="broken"):
        world.commit()
    with pytest.raises(IoFailed, match="nothing more is written"):
        world.commit()


def test_a_failed_flush_in_the_background_is_told_to_all(world: World) -> None:
    other = world.session.open_vdi(world.session.create("two", SIZE))
    world.vdi.write(10 * BLOCK, contents(BLOCK, 7))
    world.device.fail_at = world.device.flushes
    pending = world.session.begin_commit([world.vdi])
    pending.sync()
    with pytest.raises(IoFailed, match="broken"):
        pending.finish()
    with pytest.raises(IoFailed):
        world.session.commit([other])


def test_contents_can_still_be_read_after_a_failed_flush(world: World) -> None:
    world.device.fail_at = world.device.flushes
    with pytest.raises(IoFailed):
        world.commit()
    assert world.vdi.read(0, 4 * BLOCK) == contents(4 * BLOCK, 1)


# -- a device that is full ----------------------------------------------------------------


@pytest.mark.parametrize("room", range(6))
@pytest.mark.parametrize("more", [False, True])
def test_a_full_device_loses_nothing(world: World, room: int, more: bool) -> None:
    """The commit fails, and the next one has all of it, with what came in between."""
    durable = world.reread(world.device.durable)
    world.vdi.write(10 * BLOCK, contents(20 * BLOCK, 10))
    world.vdi.trim(0, 2 * BLOCK)
    world.vdi.snapshot("during")
    world.vdi.write(11 * BLOCK, contents(BLOCK, 11))
    world.device.room = room
    try:
        world.commit()
        full = False
    except NoSpace:
        full = True
    assert full == (room < 3)  # a bitmap and two nodes
    if full:
        assert world.reread(world.device.durable) == durable
    world.device.room = 1 << 30
    if more:
        world.vdi.write(40 * BLOCK, contents(BLOCK, 12))
    expected = world.vdi.read(0, SIZE)
    assert expected[11 * BLOCK : 12 * BLOCK] == contents(BLOCK, 11)
    world.commit()
    assert world.reread(world.device.durable) == expected
    assert world.session.find_snapshot("one@during").label == "during"
    world.session.close()
    assert world.reread(world.device.durable) == expected


def test_a_retried_commit_leaves_one_bitmap_slot_alone(world: World) -> None:
    """Were both written between two flushes, a power cut could take both."""
    sb = world.session.store.sb
    slots = {sb.bitmap_slot(1, 0, slot) for slot in (0, 1)}
    written: set[int] = set()
    most = 0

    def watch(first: int, run: Sequence[bytes]) -> None:
        nonlocal most
        written.update(slots & set(range(first, first + len(run))))
        most = max(most, len(written))

    world.device.on_write = watch
    world.device.on_flush = written.clear
    for attempt in range(4):
        world.device.room = 1 << 30
        world.vdi.write((10 + attempt) * BLOCK, contents(BLOCK, 20 + attempt))
        world.device.room = 1
        with pytest.raises(NoSpace):
            world.commit()
        assert len(written) <= 1
    world.device.room = 1 << 30
    world.vdi.write(30 * BLOCK, contents(BLOCK, 30))
    world.commit()
    assert most == 1


# -- making a VDI -------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
def test_a_new_vdi_survives_the_loss_of_either_record(world: World, slot: int) -> None:
    """That is why its second slot is filled at once, and not by its first commit."""
    world.session.create("two", SIZE)
    world.session.close()
    pages = dict(world.device.durable)
    pages[world.session.store.sb.vdi_slot(1, slot)] = b"\xff" * BLOCK
    session = world.open(RecordingDevice(world.device.size, pages))
    assert session.registry.find("two").size == SIZE


def test_a_new_vdi_that_loses_both_records_is_reported(world: World) -> None:
    world.session.create("two", SIZE)
    world.session.close()
    pages = dict(world.device.durable)
    for slot in (0, 1):
        pages[world.session.store.sb.vdi_slot(1, slot)] = b"\xff" * BLOCK
    session = world.open(RecordingDevice(world.device.size, pages))
    assert check_store(session.store).damaged
