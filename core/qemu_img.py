"""Images of other formats than raw, by way of qemu-img.

It reads a file that was cut short as if the rest of it were zeros, so `refuse_damaged` looks
first: at what the format itself can tell (`qemu-img check`), and whether every byte of data
lies within the file that should hold it (`qemu-img map`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from core.device import io_error
from core.errors import BadRequest, IoFailed, NoSpace, NotFound, ParallaxError
from core.progress import Progress, silent
from core.signatures import RAW

SECTOR: Final = 512
"""Every other format than raw holds whole sectors of so many bytes."""

_OPTIONS: Final = {"vpc": ("-o", "force_size=on")}
"""Without it a VHD has as many bytes as some number of cylinders."""
_QCOW: Final = struct.Struct(">4xI16xQBB2xIQ")
"""Of version 1 and later ones: version, size, bits of a cluster and of a table, L1 table."""
_PERCENT: Final = re.compile(r"\(([\d.]+)/100%\)")
_SOUND: Final = (0, 3, 63)
"""What `check` ends with: no error, space that nothing uses, a format that has no checks."""


def virtual_size(path: str, image_format: str) -> int:
    """Return the bytes of the disk in an image; raises as `run`."""
    return _size_in(run("info", "--output=json", "-f", image_format, os.path.abspath(path)))


def _size_in(info: str) -> int:
    size = json.loads(info)["virtual-size"]
    assert isinstance(size, int)
    return size


def refuse_unfit(image_format: str, size: int) -> None:
    """Raise BadRequest if qemu-img cannot make an image of exactly so many bytes.

    Raises:
        BadRequest: it does not know the format, or the format has no such size.
        NotFound: there is no qemu-img.
    """
    instead = "export it as raw, which holds any size"
    if size % SECTOR:
        raise BadRequest(
            f"a {image_format} image holds whole sectors of {SECTOR} bytes, not {size} bytes",
            instead,
        )
    with scratch() as empty:
        path = f"/dev/fd/{empty}"
        options = _OPTIONS.get(image_format, ())
        run("create", "-q", "-f", image_format, *options, path, str(size), keep=(empty,))
        made = _size_in(run("info", "--output=json", "-f", image_format, path, keep=(empty,)))
    if made != size:
        raise BadRequest(f"a {image_format} image cannot have {size} bytes, only {made}", instead)


def refuse_damaged(path: str, image_format: str) -> None:
    """Raise IoFailed if an image, or one that it is based on, is damaged or cut short.

    A raw image has nothing that tells: it is as long as it is.
    """
    path = os.path.abspath(path)
    chain = json.loads(run("info", "--output=json", "--backing-chain", "-f", image_format, path))
    for layer in chain:
        if layer["format"] != RAW:
            _check(layer)
    needed = {layer["filename"]: _tables_end(layer["filename"]) for layer in chain}
    files = [_files(layer) for layer in chain]

    def look(entry: dict[str, Any]) -> None:
        if entry["data"] and "offset" in entry:
            layer = files[entry["depth"]]
            _, name = layer[bisect_right(layer, entry["start"], key=lambda file: file[0]) - 1]
            needed[name] = max(needed.get(name, 0), entry["offset"] + entry["length"])

    _map(path, image_format, look)
    for name, size in needed.items():
        there = _bytes_of(name)
        if there is not None and there < size:
            raise IoFailed(
                f"{name} is cut short: it has {there} bytes, and data as far as byte {size}",
                "get a whole copy of it",
            )


def _check(layer: dict[str, Any]) -> None:
    """Have qemu-img look at the structure of one image."""
    name, kind = layer["filename"], layer["format"]
    status, _ = _run(("check", "-q", "--output=json", "-f", kind, name))
    if status not in _SOUND:
        mend = " and '-r all' mends it" if layer.get("dirty-flag") else ""
        raise IoFailed(
            f"{name} is damaged or cut short",
            f"'qemu-img check -f {kind} {name}' says where{mend or '; get a whole copy of it'}",
        )


def _files(layer: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the files that hold the data of an image, by where on the disk each begins."""
    name = layer["filename"]
    specific = layer.get("format-specific", {}).get("data", {})
    folder = os.path.dirname(name)
    if "data-file" in specific:
        return [(0, os.path.join(folder, specific["data-file"]))]
    found, start = [], 0
    for extent in specific.get("extents", ()):
        found.append((start, os.path.join(folder, extent["filename"])))
        start += extent["virtual-size"]
    return found or [(0, name)]


