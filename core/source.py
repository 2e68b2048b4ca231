"""Image files of the outside world, open for reading as raw bytes.

An image is a raw file, a block device, a pipe, standard input (`-`), or a file in any
format that qemu-img reads, which converts it into a file without a name.

A guest decides what the first bytes of its disk are, so these bytes alone must never make
the host open other files. An image is raw unless the user names a format; the one
exception is a regular file that starts as a qcow2 image and refers to no other file.
Whatever else looks like an image format is refused until the user says what it is.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from core.device import io_error
from core.errors import BadRequest, IoFailed, NoSpace, NotFound, ParallaxError
from core.format import BLOCK, blocks_for
from core.progress import Progress, silent

CHUNK: Final = 4 << 20
"""Bytes read and written at once; whole leaves of the radix map."""

RAW: Final = "raw"
STREAM: Final = "-"
"""The name of standard input and output."""

_SMALL_HOLE: Final = 64 << 10
_QCOW2: Final = "qcow2"
_MAGICS: Final = (
    (0, b"QFI\xfb", _QCOW2),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
)
_LOOK: Final = 128
_QCOW2_HEADER: Final = struct.Struct(">4sIQ56xQ")
_QCOW2_DATA_FILE: Final = 1 << 2
_PERCENT: Final = re.compile(r"\(([\d.]+)/100%\)")


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
        """Take an open file, which stays the caller's."""
        self.name = name
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self._fd = fd

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
                raise self._changed(offset)
            buffer = buffer[got:]
            offset += got

    def check_complete(self) -> None:
        """Raise IoFailed if it does not have the size any more that it had."""
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size != self.size:
            raise self._changed(size)

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
        got = CHUNK
        while got == CHUNK:
            got = self._read(buffer)
            if position == 0 and self._format is None:
                _format_of(bytes(buffer[: min(got, _LOOK)]), self.name, False)
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
        refuse_store(store, "standard input", os.fstat(0))
        yield _stream(0, "standard input", image_format)
        return
    with _file(source, store) as fd:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            yield _stream(fd, source, image_format)
            return
        actual = _actual_format(fd, source, image_format)
        size = _size(fd, source, actual)
        check_limit(source, size, limit)
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
        refuse_store(store, "standard input", os.fstat(0))
        return _stream(0, "standard input", image_format).size
    with _file(source, store) as fd:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return _stream(fd, source, image_format).size
        size = _size(fd, source, _actual_format(fd, source, image_format))
        check_limit(source, size, limit)
        return size


@contextmanager
def _file(source: str, store: str) -> Iterator[int]:
    """Open a file, device or pipe that is not the store."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise io_error(error, f"cannot read {source}") from error
    try:
        refuse_store(store, source, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


def _actual_format(fd: int, source: str, image_format: str | None) -> str:
    """Return the format of an open file or device, that which the user named if any."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BadRequest(
            f"{source} is no image", "name a file, a block device or a pipe, or - to read one"
        )
    if not RawFile(fd, source).size:
        raise empty(source)
    return image_format or _format_of(os.pread(fd, _LOOK, 0), source, stat.S_ISREG(mode))


def _size(fd: int, source: str, image_format: str) -> int:
    """Return the bytes of the disk that an open file or device holds."""
    if image_format == RAW:
        return RawFile(fd, source).size
    # A relative path could look like a protocol to qemu-img.
    path = os.path.abspath(source)
    info = json.loads(qemu_img("info", "--output=json", "-f", image_format, path))
    size = info["virtual-size"]
    assert isinstance(size, int)
    return size


def _stream(fd: int, name: str, image_format: str | None) -> RawStream:
    if image_format not in (None, RAW):
        raise BadRequest(
            f"a {image_format} image cannot be read from {name}", "put it into a file first"
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


def empty(name: str) -> BadRequest:
    """Return the error for an image without a single byte: a mistake before this one."""
    return BadRequest(f"{name} is empty", "check what should have written it")


# -- other formats ---------------------------------------------------------------------


def _format_of(head: bytes, name: str, regular: bool) -> str:
    """Return what an image is whose format the user did not name; see the module.

    Raises:
        BadRequest: the user has to say.
    """
    found = next((kind for at, magic, kind in _MAGICS if head.startswith(magic, at)), RAW)
    if found == RAW:
        return RAW
    if regular and found == _QCOW2 and _stands_alone(head):
        return _QCOW2
    raise BadRequest(
        f"{name} looks like a {found} image",
        f"say --format {found} to have it converted, or --format raw to take it as it is",
    )


def _stands_alone(head: bytes) -> bool:
    """Say whether a qcow2 image refers to no backing file and no data file."""
    if len(head) < _QCOW2_HEADER.size:
        return False
    _, version, backing, incompatible = _QCOW2_HEADER.unpack_from(head)
    if version == 2:
        incompatible = 0  # its header is shorter
    return version in (2, 3) and not backing and not incompatible & _QCOW2_DATA_FILE


@contextmanager
def scratch(folder: str | None = None) -> Iterator[int]:
    """Make an empty file without a name, which vanishes however this process ends."""
    folder = folder or tempfile.gettempdir()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        except OSError as error:
            raise io_error(error, f"cannot write in {folder}") from error
        yield file.fileno()


def convert(
    source: str,
    source_format: str,
    target: str,
    target_format: str,
    size: int,
    progress: Progress = silent,
    keep: tuple[int, ...] = (),
) -> None:
    """Have qemu-img write an image to a file that is there and reads as zeros, sparse.

    Args:
        source: path of the image.
        source_format: its format.
        target: path of the file; its format may need no header, or makes its own.
        target_format: what to write.
        size: bytes of the disk in the image.
        progress: told about bytes of that disk.
        keep: descriptors that the paths name.
    """

    def heard(text: str) -> None:
        said = _PERCENT.findall(text)
        if said:
            progress(min(size, int(size * float(said[-1]) / 100)), size)

    # With -n qemu-img writes into the file as it is; other formats it has to make itself.
    raw = ("-n", "--target-is-zero") if target_format == RAW else ()
    paths = (os.path.abspath(source), os.path.abspath(target))
    qemu_img(
        "convert", "-p", *raw, "-f", source_format, "-O", target_format, *paths,
        keep=keep, heard=heard,
    )  # fmt: skip


def _ignore(text: str) -> None:
    """Hear nothing."""


def qemu_img(
    *arguments: str, keep: tuple[int, ...] = (), heard: Callable[[str], None] = _ignore
) -> str:
    """Run qemu-img and return what it prints.

    Args:
        arguments: what follows its name.
        keep: descriptors that it inherits.
        heard: told what it prints, piece by piece; may raise KeyboardInterrupt to stop it.
    """
    said: list[str] = []
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                ["qemu-img", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                pass_fds=keep,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise NotFound(
                "other formats than raw need qemu-img, which is not installed",
                "install the Debian package qemu-utils",
            ) from error
        with process:
            assert process.stdout is not None
            try:
                while piece := os.read(process.stdout.fileno(), 1 << 16):
                    said.append(piece.decode(errors="replace"))
                    heard(said[-1])
                process.wait()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            complaints.seek(0)
            raise _failure(complaints.read().decode(errors="replace"))
    return "".join(said)


def _failure(said: str) -> ParallaxError:
    """Return the error that the last line of what qemu-img complained about stands for."""
    line = (said.strip().splitlines() or ["qemu-img failed without a word"])[-1]
    if os.strerror(errno.ENOSPC) in line:
        return NoSpace(line, "free space there, or set TMPDIR to another folder")
    return BadRequest(line, "check the file and its format")
