"""Image files of the outside world, open for reading as raw bytes.

An image is a raw file, a block device, a pipe, standard input (`-`), or a file in any
format that qemu-img reads, which converts it into a file without a name.

Which format that is, is for the user to say: `core.signatures`. What is no image at all, is
damaged, or does not have the size that it claims is an error, never a disk with zeros in it.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from core.device import io_error
from core.errors import BadRequest, IoFailed, ParallaxError
from core.format import BLOCK, blocks_for
from core.progress import Progress, silent
from core.qemu_img import convert, refuse_damaged, scratch, virtual_size
from core.signatures import LOOK, RAW, format_of, refuse_formatted_stream

CHUNK: Final = 4 << 20
"""Bytes read and written at once; whole leaves of the radix map."""

STREAM: Final = "-"
"""The name of standard input and output."""

_SMALL_HOLE: Final = 64 << 10


class Piece(NamedTuple):
    """A part of an image; `data` is None where it is a hole, and valid until the next."""

    offset: int
    length: int
    data: memoryview | None


def new_buffer() -> memoryview:
    """Return `CHUNK` bytes of memory, aligned to pages."""
    return memoryview(mmap.mmap(-1, CHUNK))


class RawFile:
    """A raw image in a regular file or a block device.

    Attributes:
        name: what the user called it.
        size: bytes.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Take an open file, which stays the caller's; BadRequest if it has no size."""
        self.name = name
        self._fd = fd
        try:
            self.size = self._size_now()
        except OSError:  # the files of /proc are made up while they are read
            raise no_image(name, "has no size") from None

    def ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of it, as `core.signatures` wants them."""
        return self._part(0), self._part(max(0, self.size - LOOK))

    def _part(self, offset: int) -> bytes:
        part = memoryview(bytearray(min(LOOK, self.size - offset)))
        self._read(offset, part)
        return bytes(part)

    def _size_now(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def pieces(self) -> Iterator[Piece]:
        """Yield all of it in order; a hole is one piece, data comes in parts of `CHUNK`."""
        buffer = new_buffer()
        position = 0
        while position < self.size:
            low, high = self._next_data(position)
            if low > position:
                yield Piece(position, low - position, None)
            for offset in range(low, high, CHUNK):
                part = buffer[: min(CHUNK, high - offset)]
                self._read(offset, part)
                yield Piece(offset, len(part), part)
            position = high

    def _next_data(self, position: int) -> tuple[int, int]:
        """Return the range of data from `position` on, in whole blocks, with small holes."""
        start = self._seek(position, os.SEEK_DATA)
        if start >= self.size:
            return self.size, self.size
        end = self._seek(start, os.SEEK_HOLE)
        while end - start < CHUNK and end < self.size:
            more = self._seek(end, os.SEEK_DATA)
            if more - end > _SMALL_HOLE or more >= self.size:
                break
            end = self._seek(more, os.SEEK_HOLE)
        return max(position, start & -BLOCK), min(blocks_for(end) * BLOCK, self.size)

    def _seek(self, offset: int, whence: int) -> int:
        """Return where data or a hole begins, the size if there is no more."""
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            raise io_error(error, f"cannot read {self.name} at byte {offset}") from error

    def _read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` on."""
        while buffer:
            try:
                got = os.preadv(self._fd, [buffer], offset)
            except OSError as error:
                raise io_error(error, f"cannot read {self.name} at byte {offset}") from error
            if not got:
                raise self._ended(offset)
            buffer = buffer[got:]
            offset += got

    def check_complete(self) -> None:
        """Raise IoFailed if it does not have the size any more that it had."""
        size = self._size_now()
        if size != self.size:
            raise self._changed(size)

    def _ended(self, offset: int) -> ParallaxError:
        """Return the error for a file that has no more bytes at `offset`."""
        size = self._size_now()
        if size == self.size:
            return no_image(self.name, f"ends after {offset} of the {size} bytes that it claims")
        return self._changed(size)

    def _changed(self, size: int) -> IoFailed:
        return IoFailed(
            f"{self.name} changed from {self.size} to {size} bytes while it was read",
            "stop what writes to it, then run the same command again",
        )


