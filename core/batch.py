"""Several writes at once: which blocks they go to, in as few long runs as can be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from core.errors import NoSpace, NoSpaceYet, ParallaxError
from core.format import BLOCK, BLOCK_MASK, BLOCK_SHIFT, WRITABLE, ZERO_BLOCK, blocks_for
from core.image import Image

if TYPE_CHECKING:
    from core.extent import Run as AllocatedRun

_OFFSET: Final = BLOCK - 1


class _Fresh(NamedTuple):
    """Whole blocks that get new places: the first virtual one, how many, and for whom."""

    vblock: int
    length: int
    data: memoryview
    request: int


class WriteBatch:
    """The blocks of several writes, collected to be written in few long runs.

    Blocks that the image owns are overwritten in place. All others get new places, next
    to each other, and are written before the map learns of them, so a write that fails
    changes nothing there.

    Args:
        image: what is written to.
        take: returns runs of that many fresh blocks, or raises NoSpace.
        check: called before each run that is written in place; raises when the image may have
            been taken from this session meanwhile.
        keep_zeros: store blocks of zeros too, so that later writes there find space.
    """

    def __init__(
        self,
        image: Image,
        take: Callable[[int], list[AllocatedRun]],
        check: Callable[[], None],
        keep_zeros: bool = False,
    ) -> None:
        """Start with nothing to write."""
        self._image = image
        self._map = image.map
        self._take = take
        self._check = check
        self._keep_zeros = keep_zeros
        self._in_place: list[tuple[int, memoryview, int]] = []
        self._fresh: list[_Fresh] = []
        self._touched: set[int] = set()
        self._failed: list[tuple[int, ParallaxError]] = []

    def add(self, request: int, offset: int, data: memoryview) -> None:
        """Add one write within the image; raises when there is no room for it."""
        first = offset >> BLOCK_SHIFT
        if len(data) == BLOCK and not offset & _OFFSET:
            if first in self._touched:
                self._write()
            self._touched.add(first)
            self._add_block(request, first, data)
        elif data:
            count = blocks_for(offset + len(data)) - first
            blocks = range(first, first + count)
            if not self._touched.isdisjoint(blocks):
                self._write()
            if (offset | len(data)) & _OFFSET:
                data = self._whole(offset, data, count)
            self._touched.update(blocks)
            self._add_blocks(request, first, data)

    def _whole(self, offset: int, data: memoryview, count: int) -> memoryview:
        """Return whole blocks: `data` with what is stored around it."""
        whole = memoryview(bytearray(count << BLOCK_SHIFT))
        start = offset & ~_OFFSET
        for block in {start, start + ((count - 1) << BLOCK_SHIFT)}:
            length = min(BLOCK, self._image.size - block)
            self._image.read_into(block, whole[block - start : block - start + length])
        whole[offset - start : offset - start + len(data)] = data
        return whole

    def _add_block(self, request: int, vblock: int, data: memoryview) -> None:
        entry = self._map.lookup(vblock)
        if not data[0] and not data[_OFFSET] and not self._keep_zeros and bytes(data) == ZERO_BLOCK:
            if entry:
                self._map.trim(vblock, vblock + 1)
        elif entry & WRITABLE:
            self._in_place.append((entry >> 1 & BLOCK_MASK, data, request))
        else:
            self._map.prepare(vblock, 1)
            self._fresh.append(_Fresh(vblock, 1, data, request))

    def _add_blocks(self, request: int, first: int, data: memoryview) -> None:
        for start, count, zero in self._split(first, data):
            if zero:
                self._map.trim(start, start + count)
                continue
            for run in self._map.lookup_range(start, count):
                at = (run.first - first) << BLOCK_SHIFT
                part = data[at : at + (run.length << BLOCK_SHIFT)]
                if run.owned:
                    self._in_place.append((run.block, part, request))
                else:
                    self._map.prepare(run.first, run.length)
                    self._fresh.append(_Fresh(run.first, run.length, part, request))

    def _split(self, first: int, data: memoryview) -> list[tuple[int, int, bool]]:
        """Split whole blocks into (first, count, all zeros)."""
        count = len(data) >> BLOCK_SHIFT
        if self._keep_zeros:
            return [(first, count, False)]
        words = np.frombuffer(data, np.uint64).reshape(count, -1)
        zero = words[:, 0] == 0  # most blocks that hold something show it at once
        maybe = np.flatnonzero(zero)
        if maybe.size:
            zero[maybe] = np.bitwise_or.reduce(words[maybe], axis=1) == 0
        edges = [0, *(np.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist(), count]
        return [(first + low, high - low, bool(zero[low])) for low, high in pairwise(edges)]

    def run(self) -> list[tuple[int, ParallaxError]]:
        """Write everything; return (request, what went wrong)."""
        self._write()
        return self._failed

    def _write(self) -> None:
        """Write what was collected so far, then tell the map."""
        if self._in_place:
            self._write_in_place()
        if self._fresh:
            self._write_fresh()
        self._touched.clear()

    def _write_in_place(self) -> None:
        write = self._image.store.write
        pieces = sorted(self._in_place, key=_place)
        self._in_place.clear()
        start = 0
        for end in range(1, len(pieces) + 1):
            if end == len(pieces) or pieces[end][0] != _end(pieces[end - 1]):
                run = pieces[start:end]
                try:
                    self._check()  # who has the image by now must not find it changed
                    write(run[0][0], [data for _, data, _ in run])
                except ParallaxError as error:
                    self._failed += [(request, error) for _, _, request in run]
                start = end

    def _write_fresh(self) -> None:
        """Give all fresh blocks their places at once; one by one when space is short."""
        fresh, self._fresh = self._fresh, []
        try:
            runs = self._take(sum(item.length for item in fresh))
        except NoSpaceYet as error:
            self._failed += [(item.request, error) for item in fresh]
            return
        except NoSpace as error:
            if len(fresh) == 1:
                self._failed.append((fresh[0].request, error))
                return
            for item in fresh:
                self._fresh = [item]
                self._write_fresh()
            return
        queue = iter(fresh)
        rest: _Fresh | None = None
        for block, length in runs:
            part: list[_Fresh] = []
            room = length
            while room:
                item = rest or next(queue)
                rest = None
                if item.length > room:
                    item, rest = _cut(item, room)
                part.append(item)
                room -= item.length
            self._place(block, part)

    def _place(self, block: int, items: list[_Fresh]) -> None:
        """Write items to blocks from `block` on, and map them."""
        error = self._write_run(block, [item.data for item in items])
        for item in items:
            if error is None:
                self._map.update(item.vblock, block, item.length)
            else:
                self._failed.append((item.request, error))
                self._map.freed += range(block, block + item.length)
            block += item.length

    def _write_run(self, block: int, buffers: list[memoryview]) -> ParallaxError | None:
        try:
            self._image.store.write(block, buffers)
        except ParallaxError as error:
            return error
        return None


def _place(piece: tuple[int, memoryview, int]) -> int:
    return piece[0]


def _end(piece: tuple[int, memoryview, int]) -> int:
    """Return the block behind a piece."""
    return piece[0] + (len(piece[1]) >> BLOCK_SHIFT)


def _cut(item: _Fresh, count: int) -> tuple[_Fresh, _Fresh]:
    """Split an item after its first `count` blocks."""
    size = count << BLOCK_SHIFT
    rest = _Fresh(item.vblock + count, item.length - count, item.data[size:], item.request)
    return _Fresh(item.vblock, count, item.data[:size], item.request), rest
