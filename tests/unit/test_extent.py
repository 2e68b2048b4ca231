"""The allocator against a model, and the bitmaps it leaves on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.memory import MemoryDevice
from support.stores import poke, small_store

from core.blockstore import Blockstore
from core.device import FileDevice
from core.errors import Corrupt, NoSpace
from core.extent import Allocator, Extent, pristine, read_bitmap, read_header
from core.format import BITMAP_BITS, BLOCK, BitmapBlock, ExtentHeader, Superblock
from core.lock_master import LockMaster
from core.session_list import enroll

UUID = b"u" * 16
SESSION = b"s" * 16


def formatted(extent_blocks: int = 64, extents: int = 6) -> tuple[MemoryDevice, Superblock]:
    sb = Superblock(UUID, extent_blocks, extents)
    device = MemoryDevice(sb.size)
    for extent in range(1, extents):
        device.pages.update(pristine(sb, extent))
    return device, sb


def allocator(device: MemoryDevice, sb: Superblock, locks: LockMaster | None = None) -> Allocator:
    return Allocator(device, sb, locks or LockMaster(), SESSION)


def members(runs: list[tuple[int, int]]) -> list[int]:
    return [block for start, count in runs for block in range(start, start + count)]


def on_disk(device: MemoryDevice, sb: Superblock) -> set[int]:
    """The payload blocks that the bitmaps on disk call allocated."""
    taken = set()
    for extent in range(1, sb.extents):
        parts = read_bitmap(device, sb, extent)
        for part in parts:
            bits = np.unpackbits(np.frombuffer(part.bits, np.uint8), bitorder="little")
            assert int(bits.sum()) == part.used
            base = sb.extent_start(extent) + part.index * BITMAP_BITS
            taken |= set((np.flatnonzero(bits) + base).tolist())
    assert {b for b in range(sb.blocks) if sb.holds_payload(b)} >= {
        b for b in taken if sb.holds_payload(b)
    }
    return {block for block in taken if sb.holds_payload(block)}


class AllocatorModel(RuleBasedStateMachine):
    """Random work on an allocator beside a plain set of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.sb = formatted()
        self.alloc = allocator(self.device, self.sb)
        self.payload = {b for b in range(self.sb.blocks) if self.sb.holds_payload(b)}
        self.taken: set[int] = set()
        self.reserved = 0
        self.slop = len(self.payload) // 64

    def free(self) -> int:
        return len(self.payload) - len(self.taken) - self.reserved

    def took(self, runs: list[tuple[int, int]], count: int) -> None:
        blocks = members(runs)
        assert len(blocks) == count
        assert len(set(blocks)) == count
        assert self.taken.isdisjoint(blocks)
        assert self.payload.issuperset(blocks)
        self.taken.update(blocks)

    @rule(count=st.integers(1, 90))
    def take(self, count: int) -> None:
        if self.free() - self.slop >= count:
            self.took(self.alloc.take(count), count)
        else:
            with pytest.raises(NoSpace, match="the blockstore is full"):
                self.alloc.take(count)

    @rule(count=st.integers(0, 40), urgent=st.booleans())
    def reserve(self, count: int, urgent: bool) -> None:
        if self.free() - (0 if urgent else self.slop) >= count:
            self.alloc.reserve(count, urgent)
            self.reserved += count
        else:
            with pytest.raises(NoSpace) as caught:
                self.alloc.reserve(count, urgent)
            assert "delete VDIs or snapshots" in caught.value.hint

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.reserved))
        self.reserved -= count
        if data.draw(st.booleans()):
            self.took(self.alloc.take_reserved(count), count)
        else:
            self.alloc.unreserve(count)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.taken)), unique=True))
        self.alloc.release(blocks)
        self.taken -= set(blocks)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release_what_is_free(self, data: st.DataObject) -> None:
        extent = self.sb.extent_blocks
        block = data.draw(st.sampled_from(sorted(self.payload - self.taken or {0})))
        if not block or block // extent not in {b // extent for b in self.taken}:
            return
        with pytest.raises(Corrupt, match=f"block {block}: is freed, but was not allocated"):
            self.alloc.release([block])

    @rule()
    def write_and_claim_again(self) -> None:
        """What is on disk after a write is what another session starts from."""
        if self.reserved:
            return
        self.device.pages.update(self.alloc.changes())
        self.alloc.settled()
        assert not self.alloc.changed
        assert on_disk(self.device, self.sb) == self.taken
        self.alloc.close()
        self.alloc = allocator(self.device, self.sb)

    @invariant()
    def headers_and_bitmaps_are_never_handed_out(self) -> None:
        assert self.taken <= self.payload


TestAllocatorModel = AllocatorModel.TestCase


