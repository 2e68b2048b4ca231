"""One look at a store: every invariant that can be read from disk.

Trees are walked from all VDIs and snapshots; a node that several of them share is read
once. For each block of the store one byte of flags is kept. The look never writes and
never stops at what it finds. What nothing refers to any more is reported as
*unreachable*, which is not damage: a crash and every deleted snapshot leave some. Deleted
VDIs can be restored, so they are checked like the others; what only they refer to is
*restorable*.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core import snaplog
from core.blockset import BlockSet
from core.blockstore import Blockstore
from core.entries import blocks_of
from core.errors import Corrupt, IoFailed
from core.findings import Finding, Loss, Report
from core.format import (
    BLOCK_MASK,
    DELETED,
    FANOUT_SHIFT,
    KIND_TOMBSTONE,
    LIVE,
    MAX_HEIGHT,
    WRITABLE,
    VdiRecord,
    blocks_for,
    entry_block,
)
from core.progress import Progress, silent
from core.radix import RadixMap, Visit
from core.registry import Registry, is_forbidden
from core.slot_check import SlotCheck
from core.snaplog import SnapshotId
from core.soundness import record_problem

ALLOCATED: Final = 1
SEEN: Final = 2
OWNED: Final = 4
NODE: Final = 8
DATA: Final = 16
LOG: Final = 32
SETTLED: Final = 64
_KINDS: Final = NODE | DATA | LOG
_OWN: Final = np.array([True])
_MANY: Final = 20
_MAP_NORESERVE: Final = 0x4000  # of Linux; the module mmap does not know it


class Total(NamedTuple):
    """What lies below a node: mapped data blocks, and the end of the last one.

    All trees that share a node have it in the same place: at `level`, above the virtual blocks
    from `base` on.
    """

    mapped: int
    end: int
    level: int = 0
    base: int = 0


class Checker:
    """One check of one store.

    Args:
        store: the store.
        progress: told about blocks that are accounted for, of those that are allocated.
        table: the VDI records to check; without it those that are there.
        settled: of the blocks that nothing refers to, only these are unreachable; without
            it all of them. What is allocated beside the check is to be used by the next commit.
        structure: for each block whether it is known to hold a node or a page of a log, so that
            a pointer to it as data is wrong.

    Attributes:
        report: what was found.
        flags: for each block of the store what is known of it, as the flags above.
        records: the readable VDI records by id.
        unknown: extents whose bitmap is not known.
        mixed: whether a block is used as data and as something else.
        slots: what is wrong with slots.
    """

    def __init__(
        self,
        store: Blockstore,
        progress: Progress = silent,
        table: Mapping[int, VdiRecord | Corrupt] | None = None,
        settled: BlockSet | None = None,
        structure: NDArray[np.bool_] | None = None,
    ) -> None:
        self._progress = progress
        self._found = table
        self._settled = settled
        self._done = self._all = 0
        self.report = Report()
        self.flags = _sparse(store.sb.blocks)
        self.slots = SlotCheck(store, self.report, beside=table is not None)
        self.records: dict[int, VdiRecord] = {}
        self._store = store
        self._sb = store.sb  # what it is given meanwhile is not looked at
        self._registry = Registry(store)
        self._totals: dict[int, Total] = {}
        self.unknown: set[int] = set()
        self.mixed = False
        self._structure = structure
        self._in_use: set[int] = set()
        self._crossed = False

    def run(self) -> Report:
        """Check everything."""
        self.slots.check_superblock()
        self.slots.check_sessions()
        for extent in range(1, self._sb.extents):
            self._check_extent(extent)
        self._count(0)
        self._check_table()
        names: dict[str, int] = {}
        for record in self.records.values():
            if record.state == LIVE:
                self.report.vdis += 1
                other = names.setdefault(record.name, record.id)
                if is_forbidden(record.name):
                    text = f"VDI {record.id} has the name {record.name!r}, which is not allowed"
                    self._damage(self._record_block(record), text)
                elif other != record.id:
                    self._damage(
                        self._record_block(record),
                        f"VDI {record.id} has the same name as VDI {other}",
                    )
                    self.report.suspect.add(record.id)
                self.report.snapshots += self._check_log(record)
                self._check_tree(record)
        if self._crossed:  # whoever owns such a block must not write to it in place
            self.report.suspect.update(r.id for r in self.records.values() if r.state == LIVE)
        self._check_reserved(LIVE)
        unseen = self._count_unseen()
        for record in self.records.values():
            if record.state == DELETED:
                self._check_deleted(record)
        self._check_reserved(DELETED)
        self._check_space(unseen)
        self._count(self._all - self._done)  # what is unreachable
        return self.report

    def _count(self, more: int) -> None:
        """Tell that `more` blocks are accounted for."""
        self._done = min(self._done + more, self._all)
        self._progress(self._done, self._all)

    def _damage(self, block: int | None, message: str) -> None:
        self.report.findings.append(Finding("damage", block, message))

    def _record_block(self, record: VdiRecord) -> int:
        return self._sb.vdi_slot(record.id, record.sequence % 2)

    # -- fixed metadata ----------------------------------------------------------------

    def _check_extent(self, extent: int) -> None:
        """Check header and bitmap of one extent, and load the bitmap."""
        sb = self._sb
        start = sb.extent_start(extent)
        parts = self.slots.check_extent(extent)
        if parts is None:
            self.unknown.add(extent)
            self.flags[start : start + sb.extent_blocks] = ALLOCATED
            return
        raw = np.frombuffer(b"".join(part.bits for part in parts), np.uint8)
        for part in parts:
            if part.used != int(np.bitwise_count(np.frombuffer(part.bits, np.uint8)).sum()):
                self._damage(
                    sb.bitmap_slot(extent, part.index, part.sequence % 2), "counts its bits wrong"
                )
                self.slots.extents.add(extent)
        bits = np.unpackbits(raw, bitorder="little")
        if bits[sb.extent_blocks :].any():
            self._damage(start, f"the bitmap of extent {extent} goes beyond its end")
            self.slots.extents.add(extent)
        if not bits[: sb.overhead].all():
            self._damage(start, f"the bitmap of extent {extent} gives its own blocks away")
            self.slots.extents.add(extent)
        payload = bits[sb.overhead : sb.extent_blocks]
        allocated = int(np.count_nonzero(payload))
        if not allocated:
            return  # memory that is not written to costs nothing
        self._in_use.add(extent)
        self._all += allocated
        start += sb.overhead
        self.flags[start : start + payload.size] = payload * ALLOCATED
        self._settle(extent)

    def _settle(self, extent: int) -> None:
        """Note which blocks of an extent are unreachable if nothing refers to them."""
        sb = self._sb
        start, end = sb.extent_start(extent), sb.extent_start(extent + 1)
        if self._settled is None:
            self.flags[start:end] |= SETTLED
        elif end >> 3 <= self._settled.bits.size:  # it was not there yet
            bits = self._settled.bits[start >> 3 : end >> 3]
            self.flags[start:end] |= np.unpackbits(bits, bitorder="little") * np.uint8(SETTLED)

    def _check_table(self) -> None:
        """Check the VDI records by themselves and collect the readable ones."""
        for number, pair in self._registry.pairs():
            record = self.slots.check_vdi(number, pair)
            if self._found is not None:
                found = self._found.get(number)
                record = found if isinstance(found, VdiRecord) else record
            if record is None:
                continue
            problem = record_problem(record, self._store.holds_payload)
            if problem:
                self._damage(
                    self._record_block(record),
                    f"the record of VDI {number} makes no sense: {problem}",
                )
                self.report.suspect.add(number)
            else:
                self.records[number] = record

    # -- logs and trees ----------------------------------------------------------------

    def _check_deleted(self, record: VdiRecord) -> None:
        """Check a deleted VDI; live ones come first, so a block it shares wrongly is its own."""
        self.report.deleted += 1
        before = len(self.report.findings)
        self._check_log(record)
        self._check_tree(record)
        new = self.report.findings[before:]
        if any(finding.severity == "damage" for finding in new):
            self.report.suspect.add(record.id)
            self._damage(
                self._record_block(record),
                f"deleted VDI {record.id} {record.name!r} is damaged; restore it before a repair"
                " to keep the rest of it",
            )

    def _check_log(self, record: VdiRecord) -> int:
        """Check the snapshot log of a VDI and the trees of its snapshots; count them."""
        what = f"the snapshot log of VDI {record.id}"
        where = self._record_block(record)
        deleted: set[tuple[int, int]] = set()
        count = 0
        with suppress(IoFailed):  # reported below
            for block, _ in snaplog.pages(self._store, record):
                self._use(what, np.array([block]), LOG, _OWN)
        try:
            for name, line in snaplog.history(self._store, record):
                if line.kind == KIND_TOMBSTONE:
                    deleted.add((line.root, line.size))
                elif name in deleted:
                    deleted.discard(name)
                else:
                    count += 1
                    self._check_snapshot(record, name, line.root, line.height, line.mapped)
        except IoFailed as error:
            self._damage(
                error.block if isinstance(error, Corrupt) else None,
                f"the snapshots of VDI {record.id} from here on are lost: {_reason(error)}",
            )
            self.report.suspect.add(record.id)
            return count
        if deleted and not (record.log_first or record.log_retired):
            self.report.findings.append(
                Finding("note", where, f"VDI {record.id} deletes snapshots it never had")
            )
        if count != record.snapshots:
            self._damage(
                where, f"VDI {record.id} counts {record.snapshots} snapshots and has {count}"
            )
            self.report.suspect.add(record.id)
        return count

    def _check_reserved(self, state: int) -> None:
        """Check the blocks that logs of VDIs in one state are to move to.

        Nothing is there yet, so whatever else uses such a block is right.
        """
        for record in self.records.values():
            if record.state != state or not (record.log_block or record.page):
                continue
            block = record.log_block
            if block < self.flags.size and self.flags[block] & SEEN:
                self._damage(
                    self._record_block(record),
                    f"the snapshot log of VDI {record.id} is to move to block {block}, which is in"
                    " use",
                )
                self.report.suspect.add(record.id)
                self.report.relocate.add(record.id)
            else:
                what = f"the snapshot log of VDI {record.id}"
                self._use(what, np.array([block]), LOG, _OWN)

    def _check_snapshot(
        self, record: VdiRecord, name: SnapshotId, root: int, height: int, mapped: int
    ) -> None:
        what = f"snapshot {name} of VDI {record.id}"
        total, lost = self._walk(what, RadixMap(self._store, root, height))
        self._lose(record.id, name, lost)
        if not lost and total.mapped != mapped:
            self._damage(name.block, f"{what} says it maps {mapped} blocks and maps {total.mapped}")
            self._lose(record.id, name, [(0, 0)])

    def _check_tree(self, record: VdiRecord) -> None:
        """Check the live tree of a VDI, and its own account of it."""
        what = f"VDI {record.id}"
        before = len(self.report.findings)
        owned = [0]
        total, lost = self._walk(what, RadixMap(self._store, record.root, record.height), owned)
        self._lose(record.id, None, lost)
        end = blocks_for(record.size)
        if total.end > end:
            self._damage(
                self._record_block(record), f"{what} maps blocks behind its end at block {end}"
            )
            self.report.losses.append(Loss(record.id, None, end, total.end - end))
        if not lost and total.mapped != record.mapped:
            self._damage(
                self._record_block(record),
                f"{what} says it maps {record.mapped} blocks and maps {total.mapped}",
            )
        if not lost and owned[0] != record.own:
            self._damage(
                self._record_block(record),
                f"{what} says it owns {record.own} blocks and owns {owned[0]}",
            )
        if len(self.report.findings) > before:
            self.report.suspect.add(record.id)

    def _lose(self, vdi: int, snapshot: SnapshotId | None, lost: list[tuple[int, int]]) -> None:
        self.report.losses += [Loss(vdi, snapshot, first, count) for first, count in lost]

    def _walk(
        self, what: str, tree: RadixMap, owned: list[int] | None = None
    ) -> tuple[Total, list[tuple[int, int]]]:
        """Visit a tree; return what it maps and the ranges that cannot be read.

        Nodes that were seen before are not read again, their totals are known. `owned`
        counts the blocks the tree owns.
        """
        lost: list[tuple[int, int]] = []
        open_nodes: list[tuple[int, int, int, int, int]] = []
        mapped = end = 0

        def close(level: int) -> None:
            """Note the totals of the nodes that the walk has left for one at this level."""
            while open_nodes and open_nodes[-1][0] <= level:
                at, base, key, start, lost_before = open_nodes.pop()
                if len(lost) == lost_before:
                    self._totals[key] = Total(mapped - start, end, at, base)

        def enter(level: int, base: int, entry: int) -> bool:
            nonlocal mapped, end
            close(level)
            total = self._totals.get(entry >> 1)
            if total is None:
                return True
            if (total.level, total.base) != (level, base):
                damaged(level, base, Corrupt("is a node in two places", entry_block(entry)))
                return False
            block = np.array([entry >> 1 & BLOCK_MASK])
            self._use(what, block, NODE, np.array([owned is not None and bool(entry & WRITABLE)]))
            mapped += total.mapped
            end = max(end, total.end)
            return False

        def damaged(level: int, base: int, error: IoFailed) -> None:
            size = 1 << FANOUT_SHIFT * (level + 1)
            block = error.block if isinstance(error, Corrupt) else None
            self._damage(
                block,
                f"{what}: virtual blocks {base} to {base + size - 1} are lost: {_reason(error)}",
            )
            lost.append((base, size))

        for visit in tree.walk(enter=enter, damaged=damaged):
            open_nodes.append((visit.level, visit.base, visit.entry >> 1, mapped, len(lost)))
            self._use_node(what, visit, owned)
            if visit.level == 0:
                data, last = self._use_data(what, visit, owned, lost)
                mapped += data
                end = max(end, last)
        close(MAX_HEIGHT)
        return Total(mapped, end), lost

    def _use_node(self, what: str, visit: Visit, owned: list[int] | None) -> None:
        """Account for one node of a tree."""
        mine = owned is not None and visit.owned
        self._use(what, np.array([visit.entry >> 1 & BLOCK_MASK]), NODE, np.array([mine]))
        if mine and owned is not None:
            owned[0] += 1

    def _use_data(
        self, what: str, visit: Visit, owned: list[int] | None, lost: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """Account for the data blocks of a leaf; return how many, and where they end."""
        slots = np.flatnonzero(visit.entries)
        if not slots.size:
            return 0, 0
        entries = visit.entries[slots]
        blocks = blocks_of(entries)
        good = np.ones(slots.size, np.bool_)
        if self._structure is not None:
            known = blocks < self._structure.size
            good = ~(known & self._structure[np.where(known, blocks, 0)])
        for slot in slots[~good].tolist():
            self._damage(
                visit.entry >> 1 & BLOCK_MASK,
                f"{what}: virtual block {visit.base + slot} points to a node or a log page",
            )
            lost.append((visit.base + slot, 1))
        mine = (entries & WRITABLE).astype(bool)[good] & (visit.owned and owned is not None)
        self._use(what, blocks[good], DATA, mine)
        if owned is not None:
            owned[0] += int(mine.sum())
        return slots.size, visit.base + int(slots[-1]) + 1

    def _use(
        self, what: str, blocks: NDArray[np.int64], kind: int, mine: NDArray[np.bool_]
    ) -> None:
        """Mark blocks as used by `what`; those that are `mine` by nobody else."""
        known = blocks < self.flags.size  # the store may have grown
        blocks, mine = blocks[known], (mine & known)[known]
        flags = self.flags[blocks]
        self._count(int(np.count_nonzero(flags & SEEN == 0)))
        free = blocks[flags & ALLOCATED == 0]
        if free.size:
            self._report_blocks(what, free, "in use, but free in the bitmap")
            numbers = np.unique(free // self._sb.extent_blocks).tolist()
            self._in_use.update(numbers)
            self.slots.extents.update(numbers)
        clash = (flags & OWNED != 0) | (mine & (flags & SEEN != 0))
        mixed = flags & (_KINDS & ~kind) != 0
        self.mixed = self.mixed or bool(mixed.any())
        unique, counts = np.unique(blocks[mine], return_counts=True)
        twice = np.union1d(blocks[clash | mixed], unique[counts > 1])
        self._crossed = self._crossed or twice.size > 0
        self._report_blocks(
            what,
            twice,
            "in use twice, though one of the users owns it",
        )
        self.flags[blocks] |= np.where(mine, SEEN | kind | OWNED, SEEN | kind).astype(np.uint8)

    def _report_blocks(self, what: str, blocks: NDArray[np.int64], problem: str) -> None:
        for block in blocks[:_MANY].tolist():
            self._damage(block, f"{what}: {problem}")
        if blocks.size > _MANY:
            self._damage(None, f"{what}: {blocks.size - _MANY} more blocks are {problem}")

    # -- space -------------------------------------------------------------------------

    def _count_unseen(self) -> int:
        """Return how many payload blocks are allocated and not yet seen in use."""
        unseen = 0
        for start, end in self._payloads():
            flags = self.flags[start:end] & (ALLOCATED | SEEN | SETTLED)
            unseen += int((flags == ALLOCATED | SETTLED).sum())
        return unseen

    def _payloads(self) -> Iterator[tuple[int, int]]:
        """Yield the blocks (from, to) of each extent with anything in it whose bitmap is known."""
        sb = self._sb
        for extent in sorted(self._in_use - self.unknown):
            yield sb.extent_start(extent) + sb.overhead, sb.extent_start(extent + 1)

    def _check_space(self, without_deleted: int) -> None:
        """Count what the bitmaps hold and nothing, or only deleted VDIs, refer to.

        Args:
            without_deleted: blocks that nothing but deleted VDIs may refer to.
        """
        report = self.report
        for start, end in self._payloads():
            report.allocated += int((self.flags[start:end] & ALLOCATED).astype(bool).sum())
        report.unreachable = self._count_unseen()
        report.restorable = without_deleted - report.unreachable
        if report.deleted:
            self._note(
                f"{report.restorable} blocks belong to {report.deleted} deleted VDIs, which can"
                " be restored until garbage collection frees them"
            )
        if report.unreachable:
            self._note(
                f"{report.unreachable} blocks are unreachable; garbage collection can free them"
            )

    def _note(self, message: str) -> None:
        self.report.findings.append(Finding("note", None, message))


def look(
    store: Blockstore,
    progress: Progress = silent,
    table: Mapping[int, VdiRecord | Corrupt] | None = None,
    settled: BlockSet | None = None,
) -> Checker:
    """Check a store, and return what was found; arguments as for `Checker`.

    A block that is used as data and as a node can hold only one of both, and a node has a
    check. So it is looked at once more, and then a pointer to it as data is what is wrong.
    """
    checker = Checker(store, progress, table, settled)
    checker.run()
    if checker.mixed:
        structure = checker.flags & (NODE | LOG) != 0
        checker = Checker(store, progress, table, settled, structure)
        checker.run()
    return checker


def _sparse(size: int) -> NDArray[np.uint8]:
    """Return bytes of zeros that take memory only where they are written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


def _reason(error: IoFailed) -> str:
    """Return the message of an error without the block, which a finding names itself."""
    if isinstance(error, Corrupt):
        return error.message.removeprefix(f"block {error.block}: ")
    return error.message
