"""Where blocks live: a file or a block device, behind five calls.

`BlockDevice` is one of the two seams of the engine (the other is the lock client): a
distributed store needs no more than this. Everything above it counts in bytes from the
start of the device; nothing below it knows what a block means.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, Protocol

from core import disk
from core.errors import (
    BadRequest,
    InUse,
    IoFailed,
    NoSpace,
    NotFound,
    NotSupported,
    ParallaxError,
    ReadOnly,
    WouldBlock,
)
from core.progress import Progress
from core.text import shortened

Buffer = bytes | bytearray | memoryview
Lock = Literal["none", "shared", "exclusive", "host", "guest", "session"]
"""Which locks of the kernel keep other processes of this host out; see `FileDevice`."""
Cache = Literal["host", "none"]
"""Whose memory stands before a device: the page cache of this host, or nobody's."""
Release = Callable[[], None]
"""Lets go of what was fetched; for the thread that reads without waiting."""

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_PIECE: Final = 64 << 10
"""Bytes handed to the kernel at a time. The page cache keeps a file in units as large as the
writes that made it, and a later write of 4 KiB pays for the whole unit: measured 1.5 us in
units of 4 KiB, 3.6 us in 64 KiB, 50 us in 4 MiB (`benchmarks/folio.py`)."""
_SCRATCH: Final = 256 << 10
_COMMAND_SHOWN: Final = 40
"""Columns of a command line that are enough to tell which process it is."""
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)

_CLEARED: Final = 128 << 20
"""Bytes of a disk that are made zeros at a time: seconds where each of them is written."""

_FLOCKS: Final = {
    "shared": fcntl.LOCK_SH,
    "session": fcntl.LOCK_SH,
    "exclusive": fcntl.LOCK_EX,
    "host": fcntl.LOCK_EX,
}
"""The whole-file lock that goes with each kind; the host of a guest has it for both."""
_GUEST: Final = 1 << 62
"""A byte behind every end: guests lock it, shared, to be seen."""
_READING: Final = _GUEST + 1
"""The same for those who need the contents of VDIs to stand still."""
_SESSION: Final = _GUEST + 2
"""The same for sessions of a lock master elsewhere, which knows nothing of guests."""
_FAR_BYTES: Final = {"guest": _GUEST, "session": _SESSION, "shared": _READING}
_REFUSES: Final = {
    "guest": (_READING, _SESSION),
    "session": (_READING, _GUEST),
    "shared": (_GUEST, _SESSION),
    "exclusive": (_GUEST, _SESSION),
}
"""Whose presence each kind cannot bear."""
_WHO: Final = {
    _GUEST: "a guest of another process, which may still be writing",
    _SESSION: "a session of a lock master",
    _READING: "a process that needs its contents to stand still",
}
_RANGE: Final = struct.Struct("@hhqqi4x")
"""`struct flock`: type, whence, start, length, process."""


class BlockDevice(Protocol):
    """What the engine needs of its storage. Offsets and lengths are bytes.

    Any bytes may be read; what is written is whole blocks of 4 KiB, always.
    """

    size: int
    writable: bool
    name: str

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        """Fill the buffers; with `wait` false raise WouldBlock instead of waiting."""

    def fetch(self, offset: int, length: int) -> Release:
        """Bring bytes near, on any thread: until released, `preadv` need not wait for them."""

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers, one behind the other."""

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the system; it reads as zeros afterwards.

        Raises:
            NotSupported: there is no way to do that.
        """

    def taken(self, offset: int, length: int) -> Iterator[tuple[int, int]] | None:
        """Return the (first, end) of the parts of a range that take space, None if unknown."""

    def flush(self) -> None:
        """Make all that was written before durable."""

    def verify(self) -> None:
        """Make sure that it is what its name leads to, and as long as it was.

        Raises:
            IoFailed: it is not.
        """

    def resize(self, size: int) -> None:
        """Make the device at least `size` bytes long."""

    def close(self) -> None:
        """Release the device and its lock."""


