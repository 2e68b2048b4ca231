"""Mark and sweep: free what no VDI and no snapshot refers to any more.

This runs inside the one session that has the store open for writing, right after a
commit, so every tree on disk is current and no block is in use that no root reaches.
Deleted VDIs are first turned into free table entries, durably; only then may their
blocks be handed out again. So a deleted VDI that can still be found has all its blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core import snaplog
from core.blockstore import Blockstore
from core.commit import Change, Commit
from core.errors import Corrupt
from core.format import BLOCK_MASK, DELETED, FREE, LIVE, VdiRecord
from core.lock_master import LockMaster
from core.radix import RadixMap, blocks_of
from core.registry import Registry


def collect(store: Blockstore, locks: LockMaster, reading: Iterable[RadixMap] = ()) -> int:
    """Free every unreachable block of the store and return how many there were.

    Call it with nothing dirty and no commit under way.

    Args:
        store: open for writing.
        locks: grants the deleted VDIs.
        reading: trees that are read at the moment, whatever became of their snapshots.

    Raises:
        Corrupt: a record, a log page or a node cannot be read, so what it refers to is
            unknown; nothing is freed.
        IoFailed, Fenced: see `Commit`.
    """
    registry = Registry(store)
    records = []
    for _, record in registry.scan():
        if isinstance(record, Corrupt):
            raise record
        records.append(record)
    marked = mark(store, [record for record in records if record.state == LIVE], reading)
    _retire(store, locks, [record for record in records if record.state == DELETED])
    return store.allocator.sweep(marked)


def mark(
    store: Blockstore, records: Iterable[VdiRecord], reading: Iterable[RadixMap]
) -> NDArray[np.bool_]:
    """Return one flag per block of the store: whether these VDIs and trees need it.

    Raises:
        Corrupt: a log page or a node cannot be read.
    """
    marked = np.zeros(store.sb.blocks, np.bool_)

    def unmarked(_level: int, entry: int) -> bool:
        return not marked[entry >> 1 & BLOCK_MASK]

    trees = list(reading)
    for record in records:
        marked[list(_log_blocks(store, record))] = True
        trees.append(RadixMap(store, record.root, record.height))
        trees += [
            RadixMap(store, snapshot.root, snapshot.height)
            for snapshot in snaplog.snapshots(store, record)
        ]
    for tree in trees:
        for visit in tree.walk(enter=unmarked):
            marked[visit.entry >> 1 & BLOCK_MASK] = True
            if visit.level == 0:
                marked[blocks_of(visit.entries)] = True
    return marked


def _log_blocks(store: Blockstore, record: VdiRecord) -> Iterator[int]:
    if record.log_block:
        yield record.log_block
    for block, _ in snaplog.pages(store, record):
        yield block


def _retire(store: Blockstore, locks: LockMaster, records: list[VdiRecord]) -> None:
    """Make the table entries of deleted VDIs free for new ones.

    Both slots of each: one that is damaged later must not bring the VDI back.
    """
    changes = []
    for record in records:
        grant = locks.acquire(f"vdi/{record.id}", record.token)
        free = VdiRecord(
            record.id,
            record.uuid,
            record.name,
            state=FREE,
            sequence=record.sequence + 1,
            token=grant.token,
        )
        changes.append(Change(record, replace(free, session=store.session), grant))
    try:
        if changes:
            Commit(store, changes).run()
            again = [(c.new, replace(c.new, sequence=c.new.sequence + 1), c.grant) for c in changes]
            Commit(store, [Change(*change) for change in again]).run()
    finally:
        for change in changes:
            change.grant.release()
