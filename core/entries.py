"""Entries of radix nodes, 512 at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.format import BLOCK_MASK, Superblock

Entries = NDArray[np.uint64]

_BLOCK_FIELD: Final = np.uint64(BLOCK_MASK << 1)


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
    doubled = entries & _BLOCK_FIELD if level else entries  # blocks, times two
    within = doubled & np.uint64(sb.extent_blocks - 1 << 1)
    low = (doubled < sb.extent_blocks << 1) | (within < sb.overhead << 1)
    high = doubled >= sb.blocks << 1
    if np.count_nonzero(low) + np.count_nonzero(entries) == entries.size and not high.any():
        return None
    return int(np.flatnonzero((low & (entries != 0)) | high)[0])
