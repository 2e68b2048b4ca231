"""What only block devices have: other users beside a process, and zeros on command."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_ZERO_OUT: Final = 0x127F
"""The ioctl BLKZEROOUT: the kernel writes zeros itself if the device has no quicker way."""
_READ_ONLY: Final = 0x125E
"""The ioctl BLKROGET."""
_RANGE: Final = struct.Struct("=QQ")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def write_zeros(fd: int, offset: int, length: int) -> None:
    """Make a range of a block device read as zeros, however long that takes.

    Args:
        fd: the device, open for writing.
        offset, length: bytes, multiples of the device's sectors.

    Raises:
        OSError: it could not be written.
    """
    fcntl.ioctl(fd, _ZERO_OUT, _RANGE.pack(offset, length))


def is_read_only(fd: int) -> bool:
    """Say whether a block device, open for writing or not, takes no writes."""
    return struct.unpack("=i", fcntl.ioctl(fd, _READ_ONLY, bytes(4))) != (0,)


def user_of(number: int) -> str:
    """Say what the system uses a block device for, or a partition of it; empty for nothing.

    Args:
        number: that of the device, `st_rdev`.
    """
    for part in [number, *_partitions(number)]:
        for user in (_mount(part), _holder(part), _swap(part)):
            if user:
                return user
    return ""


def _folder(number: int) -> str:
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


def _partitions(number: int) -> Iterator[int]:
    """Yield the numbers of a disk's partitions."""
    with suppress(OSError):
        for entry in os.scandir(_folder(number)):
            if os.path.exists(os.path.join(entry.path, "partition")):
                with open(os.path.join(entry.path, "dev"), encoding="ascii") as file:
                    major, _, minor = file.read().partition(":")
                yield os.makedev(int(major), int(minor))


def _mount(number: int) -> str:
    """Say where a device is mounted."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for words in _rows("/proc/self/mountinfo"):
        # btrfs and the like show a number of their own, but what they were mounted from too.
        if len(words) > 9 and (words[2] == wanted or _is(words[words.index("-") + 2], number)):
            return f"mounted on {_ESCAPED.sub(lambda code: chr(int(code[1], 8)), words[4])}"
    return ""


def _swap(number: int) -> str:
    """Say that a device is used for swapping."""
    used = any(_is(words[0], number) for words in _rows("/proc/swaps") if words)
    return "used as swap space" if used else ""


def _holder(number: int) -> str:
    """Say which device a device is a part of: one of LVM, md, bcache."""
    try:
        holders = sorted(os.listdir(os.path.join(_folder(number), "holders")))
    except OSError:
        return ""
    for holder in holders:
        try:
            with open(f"/sys/block/{holder}/dm/name", encoding="utf-8") as file:
                return f"a part of /dev/mapper/{file.read().strip()}"
        except OSError:
            return f"a part of /dev/{holder}"
    return ""


def _is(path: str, number: int) -> bool:
    """Say whether a path is that of a device."""
    try:
        return path.startswith("/dev/") and os.stat(path).st_rdev == number
    except OSError:
        return False


def _rows(table: str) -> list[list[str]]:
    """Return the words of each line of a table of the kernel; none if it cannot be read."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            return [line.split() for line in file]
    except OSError:
        return []
