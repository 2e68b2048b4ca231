"""The contents of a snapshot or a VDI, for reading: byte ranges to blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.blockstore import Blockstore
from core.errors import BadRequest, IoFailed, WouldBlock
from core.format import BLOCK, BLOCK_SHIFT, ZERO_BLOCK, blocks_for
from core.radix import RadixMap, Run

_OFFSET: Final = BLOCK - 1
_COMPARED: Final = 256
"""Blocks of two images that are compared at once."""


class Extent(NamedTuple):
    """A range of bytes of an image that is stored (`data`) or reads as zeros."""

    offset: int
    length: int
    data: bool


class Image:
    """The contents of a snapshot (or of a VDI, see `core.vdi`), read only.

    Args:
        store: the open store.
        root: root entry of its tree.
        height: levels of its tree.
        size: bytes.

    Attributes:
        attend: called now and then by whoever reads all of it, which may take hours.
    """

    attend: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, store: Blockstore, root: int, height: int, size: int) -> None:
        """Read nothing yet."""
        self.store = store
        self.size = size
        self.map = RadixMap(store, root, height)
        self._device = store.device

    def check_range(self, offset: int, length: int) -> None:
        """Raise BadRequest unless the bytes are all within the image."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadRequest(
                f"bytes {offset} to {offset + length} are not all within the {self.size} bytes"
                " of the image",
                "check offset and length",
            )

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at byte `offset`; see `read_into` for the errors."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, wait: bool = True) -> None:
        """Fill `buffer` (writable, format "B") from byte `offset` on.

        Raises:
            BadRequest: the range is not within the image.
            WouldBlock: `wait` is false and some of it is not in memory.
            IoFailed, Corrupt: it cannot be read.
        """
        length = len(buffer)
        if length == BLOCK and not offset & _OFFSET and 0 <= offset <= self.size - BLOCK:
            entry = self.map.lookup(offset >> BLOCK_SHIFT, wait)
            if entry:
                self._device.preadv(entry >> 1 << BLOCK_SHIFT, (buffer,), wait)
            else:
                buffer[:] = ZERO_BLOCK
            return
        self.check_range(offset, length)
        missing: list[tuple[int, int]] = []
        for run in self._runs(offset, length, wait):
            low = max(run.first << BLOCK_SHIFT, offset)
            high = min((run.first + run.length) << BLOCK_SHIFT, offset + length)
            part = buffer[low - offset : high - offset]
            if run.block:
                at = (run.block - run.first << BLOCK_SHIFT) + low
                try:
                    self._device.preadv(at, (part,), wait)
                except WouldBlock as miss:
                    missing += miss.ranges
            else:
                part[:] = bytes(high - low)
        if missing:
            raise WouldBlock(*missing)

    def _runs(self, offset: int, length: int, wait: bool = True) -> list[Run]:
        """Return the runs of blocks that hold a byte range within the image."""
        if not length:
            return []
        first = offset >> BLOCK_SHIFT
        return self.map.lookup_range(first, blocks_for(offset + length) - first, wait)

    def extents(
        self, offset: int, length: int, wait: bool = True, leaves: int | None = None
    ) -> Iterator[Extent]:
        """Yield the stored and the unstored ranges of a byte range, in order.

        Args:
            offset: where it begins, in bytes.
            length: its bytes.
            wait: as for `read_into`.
            leaves: do no more than this much work; see `RadixMap.runs`.

        Raises:
            BadRequest, WouldBlock, Corrupt: as `read_into`; ranges before that are yielded.
        """
        self.check_range(offset, length)
        if not length:
            return
        start = known = offset
        data = False
        first = offset >> BLOCK_SHIFT
        try:
            for run in self.map.runs(first, blocks_for(offset + length) - first, wait, leaves):
                if bool(run.block) != data:
                    if known > start:
                        yield Extent(start, known - start, data)
                    start, data = known, not data
                known = min((run.first + run.length) << BLOCK_SHIFT, offset + length)
        except (WouldBlock, IoFailed):
            if known > start:
                yield Extent(start, known - start, data)
            raise
        if known > start:
            yield Extent(start, known - start, data)

    def differences(self, other: Image) -> Iterator[tuple[int, int]]:
        """Yield (first block, count) of the ranges of blocks whose bytes differ.

        What lies behind the end of the shorter image counts as zeros. Only blocks that are
        stored in different places are read, so the cost follows the change.

        Raises:
            IoFailed, Corrupt: as `read_into`.
        """
        start = end = 0
        for first in self._differing(other):
            if first != end:
                if end > start:
                    yield start, end - start
                start = first
            end = first + 1
        if end > start:
            yield start, end - start

    def _differing(self, other: Image) -> Iterator[int]:
        """Yield each block whose bytes differ."""
        for first, count in self.map.diff(other.map, blocks_for(max(self.size, other.size))):
            for low in range(first, first + count, _COMPARED):
                self.attend()
                part = min(_COMPARED, first + count - low)
                ours, theirs = self._words(low, part), other._words(low, part)
                yield from (np.flatnonzero((ours != theirs).any(axis=1)) + low).tolist()

    def _words(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return whole blocks as rows of numbers, zeros where they are behind the end."""
        offset = first << BLOCK_SHIFT
        buffer = bytearray(count << BLOCK_SHIFT)
        within = min(len(buffer), self.size - offset)
        if within > 0:
            self.read_into(offset, memoryview(buffer)[:within])
        return np.frombuffer(buffer, np.uint64).reshape(count, -1)