def test_data_grows_up_and_metadata_down() -> None:
    alloc = allocator(*formatted())
    assert alloc.take(3) == [(68, 3)]
    alloc.reserve(2)
    assert alloc.take_reserved(2) == [(126, 2)]
    assert alloc.take(1) == [(71, 1)]
    alloc.reserve(1)
    assert alloc.take_reserved(1) == [(125, 1)]


def test_freed_blocks_come_back_when_the_fresh_ones_are_used_up() -> None:
    alloc = allocator(*formatted())
    assert alloc.take(60) == [(68, 60)]
    alloc.release([70, 71, 90])
    assert alloc.take(2) == [(70, 2)]
    assert alloc.take(2) == [(90, 1), (132, 1)]


def test_one_extent_is_claimed_as_long_as_it_suffices() -> None:
    device, sb = formatted()
    locks = LockMaster()
    alloc = allocator(device, sb, locks)
    alloc.take(50)
    assert locks.holder("extent/1") is not None
    assert locks.holder("extent/2") is None
    alloc.take(20)
    assert locks.holder("extent/2") is not None
    alloc.close()
    assert locks.holder("extent/1") is None


def test_the_last_blocks_are_kept_for_work_that_frees_space() -> None:
    alloc = allocator(*formatted())
    alloc.take(300 - 300 // 64)
    with pytest.raises(NoSpace):
        alloc.take(1)
    with pytest.raises(NoSpace):
        alloc.reserve(1)
    alloc.reserve(4, urgent=True)
    with pytest.raises(NoSpace):
        alloc.reserve(1, urgent=True)
    assert len(members(alloc.take_reserved(4))) == 4


def test_a_block_freed_twice_in_one_go_is_found_and_nothing_is_freed() -> None:
    alloc = allocator(*formatted())
    alloc.take(5)
    with pytest.raises(Corrupt, match="block 69: is freed twice"):
        alloc.release([68, 69, 69])
    with pytest.raises(Corrupt, match="block 100: is freed, but was not allocated"):
        alloc.release([68, 100])
    alloc.release([68, 69])
    alloc.release([])


@pytest.mark.parametrize("sealed_first", [True, False])
def test_what_waits_to_be_released_is_swept_by_no_collection(sealed_first: bool) -> None:
    """It would be freed twice, and in between it may be another block."""
    device, sb = formatted()
    alloc = allocator(device, sb)
    blocks = members(alloc.take(12))
    steps = [alloc.seal, lambda: alloc.supersede(7, blocks[:4])]
    for step in steps if sealed_first else reversed(steps):
        step()
    everything = np.full(sb.extent_blocks >> 3, 255, np.uint8)
    assert alloc.sweep(1, everything) == 8
    alloc.unseal()
    alloc.release(blocks[:4])
    alloc.supersede(7, ())
    assert alloc.free == sb.extent_blocks - sb.overhead


def test_claiming_leaves_session_and_token_in_the_other_slot() -> None:
    device, sb = formatted()
    old = ExtentHeader(1, 8, token=77).pack(UUID)
    device.pages.update([(64, old), (65, ExtentHeader(1, 7, token=77).pack(UUID))])
    alloc = allocator(device, sb)
    alloc.take(1)
    assert alloc.changed
    device.pages.update(alloc.changes())
    assert device.pages[64] == old
    header = read_header(device, sb, 1)
    assert (header.sequence, header.session) == (9, SESSION)
    assert header.token > 77


def test_bitmaps_alternate_between_their_slots() -> None:
    device, sb = formatted()
    alloc = allocator(device, sb)
    alloc.take(1)
    assert {block for block, _ in alloc.changes()} == {65, 67}
    alloc.settled()
    alloc.take(1)
    assert {block for block, _ in alloc.changes()} == {66}
    assert alloc.changes() == []


def test_a_bitmap_that_was_not_flushed_is_not_followed_by_one_in_the_other_slot() -> None:
    alloc = allocator(*formatted())
    alloc.take(1)
    alloc.changes()
    alloc.take(1)
    assert {block for block, _ in alloc.changes()} == {67}
    alloc.settled()
    alloc.release([68])
    assert {block for block, _ in alloc.changes()} == {66}


def test_two_sessions_never_get_the_same_extent() -> None:
    device, sb = formatted()
    locks = LockMaster()
    one, two = allocator(device, sb, locks), allocator(device, sb, locks)
    mine, theirs = members(one.take(100)), members(two.take(100))
    assert {b // 64 for b in mine}.isdisjoint(b // 64 for b in theirs)
    two.release(mine)  # not its to free: ignored
    assert set(members(one.take(20))).isdisjoint(mine)
    with pytest.raises(NoSpace):
        two.take(100)


def test_an_extent_another_session_gave_back_can_be_freed_into() -> None:
    device, sb = formatted()
    locks = LockMaster()
    one, two = allocator(device, sb, locks), allocator(device, sb, locks)
    mine = members(one.take(10))
    two.take(1)  # finds extent 1 taken
    device.pages.update(one.changes())
    one.close()
    two.release(mine)
    device.pages.update(two.changes())
    assert on_disk(device, sb).isdisjoint(mine)


def test_a_large_extent_has_many_bitmap_parts_and_only_writes_what_changed() -> None:
    device, sb = formatted((2 << 30) // BLOCK)
    assert sb.bitmap_blocks == 17
    alloc = allocator(device, sb)
    start = sb.extent_start(1)
    assert alloc.take(1) == [(start + 36, 1)]
    alloc.reserve(1)
    assert alloc.take_reserved(1) == [(start + sb.extent_blocks - 1, 1)]
    blocks = {block for block, _ in alloc.changes()}
    assert blocks == {start + 1, sb.bitmap_slot(1, 0, 1), sb.bitmap_slot(1, 16, 1)}
    alloc.take(100_000)
    assert len(alloc.changes()) == 4
    alloc.release(np.arange(start + 40, start + 90_000))
    assert len(alloc.changes()) == 3


@given(st.sets(st.integers(0, 63)), st.lists(st.tuples(st.booleans(), st.integers(1, 9))))
def test_runs_cover_exactly_what_is_free(taken: set[int], takes: list[tuple[bool, int]]) -> None:
    _, sb = formatted()
    bits = np.zeros(BITMAP_BITS, np.uint8)
    bits[sorted(taken)] = 1
    packed = np.packbits(bits, bitorder="little").tobytes()
    extent = Extent(2, sb, [BitmapBlock(2, 0, 5, len(taken), packed)])
    free = {128 + n for n in range(64)} - {128 + n for n in taken}
    for low, count in takes:
        assert extent.free == len(free)
        if not free:
            return
        start, got = extent.take_low(count) if low else extent.take_high(count)
        blocks = set(range(start, start + got))
        assert 1 <= got <= count
        assert blocks <= free
        assert (min(free) if low else max(free)) in blocks
        free -= blocks


# -- damage ----------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> str:
    return small_store(tmp_path)


def reading(path: str) -> Iterator[tuple[FileDevice, Superblock]]:
    store = Blockstore.open(path)
    yield store.device, store.sb  # type: ignore[misc]
    store.close()


def test_a_damaged_slot_leaves_the_other(store: str) -> None:
    poke(store, 64, b"garbage")
    poke(store, 66, b"garbage")
    for device, sb in reading(store):
        assert read_header(device, sb, 1).sequence == 1
        assert read_bitmap(device, sb, 1)[0].used == 4


@pytest.mark.parametrize("session", [b"", b"d" * 16])
def test_a_damaged_slot_may_be_the_newest_where_a_session_has_died(
    store: str, session: bytes
) -> None:
    writing = Blockstore.open(store, "write", LockMaster())
    enroll(writing.device, writing.sb, b"d" * 16)
    writing.close()
    poke(store, 64, b"garbage")
    poke(store, 66, b"garbage")
    for device, sb in reading(store):
        if session:  # it has not written there itself, so nobody has
            assert read_header(device, sb, 1, session).sequence == 1
            assert read_bitmap(device, sb, 1, session)[0].used == 4
            continue
        with pytest.raises(Corrupt, match=r"block 64: .*newest version of the header of extent 1"):
            read_header(device, sb, 1)
        with pytest.raises(
            Corrupt, match=r"block 66: .*newest version of the alloc.* extent 1 may"
        ):
            read_bitmap(device, sb, 1)


def test_an_unusable_extent_is_left_alone_and_named_when_the_store_is_full() -> None:
    device, sb = formatted()
    device.pages.update([(64, b"garbage".ljust(BLOCK))])
    alloc = allocator(device, sb)
    enroll(device, sb, b"d" * 16)
    assert min(members(alloc.take(200))) >= sb.extent_start(2)
    assert not alloc.borrow(1)
    alloc.release([70])  # it stays allocated there
    assert 64 not in {block for block, _ in alloc.changes()}
    with pytest.raises(NoSpace, match="full but for extent 1, where the newest header") as caught:
        alloc.take(200)
    assert "--repair" in caught.value.hint


def test_two_damaged_slots_name_the_extent_and_the_block(store: str) -> None:
    for block in (64, 65, 66, 67):
        poke(store, block, b"garbage")
    for device, sb in reading(store):
        with pytest.raises(Corrupt) as caught:
            read_header(device, sb, 1)
        assert caught.value.message == "block 64: both slots of the header of extent 1 are damaged"
        assert "--repair" in caught.value.hint
        with pytest.raises(Corrupt) as caught:
            read_bitmap(device, sb, 1)
        assert caught.value.block == 66
        assert "both slots of the allocation bitmap of extent 1" in caught.value.message
        assert "--repair" in caught.value.hint
