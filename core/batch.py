"""Several writes at once: which blocks they go to, in as few long runs as can be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from core.errors import ParallaxError
from core.format import BLOCK, BLOCK_MASK, BLOCK_SHIFT, WRITABLE, ZERO_BLOCK, blocks_for
from core.image import Image

if TYPE_CHECKING:
    from core.extent import Run as AllocatedRun

_OFFSET: Final = BLOCK - 1


class WriteBatch:
    """The blocks of several writes, collected to be written in few long runs.

    Fresh blocks are written before the map learns of them, so a write that fails changes
    nothing there.

    Args:
        image: what is written to.
        take: returns runs of that many fresh blocks, or raises NoSpace.
        keep_zeros: store blocks of zeros too, so that later writes there find space.
    """

    def __init__(
        self,
        image: Image,
        take: Callable[[int], list[AllocatedRun]],
        keep_zeros: bool = False,
    ) -> None:
        """Start with nothing to write."""
        self._image = image
        self._map = image.map
        self._take = take
        self._keep_zeros = keep_zeros
        self._pieces: list[tuple[int, memoryview, int]] = []
        self._taken: set[int] = set()
        self._failed: list[tuple[int, ParallaxError]] = []
        self._updates: list[tuple[int, int, int, int]] = []

    def add(self, number: int, offset: int, data: memoryview) -> None:
        """Add one write within the image; raises when there is no room for it."""
        if not data:
            return
        first = offset >> BLOCK_SHIFT
        count = blocks_for(offset + len(data)) - first
        if not self._taken.isdisjoint(range(first, first + count)):
            self._write()
        if (offset | len(data)) & _OFFSET:
            data = self._whole(offset, data, count)
        self._taken.update(range(first, first + count))
        if count == 1:
            self._add_block(number, first, data)
            return
        for run_first, run_count, zero in self._split(first, data):
            at = (run_first - first) << BLOCK_SHIFT
            part = data[at : at + (run_count << BLOCK_SHIFT)]
            if zero:
                self._map.trim(run_first, run_first + run_count)
            else:
                self._add_run(number, run_first, run_count, part)

    def _whole(self, offset: int, data: memoryview, count: int) -> memoryview:
        """Return whole blocks: `data` with what is stored around it."""
        self._write()
        whole = memoryview(bytearray(count << BLOCK_SHIFT))
        start = offset & ~_OFFSET
        for block in {start, start + ((count - 1) << BLOCK_SHIFT)}:
            length = min(BLOCK, self._image.size - block)
            self._image.read_into(block, whole[block - start : block - start + length])
        whole[offset - start : offset - start + len(data)] = data
        return whole

    def _add_block(self, number: int, vblock: int, data: memoryview) -> None:
        entry = self._map.lookup(vblock)
        if not self._keep_zeros and not data[0] and not data[_OFFSET] and bytes(data) == ZERO_BLOCK:
            if entry:
                self._map.trim(vblock, vblock + 1)
        elif entry & WRITABLE:
            self._pieces.append((entry >> 1 & BLOCK_MASK, data, number))
        else:
            self._map.prepare(vblock, 1)
            [(block, _)] = self._take(1)
            self._pieces.append((block, data, number))
            self._updates.append((vblock, block, 1, number))

    def _add_run(self, number: int, first: int, count: int, data: memoryview) -> None:
        for run in self._map.lookup_range(first, count):
            at = (run.first - first) << BLOCK_SHIFT
            part = data[at : at + (run.length << BLOCK_SHIFT)]
            if run.owned:
                self._pieces.append((run.block, part, number))
                continue
            self._map.prepare(run.first, run.length)
            vblock = run.first
            for block, length in self._take(run.length):
                size = length << BLOCK_SHIFT
                self._pieces.append((block, part[:size], number))
                self._updates.append((vblock, block, length, number))
                part = part[size:]
                vblock += length

    def _split(self, first: int, data: memoryview) -> list[tuple[int, int, bool]]:
        """Split whole blocks into (first, count, all zeros)."""
        count = len(data) >> BLOCK_SHIFT
        if self._keep_zeros:
            return [(first, count, False)]
        words = np.frombuffer(data, np.uint64).reshape(count, -1)
        zero = np.bitwise_or.reduce(words, axis=1) == 0
        edges = [0, *(np.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist(), count]
        return [(first + low, high - low, bool(zero[low])) for low, high in pairwise(edges)]

    def run(self) -> list[tuple[int, ParallaxError]]:
        """Write everything; return (request, what went wrong)."""
        self._write()
        return self._failed

    def _write(self) -> None:
        """Write what was collected so far, then tell the map."""
        pieces = sorted(self._pieces, key=lambda piece: piece[0])
        start = 0
        for end in range(1, len(pieces) + 1):
            if end == len(pieces) or pieces[end][0] != pieces[end - 1][0] + (
                len(pieces[end - 1][1]) >> BLOCK_SHIFT
            ):
                run = pieces[start:end]
                try:
                    self._image.store.write([(run[0][0], [piece[1] for piece in run])])
                except ParallaxError as error:
                    self._failed += [(piece[2], error) for piece in run]
                start = end
        failed = {number for number, _ in self._failed}
        unused: list[int] = []
        for vblock, block, count, number in self._updates:
            if number in failed:
                unused += range(block, block + count)
            else:
                self._map.update(vblock, block, count)
        self._map.freed += unused
        self._pieces.clear()
        self._updates.clear()
        self._taken.clear()
