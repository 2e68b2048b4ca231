"""What a file or a device holds before it is formatted: a slip must not cost anyone's data.

Of a file every byte is looked at: whatever is not zero is somebody's. To read a whole disk
takes hours. There it is the places where file systems, volume managers and partition tables
have their labels, the ends, in which those are that are not known here, and samples in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from core.device import FileDevice
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    MAX_EXTENT,
    MIN_EXTENT,
    SUPERBLOCK_MAGIC,
    Superblock,
)
from core.progress import Progress, silent

_MIB: Final = 1 << 20
_ENDS: Final = 16 * _MIB
_SAMPLES: Final = 1024
_SAMPLE: Final = 64 << 10
_PIECE: Final = 1 * _MIB
_ZEROS: Final = bytes(_PIECE)


class Found(NamedTuple):
    """Something that is there: what it is, and its first byte that is known of."""

    what: str
    at: int


class _Label(NamedTuple):
    """Where something tells what it is.

    Args:
        at: byte; a negative one counts from the end of the device.
        magic: what is there then.
        what: what has it.
        unit: the end is rounded down to a multiple of that many bytes.
    """

    at: int
    magic: bytes
    what: str
    unit: int = 1

    def place(self, size: int) -> int:
        """Return the byte on a device of `size` bytes; it may be outside."""
        return self.at if self.at >= 0 else size // self.unit * self.unit + self.at


_GPT: Final = b"EFI PART"
_MD: Final = b"\xfc\x4e\x2b\xa9"
_LABELS: Final = (
    _Label(0, SUPERBLOCK_MAGIC, "a blockstore"),
    _Label(0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    _Label(0, b"XFSB", "an XFS file system"),
    _Label(0x10040, b"_BHRfS_M", "a btrfs file system"),
    _Label(0x4000040, b"_BHRfS_M", "a btrfs file system"),
    *(_Label(at, b"LVM2 001", "an LVM physical volume") for at in (0x18, 0x218, 0x418, 0x618)),
    _Label(0, b"LUKS\xba\xbe", "a LUKS volume"),
    *(_Label(0x4000 << n, b"SKUL\xba\xbe", "a LUKS volume") for n in range(9)),
    _Label(0, _MD, "a member of a Linux RAID"),
    _Label(0x1000, _MD, "a member of a Linux RAID"),
    _Label(-0x2000, _MD, "a member of a Linux RAID", 0x1000),
    _Label(-0x10000, _MD, "a member of a Linux RAID", 0x10000),
    _Label(1 * _MIB, b"\x0d\xd0\x01\xc0", "a VMFS volume"),
    _Label(2 * _MIB, b"\x5e\xf1\xab\x2f", "a VMFS file system"),
    _Label(0x1FFD8, b"\x11\x7a\x0c\xb1\x7a\xda\x10\x02", "a member of a ZFS pool"),
    _Label(-0x20028, b"\x11\x7a\x0c\xb1\x7a\xda\x10\x02", "a member of a ZFS pool", 0x40000),
    *(_Label((0x1000 << n) - 10, b"SWAPSPACE2", "swap space") for n in range(5)),
    _Label(3, b"NTFS    ", "an NTFS file system"),
    _Label(3, b"EXFAT   ", "an exFAT file system"),
    _Label(3, b"-FVE-FS-", "a BitLocker volume"),
    _Label(0x36, b"FAT1", "a FAT file system"),
    _Label(0x52, b"FAT32   ", "a FAT file system"),
    _Label(0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    _Label(0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    _Label(0x8000, b"JFS1", "a JFS file system"),
    _Label(0x10034, b"ReIsEr", "a ReiserFS file system"),
    _Label(0x8001, b"CD001", "an ISO 9660 file system"),
    _Label(0x8001, b"BEA01", "a UDF file system"),
    _Label(0, b"hsqs", "a SquashFS file system"),
    _Label(0, b"QFI\xfb", "a qcow2 image"),
    _Label(0, b"KDMV", "a VMDK image"),
    _Label(0, b"vhdxfile", "a VHDX image"),
    _Label(-512, b"conectix", "a VHD image"),
    _Label(0x200, _GPT, "a partition table"),
    _Label(0x1000, _GPT, "a partition table"),
    _Label(-512, _GPT, "a partition table"),
    _Label(-4096, _GPT, "a partition table"),
    _Label(0x1FE, b"\x55\xaa", "a partition table or a boot sector"),
)


def find(device: FileDevice, progress: Progress = silent) -> Found | None:
    """Return what a file or a device holds; None for one that reads as zeros.

    Args:
        device: the device.
        progress: told about blocks that were looked at, of those that are to be.

    Raises:
        IoFailed: it cannot be read.
    """
    return _labelled(device) or _stored(device) or _data(device, progress)


def _labelled(device: FileDevice) -> Found | None:
    """Find something that tells what it is."""
    for label in _LABELS:
        at = label.place(device.size)
        length = len(label.magic)
        if 0 <= at <= device.size - length and device.pread(at, length) == label.magic:
            return Found(label.what, at)
    return None


def _stored(device: FileDevice) -> Found | None:
    """Find a blockstore whose first block is lost, by the copy of its superblock."""
    size = MIN_EXTENT
    while size <= min(MAX_EXTENT, device.size):
        sb = Superblock.unpack(device.pread(size - BLOCK, BLOCK))
        if sb is not None and sb.extent_blocks << BLOCK_SHIFT == size:
            return Found("a blockstore whose first block is lost", size - BLOCK)
        size *= 2
    return None


def _data(device: FileDevice, progress: Progress) -> Found | None:
    """Find anything that is not zero."""
    parts = list(_parts(device))
    total = sum(end - first for first, end in parts)
    looked = 0
    for first, end in parts:
        for at in range(first, end, _PIECE):
            length = min(_PIECE, end - at)
            data = device.pread(at, length)
            if data != _ZEROS[:length]:
                return Found("data", at + length - len(data.lstrip(b"\0")))
            looked += length
            progress(looked >> BLOCK_SHIFT, total >> BLOCK_SHIFT)
    return None


def _parts(device: FileDevice) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of what is looked at: all that is there, or a part of a large disk."""
    size = device.size
    if not device.is_disk or size <= 2 * _ENDS + _SAMPLES * _SAMPLE:
        taken = device.taken(0, size)
        yield from taken if taken is not None else [(0, size)]
        return
    yield 0, _ENDS
    yield size - _ENDS, size
    step = (size - 2 * _ENDS) // _SAMPLES
    for at in range(_ENDS, size - _ENDS - _SAMPLE + 1, step):
        yield at, at + _SAMPLE
