"""Images in and out: fill a VDI, compare it with an image, export it.

Holes and zeros are neither read nor stored. `core.source` opens what comes in.

`fill` writes to fresh blocks only and commits at the end, so an error or Ctrl-C leaves the
VDI as it was. Only more than `COMMIT_EVERY` bytes, or a store that gets full, bring a
commit before the end; then the VDI is left with the beginning of the image, and the error
says how much of it. `export` puts a file in its place when it is complete.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import numpy as np

from core.device import io_error, sync_folder
from core.errors import BadRequest, Different, Interrupted, ParallaxError
from core.format import BLOCK, blocks_for
from core.image import Extent, Image
from core.progress import Progress, silent
from core.qemu_img import convert, refuse_unfit, scratch
from core.session import Session
from core.signatures import RAW
from core.source import (
    CHUNK,
    STREAM,
    Piece,
    Source,
    check_limit,
    empty,
    new_buffer,
    opened,
    refuse_store,
)
from core.vdi import Vdi

COMMIT_EVERY: Final = 8 << 30
"""Bytes of data after which a fill commits, so that memory stays bounded."""

_BEHIND: Final = 64 << 20
_WINDOW: Final = 1 << 30


def fill(
    vdi: Vdi,
    session: Session,
    source: str,
    image_format: str | None = None,
    progress: Progress = silent,
    converting: Progress = silent,
) -> int:
    """Make a VDI equal to an image followed by zeros, durably; return the image's bytes.

    Args:
        vdi: an open VDI; without a size it takes that of the image.
        session: where it is open.
        source: path of a file, a block device or a pipe; `-` is standard input.
        image_format: a format that qemu-img knows; see the module for what None means.
        progress: told about bytes of the image.
        converting: told about bytes of an image of another format, before anything is read.

    Raises:
        BadRequest: the image is larger than the VDI, empty, or of another format.
        NotFound: there is no such source, or no qemu-img for it.
        Interrupted: KeyboardInterrupt; the message says what that left.
        NoSpace, IoFailed, ReadOnly: the VDI is as before unless the message says more.
    """
    first = vdi.record.sequence
    marks = {first: 0}
    try:
        store = session.store.device.name
        with (
            opened(source, image_format, store, vdi.size or None, converting) as image,
            _WriteBehind(vdi) as behind,
        ):
            return _fill(vdi, session, image, behind, progress, marks)
    except KeyboardInterrupt:
        left = _left(vdi, session, source, marks) or f"VDI {vdi.name!r} is as before"
        raise Interrupted(f"interrupted: {left}", "run the same command again") from None
    except ParallaxError as error:
        left = _left(vdi, session, source, marks)
        if left:
            error.message = f"{error.message}; {left}"
            error.args = (error.message,)
        raise


def _fill(
    vdi: Vdi,
    session: Session,
    image: Source,
    behind: _WriteBehind,
    progress: Progress,
    marks: dict[int, int],
) -> int:
    """Copy, grow, commit; note in `marks` how much of the image a commit holds at least."""
    grow = vdi.size == 0
    if grow and image.size:
        vdi.resize(image.size)
    done = uncommitted = 0
    progress(0, image.size)
    for offset, length, data in image.pieces():
        session.attend()
        marks[vdi.record.sequence + 1] = offset  # a full store may commit to make room
        done = offset + length
        if done > vdi.size:
            if not grow:
                check_limit(image.name, done, vdi.size)
            vdi.resize(done)
        # Whatever was there goes to the commit, so that the data lands in fresh blocks.
        vdi.trim(offset, min(blocks_for(done) * BLOCK, vdi.size) - offset)
        if data is not None:
            vdi.write(offset, data)
            behind.wrote(offset, length)
            uncommitted += length
            if uncommitted >= COMMIT_EVERY:
                marks[vdi.record.sequence + 1] = done
                session.commit([vdi])
                uncommitted = 0
        progress(done, image.size)
    if not done:
        raise empty(image.name)
    image.check_complete()
    rest = min(blocks_for(done) * BLOCK, vdi.size)
    vdi.trim(rest, vdi.size - rest)
    marks[vdi.record.sequence + 1] = done
    session.commit([vdi])
    return done


class _WriteBehind:
    """Has the system write out what a fill wrote, and forget it, while the fill goes on.

    The commit at the end then finds little left to wait for, and a large image does not
    push everything else out of the page cache. It is a hint: its own descriptor sees (and
    ignores) an I/O error without hiding it from the commit, which sees it as well.
    """

    def __init__(self, vdi: Vdi) -> None:
        self._vdi = vdi
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._written: list[tuple[int, int]] = []
        self._length = 0
        try:
            self._fd = os.open(vdi.store.device.name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # not a file of this host

    def __enter__(self) -> _WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)

    def wrote(self, offset: int, length: int) -> None:
        """Take note of a part of the VDI that was written, in whole blocks."""
        self._written.append((offset, length))
        self._length += length
        if self._length < _BEHIND or self._fd < 0 or (self._running and not self._running.done()):
            return
        ranges = [
            (run.block * BLOCK, run.length * BLOCK)
            for offset, length in self._written
            for run in self._vdi.map.lookup_range(offset // BLOCK, blocks_for(length))
            if run.block
        ]
        self._running = self._thread.submit(self._write_out, ranges)
        self._written.clear()
        self._length = 0

    def _write_out(self, ranges: list[tuple[int, int]]) -> None:
        with suppress(OSError):
            os.fdatasync(self._fd)
            for offset, length in ranges:
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)


def _left(vdi: Vdi, session: Session, source: str, marks: dict[int, int]) -> str:
    """Say what a fill that failed left on disk; empty if the VDI is as before."""
    record = session.registry.get(vdi.id)
    if record is None or record.sequence == min(marks):
        return ""
    done = marks[max(sequence for sequence in marks if sequence <= record.sequence)]
    if not done:
        held = "but some of what it held is gone" if record.mapped else "which is empty now"
        return f"nothing of {source} was written to VDI {vdi.name!r}, {held}"
    return (
        f"VDI {vdi.name!r} is filled in part: its first {done} bytes are those of {source},"
        " what follows is not"
    )


def validate(
    contents: Image,
    source: str,
    image_format: str | None = None,
    progress: Progress = silent,
    converting: Progress = silent,
) -> None:
    """Compare a VDI or snapshot with an image, byte by byte; arguments as `fill`.

    Raises:
        Different: they are not equal; the message has the first byte that differs. An
            image that ends earlier or later differs at the byte where one of them ends.
        BadRequest, NotFound, Interrupted, IoFailed: they could not be compared.
    """
    ours = new_buffer()
    done = 0
    try:
        store = contents.store.device.name
        with opened(source, image_format, store, converting=converting) as image:
            progress(0, image.size)
            for offset, length, data in image.pieces():
                contents.attend()
                common = max(0, min(length, contents.size - offset))
                at = _first_difference(contents, offset, common, data, ours)
                if at is not None:
                    raise Different(f"{source} differs at byte {at}")
                done = offset + length
                if done > contents.size:
                    break
                progress(done, image.size)
            else:
                image.check_complete()
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: no difference in the first {done} bytes") from None
    if done > contents.size:
        raise Different(f"{source} differs at byte {contents.size}: only the VDI ends there")
    if done < contents.size:
        raise Different(f"{source} differs at byte {done}: it ends there, the VDI does not")


def _first_difference(
    contents: Image, offset: int, length: int, theirs: memoryview | None, buffer: memoryview
) -> int | None:
    """Return the first byte of a range that differs; nothing is read where both are holes."""
    for start, size, data in _ranges(contents, offset, length):
        if theirs is None and not data:
            continue
        for low in range(start, start + size, CHUNK):
            part = min(CHUNK, start + size - low)
            mine = wanted = None
            if data:
                mine = buffer[:part]
                contents.read_into(low, mine)
            if theirs is not None:
                wanted = theirs[low - offset : low - offset + part]
            at = _mismatch(mine, wanted)
            if at is not None:
                return low + at
    return None


def _mismatch(one: memoryview | None, other: memoryview | None) -> int | None:
    """Return the index of the first byte in which two buffers differ; None is zeros."""
    if one is None:
        one, other = other, None
    assert one is not None
    wanted = np.uint8(0) if other is None else np.frombuffer(other, np.uint8)
    differ = np.frombuffer(one, np.uint8) != wanted
    at = int(differ.argmax())
    return at if differ[at] else None


def _ranges(contents: Image, offset: int, length: int) -> Iterator[Extent]:
    """Yield the stored and unstored ranges of an image, however large, in bounded memory."""
    for low in range(offset, offset + length, _WINDOW):
        yield from contents.extents(low, min(_WINDOW, offset + length - low))


def export(
    contents: Image,
    target: str,
    image_format: str = RAW,
    force: bool = False,
    progress: Progress = silent,
    converting: Progress = silent,
) -> None:
    """Write a VDI or snapshot to an image file, durably.

    Holes stay holes in a file; a block device is overwritten with zeros there, and keeps
    what lies behind the image. A format that cannot hold exactly this size is refused.

    Args:
        contents: what to write.
        target: path of a file or block device; `-` is standard output.
        image_format: raw, or what qemu-img should make of it (into a file only).
        force: replace a file or overwrite a device that exists.
        progress: told about bytes of the image.
        converting: told about bytes of it that qemu-img has converted, after that.

    Raises:
        BadRequest: the target exists and `force` is not set, or it cannot be one, or the
            format has no such size.
        NotFound: its folder does not exist, or there is no qemu-img.
        Interrupted: KeyboardInterrupt; the message says what that left.
        NoSpace, IoFailed, ReadOnly: it could not be written; no file is left behind.
    """
    left = f"{target} was not written"
    try:
        if target == STREAM:
            left = "standard output ends in the middle of the image"
            check_target(contents, target, image_format, force)
            _write_zeros_too(contents, 1, "standard output", progress)
            return
        check_target(contents, target, image_format, force)
        path = os.path.realpath(target)
        status = _status(path)
        if status is None or stat.S_ISREG(status.st_mode):
            _export_file(contents, path, image_format, progress, converting)
        else:
            left = f"{target} is overwritten in part"
            _export_device(contents, path, status, progress)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {left}", "run the same command again") from None


def _status(path: str) -> os.stat_result | None:
    """Return what is known about a file, None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise io_error(error, f"cannot write {path}") from error


