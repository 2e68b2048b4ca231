"""Extents as they are on disk: header and bitmap, two slots of each."""

from __future__ import annotations

from functools import partial
from typing import Final

from core.device import BlockDevice
from core.errors import Corrupt
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BITMAP_SLOT,
    BLOCK,
    BLOCK_SHIFT,
    EXTENT_SLOT,
    BitmapBlock,
    ExtentHeader,
    Superblock,
)
from core.session_list import is_quiet
from core.slots import Pair, T, twin_of

_REPAIR: Final = "run 'plxsh store check --repair'"


def header_pair(device: BlockDevice, sb: Superblock, extent: int) -> Pair[ExtentHeader]:
    """Return both slots of the header of an extent."""
    raw = device.pread(sb.extent_start(extent) << BLOCK_SHIFT, 2 * BLOCK)
    unpack = partial(ExtentHeader.unpack, store=sb.uuid, extent=extent)
    return Pair.read(EXTENT_SLOT, raw, unpack)


def bitmap_pairs(device: BlockDevice, sb: Superblock, extent: int) -> list[Pair[BitmapBlock]]:
    """Return both slots of each part of the bitmap of an extent."""
    first = sb.bitmap_slot(extent, 0, 0)
    raw = device.pread(first << BLOCK_SHIFT, 2 * sb.bitmap_blocks * BLOCK)
    parts = (raw[at : at + 2 * BLOCK] for at in range(0, len(raw), 2 * BLOCK))
    return [_bitmap_pair(sb, extent, index, part) for index, part in enumerate(parts)]


def bitmap_pair(device: BlockDevice, sb: Superblock, extent: int, index: int) -> Pair[BitmapBlock]:
    """Return both slots of one part of the bitmap of an extent."""
    first = sb.bitmap_slot(extent, index, 0)
    return _bitmap_pair(sb, extent, index, device.pread(first << BLOCK_SHIFT, 2 * BLOCK))


def _bitmap_pair(sb: Superblock, extent: int, index: int, raw: bytes) -> Pair[BitmapBlock]:
    unpack = partial(BitmapBlock.unpack, store=sb.uuid, extent=extent, index=index)
    return Pair.read(BITMAP_SLOT, raw, unpack)


def read_bitmap(
    device: BlockDevice, sb: Superblock, extent: int, session: bytes = b""
) -> list[BitmapBlock]:
    """Return the current bitmap parts of one extent.

    Args:
        device, sb: the store.
        extent: which.
        session: the reader, if it is on the list of sessions and has not written to the extent.

    Raises:
        Corrupt: that of a part, or the newest of it, may be lost. What the bitmap calls free
            may be in use then.
    """
    first = sb.bitmap_slot(extent, 0, 0)
    what = f"of the allocation bitmap of extent {extent}"
    return [
        _current(device, sb, pair, session, first + 2 * index, what)
        for index, pair in enumerate(bitmap_pairs(device, sb, extent))
    ]


def read_header(
    device: BlockDevice, sb: Superblock, extent: int, session: bytes = b""
) -> ExtentHeader:
    """Return the current header of one extent; arguments and errors as `read_bitmap`."""
    pair = header_pair(device, sb, extent)
    what = f"of the header of extent {extent}"
    return _current(device, sb, pair, session, sb.extent_start(extent), what)


def _current(
    device: BlockDevice, sb: Superblock, pair: Pair[T], session: bytes, first: int, what: str
) -> T:
    """Return the current version of a pair of slots, the first of which is block `first`."""
    slot, current = pair.slot, pair.current
    if slot is None or current is None:
        raise Corrupt(f"both slots {what} are damaged", first, _REPAIR)
    if pair.doubtful and not is_quiet(device, sb, session):
        other = first + 1 - slot
        raise Corrupt(f"is damaged: the newest version {what} may be lost", other, _REPAIR)
    return current


def pristine(sb: Superblock, extent: int) -> list[tuple[int, bytes]]:
    """Return the (block, contents) that make an extent empty; both slots are covered."""
    import numpy as np  # only who formats pays for it

    size = sb.extent_blocks
    taken = np.zeros(sb.bitmap_blocks * BITMAP_BITS, np.uint8)
    taken[: sb.overhead] = 1
    taken[size:] = 0
    bits = np.packbits(taken, bitorder="little")
    header = ExtentHeader(extent)
    writes = [packed_header(sb, header), packed_header(sb, twin_of(header))]
    for index in range(sb.bitmap_blocks):
        part = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
        used = int(np.bitwise_count(part).sum())
        block = BitmapBlock(extent, index, 1, used, part.tobytes())
        writes += [packed_bitmap(sb, block), packed_bitmap(sb, twin_of(block))]
    return sorted(writes)


def packed_header(sb: Superblock, header: ExtentHeader) -> tuple[int, bytes]:
    """Return the block to write a header to, and what."""
    block = sb.extent_start(header.extent) + header.sequence % 2
    return block, header.pack(sb.uuid, sb.stamped)


def packed_bitmap(sb: Superblock, part: BitmapBlock) -> tuple[int, bytes]:
    """Return the block to write a part of a bitmap to, and what."""
    block = sb.bitmap_slot(part.extent, part.index, part.sequence % 2)
    return block, part.pack(sb.uuid, sb.stamped)