def _map(path: str, image_format: str, look: Callable[[dict[str, Any]], None]) -> None:
    """Have `look` see what qemu-img says of each range of a disk, which may be millions."""
    begun = ""

    def heard(text: str) -> None:
        nonlocal begun
        *lines, begun = (begun + text).split("\n")  # one range in each line
        for entry in filter(None, (line.strip("[], ") for line in lines)):
            look(json.loads(entry))

    run("map", "--output=json", "-f", image_format, path, heard=heard)
    if begun.strip():
        heard("\n")


def _tables_end(path: str) -> int:
    """Return where the tables end by which qcow and qcow2 find everything else; 0 for others.

    Where they lie behind the end of the file, qemu-img finds an empty disk.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        head = os.pread(fd, _QCOW.size, 0)
        if len(head) < _QCOW.size or not head.startswith(b"QFI\xfb"):
            return 0
        version, size, cluster_bits, l2_bits, entries, l1 = _QCOW.unpack(head)
        if version > 1:
            return int(l1 + 8 * entries)
        bits = cluster_bits + l2_bits
        entries = -(-size >> bits)
        table = os.pread(fd, min(8 * entries, os.fstat(fd).st_size), l1)
        found = struct.iter_unpack(">Q", table[: len(table) & -8])
        return int(max(l1 + 8 * entries, *(at + (8 << l2_bits) for (at,) in found if at), 0))
    finally:
        os.close(fd)


def _bytes_of(path: str) -> int | None:
    """Return the size of a file or device, None for what is not one of this host."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


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
    keep: Sequence[int] = (),
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
    how = ("-n", "--target-is-zero") if target_format == RAW else _OPTIONS.get(target_format, ())
    paths = (os.path.abspath(source), os.path.abspath(target))
    run(
        "convert", "-p", "-f", source_format, "-O", target_format, *how, *paths,
        keep=keep, heard=heard,
    )  # fmt: skip


def run(
    *arguments: str, keep: Sequence[int] = (), heard: Callable[[str], None] | None = None
) -> str:
    """Run qemu-img and return what it prints.

    Args:
        arguments: what follows its name.
        keep: descriptors that it inherits.
        heard: told what it prints, piece by piece, instead; may raise to stop it.

    Raises:
        BadRequest, NoSpace, IoFailed: what it complained about.
        NotFound: it is not installed.
    """
    said: list[str] = []
    status, complaints = _run(arguments, keep, heard or said.append)
    if status:
        raise _failure(status, complaints)
    return "".join(said)


def _nothing(text: str) -> None:
    """Hear nothing."""


def _run(
    arguments: Sequence[str],
    keep: Sequence[int] = (),
    heard: Callable[[str], None] = _nothing,
) -> tuple[int, str]:
    """Run qemu-img; return its exit status and what it complained about."""
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
                    heard(piece.decode(errors="replace"))
                process.wait()
            except BaseException:
                process.kill()
                raise
        complaints.seek(0)
        return process.returncode, complaints.read().decode(errors="replace")


def _failure(status: int, said: str) -> ParallaxError:
    """Return the error that the last line of what qemu-img complained about stands for."""
    if status < 0:
        return IoFailed(
            f"qemu-img was ended by the signal {signal.Signals(-status).name}",
            "look at the limits of this shell (ulimit -a) and at the system log",
        )
    line = (said.strip().splitlines() or ["qemu-img failed without a word"])[-1]
    if os.strerror(errno.ENOSPC) in line:
        return NoSpace(line, "free space there, or set TMPDIR to another folder")
    return BadRequest(line, "check the file and its format")
