"""A device whose writes stop when the lease does.

The clock is looked at right before each submission, on whatever thread: a process that was
suspended finds its lease over before it writes one more byte, be it data, metadata or the
record of a commit. A file is told to look before each system call, as one write may take
several. What was submitted before then has the margin to land (`docs/concurrency.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

from core.device import BlockDevice, Buffer, FileDevice
from core.locks import Locks


class LeasedDevice:
    """A device that writes only while the session may; reading is never refused.

    Args:
        device: the device itself.
        locks: the session with the lock master.
    """

    def __init__(self, device: BlockDevice, locks: Locks) -> None:
        """Read, flush and close as the device itself does."""
        self._device = device
        self._locks = locks
        if isinstance(device, FileDevice):
            device.guard = locks.check
        self.size = device.size
        self.writable = device.writable
        self.name = device.name
        self.pread = device.pread
        self.preadv = device.preadv
        self.fetch = device.fetch
        self.taken = device.taken
        self.flush = device.flush
        self.verify = device.verify
        self.close = device.close

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write as the device does.

        Raises:
            Fenced: the lease has lapsed or the session was lost; nothing was written.
        """
        self._locks.check()
        self._device.pwritev(offset, buffers)

    def discard(self, offset: int, length: int) -> None:
        """Give a range back as the device does; raises as `pwritev` too."""
        self._locks.check()
        self._device.discard(offset, length)

    def resize(self, size: int) -> None:
        """Make the device longer as it does itself; raises as `pwritev` too."""
        self._locks.check()
        self._device.resize(size)
        self.size = self._device.size
