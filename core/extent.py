"""Which blocks are free: extents, their bitmaps, and the allocator over both.

A session claims extents and then allocates without asking anyone. Data grows up from the
start of an extent, metadata down from its end, so that a scan of metadata is sequential
and one extent is enough for one session.

The bitmap in memory runs ahead of the one on disk, in the safe direction only: bits are
set when blocks are handed out and written before the commit that uses them; bits are
cleared after the commit that stopped using them. A crash therefore only leaks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.device import BlockDevice
from core.errors import Corrupt, InUse, NoSpace
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK,
    BLOCK_SHIFT,
    BitmapBlock,
    ExtentHeader,
    Superblock,
)
from core.lock_master import Grant, LockMaster

Run = tuple[int, int]
"""A run of blocks: the first one, and how many."""

_TAKEN: Final = np.uint8(1)  # a plain 1 would make eight bytes of each bit
SLOP_SHARE: Final = 64
SLOP_MAX: Final = 4096
_FULL_HINT: Final = "delete VDIs or snapshots, trim, or add extents with 'plxsh store grow'"


class Extent:
    """One claimed extent: its bitmap in memory and the free runs to hand out next."""

    def __init__(self, number: int, sb: Superblock, parts: Sequence[BitmapBlock]) -> None:
        """Take the valid bitmap parts as read from disk."""
        self.number = number
        self._first = sb.extent_start(number)
        self._blocks = sb.extent_blocks
        self._sequences = [part.sequence for part in parts]
        self._changed: set[int] = set()
        self._unsettled: set[int] = set()
        joined = b"".join(part.bits for part in parts)
        self._bits = np.frombuffer(joined, np.uint8).copy()
        self._runs: deque[list[int]] = deque()
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
        self.free += blocks.size
        self._changed.update(np.unique(at // BITMAP_BITS).tolist())

    @property
    def bits(self) -> NDArray[np.uint8]:
        """A copy of the bitmap: bit *i* of byte *j* is block 8 *j* + *i* of the extent."""
        return self._bits[: self._blocks >> 3].copy()

    def sweep(self, loose: NDArray[np.uint8]) -> int:
        """Clear the bits of blocks that nothing needs; return how many were set.

        Args:
            loose: the blocks, as `bits`.
        """
        bits = self._bits[: loose.size]
        cleared = bits & loose
        free = int(np.bitwise_count(cleared).sum())
        bits ^= cleared
        self.free += free
        self._changed.update(np.unique(np.flatnonzero(cleared) // BITMAP_BYTES).tolist())
        return free

    @property
    def changed(self) -> bool:
        """Whether the bitmap on disk is behind."""
        return bool(self._changed)

    def changes(self) -> Iterator[BitmapBlock]:
        """Yield each bitmap part that changed, with its next sequence number.

        A part that was handed out and not flushed since keeps its number, and so its
        slot: the other slot is the only one that is known to be whole.
        """
        for index in sorted(self._changed):
            if index not in self._unsettled:
                self._unsettled.add(index)
                self._sequences[index] += 1
            bits = self._bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
            used = int(np.bitwise_count(bits).sum())
            yield BitmapBlock(self.number, index, self._sequences[index], used, bits.tobytes())
        self._changed.clear()

    def settled(self) -> None:
        """Note that all parts handed out so far are durable."""
        self._unsettled.clear()


def read_bitmap(device: BlockDevice, sb: Superblock, extent: int) -> list[BitmapBlock]:
    """Return the current bitmap parts of one extent, the newer valid slot of each.

    Raises:
        Corrupt: neither slot of a part is valid.
    """
    first = sb.bitmap_slot(extent, 0, 0)
    raw = device.pread(first << BLOCK_SHIFT, 2 * sb.bitmap_blocks * BLOCK)
    parts = []
    for index in range(sb.bitmap_blocks):
        at = 2 * index * BLOCK
        slots = [
            BitmapBlock.unpack(raw[at + s * BLOCK : at + (s + 1) * BLOCK], sb.uuid, extent, index)
            for s in (0, 1)
        ]
        valid = [slot for slot in slots if slot]
        if not valid:
            raise Corrupt(
                f"both copies of the allocation bitmap of extent {extent} are damaged",
                sb.bitmap_slot(extent, index, 0),
                "run 'plxsh store check --repair'",
            )
        parts.append(max(valid, key=lambda part: part.sequence))
    return parts


def read_header(device: BlockDevice, sb: Superblock, extent: int) -> ExtentHeader:
    """Return the header of one extent, the newer valid slot.

    Raises:
        Corrupt: neither slot is valid.
    """
    first = sb.extent_start(extent)
    raw = device.pread(first << BLOCK_SHIFT, 2 * BLOCK)
    slots = [ExtentHeader.unpack(raw[s * BLOCK : (s + 1) * BLOCK], sb.uuid, extent) for s in (0, 1)]
    valid = [slot for slot in slots if slot]
    if not valid:
        raise Corrupt(
            f"both headers of extent {extent} are damaged",
            first,
            "run 'plxsh store check --repair'",
        )
    return max(valid, key=lambda header: header.sequence)


def pristine(sb: Superblock, extent: int) -> list[tuple[int, bytes]]:
    """Return the (block, contents) that make an extent empty; both slots are covered."""
    size = sb.extent_blocks
    taken = np.zeros(sb.bitmap_blocks * BITMAP_BITS, np.uint8)
    taken[: sb.overhead] = 1
    taken[size:] = 0
    bits = np.packbits(taken, bitorder="little")
    first = sb.extent_start(extent)
    writes = [(first, bytes(BLOCK)), (first + 1, ExtentHeader(extent).pack(sb.uuid))]
    for index in range(sb.bitmap_blocks):
        part = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
        used = int(np.bitwise_count(part).sum())
        packed = BitmapBlock(extent, index, 1, used, part.tobytes()).pack(sb.uuid)
        writes.append((sb.bitmap_slot(extent, index, 0), bytes(BLOCK)))
        writes.append((sb.bitmap_slot(extent, index, 1), packed))
    return writes


class Allocator:
    """Hands out blocks of the extents that this session has claimed.

    Nodes of a change are *reserved* when the change is made and taken at its commit, so
    that a commit never finds the store full. The last `slop` free blocks are kept for
    work that frees space (trim, delete, snapshots), so that a full store can be emptied.

    Args:
        device: where headers and bitmaps are read.
        sb: the geometry.
        locks: grants the extents.
        session: UUID of this session, left in the headers of claimed extents.

    Attributes:
        taken: blocks handed out so far; never goes down.
    """

    def __init__(
        self, device: BlockDevice, sb: Superblock, locks: LockMaster, session: bytes
    ) -> None:
        """Claim nothing yet."""
        self._device = device
        self._sb = sb
        self._locks = locks
        self._session = session
        self._extents: dict[int, Extent] = {}
        self._grants: list[Grant] = []
        self._unclaimed = deque(range(1, sb.extents))
        self._headers: list[ExtentHeader] = []
        self._free = 0
        self._reserved = 0
        self.taken = 0
        payload = (sb.extents - 1) * (sb.extent_blocks - sb.overhead)
        self._slop = min(payload // SLOP_SHARE, SLOP_MAX)

    def _claim(self, number: int) -> Extent | None:
        """Claim one extent; None when another session has it."""
        header = read_header(self._device, self._sb, number)
        try:
            grant = self._locks.acquire(f"extent/{number}", header.token)
        except InUse:
            return None
        extent = Extent(number, self._sb, read_bitmap(self._device, self._sb, number))
        self._grants.append(grant)
        self._extents[number] = extent
        if number in self._unclaimed:  # not so if another session had it when it was tried
            self._unclaimed.remove(number)
        self._free += extent.free
        now = time.time_ns()
        self._headers.append(
            ExtentHeader(number, header.sequence + 1, grant.token, self._session, now)
        )
        return extent

    def _available(self, count: int, urgent: bool) -> bool:
        """Say whether `count` blocks are free beside reservations, claiming extents."""
        keep = self._reserved + (0 if urgent else self._slop)
        while self._free - keep < count:
            if not self._unclaimed:
                return False
            if self._claim(self._unclaimed[0]) is None:
                self._unclaimed.popleft()
        return True

    def reserve(self, count: int, urgent: bool = False) -> None:
        """Promise `count` blocks to a later `take_reserved`.

        Args:
            count: how many blocks.
            urgent: the work frees space, so it may use the kept-back blocks.

        Raises:
            NoSpace: there are not that many.
        """
        if not self._available(count, urgent):
            raise NoSpace("the blockstore is full", _FULL_HINT)
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
            raise NoSpace("the blockstore is full", _FULL_HINT)
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
        return runs

    def release(self, blocks: Sequence[int] | NDArray[np.int64]) -> None:
        """Make blocks free for reuse; call it only after the commit that dropped them.

        Blocks in extents of other sessions stay allocated: garbage collection frees them.
        """
        array = np.asarray(blocks, np.int64)
        if not array.size:
            return
        owner = array // self._sb.extent_blocks
        for number in np.unique(owner).tolist():
            extent = self._extents.get(number) or self._claim(number)
            if extent:
                mine = array[owner == number]
                extent.clear(mine)
                self._free += mine.size

    def allocated(self, number: int) -> NDArray[np.uint8]:
        """Return which blocks of an extent are allocated for data, nodes and log blocks.

        An extent that is not claimed yet stays so: who only looks leaves no trace.

        Returns:
            Bit *i* of byte *j* is block 8 *j* + *i* of the extent.

        Raises:
            Corrupt: its bitmap cannot be read.
        """
        extent = self._extents.get(number)
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

    def sweep(self, garbage: NDArray[np.uint8]) -> int:
        """Free blocks that nothing needs, in all extents this session can claim.

        Args:
            garbage: bit *i* of byte *j* says whether it is block 8 *j* + *i* of the store.

        Returns:
            How many blocks were freed.
        """
        freed = 0
        for number in range(1, self._sb.extents):
            start, end = self._sb.extent_start(number), self._sb.extent_start(number + 1)
            loose = garbage[start >> 3 : end >> 3]
            if loose.any():
                extent = self._extents.get(number) or self._claim(number)
                if extent:
                    freed += extent.sweep(loose)
        self._free += freed
        return freed

    @property
    def changed(self) -> bool:
        """Whether bitmaps or headers on disk are behind."""
        return bool(self._headers) or any(e.changed for e in self._extents.values())

    def changes(self) -> list[tuple[int, bytes]]:
        """Return (block, contents) of every header and bitmap part to write now."""
        sb = self._sb
        writes = [
            (sb.extent_start(h.extent) + h.sequence % 2, h.pack(sb.uuid)) for h in self._headers
        ]
        self._headers.clear()
        for extent in self._extents.values():
            writes += [
                (sb.bitmap_slot(part.extent, part.index, part.sequence % 2), part.pack(sb.uuid))
                for part in extent.changes()
            ]
        return writes

    def settled(self) -> None:
        """Note that everything `changes` returned so far is durable."""
        for extent in self._extents.values():
            extent.settled()

    @property
    def claimed(self) -> Collection[int]:
        """The numbers of the extents claimed so far."""
        return self._extents.keys()

    @property
    def free(self) -> int:
        """Free blocks in the extents claimed so far, reserved ones included."""
        return self._free

    def close(self) -> None:
        """Give the extents back."""
        for grant in self._grants:
            grant.release()
