"""A device behind the back of the page cache (O_DIRECT), for hosts that share one.

What this host read once, another may have written since, so nothing that was read may be
kept for later. The kernel then moves bytes between the device and our own memory, which
has to be aligned: all that is read or written goes through a few buffers that are used
again and again, and a caller's memory may lie anywhere. Writes are whole blocks, so no
byte is ever written that the caller did not give.

Every read waits for the device. A read that must not wait finds only what a thread has
fetched for it a moment ago, and only until that is released or written over.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from mmap import mmap
from threading import Lock as Mutex
from typing import Final

from core.device import Buffer, Cache, FileDevice, Lock, Release, io_error, is_storage
from core.errors import BadRequest, IoFailed, WouldBlock
from core.format import BLOCK

_REST: Final = BLOCK - 1
_SECTOR: Final = 512
_SMALL: Final = 64 << 10
_LARGE: Final = 1 << 20
_MOST_NEAR: Final = 64 << 20
"""Bytes of buffers that fetched blocks may take; a request beyond that simply waits."""


def open_device(path: str, writable: bool, lock: Lock, cache: Cache) -> FileDevice:
    """Open a file or a block device; raises as `FileDevice` and `DirectDevice`."""
    return (FileDevice if cache == "host" else DirectDevice)(path, writable, lock)


class DirectDevice(FileDevice):
    """A regular file or a block device, read and written without the page cache.

    Arguments and errors as `FileDevice`, and:

    Raises:
        BadRequest: what it is on does not support O_DIRECT with blocks of 4 KiB.
    """

    def __init__(self, path: str, writable: bool = False, lock: Lock = "none") -> None:
        """Open the file, take the lock and try a read."""
        self._small = _Buffers(_SMALL, 64)
        self._large = _Buffers(_LARGE, 8)
        self._near = _Near()
        super().__init__(path, writable, lock)
        try:
            self._try()
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, flags: int) -> int:
        """Return a descriptor of the file; a file system without O_DIRECT says EINVAL."""
        try:
            return super()._open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if is_storage(os.stat(path).st_mode):
                raise _unsupported(path) from error
            return super()._open(path, flags)  # which will be refused for what it is

    def _try(self) -> None:
        """Find out whether blocks can be read: some file systems refuse only then."""
        buffer = self._small.take()
        try:
            os.preadv(self._fd, [buffer[:BLOCK]], 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _unsupported(self.name) from error
            raise io_error(error, f"cannot read {self.name} at byte 0") from error
        finally:
            self._small.give(buffer)

    def _pool(self, length: int) -> _Buffers:
        return self._small if length <= _SMALL else self._large

    # -- reading -----------------------------------------------------------------------

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        """Fill `buffers` from byte `offset` on, each by itself.

        Raises:
            WouldBlock: `wait` is false and some of the bytes were not fetched.
            IoFailed: the system could not read, or the device ends before.
        """
        for buffer in buffers:
            view = memoryview(buffer)
            if wait:
                self._read_into(offset, view)
            else:
                self._near.read_into(offset, view)
            offset += len(view)

    def _read_into(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        at = offset
        while at < end:
            start = at & ~_REST
            pool = self._pool(end - start)
            buffer = pool.take()
            try:
                stop = min(end, start + len(buffer))
                self._fill(start, buffer, stop - start)
                view[at - offset : stop - offset] = buffer[at - start : stop - start]
            finally:
                pool.give(buffer)
            at = stop

    def _fill(self, start: int, buffer: memoryview, length: int) -> None:
        """Read at least `length` bytes from block-aligned `start` on into a buffer."""
        whole = length + _REST & ~_REST
        done = 0
        while done < length:
            try:
                got = os.preadv(self._fd, [buffer[done:whole]], start + done)
            except OSError as error:
                raise io_error(error, f"cannot read {self.name} at byte {start}") from error
            done += got
            if done < length and (not got or got % _SECTOR):
                raise IoFailed(f"{self.name} ends at byte {start + done}", "the store is truncated")

    def fetch(self, offset: int, length: int) -> Release:
        """Read the blocks of a range and keep them near until they are released.

        When very much is kept already nothing is, and whoever asks again has to wait.

        Raises:
            IoFailed: as `preadv`.
        """
        pieces: list[_Piece] = []
        release = partial(self._release, pieces)
        at = offset & ~_REST
        end = offset + length + _REST & ~_REST
        try:
            while at < end and self._near.size < _MOST_NEAR:
                pool = self._pool(end - at)
                piece = _Piece(at, min(end - at, _LARGE), pool.take(), pool)
                pieces.append(piece)
                self._near.expect(piece)
                self._fill(at, piece.buffer, piece.length)
                self._near.keep(piece)
                at += piece.length
        except BaseException:
            release()
            raise
        return release

    def _release(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            self._near.drop(piece)
            piece.pool.give(piece.buffer)
        pieces.clear()

    # -- writing -----------------------------------------------------------------------

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers`, together whole blocks, at byte `offset`.

        Raises:
            BadRequest: they are not whole blocks; nothing was written.
            NoSpace: the file system is full; any part may have been written.
            IoFailed: the system could not write; any part may have been written.
        """
        length = sum(map(len, buffers))
        if (offset | length) & _REST:
            raise BadRequest(f"cannot write {length} bytes at byte {offset}: no whole blocks")
        pool = self._pool(length)
        piece = pool.take()
        try:
            at = used = 0
            for buffer in buffers:
                view = memoryview(buffer)
                while view:
                    part = view[: len(piece) - used]
                    piece[used : used + len(part)] = part
                    used += len(part)
                    view = view[len(part) :]
                    if used == len(piece):
                        self._write_piece(offset + at, [piece])
                        at, used = at + used, 0
            if used:
                self._write_piece(offset + at, [piece[:used]])
        finally:
            pool.give(piece)
            self._near.outdate(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole; the bytes read as zeros afterwards."""
        try:
            super().discard(offset, length)
        finally:
            self._near.outdate(offset, length)


def _unsupported(path: str) -> BadRequest:
    return BadRequest(
        f"what holds {path} cannot do without the page cache (no O_DIRECT)",
        "put the store elsewhere, or open it with --cache host",
    )


class _Buffers:
    """Memory of one size that begins on a page, to be used again; for all threads.

    It is shared memory, so that a process that is forked while the device writes into it
    does not get the page, and we a copy that nothing is written into.

    Args:
        size: bytes of each.
        most: how many are kept when nobody uses them.
    """

    def __init__(self, size: int, most: int) -> None:
        self._size = size
        self._free: deque[memoryview] = deque(maxlen=most)

    def take(self) -> memoryview:
        """Return a buffer that nobody else has."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(mmap(-1, self._size))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back that nobody looks at any more."""
        self._free.append(buffer)


class _Piece:
    """Blocks that are being fetched, or were."""

    __slots__ = ("buffer", "end", "length", "offset", "outdated", "pool")

    def __init__(self, offset: int, length: int, buffer: memoryview, pool: _Buffers) -> None:
        self.offset = offset
        self.length = length
        self.end = offset + length
        self.buffer = buffer
        self.pool = pool
        self.outdated = False


class _Near:
    """The pieces that were fetched, as long as they are what is on the device.

    A piece is known before it is read, and a write marks what it touched when it is over:
    so a read that ran beside a write is never kept, whatever it saw of it.
    """

    def __init__(self) -> None:
        self._mutex = Mutex()
        self._expected: set[_Piece] = set()
        self._kept: dict[int, _Piece] = {}
        self.size = 0

    def expect(self, piece: _Piece) -> None:
        """Note that a piece is about to be read."""
        with self._mutex:
            self._expected.add(piece)
            self.size += len(piece.buffer)

    def keep(self, piece: _Piece) -> None:
        """Offer a piece that was read, unless it was written over meanwhile."""
        with self._mutex:
            self._expected.discard(piece)
            if not piece.outdated:
                self._kept[piece.offset] = piece

    def drop(self, piece: _Piece) -> None:
        """Offer a piece no longer."""
        with self._mutex:
            self._expected.discard(piece)
            if self._kept.get(piece.offset) is piece:
                del self._kept[piece.offset]
            self.size -= len(piece.buffer)

    def outdate(self, offset: int, length: int) -> None:
        """Forget what was read of a range before now."""
        if not self.size:
            return
        end = offset + length
        with self._mutex:
            for piece in self._expected:
                if piece.offset < end and offset < piece.end:
                    piece.outdated = True
            old = [p.offset for p in self._kept.values() if p.offset < end and offset < p.end]
            for at in old:
                del self._kept[at]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a buffer from the pieces; raise WouldBlock for what is missing."""
        end = offset + len(view)
        at = offset
        while at < end:
            piece = self._kept.get(at & ~_REST)
            if piece is None:
                raise WouldBlock((at, end - at))
            stop = min(end, piece.end)
            view[at - offset : stop - offset] = piece.buffer[
                at - piece.offset : stop - piece.offset
            ]
            at = stop
