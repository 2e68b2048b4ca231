"""Make a damaged store sound again, dropping only what cannot be read.

What the check found decides what is done, and everything that is lost is said. Nothing is
touched in a store that is sound. A snapshot cannot be changed, so one with damage inside
is copied first: the copy, a clone with holes in place of what is lost, keeps the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core import snaplog
from core.blockstore import Blockstore
from core.checker import ALLOCATED, SEEN, Checker, look
from core.device import Cache
from core.errors import IoFailed
from core.extent_disk import bitmap_pairs, header_pair, packed_bitmap, packed_header
from core.findings import Loss, Report
from core.format import (
    BITMAP_BITS,
    BITMAP_BYTES,
    BLOCK_SHIFT,
    DELETED,
    FREE,
    MAX_NAME,
    MAX_SEQUENCE,
    BitmapBlock,
    Condition,
    ExtentHeader,
    VdiRecord,
)
from core.lock_master import LockMaster
from core.mkfs import write_superblock
from core.progress import Progress, silent
from core.registry import Registry, is_forbidden
from core.session import Session
from core.session_list import is_quiet, read_sessions
from core.snaplog import SnapshotId
from core.soundness import record_problem


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
        checker = look(store, progress)
        report = checker.report
        if not report.damaged:
            return report, []
        done = [*_sessions(store), *_superblock(store), *_records(store, checker)]
        if any(number in report.suspect | checker.slots.vdis for number in _numbers(store)):
            checker = look(store, progress)  # with the records that count from now on
        done += _extents(store, checker)
        device.flush()
        # What the store that was damaged remembers is wrong now: another takes its place.
        locks = LockMaster()
        with Session(Blockstore(device, locks), locks) as session:
            session.store.enroll()  # to be the one that tidies up
            done += _trees(session, checker.report)
    finally:
        device.close()
    return report, done


def _numbers(store: Blockstore) -> list[int]:
    return [number for number, _ in Registry(store).pairs()]


def _sessions(store: Blockstore) -> Steps:
    """Write the list of sessions, with this one on it; the session after it empties the list."""
    untidy = store.sb.stamped and not is_quiet(store.device, store.sb)
    pair = read_sessions(store.device, store.sb)
    damaged = Condition.DAMAGED in pair.conditions or pair.has_gap
    store.enroll()
    if untidy or (damaged and store.sb.stamped):
        yield Step(False, "the list of sessions is written again")


def _superblock(store: Blockstore) -> Steps:
    if store.superblocks() != (store.sb, store.sb):
        write_superblock(store.device, store.sb)
        yield Step(False, "the superblock and its copy are written again")


def _records(store: Blockstore, checker: Checker) -> Steps:
    """Give table entries that cannot be read back; renew those with impossible slots."""
    slots, suspect = checker.slots.vdis, checker.report.suspect
    for number, pair in list(Registry(store).pairs()):
        found = pair.current
        if number not in slots | suspect:
            continue
        if found is None:
            _write_twice(store, _freed(VdiRecord(number, bytes(16), "")))
            yield Step(True, f"VDI {number} is lost: both records of VDI {number} are damaged")
        elif problem := record_problem(found, store.holds_payload):
            sequence = min(found.sequence, MAX_SEQUENCE)
            free = VdiRecord(number, found.uuid, found.name, sequence=sequence)
            _write_twice(store, _freed(free))
            yield Step(True, f"VDI {number} is lost: its record makes no sense: {problem}")
        elif number in suspect and found.state == DELETED:
            _write_twice(store, _freed(found))
            yield Step(True, f"deleted VDI {number} is damaged: it can no longer be restored")
        elif pair.doubtful and not checker.slots.quiet:
            _write_twice(store, found)
            yield Step(
                True, f"VDI {number} goes on with commit {found.sequence}, the newest there is"
            )
        else:
            _write_twice(store, found)
            yield Step(False, f"both records of VDI {number} are written again")


def _freed(record: VdiRecord) -> VdiRecord:
    """Return the record of a place that was a VDI's and may be another's some day."""
    return replace(record, state=FREE, root=0, height=1, page=(), modified_ns=time.time_ns())


def _write_twice(store: Blockstore, record: VdiRecord) -> None:
    """Fill both slots of a VDI, first the one that does not hold what is valid now."""
    for sequence in _next_two(record.sequence):
        Registry(store).write(replace(record, sequence=sequence))
        store.device.flush()


def _next_two(sequence: int) -> tuple[int, int]:
    """Return the sequence numbers for new twins; after an absurd one they begin again."""
    first = sequence + 1 if sequence < MAX_SEQUENCE - 1 else 1 + sequence % 2
    return first, first + 1


def _extents(store: Blockstore, checker: Checker) -> Steps:
    """Rebuild headers and bitmaps from what is readable and reachable."""
    sb = store.sb
    for extent in sorted(checker.slots.extents):
        header = header_pair(store.device, sb, extent).current or ExtentHeader(extent)
        for sequence in _next_two(header.sequence):
            block, packed = packed_header(sb, replace(header, sequence=sequence))
            store.device.pwritev(block << BLOCK_SHIFT, [packed])
            store.device.flush()
        start = sb.extent_start(extent)
        flags = checker.flags[start : start + sb.extent_blocks]
        known = 0 if extent in checker.unknown else ALLOCATED
        taken = flags & (SEEN | known) != 0
        taken[: sb.overhead] = True
        _write_bitmap(store, extent, taken)
        yield Step(False, f"header and bitmap of extent {extent} are made again")


def _write_bitmap(store: Blockstore, extent: int, taken: NDArray[np.bool_]) -> None:
    """Replace both slots of the whole bitmap of an extent."""
    sb = store.sb
    padded = np.zeros(sb.bitmap_blocks * BITMAP_BITS, np.bool_)
    padded[: taken.size] = taken
    bits = np.packbits(padded, bitorder="little").tobytes()
    found = [pair.current for pair in bitmap_pairs(store.device, sb, extent)]
    last = max((part.sequence for part in found if part is not None), default=0)
    for sequence in _next_two(last):
        for index in range(sb.bitmap_blocks):
            part = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
            used = int(np.bitwise_count(np.frombuffer(part, np.uint8)).sum())
            block, packed = packed_bitmap(sb, BitmapBlock(extent, index, sequence, used, part))
            store.device.pwritev(block << BLOCK_SHIFT, [packed])
        store.device.flush()


def _trees(session: Session, report: Report) -> Steps:
    """Cut out of trees and logs what cannot be read."""
    losses: dict[tuple[int, SnapshotId | None], list[Loss]] = defaultdict(list)
    for loss in report.losses:
        losses[loss.vdi, loss.snapshot].append(loss)
    for record in session.registry.vdis():
        if record.id in report.suspect:
            yield from _log(session, record, record.id in report.relocate)
    for (vdi, snapshot), lost in losses.items():
        if snapshot is not None:
            yield from _snapshot(session, vdi, snapshot, lost)
    names: set[str] = set()
    for record in session.registry.vdis():
        lost = losses[record.id, None]
        if record.id in report.suspect or lost:
            yield from _live(session, record, lost)
        if record.name in names or is_forbidden(record.name):
            name = _another_name(record, names)
            session.rename(record, name)
            yield Step(False, f"VDI {record.id}, which was called {record.name!r}, is now {name!r}")
            names.add(name)
        names.add(record.name)


def _another_name(record: VdiRecord, taken: Container[str]) -> str:
    """Return a name for a VDI that cannot keep its own."""
    start = "vdi" if is_forbidden(record.name) else record.name[: MAX_NAME // 4 - 24]
    name = f"{start}-{record.id}"
    return f"{start}-{record.id}-{record.uuid.hex()[:8]}" if name in taken else name


def _log(session: Session, record: VdiRecord, relocate: bool) -> Steps:
    """Give up the pages of a snapshot log from the first damaged one on.

    If `relocate`, the block that its newest page is to move to is somebody else's.
    """
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
        if relocate:
            allocator = session.store.allocator
            block = 0
            if record.page:
                allocator.reserve(1, urgent=True)
                [(block, _)] = allocator.take_reserved(1)
                text = f"the newest snapshots of VDI {record.id} are called {block}.N from now on"
                yield Step(True, text)
            vdi.amend(log_block=block)


def _snapshot(session: Session, vdi: int, where: SnapshotId, losses: list[Loss]) -> Steps:
    """Replace a damaged snapshot by a clone of what is left of it."""
    record = session.registry.get(vdi)
    snapshot = snaplog.find(session.store, record, where) if record else None
    if record is None or snapshot is None:
        return
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
            if not loss.length:
                continue
            vdi.map.trim(loss.first, loss.first + loss.length, unread=True)
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