def sync_folder(path: str) -> None:
    """Make the name of a new file durable.

    Args:
        path: the file.

    Raises:
        IoFailed: it may not be.
    """
    name = os.path.dirname(os.path.abspath(path))
    try:
        folder = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise IoFailed(
            f"cannot flush the folder {name}: {error.strerror}", "check the disk it is on"
        ) from error


def io_error(error: OSError, what: str) -> ParallaxError:
    """Return the Parallax error that stands for an operating-system error.

    Args:
        error: what the system said.
        what: what was being done to what, such as "cannot read /blockstore.dat".
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {reason}", "free space on the file system that holds it")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.ELOOP):
        return NotFound(f"{what}: {reason}", "check the path")
    if error.errno == errno.EROFS:
        return ReadOnly(
            f"{what}: {reason}",
            "mount it for writing, or name it in ReadWritePaths= of the service",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ReadOnly(f"{what}: {reason}", "check permissions, or run as its owner")
    if error.errno in (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG):
        return BadRequest(f"{what}: {reason}", "name a file or a block device")
    return IoFailed(f"{what}: {reason}", "look at the system log")


def make_folder_of(path: str) -> None:
    """Make the folder that a file or a socket is to be in, unless it is there.

    Raises:
        IoFailed, NoSpace, NotFound, ReadOnly: that is not possible.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, 0o755, exist_ok=True)
    except OSError as error:
        raise io_error(error, f"cannot make the folder {folder}") from error


