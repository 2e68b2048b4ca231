"""Block devices in memory: one to run on, one that remembers what was written when.

Both insist that writes are whole blocks, which a device opened with O_DIRECT would too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from core.device import Buffer
from core.errors import NoSpace
from core.format import BLOCK, BLOCK_SHIFT, ZERO_BLOCK

Pages = dict[int, bytes]
"""Contents by block number; what is missing reads as zeros."""


class MemoryDevice:
    """A `BlockDevice` of immutable pages, so that copies are cheap.

    Args:
        size: bytes.
        pages: what is on it.
    """

    def __init__(self, size: int, pages: Mapping[int, bytes] = {}) -> None:
        self.size = size
        self.writable = True
        self.name = "memory"
        self.pages: Pages = dict(pages)

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        first, last = offset >> BLOCK_SHIFT, (offset + length - 1) >> BLOCK_SHIFT
        get = self.pages.get
        whole = b"".join([get(block, ZERO_BLOCK) for block in range(first, last + 1)])
        start = offset - (first << BLOCK_SHIFT)
        return whole[start : start + length]

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        del wait  # memory never makes anyone wait
        for buffer in buffers:
            view = memoryview(buffer)
            view[:] = self.pread(offset, len(view))
            offset += len(view)

    def fetch(self, offset: int, length: int) -> Callable[[], None]:
        """Everything is near already."""
        del offset, length
        return _ignore

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        assert not (offset | len(data)) % BLOCK, "writes are whole blocks"
        assert data
        assert 0 <= offset <= offset + len(data) <= self.size
        first = offset >> BLOCK_SHIFT
        run = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        self.store(first, run)

    def store(self, first: int, run: Sequence[bytes]) -> None:
        """Take the pages of one write."""
        self.pages.update(enumerate(run, first))

    def discard(self, offset: int, length: int) -> None:
        for block in range(offset >> BLOCK_SHIFT, (offset + length) >> BLOCK_SHIFT):
            self.pages.pop(block, None)

    def taken(self, _offset: int, _length: int) -> None:
        """A disk does not say what takes space."""

    def flush(self) -> None:
        pass

    def verify(self) -> None:
        pass

    def resize(self, size: int) -> None:
        self.size = max(self.size, size)

    def close(self) -> None:
        pass


Write = tuple[int, Sequence[bytes]]
"""One write: its first block and its pages."""


def _ignore(*_: object) -> None:
    pass


class RecordingDevice(MemoryDevice):
    """A device that keeps apart what a power cut would leave and what it might take.

    Attributes:
        durable: contents as of the last flush.
        unflushed: the writes since then, in order.
        flushes, writes: how many there were.
        room: how many blocks may still be written before the device is full.
        always: blocks that can be written even then.
        on_write: told of each write, after it.
        on_flush: called before each flush.
    """

    def __init__(self, size: int, pages: Mapping[int, bytes] = {}) -> None:
        super().__init__(size, pages)
        self.durable: Pages = dict(pages)
        self.unflushed: list[Write] = []
        self.flushes = 0
        self.writes = 0
        self.room = sys.maxsize
        self.always = range(0)
        self.on_write: Callable[[int, Sequence[bytes]], None] = _ignore
        self.on_flush: Callable[[], None] = _ignore

    def store(self, first: int, run: Sequence[bytes]) -> None:
        fits = run if first in self.always else run[: self.room]
        self.room -= 0 if first in self.always else len(fits)
        if fits:
            super().store(first, fits)
            self.unflushed.append((first, fits))
            self.writes += 1
            self.on_write(first, fits)
        if len(fits) < len(run):
            raise NoSpace("the device is full")

    def flush(self) -> None:
        self.on_flush()
        self.flushes += 1
        for first, run in self.unflushed:
            self.durable.update(enumerate(run, first))
        self.unflushed = []

    def discard(self, offset: int, length: int) -> None:
        self.pwritev(offset, [bytes(length)])
