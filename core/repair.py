"""Make a damaged store sound again, dropping only what cannot be read.

What the check found decides what is done, and everything that is lost is said. Nothing is
touched in a store that is sound. A snapshot cannot be changed, so one with damage inside
is copied first: the copy, a clone with holes in place of what is lost, keeps the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core import snaplog
from core.blockstore import Blockstore
from core.checker import ALLOCATED, SEEN, Checker
from core.device import Cache
from core.errors import Corrupt, IoFailed
from core.extent import read_header
from core.findings import Loss, Report
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK,
    BLOCK_SHIFT,
    DELETED,
    FREE,
    MAX_HEIGHT,
    MAX_NAME,
    WRITABLE,
    BitmapBlock,
    ExtentHeader,
    VdiRecord,
)
from core.lock_master import LockMaster
from core.mkfs import write_superblock
from core.progress import Progress, silent
from core.registry import Registry
from core.session import Session
from core.snaplog import SnapshotId


class Step(NamedTuple):
    """One thing that a repair does.

    Attributes:
        loses: whether data, a snapshot or a VDI is given up by it.
        text: what becomes of what, in the present tense.
    """

    loses: bool
    text: str


Steps = Iterator[Step]


def repair(
    path: str, progress: Progress = silent, cache: Cache = "host"
) -> tuple[Report, list[Step]]:
    """Repair the store in a file or device as far as it can be; see `repair_store`.

    Raises:
        NotFound, NotAStore, InUse: there is nothing to repair, or someone has it open.
        Corrupt: the superblock and its copy are lost, or the store is truncated.
    """
    return repair_store(Blockstore.open(path, "write", LockMaster(), cache), progress)


def repair_store(store: Blockstore, progress: Progress = silent) -> tuple[Report, list[Step]]:
    """Repair a store that was just opened for writing, and close it.

    Args:
        store: the open store.
        progress: told how far the check before is; see `core.check`.

    Returns:
        What was found before, and each thing that was done.
    """
    device = store.device
    try:
        checker = Checker(store, progress)
        report = checker.run()
        if not report.damaged:
            return report, []
        done = [*_superblock(store), *_records(store, checker), *_extents(store, checker)]
        device.flush()
        # What the store that was damaged remembers is wrong now: another takes its place.
        locks = LockMaster()
        with Session(Blockstore(device, locks), locks) as session:
            done += _trees(session, report)
    finally:
        device.close()
    return report, done


def _superblock(store: Blockstore) -> Steps:
    if store.warnings:
        write_superblock(store.device, store.sb)
        yield Step(False, "the superblock and its copy are written again")


def _records(store: Blockstore, checker: Checker) -> Steps:
    """Give table entries that cannot be read back; renew those with impossible slots."""
    registry = Registry(store)
    for number, found in registry.scan():
        if isinstance(found, Corrupt):
            _write_twice(store, _freed(VdiRecord(number, bytes(16), "")))
            yield Step(True, f"VDI {number} is lost: both its records are damaged")
        elif number not in checker.records:
            _write_twice(store, _freed(found))
            yield Step(True, f"VDI {number} is lost: its record makes no sense")
        elif number in checker.report.suspect and found.state == DELETED:
            _write_twice(store, _freed(found))
            yield Step(True, f"deleted VDI {number} is damaged: it can no longer be restored")
        elif number in checker.report.suspect:
            _write_twice(store, found)
            yield Step(False, f"both records of VDI {number} are written again")


def _freed(record: VdiRecord) -> VdiRecord:
    """Return the record of a place that was a VDI's and may be another's some day."""
    return replace(record, state=FREE, root=0, height=1, page=(), modified_ns=time.time_ns())


def _write_twice(store: Blockstore, record: VdiRecord) -> None:
    """Fill both slots of a VDI, first the one that does not hold what is valid now."""
    for sequence in (record.sequence + 1, record.sequence + 2):
        Registry(store).write(replace(record, sequence=sequence))
        store.device.flush()


def _extents(store: Blockstore, checker: Checker) -> Steps:
    """Rebuild headers and bitmaps from what is readable and reachable."""
    sb = store.sb
    for extent in range(1, sb.extents):
        start = sb.extent_start(extent)
        try:
            read_header(store.device, sb, extent)
        except IoFailed:
            for sequence in (1, 2):
                header = ExtentHeader(extent, sequence)
                at = (start + sequence % 2) << BLOCK_SHIFT
                store.device.pwritev(at, [header.pack(sb.uuid)])
            yield Step(False, f"the header of extent {extent} is made again")
        flags = checker.flags[start : start + sb.extent_blocks]
        known = 0 if extent in checker.unknown else ALLOCATED
        taken = flags & (SEEN | known) != 0
        taken[: sb.overhead] = True
        if known and bool((taken == (flags & ALLOCATED != 0)).all()):
            continue
        _write_bitmap(store, extent, taken)
        yield Step(False, f"the bitmap of extent {extent} is made again")


def _write_bitmap(store: Blockstore, extent: int, taken: NDArray[np.bool_]) -> None:
    """Replace both slots of the whole bitmap of an extent."""
    sb = store.sb
    padded = np.zeros(sb.bitmap_blocks * BITMAP_BITS, np.bool_)
    padded[: taken.size] = taken
    bits = np.packbits(padded, bitorder="little").tobytes()
    sequence = _last_sequence(store, extent)
    for step in (1, 2):
        for index in range(sb.bitmap_blocks):
            part = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
            used = int(np.bitwise_count(np.frombuffer(part, np.uint8)).sum())
            block = BitmapBlock(extent, index, sequence + step, used, part)
            at = sb.bitmap_slot(extent, index, block.sequence % 2) << BLOCK_SHIFT
            store.device.pwritev(at, [block.pack(sb.uuid)])
        store.device.flush()


def _last_sequence(store: Blockstore, extent: int) -> int:
    """Return the highest sequence number of any readable part of a bitmap."""
    sb = store.sb
    last = 0
    for index in range(sb.bitmap_blocks):
        for slot in (0, 1):
            raw = store.device.pread(sb.bitmap_slot(extent, index, slot) << BLOCK_SHIFT, BLOCK)
            part = BitmapBlock.unpack(raw, sb.uuid, extent, index)
            last = max(last, part.sequence if part else 0)
    return last


def _trees(session: Session, report: Report) -> Steps:
    """Cut out of trees and logs what cannot be read."""
    losses: dict[tuple[int, SnapshotId | None], list[Loss]] = defaultdict(list)
    for loss in report.losses:
        losses[loss.vdi, loss.snapshot].append(loss)
    for record in session.registry.vdis():
        if record.id in report.suspect:
            yield from _log(session, record)
    for (vdi, snapshot), lost in losses.items():
        if snapshot is not None:
            yield from _snapshot(session, vdi, snapshot, lost)
    names: set[str] = set()
    for record in session.registry.vdis():
        lost = losses[record.id, None]
        if record.id in report.suspect or lost:
            yield from _live(session, record, lost)
        if record.name in names:
            name = f"{record.name[: MAX_NAME // 4 - 12]}-{record.id}"
            session.rename(record, name)
            text = f"VDI {record.id} gets the name {name!r}: another VDI is called as it is"
            yield Step(False, text)
        names.add(record.name)


def _log(session: Session, record: VdiRecord) -> Steps:
    """Give up the pages of a snapshot log from the first damaged one on."""
    first = record.log_number
    try:
        for _, page in snaplog.pages(session.store, record):
            first = page.number
        first = record.log_first
    except IoFailed:
        yield Step(True, f"VDI {record.id} loses its snapshots before page {first} of its log")
    count = sum(1 for _ in session.snapshots(replace(record, log_first=first)))
    with session.opened(record) as vdi:
        vdi.amend(log_first=first, snapshots=count)


def _snapshot(session: Session, vdi: int, where: SnapshotId, losses: list[Loss]) -> Steps:
    """Replace a damaged snapshot by a clone of what is left of it."""
    record = session.registry.get(vdi)
    snapshot = snaplog.find(session.store, record, where) if record else None
    if record is None or snapshot is None:
        return
    if not snapshot.root & WRITABLE and 1 <= snapshot.height <= MAX_HEIGHT:
        name = f"recovered-{vdi}-{where}"
        clone = session.create(name, parent=snapshot)
        list(_live(session, clone, losses))
        text = f"snapshot {where} of VDI {vdi} is damaged: VDI {name!r} gets what is left of it"
        yield Step(False, text)
    session.delete_snapshot(snapshot)
    yield Step(True, f"snapshot {where} of VDI {vdi} is deleted")


def _live(session: Session, record: VdiRecord, losses: list[Loss]) -> Steps:
    """Turn what a VDI has lost into holes; from now on it copies before it writes."""
    with session.opened(record) as vdi:
        vdi.map.disown()
        for loss in losses:
            vdi.map.trim(loss.first, loss.first + loss.length)
            yield Step(
                True,
                f"VDI {record.id} loses the bytes from {loss.first << BLOCK_SHIFT}"
                f" to {(loss.first + loss.length << BLOCK_SHIFT) - 1}: they read as zeros then",
            )
        vdi.map.mapped = sum(
            int(np.count_nonzero(visit.entries)) for visit in vdi.map.walk() if visit.level == 0
        )
        vdi.amend(root=vdi.map.root)
    yield Step(False, f"VDI {record.id} counts its blocks again")
