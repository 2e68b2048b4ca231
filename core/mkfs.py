"""Making a blockstore in a file or device, and giving it more extents."""

from __future__ import annotations

import os
import time
import uuid
from typing import Final

from core.blockstore import Blockstore
from core.device import BlockDevice, Cache, FileDevice, io_error, sync_folder
from core.direct import open_device
from core.errors import BadRequest, InUse
from core.extent import pristine
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    INCOMPAT_STAMPS,
    SUPERBLOCK_MAGIC,
    SessionList,
    Superblock,
    check_geometry,
)
from core.progress import Progress, silent
from core.slots import twin_of
from core.text import uuid_text

_DISCARD: Final = 1 << 30


def format_device(device: BlockDevice, extent_size: int, extents: int) -> Superblock:
    """Write an empty store to a device that reads as zeros; the superblock comes last.

    Args:
        device: writable, at least as large as the store.
        extent_size: bytes, a power of two.
        extents: how many, the system extent included.

    Raises:
        BadRequest: there can be no such store.
    """
    check_geometry(extent_size, extents)
    sb = Superblock(
        uuid.uuid4().bytes,
        extent_size >> BLOCK_SHIFT,
        extents,
        incompat=INCOMPAT_STAMPS,
        created_ns=time.time_ns(),
    )
    for extent in range(1, extents):
        writes = pristine(sb, extent)
        device.pwritev(writes[0][0] << BLOCK_SHIFT, [data for _, data in writes])
    nobody = SessionList()
    for listed in (nobody, twin_of(nobody)):
        at = sb.sessions_slot(listed.sequence % 2) << BLOCK_SHIFT
        device.pwritev(at, [listed.pack(sb.uuid)])
    write_superblock(device, sb)
    return sb


def write_superblock(device: BlockDevice, sb: Superblock) -> None:
    """Replace the superblock, its copy first, so that one of them is valid at any time."""
    block = sb.pack()
    device.flush()
    device.pwritev(sb.copy_block << BLOCK_SHIFT, [block])
    device.flush()
    device.pwritev(0, [block])
    device.flush()


def create(
    path: str,
    extent_size: int,
    extents: int,
    force: bool = False,
    progress: Progress = silent,
    cache: Cache = "host",
) -> Superblock:
    """Format a file (made if missing, sparse) or a block device.

    Args:
        path: the file or device.
        extent_size: bytes, a power of two.
        extents: how many extents, at least 6.
        force: format it even if it already holds something.
        progress: told about bytes of what was there that are discarded.
        cache: whose memory stands before the device.

    Raises:
        BadRequest: it holds data and `force` is not set, or there can be no such store.
        InUse: it is a store that someone has open.
        NoSpace: the device is too small or the file system is full.
    """
    check_geometry(extent_size, extents)
    made = False
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        made = True
    except FileExistsError:
        pass
    except OSError as error:
        raise io_error(error, f"cannot create {path}") from error
    try:
        device = open_device(path, True, "exclusive", cache)
        try:
            if not force:
                refuse_contents(device)
            refuse_shared(device)
            device.resize(extent_size * extents)
            if not made:
                _discard(device, progress)
            sb = format_device(device, extent_size, extents)
        finally:
            device.close()
        sync_folder(path)
    except BaseException:
        if made:
            os.unlink(path)
        raise
    return sb


def _discard(device: FileDevice, progress: Progress) -> None:
    """Make all of a device read as zeros; one without a quick way takes its time."""
    for start in range(0, device.size, _DISCARD):
        progress(start, device.size)
        device.discard(start, min(_DISCARD, device.size - start))
    progress(device.size, device.size)


_SIGNATURES: Final = (
    (0, SUPERBLOCK_MAGIC, "a blockstore"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x200, b"EFI PART", "a partition table"),
    (0x1FE, b"\x55\xaa", "a partition table or a boot sector"),
    (0x218, b"LVM2 001", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"QFI\xfb", "a qcow2 image"),
)
_LOOK: Final = 1 << 20


def refuse_contents(device: FileDevice) -> None:
    """Refuse to format what already holds something, and say what it looks like."""
    start = device.pread(0, min(_LOOK, device.size)) if device.size else b""
    if start.count(0) == len(start):
        end = min(_LOOK, device.size)
        start = device.pread(device.size - end, end) if end else b""
        if start.count(0) == len(start):
            return
    what = next(
        (name for at, magic, name in _SIGNATURES if start[at : at + len(magic)] == magic), "data"
    )
    raise BadRequest(
        f"{device.name} already holds {what}", "use --force to overwrite it; that cannot be undone"
    )


def refuse_shared(device: BlockDevice) -> None:
    """Refuse to format what other hosts may be using: a lock on the file does not reach them.

    Raises:
        InUse: it is a store that is shared under a lock master.
    """
    sb = Superblock.unpack(device.pread(0, BLOCK)) if device.size >= BLOCK else None
    if sb is not None and any(sb.lock_master):
        raise InUse(
            f"{device.name} holds a blockstore that is shared under the lock master"
            f" {uuid_text(sb.lock_master)}",
            "if no other host uses it any more: 'plxsh store unshare', then format it",
        )


def grow(path: str, extents: int, cache: Cache = "host") -> Superblock:
    """Give a store more extents; nothing that is in it moves.

    Raises:
        BadRequest: it has that many already.
        InUse: someone has the store open.
        NoSpace: the device is too small or the file system is full.
    """
    store = Blockstore.open(path, "write", cache=cache)
    try:
        return extend(store, extents)
    finally:
        store.close()


def extend(store: Blockstore, extents: int) -> Superblock:
    """Give an open store more extents; the superblock, which says so, comes last.

    Others may go on writing meanwhile, as nobody but the one who grows the store writes
    behind its end. Two sessions must not do it at once.

    Raises:
        BadRequest, NoSpace: as `grow`.
        IoFailed, Fenced: it could not be written; the store is as before.
    """
    old = store.sb
    if extents <= old.extents:
        raise BadRequest(
            f"{store.device.name} has {old.extents} extents already",
            "a store grows, it cannot shrink",
        )
    check_geometry(old.extent_blocks << BLOCK_SHIFT, extents)
    new = old.grown(extents)
    store.check_writable()
    store.enroll()
    store.device.resize(new.size)
    for extent in range(old.extents, extents):
        writes = pristine(new, extent)
        store.device.pwritev(writes[0][0] << BLOCK_SHIFT, [data for _, data in writes])
    write_superblock(store.device, new)
    return new
