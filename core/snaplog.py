"""The append-only log of a VDI's snapshots.

The log is a chain of pages of 24 records. Full pages are blocks of their own, written
once and reached through checked pointers, newest first. The newest page is part of the
VDI record, so taking a snapshot writes nothing but that record. It carries the number of
the block it will move to when it is full: a snapshot's id, the pair (block, offset of
the record in its page), is therefore known from the start and never changes.

A deletion is a record too (a tombstone), so nothing that was written is ever changed.

A schedule may add a hundred lines a second, so its snapshots are dropped without a line:
the record says before which line of the log (counted from the very first) they are gone.
A page on which there is nothing else is then dead as a whole, and the walk goes around it:
each page also points to the newest one before it that has any other line. What a walk
reads is therefore the pages of the snapshots that are kept, and those of what people did.
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
from core.soundness import page_problem


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
    the blocks that were written between the snapshot before it and this one, `line` is its
    place in the whole log, counted from 0.
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
    scheduled: bool = False
    line: int = 0

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
        record = _moved_out(store, record)
    if not record.log_block:
        store.allocator.reserve(1, urgent=True)
        [(block, _)] = store.allocator.take_reserved(1)
        record = replace(record, log_block=block)
    return replace(record, page=(*record.page, entry))


def _moved_out(store: Blockstore, record: VdiRecord) -> VdiRecord:
    """Return `record` with an empty page, and queue the block that the full one moves to."""
    kept, number = _kept_before(record)
    data = LogBlock(
        record.id, record.log_number, record.log_previous, record.page, kept, number
    ).pack(store.sb.uuid)
    store.queue(record.log_block, data)
    pointer = pack_entry(record.log_block, node_check(data), False)
    # The first page is kept whatever it holds: no pointer then means that none is needed.
    if not kept or not all(line.scheduled for line in record.page):
        kept, number = pointer, record.log_number
    return replace(
        record,
        page=(),
        log_previous=pointer,
        log_number=record.log_number + 1,
        log_block=0,
        log_kept=kept,
        log_kept_number=number,
    )


def _kept_before(record: VdiRecord) -> tuple[int, int]:
    """Return the pointer to the newest page before that is never dropped, and its number.

    Where there is none yet, the pages were written before there were schedules: all stay.
    """
    if record.log_kept:
        return record.log_kept, record.log_kept_number
    return record.log_previous, max(0, record.log_number - 1)


def last_line(record: VdiRecord) -> int:
    """Return the place of the newest line in the whole log, counted from 0."""
    return record.log_number * LOG_RECORDS + len(record.page) - 1


def last_id(record: VdiRecord) -> SnapshotId:
    """Return the id of the newest line of the log."""
    return SnapshotId(record.log_block, len(record.page) - 1)


def pages(store: Blockstore, record: VdiRecord) -> Iterator[tuple[int, LogBlock]]:
    """Yield (block, contents) of the full pages that count, newest first.

    Pages of which retention has dropped every line are left out: they may be gone.

    Raises:
        Corrupt: a page is damaged, makes no sense, or is not the one that belongs there.
    """
    previous, end = record.log_previous, record.log_number
    kept, kept_number = _kept_before(record)
    while True:
        if end * LOG_RECORDS > record.log_retired:
            pointer, number = previous, end - 1
        else:
            pointer, number = kept, kept_number
        if not pointer or number < record.log_first:
            return
        block = pointer >> 1 & BLOCK_MASK
        page = LogBlock.unpack(bytes(store.checked(pointer)), store.sb.uuid)
        if page is None or page.vdi != record.id or page.number != number or number >= end:
            raise Corrupt(f"is not page {number} of the snapshot log of VDI {record.id}", block)
        problem = page_problem(page.page, store.holds_payload)
        if problem:
            raise Corrupt(f"makes no sense: {problem}", block)
        yield block, page
        previous, end = page.previous, number
        kept, kept_number = page.kept or previous, page.kept_number if page.kept else number - 1


def history(store: Blockstore, record: VdiRecord) -> Iterator[tuple[SnapshotId, LogRecord]]:
    """Yield the lines of the log with their ids, newest first, tombstones included.

    Scheduled snapshots that retention has dropped are left out.

    Raises:
        Corrupt: as `pages`.
    """
    for where, _, line in _lines(store, record):
        yield where, line


def _lines(store: Blockstore, record: VdiRecord) -> Iterator[tuple[SnapshotId, int, LogRecord]]:
    """Yield (id, place in the whole log, contents) of the lines that `history` yields."""
    newest = [(record.log_block, record.log_number, record.page)] if record.page else []
    full = ((block, page.number, page.page) for block, page in pages(store, record))
    for block, number, lines in chain(newest, full):
        for offset in range(len(lines) - 1, -1, -1):
            place, line = number * LOG_RECORDS + offset, lines[offset]
            if place >= record.log_retired or not line.scheduled:
                yield SnapshotId(block, offset), place, line


def snapshots(store: Blockstore, record: VdiRecord) -> Iterator[Snapshot]:
    """Yield the snapshots of a VDI that are not deleted, newest first.

    Raises:
        Corrupt: as `pages`.
    """
    deleted: set[tuple[int, int]] = set()
    for where, place, line in _lines(store, record):
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
                line.scheduled,
                place,
            )


def find(store: Blockstore, record: VdiRecord, where: SnapshotId) -> Snapshot | None:
    """Return the snapshot with this id if this VDI has it; reads no page it need not."""
    return next((snap for snap in snapshots(store, record) if snap.id == where), None)
