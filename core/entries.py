"""Entries of radix nodes, 512 at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.format import BLOCK_MASK, Superblock

Entries = NDArray[np.uint64]

_BLOCK_FIELD: Final = np.uint64(BLOCK_MASK << 1)
_ONE: Final = np.uint64(1)


def blocks_of(entries: Entries) -> NDArray[np.int64]:
    """Return the block numbers of an array of entries."""
    return ((entries >> 1) & BLOCK_MASK).astype(np.int64)


def impossible(node: memoryview, sb: Superblock, level: int) -> int | None:
    """Return the first slot of a node whose entry cannot be, None when all of them can.

    An entry is 0 or points to payload, and one that points to data carries no check.

    Args:
        node: its entries (format "Q").
        sb: the geometry of the store.
        level: 0 for a leaf.
    """
    entries = np.frombuffer(node, np.uint64)
    doubled = entries & _BLOCK_FIELD if level else entries  # block numbers, times two
    if not level or np.count_nonzero(doubled) == np.count_nonzero(entries):
        # Most nodes point into one extent: then the lowest and the highest block tell.
        high = int(np.maximum.reduce(doubled))
        low = int(np.minimum.reduce(doubled - _ONE)) + 1  # a hole, 0 less 1, is the highest
        extent = sb.extent_blocks << 1
        if not high or (low // extent == high // extent and sb.holds_payload(low >> 1)):
            return None
    within = doubled & np.uint64(sb.extent_blocks - 1 << 1)
    bad = (doubled < sb.extent_blocks << 1) | (within < sb.overhead << 1)
    bad |= doubled >= sb.blocks << 1
    slots = np.flatnonzero(bad & (entries != 0))
    return int(slots[0]) if slots.size else None
