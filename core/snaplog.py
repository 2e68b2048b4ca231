"""The append-only log of a VDI's snapshots.

The log is a chain of pages of 24 records. Full pages are blocks of their own, written
once and reached through checked pointers, newest first. The newest page is part of the
VDI record, so taking a snapshot writes nothing but that record. It carries the number of
the block it will move to when it is full: a snapshot's id, the pair (block, offset of
the record in its page), is therefore known from the start and never changes.

A deletion is a record too (a tombstone), so nothing that was written is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from core.blockstore import Blockstore
from core.errors import Corrupt
from core.format import (
    BLOCK_MASK,
    KIND_SNAPSHOT,
    KIND_TOMBSTONE,
    LOG_RECORDS,
    LogBlock,
    LogRecord,
    VdiRecord,
    node_check,
    pack_entry,
)


class SnapshotId(NamedTuple):
    """Where a snapshot's record is: a block of the store, and its place in the page."""

    block: int
    offset: int

    def __str__(self) -> str:
        """Return it in the form that commands take: `BLOCK.OFFSET`."""
        return f"{self.block}.{self.offset}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot of the VDI `vdi`, whose UUID is `vdi_uuid`.

    `root` and `height` are its tree, `size` its bytes, `mapped` its data blocks, `own`
    the blocks that were written between the snapshot before it and this one.
    """

    vdi: int
    vdi_uuid: bytes
    id: SnapshotId
    time_ns: int
    root: int
    height: int
    size: int
    mapped: int
    own: int
    label: str

    @property
    def root_block(self) -> int:
        """The block of its root node, 0 when it is empty."""
        return self.root >> 1 & BLOCK_MASK


def append(store: Blockstore, record: VdiRecord, entry: LogRecord) -> VdiRecord:
    """Return `record` with one more line in its log; a page that is full moves out.

    Raises:
        NoSpace: there is not one block left for a new page.
    """
    if len(record.page) == LOG_RECORDS:
        data = LogBlock(record.id, record.log_number, record.log_previous, record.page).pack(
            store.sb.uuid
        )
        store.queue(record.log_block, data)
        record = replace(
            record,
            page=(),
            log_previous=pack_entry(record.log_block, node_check(data), False),
            log_number=record.log_number + 1,
            log_block=0,
        )
    if not record.log_block:
        store.allocator.reserve(1, urgent=True)
        [(block, _)] = store.allocator.take_reserved(1)
        record = replace(record, log_block=block)
    return replace(record, page=(*record.page, entry))


def last_id(record: VdiRecord) -> SnapshotId:
    """Return the id of the newest line of the log."""
    return SnapshotId(record.log_block, len(record.page) - 1)


def pages(store: Blockstore, record: VdiRecord) -> Iterator[tuple[int, LogBlock]]:
    """Yield (block, contents) of the full pages, newest first.

    Raises:
        Corrupt: a page is damaged, or is not the one that belongs there.
    """
    pointer, number = record.log_previous, record.log_number
    while pointer and number > record.log_first:
        number -= 1
        block = pointer >> 1 & BLOCK_MASK
        page = LogBlock.unpack(bytes(store.checked(pointer)), store.sb.uuid)
        if page is None or page.vdi != record.id or page.number != number:
            raise Corrupt(f"is not page {number} of the snapshot log of VDI {record.id}", block)
        yield block, page
        pointer = page.previous


def history(store: Blockstore, record: VdiRecord) -> Iterator[tuple[SnapshotId, LogRecord]]:
    """Yield every line of the log with its id, newest first, tombstones included.

    Raises:
        Corrupt: as `pages`.
    """
    newest = [(record.log_block, record.page)] if record.page else []
    full = ((block, page.page) for block, page in pages(store, record))
    for block, lines in chain(newest, full):
        for offset in range(len(lines) - 1, -1, -1):
            yield SnapshotId(block, offset), lines[offset]


def snapshots(store: Blockstore, record: VdiRecord) -> Iterator[Snapshot]:
    """Yield the snapshots of a VDI that are not deleted, newest first.

    Raises:
        Corrupt: as `pages`.
    """
    deleted: set[tuple[int, int]] = set()
    for where, line in history(store, record):
        if line.kind == KIND_TOMBSTONE:
            deleted.add((line.root, line.size))
        elif line.kind == KIND_SNAPSHOT and where not in deleted:
            yield Snapshot(
                record.id,
                record.uuid,
                where,
                line.time_ns,
                line.root,
                line.height,
                line.size,
                line.mapped,
                line.own,
                line.label,
            )


def find(store: Blockstore, record: VdiRecord, where: SnapshotId) -> Snapshot | None:
    """Return the snapshot with this id if this VDI has it; reads no page it need not."""
    return next((snap for snap in snapshots(store, record) if snap.id == where), None)