def is_storage(mode: int) -> bool:
    """Say whether a file of this mode is one that a device can be: regular, or a disk."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


class FileDevice:
    """A regular file or a block device, read and written through the page cache.

    The kinds of `lock`, all taken without waiting:

    | kind | whole file | far byte | for |
    | --- | --- | --- | --- |
    | `none` | | | reading beside a writer |
    | `shared` | shared | reading | reading what stands still |
    | `exclusive` | exclusive | | the only writer |
    | `host` | exclusive | | the writer whose process has the lock master for its guests |
    | `guest` | | guest | a writer beside that host |
    | `session` | shared | session | a writer beside others, under a lock master elsewhere |

    `shared` and `exclusive` refuse as long as there is a guest or a session, even if the host
    is gone: a guest may write until its lease ends. Guests and sessions refuse readers, and
    each other: two lock masters do not know what the other has granted. Each takes its own
    lock before it looks for the others, so two that come at once may both be refused, but
    both are never admitted.

    A disk that the system itself uses (mounted, swapped to, a part of LVM or md) is not opened
    for writing, and as long as a process has it exclusively the system does not begin to.

    Args:
        path: the file or device.
        writable: open it for writing.
        lock: what keeps other processes out, without waiting.

    Raises:
        NotFound: there is no such file.
        ReadOnly: it cannot be opened that way.
        InUse: another process holds a conflicting lock, or the system uses the disk; the
            message says who.

    Attributes:
        is_disk: it is a block device.
        guard: called right before each system call that changes the file; raises if it may
            not be made. A write of many pieces asks before each of them.
    """

    guard: Callable[[], None] | None = None

    def __init__(self, path: str, writable: bool = False, lock: Lock = "none") -> None:
        """Open the file and take the lock."""
        self.name = path
        self.writable = writable
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            if writable and _FLOCKS.get(lock) == fcntl.LOCK_EX and _is_disk(os.stat(path)):
                flags |= os.O_EXCL  # others of ours may have it open too, the system may not
            self._fd = self._open(path, flags)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ETXTBSY):
                raise _busy(path) from error
            raise io_error(error, f"cannot open {path}") from error
        self._nowait = os.RWF_NOWAIT
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._path = os.path.abspath(path)  # whatever the working directory is later
        try:
            status = os.fstat(self._fd)
            if not is_storage(status.st_mode):
                raise BadRequest(f"{path} is no file and no block device", "name one that is")
            self.is_disk = _is_disk(status)
            self._identity = self._identity_of(status)
            shared = writable and not flags & os.O_EXCL
            if shared and self.is_disk and disk.user_of(status.st_rdev):
                raise _busy(path)
            if writable and self.is_disk and disk.is_read_only(self._fd):
                raise ReadOnly(f"{path} is a read-only device", "name one that can be written")
            if lock != "none":
                self._lock(lock)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, path: str, flags: int) -> int:
        """Return a descriptor of the file."""
        return os.open(path, flags)

    def _lock(self, lock: Lock) -> None:
        """Take the locks of a kind; those that were taken go when the file is closed."""
        if lock in _FLOCKS:
            try:
                fcntl.flock(self._fd, _FLOCKS[lock] | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = lock_holder(self.name) or "another process"
                raise InUse(
                    f"{self.name} is in use by {who}", "stop it, or wait until it is done"
                ) from error
        if lock in _FAR_BYTES:
            self._fcntl(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, _FAR_BYTES[lock])
        if lock == "guest":
            self._refuse_without_host()
        for byte in _REFUSES.get(lock, ()):
            if self._is_locked(byte):
                raise InUse(f"{self.name} is in use by {_WHO[byte]}", "wait until it is done")

    def _refuse_without_host(self) -> None:
        """Refuse a file that nobody has for its guests: then the host has another one open."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise IoFailed(
            f"{self.name} is not the file that the tap of this store has open: it was replaced,"
            " or that tap has just ended",
            "look at its log; nothing was changed",
        )

    def is_alone(self) -> bool:
        """Return whether no other process that has a lock master is using the file.

        With the exclusive lock held it stays so: who comes now needs this process.
        """
        return not self._is_locked(_GUEST) and not self._is_locked(_SESSION)

    def _is_locked(self, byte: int) -> bool:
        """Return whether another open file has a lock on a byte."""
        return self._fcntl(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK

    def _fcntl(self, command: int, kind: int, byte: int) -> int:
        """Lock one byte or ask about it; return the kind of lock that is there.

        The locks belong to the open file, not to the process: other files that it opens and
        closes leave them alone.
        """
        try:
            answer = fcntl.fcntl(self._fd, command, _RANGE.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            raise io_error(error, f"cannot lock {self.name}") from error
        return int(_RANGE.unpack(answer)[0])

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at byte `offset`."""
        buffer = bytearray(length)
        self.preadv(offset, [buffer])
        return bytes(buffer)

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        """Fill `buffers` from byte `offset` on.

        Raises:
            WouldBlock: `wait` is false and some of the bytes are not in memory.
            IoFailed: the system could not read, or the device ends before.
        """
        wanted = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        some = buffers if len(buffers) <= _IOV_MAX else buffers[:_IOV_MAX]
        try:
            got = os.preadv(self._fd, some, offset, 0 if wait else self._nowait)
        except BlockingIOError:
            raise WouldBlock((offset, wanted)) from None
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and not wait and self._nowait:
                self._nowait = 0  # a file system without it, such as tmpfs: it is in memory
                return self.preadv(offset, buffers, wait)
            raise io_error(error, f"cannot read {self.name} at byte {offset}") from error
        if got == wanted:
            return None
        if got == 0:
            raise IoFailed(f"{self.name} ends at byte {offset}", "the store is truncated")
        if not wait:
            raise WouldBlock((offset + got, wanted - got))
        return self.preadv(offset + got, _without(buffers, got))

    def fetch(self, offset: int, length: int) -> Release:
        """Read a range into the page cache, which keeps it as long as it likes.

        All threads throw the bytes away in the same place: nobody looks at them.

        Raises:
            IoFailed: as `preadv`.
        """
        end = offset + length
        for at in range(offset, end, _SCRATCH):
            self.preadv(at, [self._scratch[: min(_SCRATCH, end - at)]])
        return _nothing

    def pwritev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers` at byte `offset`, however the system splits it.

        Raises:
            NoSpace: the file system is full; any part may have been written.
            IoFailed: the system could not write; any part may have been written.
        """
        if sum(map(len, buffers)) <= _PIECE:
            self._write_piece(offset, buffers)
            return
        for piece in _pieces(buffers):
            self._write_piece(offset, piece)
            offset += sum(map(len, piece))

    def _write_piece(self, offset: int, buffers: Sequence[Buffer]) -> None:
        wanted = sum(map(len, buffers))
        while wanted:
            if self.guard is not None:
                self.guard()
            try:
                done = os.pwritev(self._fd, buffers[:_IOV_MAX], offset)
            except OSError as error:
                raise io_error(error, f"cannot write {self.name} at byte {offset}") from error
            wanted -= done
            if wanted:
                if not done:
                    raise IoFailed(f"cannot write {self.name} at byte {offset}: no progress")
                offset += done
                buffers = _without(buffers, done)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole; the bytes read as zeros afterwards.

        Raises:
            NotSupported: the file system or the device has no holes.
        """
        punch = _PUNCH_HOLE | _KEEP_SIZE
        if self.guard is not None:
            self.guard()
        if _libc.fallocate(self._fd, punch, ctypes.c_int64(offset), ctypes.c_int64(length)):
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise NotSupported(f"space of {self.name} cannot be given back: {error.strerror}")
            raise io_error(error, f"cannot discard {length} bytes of {self.name} at {offset}")

    def taken(self, offset: int, length: int) -> Iterator[tuple[int, int]] | None:
        """Return the (first, end) of the parts of a range that take space, in order.

        Bytes that were never written take none, even where space is set aside for them.

        Returns:
            None if the system does not say, as for a disk.

        Raises:
            IoFailed: it cannot be found out.
        """
        try:
            os.lseek(self._fd, 0, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return None
            if error.errno != errno.ENXIO:  # there is nothing in it
                raise io_error(error, f"cannot read {self.name}") from error
        return self._taken(offset, min(offset + length, self.size))

    def _taken(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        while at < end:
            first = min(self._seek(at, os.SEEK_DATA), end)
            at = min(self._seek(first, os.SEEK_HOLE), end) if first < end else end
            if first < at:
                yield first, at

    def _seek(self, offset: int, whence: int) -> int:
        """Return where the next data or the next hole begins."""
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no more of it
                return self.size
            raise io_error(error, f"cannot read {self.name} at byte {offset}") from error

    def clear(self, progress: Progress) -> None:
        """Make all of it read as zeros; a disk without a quick way has each byte written.

        Args:
            progress: told about bytes.

        Raises:
            IoFailed, NoSpace: any part may be zeros by now.
        """
        try:
            if not self.is_disk:
                os.truncate(self._fd, 0)
                os.truncate(self._fd, self.size)
            for start in range(0, self.size if self.is_disk else 0, _CLEARED):
                progress(start, self.size)
                length = min(_CLEARED, self.size - start)
                try:
                    self.discard(start, length)
                except NotSupported:
                    disk.write_zeros(self._fd, start, length)
        except OSError as error:
            raise io_error(error, f"cannot clear {self.name}") from error
        progress(self.size, self.size)

    def flush(self) -> None:
        """Wait until everything written so far is on stable storage (`fdatasync`).

        Raises:
            IoFailed: it may not be; the kernel forgets what it could not write, so a
                later success would say nothing about it.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise IoFailed(
                f"cannot flush {self.name}: {error.strerror}", "open the store again"
            ) from error

    def verify(self) -> None:
        """Make sure that the path leads to the open file still, and that nothing was cut off.

        What is written after that was deleted, replaced or cut off would be lost, and whoever
        opens the path meanwhile sees another store. When the system cannot tell (a server of
        files that does not answer, a folder that may not be looked into, a disk whose node is
        made anew), it is taken to be well.

        Raises:
            IoFailed: it is not.
        """
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size < self.size:
            raise IoFailed(
                f"{self.name} was truncated while it was open, from {self.size} to {size} bytes",
                "stop what uses it, and restore what is missing from a backup",
            )
        try:
            found = self._identity_of(os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            if self.is_disk:
                return
            what = "deleted or renamed"
        except OSError:
            return
        else:
            if found == self._identity:
                return
            what = "replaced"
        raise IoFailed(
            f"{self.name} was {what} while it was open",
            f"put it back: until this process ends it is /proc/{os.getpid()}/fd/{self._fd}",
        )

    def _identity_of(self, status: os.stat_result) -> tuple[int, int]:
        """Return what tells a file, or a disk if this is one, from all others."""
        return (status.st_rdev, 0) if self.is_disk else (status.st_dev, status.st_ino)

    def resize(self, size: int) -> None:
        """Make a file `size` bytes long (sparse); refuse a device that is too small."""
        self.size = os.lseek(self._fd, 0, os.SEEK_END)  # another session may have grown it
        if size <= self.size:
            return
        self.check_room(size)
        try:
            if self.guard is not None:
                self.guard()
            os.truncate(self._fd, size)
        except OSError as error:
            raise io_error(error, f"cannot make {self.name} {size} bytes long") from error
        self.size = size

    def check_room(self, size: int) -> None:
        """Raise NoSpace if a store of `size` bytes cannot be here: a disk does not grow."""
        if self.is_disk and self.size < size:
            raise NoSpace(
                f"{self.name} has {self.size} bytes, the store needs {size}",
                "take fewer or smaller extents",
            )

    def close(self) -> None:
        """Close the file, which releases its lock; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_disk(status: os.stat_result) -> bool:
    return stat.S_ISBLK(status.st_mode)


def _busy(path: str) -> InUse:
    """Return the error for what cannot be had for writing, with who has it."""
    who = lock_holder(path)
    if who:
        return InUse(f"{path} is in use by {who}", "stop it, or wait until it is done")
    use = disk.user_of(os.stat(path).st_rdev) or "another program or the system has it"
    return InUse(f"{path} is in use: {use}", "end that first, or name another device")


def _nothing() -> None:
    """Let go of nothing."""


def _pieces(buffers: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """Split buffers into lists of at most `_PIECE` bytes each."""
    piece: list[Buffer] = []
    room = _PIECE
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            piece.append(view[:room])
            room -= len(piece[-1])
            view = view[len(piece[-1]) :]
            if not room:
                yield piece
                piece, room = [], _PIECE
    if piece:
        yield piece


def _without(buffers: Sequence[Buffer], done: int) -> list[Buffer]:
    """Return what is left of `buffers` after their first `done` bytes."""
    rest: list[Buffer] = []
    for buffer in buffers:
        if done >= len(buffer):
            done -= len(buffer)
        else:
            rest.append(memoryview(buffer)[done:] if done else buffer)
            done = 0
    return rest


def lock_holder(path: str) -> str | None:
    """Say which process holds the whole-file lock on `path`, as "NAME (pid N)".

    The kernel's own table is asked, so nothing can be stale. Returns None when nobody
    holds it or the table does not say.
    """
    try:
        status = os.stat(path)
        with open("/proc/locks", encoding="ascii") as table:
            rows = [line.split() for line in table]
    except OSError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for row in rows:
        if len(row) > 5 and row[1] == "FLOCK" and row[5] == wanted:
            return f"{_process_name(row[4])} (pid {row[4]})"
    return None


def _process_name(pid: str) -> str:
    """Return the command line of a process on one line: no folders, no interpreter."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").split("\0")[:-1]
    except OSError:
        words = []
    if words and os.path.basename(words[0]).startswith("python") and len(words) > 1:
        words = words[2 if words[1] == "-m" else 1 :]
    if not words:
        return "a process"
    shown = " ".join(os.path.basename(word) or word for word in words)
    return shortened(" ".join(shown.split()), _COMMAND_SHOWN)