def check_target(contents: Image, target: str, image_format: str, force: bool) -> None:
    """Raise what `export` would raise before it writes anything; arguments as there."""
    if target == STREAM:
        _plain_only(image_format, "standard output")
        return
    path = os.path.realpath(target)
    status = _status(path)
    if status is not None:
        refuse_store(contents.store.device.name, target, status)
        if would_lose(target) and not force:
            raise BadRequest(
                f"{target} exists", "name another target, or use --force to replace it"
            )
        if stat.S_ISDIR(status.st_mode) or stat.S_ISSOCK(status.st_mode):
            raise BadRequest(f"{target} cannot hold an image", "name a file or a block device")
    if status is not None and not stat.S_ISREG(status.st_mode):
        _plain_only(image_format, "a device")
        return
    try:
        os.stat(os.path.dirname(path))
    except OSError as error:
        raise io_error(error, f"cannot write {path}") from error
    if image_format != RAW:  # said now, and not after all is read
        refuse_unfit(image_format, contents.size)


def would_lose(target: str) -> bool:
    """Say whether writing an image to a path loses what is there: not so with a pipe."""
    status = None if target == STREAM else _status(os.path.realpath(target))
    return status is not None and not (
        stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)
    )


def _plain_only(image_format: str, where: str) -> None:
    if image_format != RAW:
        raise BadRequest(
            f"a {image_format} image cannot be written to {where}", "export it to a file"
        )


