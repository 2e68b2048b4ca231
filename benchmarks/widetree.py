"""VDIs that map as many blocks as one likes and take almost no space.

All entries of an upper node are the same, so one node a level is a whole tree: 512 GiB are
three nodes and one leaf's 2 MiB of data. Nothing in it is owned, as after a snapshot, so
a write copies its path. No VDI comes to be like that by itself: one node is in many places, so
`store check` calls it damaged.
"""

from __future__ import annotations

from itertools import chain

from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    FANOUT,
    VdiRecord,
    height_for,
    node_check,
    pack_entry,
)
from core.session import Session
from core.vdi import Vdi


def create_mapped(session: Session, name: str, height: int) -> VdiRecord:
    """Make a VDI with a full tree of `height` levels: 1 GiB for 2, 512 GiB for 3."""
    record = session.create(name, BLOCK * FANOUT**height)
    assert height_for(record.size) == height
    with session.opened(record) as vdi:
        entry = _write_node(session, _write_data(session, vdi))
        for _ in range(height - 1):
            entry = _write_node(session, [entry] * FANOUT)
        vdi.map.replace(entry, height, record.size >> BLOCK_SHIFT)
    return record


def _write_data(session: Session, vdi: Vdi) -> list[int]:
    """Write the blocks of one leaf; return its entries."""
    runs = vdi.take(FANOUT)
    blocks = list(chain.from_iterable(range(start, start + size) for start, size in runs))
    for block in blocks:
        session.store.write(block, [block.to_bytes(8, "little") * 512])
    return [pack_entry(block, 0, False) for block in blocks]


def _write_node(session: Session, entries: list[int]) -> int:
    """Queue a node for the next commit; return the entry that points to it."""
    node = b"".join(entry.to_bytes(8, "little") for entry in entries)
    session.store.allocator.reserve(1)
    [(block, _)] = session.store.allocator.take_reserved(1)
    session.store.queue(block, node)
    return pack_entry(block, node_check(node), False)
