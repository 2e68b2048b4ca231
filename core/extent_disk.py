"""Extents as they are on disk: header and bitmap, the newer valid one of two slots each."""

from __future__ import annotations

import numpy as np

from core.device import BlockDevice
from core.errors import Corrupt
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK,
    BLOCK_SHIFT,
    BitmapBlock,
    ExtentHeader,
    Superblock,
)


def read_bitmap(device: BlockDevice, sb: Superblock, extent: int) -> list[BitmapBlock]:
    """Return the current bitmap parts of one extent, the newer valid slot of each.

    Raises:
        Corrupt: neither slot of a part is valid.
    """
    first = sb.bitmap_slot(extent, 0, 0)
    raw = device.pread(first << BLOCK_SHIFT, 2 * sb.bitmap_blocks * BLOCK)
    parts = []
    for index in range(sb.bitmap_blocks):
        at = 2 * index * BLOCK
        slots = [
            BitmapBlock.unpack(raw[at + s * BLOCK : at + (s + 1) * BLOCK], sb.uuid, extent, index)
            for s in (0, 1)
        ]
        valid = [slot for slot in slots if slot]
        if not valid:
            raise Corrupt(
                f"both copies of the allocation bitmap of extent {extent} are damaged",
                sb.bitmap_slot(extent, index, 0),
                "run 'plxsh store check --repair'",
            )
        parts.append(max(valid, key=lambda part: part.sequence))
    return parts


def read_header(device: BlockDevice, sb: Superblock, extent: int) -> ExtentHeader:
    """Return the header of one extent, the newer valid slot.

    Raises:
        Corrupt: neither slot is valid.
    """
    first = sb.extent_start(extent)
    raw = device.pread(first << BLOCK_SHIFT, 2 * BLOCK)
    slots = [ExtentHeader.unpack(raw[s * BLOCK : (s + 1) * BLOCK], sb.uuid, extent) for s in (0, 1)]
    valid = [slot for slot in slots if slot]
    if not valid:
        raise Corrupt(
            f"both headers of extent {extent} are damaged",
            first,
            "run 'plxsh store check --repair'",
        )
    return max(valid, key=lambda header: header.sequence)


def pristine(sb: Superblock, extent: int) -> list[tuple[int, bytes]]:
    """Return the (block, contents) that make an extent empty; both slots are covered."""
    size = sb.extent_blocks
    taken = np.zeros(sb.bitmap_blocks * BITMAP_BITS, np.uint8)
    taken[: sb.overhead] = 1
    taken[size:] = 0
    bits = np.packbits(taken, bitorder="little")
    first = sb.extent_start(extent)
    writes = [(first, bytes(BLOCK)), (first + 1, ExtentHeader(extent).pack(sb.uuid))]
    for index in range(sb.bitmap_blocks):
        part = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
        used = int(np.bitwise_count(part).sum())
        packed = BitmapBlock(extent, index, 1, used, part.tobytes()).pack(sb.uuid)
        writes.append((sb.bitmap_slot(extent, index, 0), bytes(BLOCK)))
        writes.append((sb.bitmap_slot(extent, index, 1), packed))
    return writes
