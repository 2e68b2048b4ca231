"""Which blocks are free: extents, their bitmaps, and the allocator over both.

A session claims extents and then allocates without asking anyone. Data grows up from the
start of an extent, metadata down from its end, so that a scan of metadata is sequential
and one extent is enough for one session.

The bitmap in memory runs ahead of the one on disk, in the safe direction only: bits are
set when blocks are handed out and written before the commit that uses them; bits are
cleared when neither record of a VDI leads to the block any more. A crash therefore only leaks.

*Sealed.* For a collection (`core.collection`) the bitmap of an extent is copied. From then on
no block that is freed is handed out before the collection is over for this session, so every
tree that could be read when the copy was made can be read all along. A block that is freed
leaves the copy: it is no candidate of the collection any more, whatever becomes of it.

*Set aside.* An extent that is held and not allocated from: one that nobody had and that is held
only to be collected, or one that is about to be given to another session.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.claiming import NOBODY, Finder, Found
from core.device import BlockDevice
from core.errors import Corrupt, InUse
from core.extent_disk import (
    packed_bitmap,
    packed_header,
    pristine,
    read_bitmap,
    read_header,
)
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK_SHIFT,
    BitmapBlock,
    ExtentHeader,
    Superblock,
)
from core.locks import Grant, Locks
from core.slots import twin_of

__all__ = ["Allocator", "Extent", "Run", "pristine", "read_bitmap", "read_header"]

Run = tuple[int, int]
"""A run of blocks: the first one, and how many."""

_TAKEN: Final = np.uint8(1)  # a plain 1 would make eight bytes of each bit
SLOP_SHARE: Final = 64
SLOP_MAX: Final = 4096
AHEAD_MAX: Final = 1 << 16
"""Blocks (256 MiB) that are enough to have claimed ahead, however large extents are."""


class Extent:
    """One claimed extent: its bitmap in memory and the free runs to hand out next.

    Attributes:
        free: how many blocks are free.
    """

    def __init__(self, number: int, sb: Superblock, parts: Sequence[BitmapBlock]) -> None:
        """Take the valid bitmap parts as read from disk."""
        self.number = number
        self._first = sb.extent_start(number)
        self._blocks = sb.extent_blocks
        self._overhead = sb.overhead
        self._sequences = [part.sequence for part in parts]
        self._changed: set[int] = set()
        self._unsettled: dict[int, BitmapBlock] = {}
        joined = b"".join(part.bits for part in parts)
        self._bits = np.frombuffer(joined, np.uint8).copy()
        self._runs: deque[list[int]] = deque()
        self._sealed: NDArray[np.uint8] | None = None
        self.free = self._blocks - int(np.bitwise_count(self._bits).sum())
        self._rescan()

    def _rescan(self) -> None:
        """Rebuild the free runs from the bitmap, picking up what was freed since."""
        taken = np.unpackbits(self._bits, count=self._blocks, bitorder="little")
        edges = np.flatnonzero(np.diff(taken, prepend=_TAKEN, append=_TAKEN)).reshape(-1, 2)
        self._runs = deque((edges + self._first).tolist())

    def take_low(self, count: int) -> Run:
        """Take up to `count` free blocks from the low end; needs `free` > 0."""
        if not self._runs:
            self._rescan()
        run = self._runs[0]
        start = run[0]
        run[0] = end = min(start + count, run[1])
        if end == run[1]:
            self._runs.popleft()
        self._set(start, end - start)
        return start, end - start

    def take_high(self, count: int) -> Run:
        """Take up to `count` free blocks from the high end; needs `free` > 0."""
        if not self._runs:
            self._rescan()
        run = self._runs[-1]
        end = run[1]
        run[1] = start = max(end - count, run[0])
        if start == run[0]:
            self._runs.pop()
        self._set(start, end - start)
        return start, end - start

    def _set(self, start: int, count: int) -> None:
        """Mark free blocks as allocated."""
        first = start - self._first
        if count == 1:
            self._bits[first >> 3] |= 1 << (first & 7)
        else:
            low, high = first >> 3, (first + count + 7) >> 3
            bits = np.unpackbits(self._bits[low:high], bitorder="little")
            bits[first - low * 8 : first - low * 8 + count] = 1
            self._bits[low:high] = np.packbits(bits, bitorder="little")
        self.free -= count
        self._changed.update(range(first // BITMAP_BITS, (first + count - 1) // BITMAP_BITS + 1))

    def clear(self, blocks: NDArray[np.int64]) -> None:
        """Mark allocated blocks of this extent as free.

        Raises:
            Corrupt: one of them was free already or is named twice; nothing is changed.
        """
        at = blocks - self._first
        byte, bit = at >> 3, np.left_shift(1, at & 7).astype(np.uint8)
        already = np.flatnonzero((self._bits[byte] & bit) == 0)
        if already.size:
            raise Corrupt("is freed, but was not allocated", int(blocks[already[0]]))
        once, times = np.unique(blocks, return_counts=True)
        if once.size != blocks.size:
            raise Corrupt("is freed twice", int(once[times > 1][0]))
        np.bitwise_and.at(self._bits, byte, ~bit)
        self.spare(blocks)
        self.free += blocks.size
        self._changed.update(np.unique(at // BITMAP_BITS).tolist())

    def spare(self, blocks: NDArray[np.int64]) -> None:
        """Take blocks out of the copy: they are freed in another way than by a sweep."""
        if self._sealed is not None:
            at = blocks - self._first
            bit = np.left_shift(1, at & 7).astype(np.uint8)
            np.bitwise_and.at(self._sealed, at >> 3, ~bit)

    @property
    def bits(self) -> NDArray[np.uint8]:
        """A copy of the bitmap: bit *i* of byte *j* is block 8 *j* + *i* of the extent."""
        return self._bits[: self._blocks >> 3].copy()

    def seal(self) -> None:
        """Copy the bitmap: only what is allocated now and stays so may be swept."""
        self._sealed = self.bits
        whole, rest = divmod(self._overhead, 8)
        self._sealed[:whole] = 0
        self._sealed[whole] &= 0xFF << rest & 0xFF

    def unseal(self) -> None:
        """Drop the copy: nothing is swept."""
        self._sealed = None

    @property
    def sealed(self) -> bool:
        """Whether there is a copy."""
        return self._sealed is not None

    @property
    def candidates(self) -> NDArray[np.uint8] | None:
        """What may be swept, as `bits`; None without a copy."""
        return self._sealed

    def sweep(self, garbage: NDArray[np.uint8]) -> int:
        """Free blocks that nothing needs, of those in the copy, and drop the copy.

        Args:
            garbage: the blocks, as `bits`.

        Returns:
            How many were freed.
        """
        sealed, self._sealed = self._sealed, None
        if sealed is None:
            return 0
        bits = self._bits[: sealed.size]
        cleared = bits & sealed & garbage
        free = int(np.bitwise_count(cleared).sum())
        bits ^= cleared
        self.free += free
        self._changed.update(np.unique(np.flatnonzero(cleared) // BITMAP_BYTES).tolist())
        return free

    def free_runs(self) -> list[list[int]]:
        """Return the runs (from, up to) of blocks that are free at the moment."""
        self._rescan()
        return [run.copy() for run in self._runs]

    @property
    def changed(self) -> bool:
        """Whether the bitmap on disk is behind."""
        return bool(self._changed)

    def part_sequence(self, index: int) -> int:
        """Return the sequence number of a bitmap part; 0 if that is not durable."""
        return 0 if index in self._changed or index in self._unsettled else self._sequences[index]

    def changes(self) -> Iterator[BitmapBlock]:
        """Yield each bitmap part that changed, with its next sequence number.

        A part that was handed out and not flushed since keeps its number, and so its
        slot: the other slot is the only one that is known to be whole.
        """
        for index in sorted(self._changed):
            self._sequences[index] += index not in self._unsettled
            bits = self._bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
            used = int(np.bitwise_count(bits).sum())
            part = BitmapBlock(self.number, index, self._sequences[index], used, bits.tobytes())
            self._unsettled[index] = part
            yield part
        self._changed.clear()

    def twins(self) -> Iterator[BitmapBlock]:
        """Yield what the other slots are to hold of the parts handed out and not settled."""
        yield from map(twin_of, self._unsettled.values())

    def settled(self, twice: bool = False) -> None:
        """Note that all parts handed out so far are durable, in both slots if `twice`."""
        for index in self._unsettled:
            self._sequences[index] += twice
        self._unsettled.clear()


class Allocator:
    """Hands out blocks of the extents that this session has claimed.

    Nodes of a change are *reserved* when the change is made and taken at its commit, so
    that a commit never finds the store full. The last `slop` free blocks are kept for
    work that frees space (trim, delete, snapshots), so that a full store can be emptied.

    An extent is claimed when those before it are full. Where others may have the store open
    that can take a while (`core.claiming`). Who must not wait for that puts its own way to
    get one in `claim`, claims it ahead, and goes on with something else until it is there.

    Args:
        device: where headers and bitmaps are read.
        sb: the geometry.
        locks: grants the extents.
        session: UUID of this session, left in the headers of claimed extents.

    Attributes:
        finder: finds extents.
        claim: called when there is no room; says whether there is more now, or raises
            NoSpaceYet: more is on its way.
        low: with fewer free blocks than that left after data was placed, ...
        when_low: ... this is called.
        taken: blocks handed out so far; never goes down.
    """

    def __init__(self, device: BlockDevice, sb: Superblock, locks: Locks, session: bytes) -> None:
        """Claim nothing yet."""
        self._device = device
        self._sb = sb
        self._locks = locks
        self._session = session
        self._extents: dict[int, Extent] = {}
        self._aside: dict[int, Extent] = {}
        self._grants: dict[int, Grant] = {}
        self._newest: dict[int, ExtentHeader] = {}
        self._written_to: set[int] = set()
        self._unsettled: set[int] = set()
        self._last: dict[int, bytes] = {}
        self._headers: dict[int, ExtentHeader] = {}
        self.finder = Finder(device, sb, locks, session, self._grants)
        self.claim: Callable[[], bool] = self._claim_another
        self.low = 0
        self.when_low: Callable[[], None] = _nothing
        self._deferred: list[NDArray[np.int64]] | None = None
        self._superseded: dict[int, NDArray[np.int64]] = {}
        self._free = 0
        self._reserved = 0
        self.taken = 0
        self._slop = _slop(sb)

    def grown(self, sb: Superblock) -> None:
        """Take note of extents that the store was given."""
        self.finder.grown(sb)
        self._sb = sb
        self._slop = _slop(sb)

    # -- claiming ----------------------------------------------------------------------

    def _claim(self, number: int, grant: Grant) -> Extent:
        """Make an extent this session's, with its lock.

        Header and bitmap are read under the lock: before it they may have been changed. The
        claim reaches the device before the first block does, where a session may lose the
        extent while it lives: whoever comes then sees that it was not given back.
        """
        try:
            header, parts = self.finder.read(number)
            extent = Extent(number, self._sb, parts)
            claim = ExtentHeader(
                number, header.sequence + 1, grant.token, self._session, time.time_ns()
            )
            self._announce(claim)
        except BaseException:
            grant.release()
            raise
        self._grants[number] = grant
        clean = header.session in (NOBODY, self._session) or not self.finder.is_suspect(number)
        self._last[number] = NOBODY if clean else header.session
        return extent

    def _announce(self, claim: ExtentHeader) -> None:
        """Have it written that this session writes to an extent."""
        if self._locks.leased:
            at, packed = packed_header(self._sb, claim)
            self._device.pwritev(at << BLOCK_SHIFT, [packed])
            self.finder.touched.add(claim.extent)
        self._headers[claim.extent] = self._newest[claim.extent] = claim
        self._written_to.add(claim.extent)

    def _next(self, number: int, session: bytes) -> ExtentHeader:
        """Return the next header of an extent.

        One that was not flushed since goes to the same slot: the other is known to be whole.
        """
        old = self._newest[number]
        unsettled = number in self._headers or number in self._unsettled
        return replace(old, sequence=old.sequence + (not unsettled), session=session)

    def _own(self, number: int) -> Extent | None:
        """Claim an extent to free blocks in it; None when it is not to be had, or unusable."""
        try:
            grant = self.finder.lock(number)
            return None if grant is None else self.take_in(Found(number, grant))
        except Corrupt as error:
            self.finder.unusable[number] = error
            return None

    def take_in(self, found: Found) -> Extent:
        """Allocate from an extent that was found, from now on.

        Raises:
            Fenced: it was lost meanwhile; it is given back.
            Corrupt, IoFailed: it cannot be read; the same.
        """
        self._extents[found.number] = extent = self._claim(found.number, found.grant)
        self._free += extent.free
        return extent

    def _claim_another(self) -> bool:
        """Claim one more extent that has room; say whether there was one."""
        found = self.finder.find()
        if found is not None:
            self.take_in(found)
        return found is not None

    def _available(self, count: int, urgent: bool) -> bool:
        """Say whether `count` blocks are free beside reservations, claiming extents.

        Raises:
            NoSpaceYet: an extent is on its way.
        """
        keep = self._reserved + (0 if urgent else self._slop)
        while self._free - keep < count:
            if not self.claim():
                return False
        return True

    # -- taking and releasing ----------------------------------------------------------

    def reserve(self, count: int, urgent: bool = False) -> None:
        """Promise `count` blocks to a later `take_reserved`.

        Args:
            count: how many blocks.
            urgent: the work frees space, so it may use the kept-back blocks.

        Raises:
            NoSpace: there are not that many.
        """
        if not self._available(count, urgent):
            raise self.finder.no_space()
        self._reserved += count

    def unreserve(self, count: int) -> None:
        """Give back reservations that turned out not to be needed."""
        self._reserved -= count

    def take_reserved(self, count: int) -> list[Run]:
        """Turn `count` reserved blocks into runs for metadata."""
        self._reserved -= count
        self._free -= count
        self.taken += count
        runs = []
        for extent in self._extents.values():
            while count and extent.free:
                run = extent.take_high(count)
                count -= run[1]
                runs.append(run)
        assert not count, "reservations are covered by free blocks"
        return runs

    def take(self, count: int) -> list[Run]:
        """Return runs of `count` blocks for data.

        Raises:
            NoSpace: there are not that many; nothing is taken.
        """
        if not self._available(count, False):
            raise self.finder.no_space()
        self._free -= count
        self.taken += count
        runs = []
        for extent in self._extents.values():
            while count and extent.free:
                run = extent.take_low(count)
                count -= run[1]
                runs.append(run)
            if not count:
                break
        if self._free < self.low:
            self.when_low()
        return runs

    def release(self, blocks: Sequence[int] | NDArray[np.int64]) -> None:
        """Make blocks free for reuse; call it only when no record on disk leads to them.

        While there is a seal they wait for its end. Blocks in extents of other sessions stay
        allocated: garbage collection frees them. Where there may be other sessions that goes
        for extents of nobody too, so that no session gathers all of them.
        """
        array = np.asarray(blocks, np.int64)
        if array.size and self._deferred is not None:
            self._deferred.append(array)
        elif array.size:
            self._release(array)

    def _release(self, array: NDArray[np.int64]) -> None:
        owner = array // self._sb.extent_blocks
        for number in np.unique(owner).tolist():
            extent = self._extents.get(number) or self._aside.get(number)
            if extent is None and not self._locks.shared:
                extent = self._own(number)
            if extent is not None:
                mine = array[owner == number]
                extent.clear(mine)
                if number in self._extents:
                    self._free += mine.size

    def supersede(self, vdi: int, blocks: Sequence[int]) -> None:
        """Note what is released with the next commit of a VDI, in place of what was noted before.

        Until then no collection frees it: that is done once.
        """
        self._superseded.pop(vdi, None)
        if blocks:
            self._superseded[vdi] = np.asarray(blocks, np.int64)
            for extent in self._held():
                self._spare(extent)

    def _spare(self, extent: Extent) -> None:
        for blocks in self._superseded.values():
            extent.spare(blocks[blocks // self._sb.extent_blocks == extent.number])

    def allocated(self, number: int) -> NDArray[np.uint8]:
        """Return which blocks of an extent are allocated for data, nodes and log blocks.

        An extent that is not claimed yet stays so: who only looks leaves no trace.

        Returns:
            Bit *i* of byte *j* is block 8 *j* + *i* of the extent.

        Raises:
            Corrupt: its bitmap cannot be read.
        """
        extent = self._extents.get(number) or self._aside.get(number)
        if extent:
            bits = extent.bits
        else:
            parts = read_bitmap(self._device, self._sb, number)
            joined = np.frombuffer(b"".join(part.bits for part in parts), np.uint8)
            bits = joined[: self._sb.extent_blocks >> 3].copy()
        whole, rest = divmod(self._sb.overhead, 8)
        bits[:whole] = 0
        bits[whole] &= 0xFF << rest & 0xFF
        return bits

    # -- collecting --------------------------------------------------------------------

    def seal(self) -> list[int]:
        """Copy the bitmaps of the extents of this session; return their numbers.

        What is freed from now on waits for `unseal` or `sweep`. A seal before ends.
        """
        self.unseal()
        self._deferred = []
        for extent in self._extents.values():
            extent.seal()
            self._spare(extent)
        return list(self._extents)

    def borrow(self, number: int) -> bool:
        """Claim and seal an extent that nobody has, for collection alone.

        Returns:
            Whether it could be had.
        """
        if number in self._grants:
            return False
        try:
            grant = self.finder.lock(number)
            if grant is None:
                return False
            extent = self._claim(number, grant)
        except Corrupt as error:  # what it calls free may be in use
            self.finder.unusable[number] = error
            return False
        self._aside[number] = extent
        extent.seal()
        self._spare(extent)
        return True

    @property
    def sealed(self) -> list[int]:
        """The extents of which there is a copy that was not swept yet."""
        return [extent.number for extent in self._held() if extent.sealed]

    def candidates(self, number: int) -> NDArray[np.uint8]:
        """Return what `sweep` may free of an extent: what was allocated at the seal and is still.

        Raises:
            InUse: the extent is not sealed.
        """
        extent = self._extents.get(number) or self._aside.get(number)
        if extent is None or extent.candidates is None or self._deferred is None:
            raise InUse(f"extent {number} is not sealed any more", "collect again")
        return extent.candidates

    def free_waiting(self) -> None:
        """Free what was freed since `seal`, and go on: nobody needs it to be readable."""
        deferred, self._deferred = self._deferred or [], []
        for blocks in deferred:
            self._release(blocks)

    def sweep(self, number: int, garbage: NDArray[np.uint8]) -> int:
        """Free what was allocated when an extent was sealed and is needed by nothing.

        Call it when the trees have been read: frees wait no longer.

        Args:
            number: the extent.
            garbage: bit *i* of byte *j* says whether it is block 8 *j* + *i* of the extent.

        Returns:
            How many blocks were freed.

        Raises:
            InUse: the extent is not sealed; nothing is freed.
        """
        self.candidates(number)
        self.free_waiting()
        freed = self._held_extent(number).sweep(garbage)
        if number in self._extents:
            self._free += freed
        return freed

    def unseal(self) -> None:
        """End the seal: what was freed meanwhile is free, nothing else is."""
        for extent in self._held():
            extent.unseal()
        deferred, self._deferred = self._deferred, None
        for blocks in deferred or ():
            self._release(blocks)

    def free_runs(self, number: int) -> list[list[int]]:
        """Return the runs (from, up to) of free blocks of an extent of this session."""
        extent = self._extents.get(number) or self._aside.get(number)
        return extent.free_runs() if extent else []

    def part_sequence(self, number: int, index: int) -> int:
        """Return the number of a part of the bitmap of an extent; 0 if that is not durable."""
        extent = self._extents.get(number) or self._aside.get(number)
        return extent.part_sequence(index) if extent else 0

    # -- giving back -------------------------------------------------------------------

    @property
    def aside(self) -> list[int]:
        """The extents that are held and not allocated from."""
        return list(self._aside)

    def set_aside(self, number: int) -> None:
        """Allocate no more from an extent, so that it can be given to another session.

        What was taken from it is not committed yet, perhaps. So it is given back (`give_back`)
        only after a commit of everything.

        Raises:
            InUse: it cannot be spared, or it is not this session's.
        """
        if number in self._aside:
            self._aside[number].unseal()
            return
        extent = self._extents.get(number)
        if extent is None:
            raise InUse(f"extent {number} is not held by this session", "ask again")
        spared = len(self._extents) > 1 and self._deferred is None
        if not spared or self._free - extent.free < self._reserved + self._slop:
            raise InUse(f"extent {number} cannot be spared", "try again later")
        self._aside[number] = self._extents.pop(number)
        self._free -= extent.free

    def take_back(self, number: int) -> None:
        """Undo `set_aside`: allocate from the extent again."""
        extent = self._aside.pop(number, None)
        if extent is not None:
            if number not in self._written_to:
                self._announce(self._next(number, self._session))
            self._extents[number] = extent
            self._free += extent.free

    def leave(self, numbers: Collection[int] | None = None) -> None:
        """Have it written that this session has stopped writing to extents: all, or some.

        One that the session before may still be writing to stays marked as that one's. A claim
        that was never written needs nothing.
        """
        for number in self._written_to.intersection(self._grants if numbers is None else numbers):
            self._written_to.discard(number)
            unused = number in self._headers and not self._held_extent(number).changed
            if unused and not self._locks.leased:
                del self._headers[number]
            else:
                header = self._next(number, self._last[number])
                self._headers[number] = self._newest[number] = header

    def give_back(self, numbers: Collection[int]) -> None:
        """Give back extents that were set aside, after `leave` and when all is durable."""
        for number in numbers:
            self._aside.pop(number)
            self._headers.pop(number, None)
            self._written_to.discard(number)
            self._grants.pop(number).release()

    def _held(self) -> Iterator[Extent]:
        return chain(self._extents.values(), self._aside.values())

    def _held_extent(self, number: int) -> Extent:
        return self._extents.get(number) or self._aside[number]

    # -- the disk ----------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether bitmaps or headers on disk are behind."""
        return bool(self._headers) or any(e.changed for e in self._held())

    def changes(self) -> list[tuple[int, bytes]]:
        """Return (block, contents) of every header and bitmap part to write now."""
        sb = self._sb
        writes = [packed_header(sb, header) for header in self._headers.values()]
        self.finder.touched.update(self._headers, (e.number for e in self._held() if e.changed))
        self._unsettled.update(self._headers)
        self._headers.clear()
        for extent in self._held():
            writes += [packed_bitmap(sb, part) for part in extent.changes()]
        return writes

    def twins(self) -> list[tuple[int, bytes]]:
        """Return (block, contents) of the other slot of every bitmap part of `changes`.

        They are for after a flush of `changes`. Before more changes they are flushed themselves,
        and `settled` hears of them.
        """
        parts = chain.from_iterable(extent.twins() for extent in self._held())
        return [packed_bitmap(self._sb, part) for part in parts]

    def settled(self, twice: bool = False) -> None:
        """Note that everything `changes` returned so far is durable, `twins` too if `twice`."""
        self._unsettled.clear()
        for extent in self._held():
            extent.settled(twice)

    @property
    def held(self) -> Collection[int]:
        """The numbers of the extents that this session has, allocated from or not."""
        return self._grants.keys()

    @property
    def claimed(self) -> Collection[int]:
        """The numbers of the extents that this session allocates from."""
        return self._extents.keys()

    @property
    def reserve_ahead(self) -> int:
        """With how many free blocks left a server gets another extent before it needs it."""
        payload = self._sb.extent_blocks - self._sb.overhead
        return min(payload // 2, AHEAD_MAX) + self._slop

    @property
    def free(self) -> int:
        """Free blocks in the extents claimed so far, reserved ones included."""
        return self._free

    def close(self) -> None:
        """Give all extents back."""
        self.finder.stop()
        for grant in self._grants.values():
            grant.release()


def _nothing() -> None:
    """Stand for what nobody wants to hear of."""


def _slop(sb: Superblock) -> int:
    """Return how many blocks are kept for work that frees space."""
    payload = (sb.extents - 1) * (sb.extent_blocks - sb.overhead)
    return min(payload // SLOP_SHARE, SLOP_MAX)
