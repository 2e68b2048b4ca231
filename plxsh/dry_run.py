"""--dry-run: the command runs for real, on a device that keeps what is written in memory.

So a dry run refuses what the command would refuse, holds the same lock while it looks,
and reports the very ids the command would give, without a second copy of any rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.blockstore import Blockstore
from core.device import Buffer, Cache, FileDevice, Release
from core.direct import open_device
from core.errors import NotFound
from core.format import BLOCK, BLOCK_SHIFT
from core.lock_master import LockMaster
from core.session import Session


class Overlay:
    """A block device that reads from another one and writes to memory."""

    def __init__(self, under: FileDevice) -> None:
        """Start as a copy of `under`."""
        self.name = under.name
        self.size = under.size
        self.writable = True
        self._under = under
        self._blocks: dict[int, bytearray] = {}

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at byte `offset`."""
        data = bytearray(self._under.pread(offset, length))
        end = offset + length
        for block in range(offset >> BLOCK_SHIFT, (end + BLOCK - 1) >> BLOCK_SHIFT):
            written = self._blocks.get(block)
            if written is not None:
                start = block << BLOCK_SHIFT
                low, high = max(start, offset), min(start + BLOCK, end)
                data[low - offset : high - offset] = written[low - start : high - start]
        return bytes(data)

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:  # noqa: ARG002  # part of the interface
        """Fill `buffers` from byte `offset` on."""
        for buffer in buffers:
            memoryview(buffer)[:] = self.pread(offset, len(buffer))
            offset += len(buffer)

    def fetch(self, offset: int, length: int) -> Release:
        """Bring bytes near, below."""
        return self._under.fetch(offset, length)

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Keep all of `buffers` in memory, from byte `offset` on."""
        data = b"".join(buffers)
        at = 0
        while at < len(data):
            block, inside = divmod(offset + at, BLOCK)
            if block not in self._blocks:
                self._blocks[block] = bytearray(self._under.pread(block << BLOCK_SHIFT, BLOCK))
            part = data[at : at + BLOCK - inside]
            self._blocks[block][inside : inside + len(part)] = part
            at += len(part)

    def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeros."""
        self.pwritev(offset, [bytes(length)])

    def flush(self) -> None:
        """Do nothing: nothing is kept."""

    def resize(self, size: int) -> None:
        """Do nothing: no command that can be tried like this makes a store larger."""

    def close(self) -> None:
        """Forget what was written and release the lock."""
        self._blocks.clear()
        self._under.close()


def dry_session(path: str, cache: Cache = "host") -> Session:
    """Open a session as a writer whose writes go nowhere; raises as `Blockstore.open`."""
    try:
        device = open_device(path, True, "exclusive", cache)
    except NotFound:
        Blockstore.open(path, "write").close()  # raises the same with its better message
        raise
    locks = LockMaster()
    return Session(Blockstore(Overlay(device), locks), locks)