class RawStream:
    """A raw image from a pipe, whose size only its end tells; otherwise as `RawFile`."""

    size = None

    def __init__(self, fd: int, name: str, image_format: str | None) -> None:
        """Take an open pipe, which stays the caller's."""
        self.name = name
        self._fd = fd
        self._format = image_format

    def pieces(self) -> Iterator[Piece]:
        """Yield all of it in order, in parts of `CHUNK`."""
        buffer = new_buffer()
        position = 0
        tail = b""
        got = CHUNK
        while got == CHUNK:
            got = self._read(buffer)
            if self._format is None:
                head = b"" if position else bytes(buffer[: min(got, LOOK)])
                tail = (tail + bytes(buffer[max(0, got - LOOK) : got]))[-LOOK:]
                refuse_formatted_stream(head, b"" if got == CHUNK else tail, self.name)
            if got:
                yield Piece(position, got, buffer[:got])
            position += got

    def _read(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the stream reaches; return how many bytes that are."""
        got = 0
        try:
            while got < len(buffer) and (more := os.readv(self._fd, [buffer[got:]])):
                got += more
        except OSError as error:
            raise io_error(error, f"cannot read {self.name}") from error
        return got

    def check_complete(self) -> None:
        """Do nothing: a stream is complete when it ends."""


Source = RawFile | RawStream
"""An image that can be read from beginning to end."""


@contextmanager
def opened(
    source: str,
    image_format: str | None,
    store: str,
    limit: int | None = None,
    converting: Progress = silent,
) -> Iterator[Source]:
    """Open an image for reading, converted to raw if need be.

    Args:
        source: a path, or `-`.
        image_format: what the user said it is.
        store: the image must not be this very file.
        limit: refuse an image of more bytes.
        converting: told about bytes that are converted before there is anything to read.
    """
    if source == STREAM:
        yield _standard_input(image_format, store)
        return
    with _file(source, store) as fd:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            yield _stream(fd, source, image_format)
            return
        actual, size = _examined(fd, source, image_format, limit)
        if actual == RAW:
            yield RawFile(fd, source)
            return
        with scratch() as raw:
            os.ftruncate(raw, size)
            convert(source, actual, f"/dev/fd/{raw}", RAW, size, converting, keep=(raw,))
            yield RawFile(raw, source)


def measured(
    source: str, image_format: str | None, store: str, limit: int | None = None
) -> int | None:
    """Return the bytes of an image without reading it, None for a pipe; as `opened`.

    What `opened` refuses before it converts or reads is refused here as well.
    """
    if source == STREAM:
        return _standard_input(image_format, store).size
    with _file(source, store) as fd:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return _stream(fd, source, image_format).size
        return _examined(fd, source, image_format, limit)[1]


@contextmanager
def _file(source: str, store: str) -> Iterator[int]:
    """Open a file, device or pipe that is not the store."""
    what = f"cannot read {source}"
    try:
        mode = os.stat(source).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode)):
            raise no_image(source, f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}")
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise io_error(error, what) from error
    try:
        refuse_store(store, source, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}


def _examined(fd: int, source: str, image_format: str | None, limit: int | None) -> tuple[str, int]:
    """Return the format of an open file or device, and the bytes of the disk in it.

    Raises:
        BadRequest: it is empty, too large, or the user has to say what it is.
        IoFailed: it is damaged or cut short.
    """
    file = RawFile(fd, source)
    if not file.size:
        raise empty(source)
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    actual = image_format or format_of(*file.ends(), source, regular)
    size = file.size if actual == RAW else virtual_size(source, actual)
    check_limit(source, size, limit)
    if actual != RAW:
        refuse_damaged(source, actual)
    return actual, size


def _standard_input(image_format: str | None, store: str) -> RawStream:
    """Return what stands for `-`."""
    name = "standard input"
    status = os.fstat(0)
    refuse_store(store, name, status)
    nothing = os.path.samestat(status, os.stat(os.devnull))  # it is empty, and ends
    if stat.S_ISCHR(status.st_mode) and not nothing:
        kind = "a terminal" if os.isatty(0) else "a character device"
        raise BadRequest(f"{name} is {kind}", "redirect it, as in 'plxsh vdi fill VDI - < FILE'")
    return _stream(0, name, image_format)


def _stream(fd: int, name: str, image_format: str | None) -> RawStream:
    if image_format not in (None, RAW):
        raise BadRequest(
            f"a {image_format} image cannot be read from {name}",
            "save it to a file and name that",
        )
    return RawStream(fd, name, image_format)


def refuse_store(store: str, name: str, status: os.stat_result) -> None:
    """Raise BadRequest if a file is the store itself."""
    with suppress(OSError):
        if os.path.samestat(status, os.stat(store)):
            raise BadRequest(f"{name} is the blockstore itself", "name another file")


def check_limit(name: str, size: int, limit: int | None) -> None:
    """Raise BadRequest if an image is larger than what it should go into."""
    if limit is not None and size > limit:
        raise BadRequest(
            f"{name} has {size} bytes or more, the VDI has {limit}",
            "make the VDI larger with 'vdi resize', or fill one that has no size yet",
        )


def no_image(name: str, why: str) -> BadRequest:
    """Return the error for what has no bytes that a disk could be made of."""
    return BadRequest(
        f"{name} is no image: it {why}", "name a file, a block device or a pipe, or - to read one"
    )


def empty(name: str) -> BadRequest:
    """Return the error for an image without a single byte: a mistake before this one."""
    return BadRequest(f"{name} is empty", "check what should have written it")
