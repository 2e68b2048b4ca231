"""Make a damaged store sound again, dropping only what cannot be read.

What the check found decides what is done, and everything that is lost is said. Nothing is
touched in a store that is sound. A snapshot cannot be changed, so one with damage inside
is copied first: the copy, a clone with holes in place of what is lost, keeps the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core import snaplog
from core.blockstore import Blockstore
from core.check import ALLOCATED, KEPT, SEEN, Checker, Loss, Report
from core.errors import Corrupt, IoFailed
from core.extent import read_header
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK,
    BLOCK_SHIFT,
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
from core.registry import Registry
from core.session import Session
from core.snaplog import SnapshotId


def repair(path: str) -> tuple[Report, list[str]]:
    """Repair the store in a file or device as far as it can be.

    Returns:
        What was found before, and a line for each thing that was done or lost.

    Raises:
        NotFound, NotAStore, InUse: there is nothing to repair, or someone has it open.
        Corrupt: the superblock and its copy are lost, or the store is truncated.
    """
    store = Blockstore.open(path, "write", LockMaster())
    try:
        checker = Checker(store)
        report = checker.run()
        if not report.damaged:
            return report, []
        done = [*_superblock(store), *_records(store, checker), *_extents(store, checker)]
        store.device.flush()
    finally:
        store.close()
    with Session.open(path) as session:
        done += _trees(session, report)
    return report, done


def _superblock(store: Blockstore) -> Iterator[str]:
    if store.warnings:
        write_superblock(store.device, store.sb)
        yield "the superblock and its copy were written again"


def _records(store: Blockstore, checker: Checker) -> Iterator[str]:
    """Give table entries that cannot be read back; renew those with impossible slots."""
    registry = Registry(store)
    for number, found in registry.scan():
        if isinstance(found, Corrupt):
            _write_twice(store, VdiRecord(number, bytes(16), "", state=FREE))
            yield f"VDI {number} is lost: both its records were damaged"
        elif number not in checker.records:
            _write_twice(store, replace(found, state=FREE, root=0, height=1, page=()))
            yield f"VDI {number} is lost: its record makes no sense"
        elif number in checker.report.suspect:
            _write_twice(store, found)


def _write_twice(store: Blockstore, record: VdiRecord) -> None:
    """Fill both slots of a VDI, first the one that does not hold what is valid now."""
    for sequence in (record.sequence + 1, record.sequence + 2):
        Registry(store).write(replace(record, sequence=sequence))
        store.device.flush()


def _extents(store: Blockstore, checker: Checker) -> Iterator[str]:
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
            yield f"the header of extent {extent} was made again"
        flags = checker.flags[start : start + sb.extent_blocks]
        known = 0 if extent in checker.unknown else ALLOCATED
        taken = flags & (SEEN | KEPT | known) != 0
        taken[: sb.overhead] = True
        if known and bool((taken == (flags & ALLOCATED != 0)).all()):
            continue
        _write_bitmap(store, extent, taken)
        yield f"the bitmap of extent {extent} was rebuilt"


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


def _trees(session: Session, report: Report) -> Iterator[str]:
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
            yield f"VDI {record.id} is now called {name!r}: another VDI has its name"
        names.add(record.name)


def _log(session: Session, record: VdiRecord) -> Iterator[str]:
    """Give up the pages of a snapshot log from the first damaged one on."""
    first = record.log_number
    try:
        for _, page in snaplog.pages(session.store, record):
            first = page.number
        first = record.log_first
    except IoFailed:
        yield f"VDI {record.id} has lost its snapshots before page {first} of its log"
    count = sum(1 for _ in session.snapshots(replace(record, log_first=first)))
    with session.opened(record) as vdi:
        vdi.amend(log_first=first, snapshots=count)


def _snapshot(session: Session, vdi: int, where: SnapshotId, losses: list[Loss]) -> Iterator[str]:
    """Replace a damaged snapshot by a clone of what is left of it."""
    record = session.registry.get(vdi)
    snapshot = snaplog.find(session.store, record, where) if record else None
    if record is None or snapshot is None:
        return
    if not snapshot.root & WRITABLE and 1 <= snapshot.height <= MAX_HEIGHT:
        name = f"recovered-{vdi}-{where}"
        clone = session.create(name, parent=snapshot)
        list(_live(session, clone, losses))
        yield f"snapshot {where} of VDI {vdi} is damaged: VDI {name!r} has what is left of it"
    session.delete_snapshot(snapshot)
    yield f"snapshot {where} of VDI {vdi} was deleted"


def _live(session: Session, record: VdiRecord, losses: list[Loss]) -> Iterator[str]:
    """Turn what a VDI has lost into holes; from now on it copies before it writes."""
    with session.opened(record) as vdi:
        vdi.map.disown()
        for loss in losses:
            vdi.map.trim(loss.first, loss.first + loss.length)
            yield (
                f"VDI {record.id} has lost the bytes from {loss.first << BLOCK_SHIFT}"
                f" to {(loss.first + loss.length << BLOCK_SHIFT) - 1}: they read as zeros now"
            )
        vdi.map.mapped = sum(
            int(np.count_nonzero(visit.entries)) for visit in vdi.map.walk() if visit.level == 0
        )
        vdi.amend(root=vdi.map.root)
