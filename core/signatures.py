"""What an image file is, as far as its first and last bytes tell.

A guest decides what the bytes of its disk are, so a signature alone must never make the host
open other files or unpack anything. An image is raw unless the user names a format; the one
exception is a regular file that starts as a qcow2 image and refers to no other file. Whatever
else looks like a disk image of another format, or like something packed, is refused until the
user says what it is.

A disk that is encrypted as a whole (LUKS) is raw: what the guest sees is what is copied.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from core.errors import BadRequest

RAW: Final = "raw"

LOOK: Final = 512
"""Bytes at the beginning and at the end of an image that have to be seen."""

_QCOW2: Final = "qcow2"


class _Signature(NamedTuple):
    """Bytes at an offset, from the end if it is negative, and what they stand for."""

    offset: int
    magic: bytes
    kind: str


_IMAGES: Final = (
    _Signature(0, b"QFI\xfb\0\0\0\1", "qcow"),
    _Signature(0, b"QFI\xfb", _QCOW2),
    _Signature(0, b"QED\0", "qed"),
    _Signature(0, b"KDMV", "vmdk"),
    _Signature(0, b"COWD", "vmdk"),
    _Signature(0, b"vhdxfile", "vhdx"),
    _Signature(0, b"conectix", "vpc"),
    _Signature(-512, b"conectix", "vpc"),
    _Signature(-511, b"conectix", "vpc"),  # as the first versions wrote it
    _Signature(-512, b"koly", "dmg"),
    _Signature(64, b"\x7f\x10\xda\xbe", "vdi"),
    _Signature(0, b"WithoutFreeSpace", "parallels"),
    _Signature(0, b"WithouFreSpacExt", "parallels"),
    _Signature(0, b"Bochs Virtual HD Image", "bochs"),
    _Signature(0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
)
"""Formats by the names that qemu-img has for them."""

_VMDK_DESCRIPTOR: Final = re.compile(
    rb"\s*# Disk DescriptorFile|(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*version=[123]\r?\n",
    re.IGNORECASE,
)

_PACKED: Final = (
    _Signature(0, b"\x1f\x8b\x08", "gzip"),
    _Signature(0, b"\xfd7zXZ\0", "xz"),
    _Signature(0, b"\x28\xb5\x2f\xfd", "zstd"),
    _Signature(0, b"BZh", "bzip2"),
    _Signature(0, b"\x04\x22\x4d\x18", "lz4"),
    _Signature(0, b"\x02\x21\x4c\x18", "lz4"),
    _Signature(0, b"\x89LZO\0\r\n\x1a\n", "lzop"),
    _Signature(0, b"LZIP\x01", "lzip"),
)
"""Compressed files by the program that unpacks them."""

_ARCHIVES: Final = (
    _Signature(0, b"PK\x03\x04", "zip archive"),
    _Signature(0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    _Signature(0, b"Rar!\x1a\x07", "rar archive"),
    _Signature(257, b"ustar", "tar archive"),  # an OVA is one, too
    _Signature(0, b"\x3a\xff\x26\xed", "sparse image of Android"),
    _Signature(0, b"EVF\t\r\n\xff\0", "forensic image (EWF)"),
    _Signature(0, b"VMA\0", "backup of Proxmox (VMA)"),
    _Signature(0, b"partclone-image", "backup of partclone"),
)

_AS_IT_IS: Final = "--format raw takes it as it is"
_QCOW2_HEADER: Final = struct.Struct(">4sIQ56xQ")
_QCOW2_DATA_FILE: Final = 1 << 2


def format_of(head: bytes, tail: bytes, name: str, regular: bool = False) -> str:
    """Return what an image in a file or a device is whose format the user did not name.

    Args:
        head: its first `LOOK` bytes, fewer if there are no more.
        tail: its last ones.
        name: what the user called it.
        regular: it is a regular file.

    Raises:
        BadRequest: the user has to say.
    """
    found = _image(head, tail)
    if found == _QCOW2 and regular and _stands_alone(head):
        return _QCOW2
    if found is not None:
        raise BadRequest(
            f"{name} looks like a {found} image",
            f"with plxsh, --format {found} has it converted and {_AS_IT_IS}",
        )
    _refuse_packed(head, name)
    return RAW


def refuse_formatted_stream(head: bytes, tail: bytes, name: str) -> None:
    """Raise BadRequest if what comes through a pipe is no raw image; as `format_of`."""
    found = _image(head, tail)
    if found is not None:
        raise BadRequest(
            f"{name} looks like a {found} image, which cannot be read from a pipe",
            f"save it to a file and fill from that; with plxsh, {_AS_IT_IS}",
        )
    _refuse_packed(head, name)


def _image(head: bytes, tail: bytes) -> str | None:
    """Return the format of a disk image, None if it has no signature of one."""
    found = _first(_IMAGES, head, tail)
    return "vmdk" if found is None and _VMDK_DESCRIPTOR.match(head) else found


def _refuse_packed(head: bytes, name: str) -> None:
    found = _first(_PACKED, head)
    if found is not None:
        raise BadRequest(
            f"{name} is compressed ({found})",
            f"unpack it on the way: '{found} -dc FILE | plxsh vdi fill VDI -';"
            f" with plxsh, {_AS_IT_IS}",
        )
    found = _first(_ARCHIVES, head)
    if found is not None:
        raise BadRequest(
            f"{name} looks like a {found}",
            f"take the image out of it and name that; with plxsh, {_AS_IT_IS}",
        )


def _first(signatures: tuple[_Signature, ...], head: bytes, tail: bytes = b"") -> str | None:
    for at, magic, kind in signatures:
        if at >= 0 and head.startswith(magic, at):
            return kind
        if at < 0 and len(tail) >= -at and tail.startswith(magic, len(tail) + at):
            return kind
    return None


def _stands_alone(head: bytes) -> bool:
    """Say whether a qcow2 image refers to no backing file and no data file."""
    if len(head) < _QCOW2_HEADER.size:
        return False
    _, version, backing, incompatible = _QCOW2_HEADER.unpack_from(head)
    if version == 2:
        incompatible = 0  # its header is shorter
    return version in (2, 3) and not backing and not incompatible & _QCOW2_DATA_FILE
