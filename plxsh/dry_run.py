"""--dry-run: the command runs for real, on a device that keeps what is written in memory.

So a dry run refuses what the command would refuse, holds the same locks while it looks,
and reports the very ids the command would give, without a second copy of any rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from core.blockstore import Blockstore
from core.device import Buffer, Cache, FileDevice, Release
from core.direct import open_device
from core.errors import InUse, NotFound
from core.format import BLOCK, BLOCK_SHIFT
from core.lock_master import LockMaster
from core.session import Session
from plxsh.locking import beside_tap

if TYPE_CHECKING:
    from core.lock_connection import LockConnection
    from core.locks import Grant
    from plxsh.context import Settings


_LOOKING: Final = frozenset({"seal", "images", "finish"})
"""What sessions ask each other for marks; none of it writes to what anyone can read."""


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

    def taken(self, _offset: int, _length: int) -> None:
        """Say nothing of what takes space."""

    def verify(self) -> None:
        """Make sure of nothing: what is lost was not to be kept."""

    def flush(self) -> None:
        """Do nothing: nothing is kept."""

    def resize(self, size: int) -> None:
        """Do nothing: no command that can be tried like this makes a store larger."""

    def close(self) -> None:
        """Forget what was written and release the lock."""
        self._blocks.clear()
        self._under.close()


class Trial:
    """The locks of a dry run beside others: what it takes is really taken, and given back.

    So it is refused what the command would be refused. What the command would have the
    holder of a VDI do is done here, in memory, on what that holder has committed.

    Args:
        locks: the session with the lock master that the others use.
    """

    def __init__(self, locks: LockConnection) -> None:
        """Have called nobody yet."""
        self.leased = locks.leased
        self.shared = locks.shared
        self.store = locks.store
        self.master = locks.master
        self.settling = 0.0  # a claim of its own reaches nobody
        self._locks = locks
        self._alone = LockMaster()
        self._called: set[str] = set()

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> Grant:
        """Lock a name; that of a holder who would have been called is as good as free."""
        if name in self._called:
            return self._alone.acquire(name, floor)
        return self._locks.acquire(name, floor, shared=shared, wait=wait)

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        """Call nobody, but to learn what a collection would find: that changes nothing.

        Raises:
            NotFound: so that the caller does itself what it wanted done.
        """
        if method in _LOOKING:
            return self._locks.call(name, method, argument, wait)
        self._called.add(name)
        raise NotFound(f"{name} is not called in a dry run")

    def __getattr__(self, name: str) -> Any:
        """Do everything else as the session does it."""
        return getattr(self._locks, name)


def open_dry(settings: Settings) -> Session:
    """Open a session as a writer whose writes go nowhere; raises as `Settings.session`."""
    locks = settings.connect() if settings.lock_master else None
    if locks is None:
        try:
            return dry_session(settings.store, settings.caching)
        except InUse:
            locks = beside_tap(settings)
            if locks is None:
                raise
    return _beside(settings.store, settings.caching, locks)


def dry_session(path: str, cache: Cache = "host") -> Session:
    """Open such a session with the store for itself; raises as `Blockstore.open`."""
    try:
        device = open_device(path, True, "exclusive", cache)
    except NotFound:
        Blockstore.open(path, "write").close()  # raises the same with its better message
        raise
    locks = LockMaster()
    return Session(Blockstore(Overlay(device), locks), locks)


def _beside(path: str, cache: Cache, locks: LockConnection) -> Session:
    """Open the store beside others, who go on writing; nothing is locked in its file."""
    trial = Trial(locks)
    return Session(Blockstore(Overlay(open_device(path, False, "none", cache)), trial), trial)
