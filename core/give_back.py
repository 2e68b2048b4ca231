"""Giving free space back to the host: as holes in a file, by a discard on a disk.

The work is in proportion to what takes space, not to what is free. For a file the system says
which parts those are. For a disk nobody does. But each part of an extent's bitmap has a number
that goes up with every change of it. As long as that is the number it was formatted with, or the
one it had when this session gave back all that was free there, nothing was written there since.
So a disk pays for the free blocks in parts that were ever used, once in the life of a session.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from core.blockset import BlockSet
from core.blockstore import Blockstore
from core.errors import Corrupt
from core.extent import Run, read_bitmap
from core.format import BITMAP_BITS, BLOCK, BLOCK_SHIFT

_STEP: Final = 1 << 14
"""Blocks looked at at once: few enough for a server to do it between two requests."""
_RUNS: Final = 256
"""Runs of blocks looked at at once."""


class GiveBack:
    """What one session gives back, and remembers of it.

    Args:
        store: open for writing.
    """

    def __init__(self, store: Blockstore) -> None:
        """Remember nothing yet."""
        self._store = store
        self._done: dict[tuple[int, int], int] = {}

    def is_due(self, number: int) -> bool:
        """Say whether an extent that nobody has may hold something to give back."""
        store = self._store
        taken = self._taken(number)
        if taken is not None:
            return next(taken, None) is not None
        if not store.was_claimed(number):
            return False
        try:
            parts = read_bitmap(store.device, store.sb, number)
        except Corrupt:  # what it calls free may be in use
            return False
        return any(part.sequence != self._known(number, part.index) for part in parts)

    def _known(self, number: int, index: int) -> int:
        """Return the version of a part of a bitmap from when all free blocks were given back."""
        formatted = 2 if self._store.sb.stamped else 1
        return self._done.get((number, index), formatted)

    def extent(self, number: int, reached: BlockSet | None = None) -> Iterator[int]:
        """Return the free blocks of an extent of this session to the host, some at a time.

        What is free is looked up anew for each step. Such a block is reached by no record on
        disk, for it was freed after the commit that dropped it was durable; so it may go,
        whatever its bit on disk says.

        Args:
            number: the extent.
            reached: blocks that stay all the same, where somebody has found out: a bitmap that
                is wrong then costs nothing.

        Yields:
            How many blocks went back.

        Raises:
            NotSupported: the device has no way to take them.
        """
        taken = self._taken(number)
        if taken is not None:
            yield from self._steps(number, list(taken), reached)
            return
        sb = self._store.sb
        for index in range(sb.bitmap_blocks):
            before = self._store.allocator.part_sequence(number, index)
            if before == self._known(number, index):
                continue
            first = sb.extent_start(number) + index * BITMAP_BITS
            end = min(first + BITMAP_BITS, sb.extent_start(number + 1))
            yield from self._steps(number, [(first, end)], reached)
            if before:  # whatever is written there from now on makes it another number
                self._done[number, index] = before

    def _taken(self, number: int) -> Iterator[Run] | None:
        """Return the runs (from, up to) of blocks that take space, None if nobody knows."""
        sb = self._store.sb
        first = sb.extent_start(number) + sb.overhead
        length = sb.extent_start(number + 1) - first
        taken = self._store.device.taken(first << BLOCK_SHIFT, length << BLOCK_SHIFT)
        if taken is None:
            return None
        return ((low >> BLOCK_SHIFT, -(-high // BLOCK)) for low, high in taken)

    def _steps(self, number: int, runs: list[Run], reached: BlockSet | None) -> Iterator[int]:
        """Give back what is free of some runs (from, up to) of an extent; as `extent`."""
        for batch in _batches(runs):
            done = 0
            free = self._store.allocator.free_runs(number)
            for low, high in batch:
                for first, end in _common(free, low, high):
                    for at, to in _without(reached, first, end):
                        self._store.device.discard(at << BLOCK_SHIFT, (to - at) << BLOCK_SHIFT)
                        done += to - at
            yield done


def _batches(runs: list[Run]) -> Iterator[list[Run]]:
    """Split runs (from, up to) into lists of so many of them, and so many blocks."""
    batch: list[Run] = []
    room = _STEP
    for first, end in runs:
        low = first
        while low < end:
            high = min(end, low + room)
            batch.append((low, high))
            room -= high - low
            low = high
            if not room or len(batch) == _RUNS:
                yield batch
                batch, room = [], _STEP
    if batch:
        yield batch


def _common(free: list[list[int]], low: int, high: int) -> Iterator[Run]:
    """Yield the runs (from, up to) of `free`, which are in order, between `low` and `high`."""
    at = max(0, bisect_right(free, [low]) - 1)
    while at < len(free) and free[at][0] < high:
        first, end = max(free[at][0], low), min(free[at][1], high)
        if first < end:
            yield first, end
        at += 1


def _without(reached: BlockSet | None, first: int, end: int) -> Iterator[Run]:
    """Yield the runs (from, up to) between `first` and `end` that are not in a set."""
    if reached is None:
        yield first, end
        return
    for low, count in reached.gaps(first & -8, (end + 7) & -8):
        at, to = max(low, first), min(low + count, end)
        if at < to:
            yield at, to
