"""Making a blockstore in a file or device, and giving it more extents."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress

from core import contents
from core.blockstore import Blockstore
from core.device import BlockDevice, Cache, FileDevice, io_error, sync_folder
from core.direct import open_device
from core.errors import BadRequest, InUse, IoFailed, NotFound, ParallaxError, ReadOnly
from core.extent import Run, pristine
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    INCOMPAT_STAMPS,
    SessionList,
    Superblock,
    check_geometry,
)
from core.progress import Progress, silent
from core.slots import twin_of
from core.text import uuid_text


def format_device(device: BlockDevice, extent_size: int, extents: int) -> Superblock:
    """Write an empty store to a device that reads as zeros; the superblock comes last.

    If there is no room for it, or the user ends it, what was written becomes zeros again.

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
    written: list[Run] = []
    try:
        written += (_write_pristine(device, sb, extent) for extent in range(1, extents))
        written += _write_nobody(device, sb)
    except BaseException:
        with suppress(ParallaxError):
            for first, count in written:
                device.pwritev(first << BLOCK_SHIFT, [bytes(count << BLOCK_SHIFT)])
        raise
    write_superblock(device, sb)
    return sb


def _write_pristine(device: BlockDevice, sb: Superblock, extent: int) -> Run:
    """Write an empty extent; return which blocks that were."""
    writes = pristine(sb, extent)
    first = writes[0][0]
    device.pwritev(first << BLOCK_SHIFT, [data for _, data in writes])
    return first, len(writes)


def _write_nobody(device: BlockDevice, sb: Superblock) -> Iterator[Run]:
    """Write a list of sessions on which there is nobody; yield which blocks that were."""
    nobody = SessionList()
    for listed in (nobody, twin_of(nobody)):
        block = sb.sessions_slot(listed.sequence % 2)
        device.pwritev(block << BLOCK_SHIFT, [listed.pack(sb.uuid)])
        yield block, 1


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
    cache: Cache = "host",
    looking: Progress = silent,
    clearing: Progress = silent,
) -> Superblock:
    """Format a file (made if missing, sparse) or a block device; links are followed.

    Args:
        path: the file or device.
        extent_size: bytes, a power of two.
        extents: how many extents, at least 6.
        force: format it even if it already holds something.
        cache: whose memory stands before the device.
        looking: told about blocks of what is there that were looked at.
        clearing: told about bytes of a device that were made zeros.

    Raises:
        BadRequest: it holds data and `force` is not set, or there can be no such store.
        InUse: it is a store that someone has open, or a device that the system uses.
        NotFound: there is no such folder.
        NoSpace: the device is too small or the file system is full.
    """
    check_geometry(extent_size, extents)
    target = _destination(path)
    made = False
    try:
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        made = True
    except FileExistsError:
        pass
    except OSError as error:
        raise io_error(error, f"cannot create {path}") from error
    try:
        with closing(open_device(path, True, "exclusive", cache)) as device:
            _refuse(device, extent_size * extents, force, looking)
            if force or device.is_disk:  # of a disk not every byte was looked at
                device.clear(clearing)
            device.resize(extent_size * extents)
            sb = format_device(device, extent_size, extents)
        sync_folder(target)
    except BaseException:
        if made:
            os.unlink(target)
        raise
    return sb


def rehearse(
    path: str,
    extent_size: int,
    extents: int,
    force: bool = False,
    cache: Cache = "host",
    looking: Progress = silent,
) -> None:
    """Refuse what `create` would refuse, and change nothing; arguments and errors as there."""
    check_geometry(extent_size, extents)
    target = _destination(path)
    if os.path.lexists(target):
        with closing(open_device(path, True, "exclusive", cache)) as device:
            _refuse(device, extent_size * extents, force, looking)
    elif not os.access(os.path.dirname(target), os.W_OK | os.X_OK):
        raise ReadOnly(
            f"cannot create {path}: Permission denied", "check permissions, or run as its owner"
        )


def _destination(path: str) -> str:
    """Return the path of the file or device that is meant, links followed; it may be missing.

    Raises:
        NotFound: the folder is missing, or links lead round in a circle.
        ReadOnly, BadRequest: the path cannot be followed.
    """
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        target = os.path.realpath(path)
    except OSError as error:
        raise io_error(error, f"cannot create {path}") from error
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        link = "" if target == os.path.abspath(path) else f"it is a link to {target}, and "
        raise NotFound(f"cannot create {path}: {link}there is no folder {folder}", "make it first")
    if f"{folder}/".startswith("/dev/") and os.stat(folder).st_dev == os.stat("/dev").st_dev:
        raise NotFound(f"there is no device {path}", "check the path; no file is made there")
    if path.endswith(os.sep):
        raise BadRequest(f"cannot create {path}: that is the name of a folder", "leave out the /")
    return target


def _refuse(device: FileDevice, size: int, force: bool, looking: Progress) -> None:
    """Refuse to format what has no room for a store of `size` bytes, or is somebody's.

    Raises:
        BadRequest: it holds something, and `force` is not set.
        InUse: other hosts may be using it.
        NoSpace: the device is too small.
    """
    if not force:
        found = contents.find(device, looking)
        if found is not None:
            raise BadRequest(
                f"{device.name} already holds {found.what}, at byte {found.at}",
                "'plxsh store create --force' overwrites it; that cannot be undone",
            )
    refuse_shared(device)
    device.check_room(size)


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
    try:
        for extent in range(old.extents, extents):
            _write_pristine(store.device, new, extent)
        write_superblock(store.device, new)
    except IoFailed as error:
        store.fail(error)  # nothing is written after a failed flush
        raise
    return new