def _export_file(
    contents: Image, path: str, image_format: str, progress: Progress, converting: Progress
) -> None:
    """Write a new file in a folder beside the target, then put it in its place.

    It has its name from the beginning: a VMDK names itself.
    """
    folder, name = os.path.split(path)
    what = f"cannot write {path}"
    try:
        aside = tempfile.mkdtemp(".part", f".{name[:200]}.", folder)
    except OSError as error:
        raise io_error(error, what) from error
    part = os.path.join(aside, name)
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if image_format == RAW:
                _write_sparse(contents, fd, what, progress)
            else:
                with scratch(aside) as raw:
                    _write_sparse(contents, raw, what, progress)
                    image = f"/dev/fd/{raw}"
                    size = contents.size
                    convert(image, RAW, part, image_format, size, converting, keep=(raw,))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(part, path)
        sync_folder(path)
    except OSError as error:
        raise io_error(error, what) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_sparse(contents: Image, fd: int, what: str, progress: Progress) -> None:
    """Write the stored ranges to an empty file and leave the rest a hole."""
    try:
        os.ftruncate(fd, contents.size)
        for offset, length, data in _pieces(contents, progress):
            if data is not None:
                _pwrite(fd, data[:length], offset)
    except OSError as error:
        raise io_error(error, what) from error


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset`."""
    while data:
        done = os.pwrite(fd, data, offset)
        data = data[done:]
        offset += done


def _export_device(contents: Image, path: str, status: os.stat_result, progress: Progress) -> None:
    """Write a device (or a pipe) in place."""
    # Exclusive: the kernel then refuses a block device that is mounted or otherwise in use.
    flags = os.O_EXCL if stat.S_ISBLK(status.st_mode) else 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise io_error(error, f"cannot write {path}") from error
    try:
        if stat.S_ISBLK(status.st_mode):
            size = os.lseek(fd, 0, os.SEEK_END)
            if size < contents.size:
                raise BadRequest(
                    f"{path} has {size} bytes, the image {contents.size}", "name a larger device"
                )
            os.lseek(fd, 0, os.SEEK_SET)
        _write_zeros_too(contents, fd, path, progress)
        if stat.S_ISBLK(status.st_mode):
            os.fsync(fd)
    except OSError as error:
        raise io_error(error, f"cannot write {path}") from error
    finally:
        os.close(fd)


def _write_zeros_too(contents: Image, fd: int, name: str, progress: Progress) -> None:
    """Write every byte, one behind the other."""
    zeros = memoryview(bytes(CHUNK))
    try:
        for _, length, data in _pieces(contents, progress):
            rest = (data or zeros)[:length]
            while rest:
                rest = rest[os.write(fd, rest) :]
    except OSError as error:
        raise io_error(error, f"cannot write {name}") from error


def _pieces(contents: Image, progress: Progress) -> Iterator[Piece]:
    """Read a VDI or snapshot from beginning to end, in pieces of at most `CHUNK`."""
    buffer = new_buffer()
    progress(0, contents.size)
    for start, size, data in _ranges(contents, 0, contents.size):
        for offset in range(start, start + size, CHUNK):
            length = min(CHUNK, start + size - offset)
            if data:
                contents.read_into(offset, buffer[:length])
            yield Piece(offset, length, buffer[:length] if data else None)
            progress(offset + length, contents.size)
            contents.attend()
