"""What nothing needs: mark what VDIs and snapshots reach, and say whose the rest was.

Who may be using the store meanwhile, and why nothing reachable is freed all the same, is in
`core.collection`. Here trees are walked that stay readable, from records that were read once.
Deleted VDIs are first turned into free table entries, durably (`retire`); only then may their
blocks be handed out again. So a deleted VDI that can still be found has all its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from core import snaplog
from core.blockset import BlockSet
from core.blockstore import Blockstore
from core.commit import Change, Commit
from core.entries import Entries, blocks_of
from core.errors import Corrupt, IoFailed
from core.format import BLOCK_MASK, DELETED, FREE, LIVE, VdiRecord
from core.locks import Locks
from core.progress import Progress, silent
from core.radix import RadixMap
from core.registry import Registry, alike

KEEP_LIVE: Final = frozenset({LIVE})
KEEP_DELETED: Final = frozenset({LIVE, DELETED})
"""VDIs in which states a collection leaves alone."""

_LEAVES: Final = 256
"""Leaves whose data is marked at once."""

Stop = Callable[[int, int], bool]
Damaged = Callable[[int, int, IoFailed], None]


@dataclass(frozen=True, slots=True)
class Account:
    """Whose blocks a collection frees.

    Attributes:
        own: each deleted VDI that is given up, with the blocks only it reaches.
        shared: blocks that several of them reach, and no other VDI.
        leftovers: blocks that nothing reaches: of deleted snapshots, or left by a crash.
    """

    own: tuple[tuple[VdiRecord, int], ...]
    shared: int
    leftovers: int

    @property
    def total(self) -> int:
        """All blocks that are freed."""
        return sum(blocks for _, blocks in self.own) + self.shared + self.leftovers


@dataclass(frozen=True, slots=True)
class Roots:
    """What is to stay: read once, while no name or id changed hands.

    Attributes:
        records: all VDI records.
        before: those that are in the other slot and say something else. What they lead to stays
            as well: if the newer one is lost, somebody goes on with them.
        keep: states of VDIs of which nothing is freed; deleted VDIs in another state are
            given up.
        reading: trees that are read at the moment, whatever became of their snapshots.
    """

    records: Sequence[VdiRecord]
    before: Sequence[VdiRecord] = ()
    keep: Collection[int] = KEEP_LIVE
    reading: Sequence[RadixMap] = ()

    @property
    def doomed(self) -> list[VdiRecord]:
        """The deleted VDIs that are given up."""
        return [r for r in self.records if r.state == DELETED and r.state not in self.keep]


class Garbage:
    """What nothing needs, of the blocks that were allocated when they were looked at.

    Args:
        store: the store.
        roots: what is to stay.
        allocated: the blocks that may be freed; becomes those that nothing reaches.
        progress: told about marked blocks, of those that are allocated.

    Attributes:
        doomed: the deleted VDIs that are given up.
        reached: all blocks that something needs.
        blocks: all that may be freed and nothing reaches.

    Raises:
        Corrupt: a log page or a node cannot be read, so what it refers to is unknown.
    """

    def __init__(
        self, store: Blockstore, roots: Roots, allocated: BlockSet, progress: Progress = silent
    ) -> None:
        """Mark all that is to stay."""
        self._store = store
        self.doomed = roots.doomed
        marks = _Marks(store, progress, len(allocated))
        for tree in roots.reading:
            marks.add_tree(tree)
        for record in roots.records:
            if record.state in roots.keep:
                marks.add_vdi(record)
        self.reached = marks.done()
        staying = {record.id for record in roots.records if record.state in roots.keep}
        before = [record for record in roots.before if record.id in staying]
        self.reached |= reached_before(store, before, self.reached)
        self.blocks = allocated
        self.blocks -= self.reached

    def account(self, progress: Progress = silent) -> Account:
        """Say whose blocks would be freed.

        Each node is read once, and those that several deleted VDIs share twice. What lies
        below damage of a deleted VDI counts as left over.
        """
        total = len(self.blocks)
        own, shared = self._shares(progress, total)
        together = shared.count_in(self.blocks)
        left = total - sum(own) - together
        return Account(tuple(zip(self.doomed, own, strict=True)), together, left)

    def _shares(self, progress: Progress, total: int) -> tuple[list[int], BlockSet]:
        """Return how much garbage each deleted VDI has to itself, and what several reach.

        The first pass stops where a VDI meets what one before it reached, and remembers the
        place: what lies below is shared. Only if there is such a place, a second pass counts
        again, without what is shared.
        """
        store, reached, garbage = self._store, self.reached, self.blocks
        met: list[tuple[int, int]] = []
        before, shared = BlockSet(store.sb.blocks), BlockSet(store.sb.blocks)

        def known(level: int, entry: int) -> bool:
            block = entry >> 1 & BLOCK_MASK
            if block in reached:
                return True
            if block in before:
                met.append((level, entry))
                return True
            return False

        own = []
        for record in self.doomed:
            marks = _Marks(store, progress, total, known, _ignore)
            marks.add_vdi(record)
            mine = marks.done()
            shared.add_common(before, mine)
            before |= mine
            own.append(mine.count_in(garbage))
        together = _Marks(store, progress, total, _in(reached), _ignore)
        for level, entry in met:
            together.add_tree(RadixMap(store, entry, level + 1))
        shared |= together.done()
        if shared.count_in(garbage):
            elsewhere = _in(reached, shared)
            for at, record in enumerate(self.doomed):
                marks = _Marks(store, progress, total, elsewhere, _ignore)
                marks.add_vdi(record)
                mine = marks.done()
                mine -= shared
                own[at] = mine.count_in(garbage)
        return own, shared


class _Marks:
    """Marks the blocks that trees and logs reach; a node is read once.

    Args:
        store: the store.
        progress: told about blocks met, those met again too, of `total`.
        total: blocks there may be.
        stop: asked with (level, entry) before a node is read; true leaves it out with all
            below it.
        damaged: told of nodes that cannot be read; without it the error is raised.
    """

    def __init__(
        self,
        store: Blockstore,
        progress: Progress,
        total: int,
        stop: Stop | None = None,
        damaged: Damaged | None = None,
    ) -> None:
        self._store = store
        self._progress = progress
        self._total = total
        self._stop = stop
        self._damaged = damaged
        self._blocks = BlockSet(store.sb.blocks)
        self._leaves: list[Entries] = []
        self._met = 0

    def add_vdi(self, record: VdiRecord) -> None:
        """Mark the log of a VDI, its tree and those of its snapshots.

        Raises:
            Corrupt: a log page or a node cannot be read, and nobody is to be told.
        """
        self.add_tree(RadixMap(self._store, record.root, record.height))
        try:
            self._add_log(record)
            for snapshot in snaplog.snapshots(self._store, record):
                self.add_tree(RadixMap(self._store, snapshot.root, snapshot.height))
        except IoFailed:
            if self._damaged is None:
                raise

    def _add_log(self, record: VdiRecord) -> None:
        """Mark the blocks of the snapshot log of a VDI."""
        if record.log_block:
            self._blocks.add(record.log_block)
        for block, _ in snaplog.pages(self._store, record):
            self._blocks.add(block)

    def add_tree(self, tree: RadixMap) -> None:
        """Mark the nodes and the data of a tree."""
        blocks, stop = self._blocks, self._stop

        def enter(level: int, _base: int, entry: int) -> bool:
            return (entry >> 1 & BLOCK_MASK) not in blocks and not (stop and stop(level, entry))

        for visit in tree.walk(enter=enter, damaged=self._damaged):
            blocks.add(visit.entry >> 1 & BLOCK_MASK)
            if visit.level == 0:
                self._leaves.append(visit.entries)
                if len(self._leaves) == _LEAVES:
                    self._add_leaves()

    def _add_leaves(self) -> None:
        """Mark the data of the leaves collected so far."""
        if not self._leaves:
            return
        data = blocks_of(np.concatenate(self._leaves))
        self._leaves.clear()
        data = data[data != 0]
        self._blocks.add_all(data)
        self._met += data.size
        self._progress(min(self._met, self._total), self._total)

    def done(self) -> BlockSet:
        """Return what was marked."""
        self._add_leaves()
        return self._blocks


def _ignore(_level: int, _base: int, _error: IoFailed) -> None:
    """Leave out what cannot be read."""


def _in(*sets: BlockSet) -> Stop:
    """Return what says whether the block that an entry points to is in one of the sets."""
    return lambda _, entry: any((entry >> 1 & BLOCK_MASK) in blocks for blocks in sets)


def read_records(store: Blockstore) -> list[VdiRecord]:
    """Return all records of the table.

    Raises:
        Corrupt: one of them is damaged.
    """
    records = []
    for _, record in Registry(store).scan():
        if isinstance(record, Corrupt):
            raise record
        records.append(record)
    return records


def read_before(store: Blockstore) -> list[VdiRecord]:
    """Return the records in the other slots, of VDIs whose slots do not say the same."""
    before = []
    for _, pair in Registry(store).pairs():
        slot = pair.slot
        if slot is not None and pair.current is not None:
            older = pair.found[1 - slot]
            if older is not None and not alike(older, pair.current):
                before.append(older)
    return before


def reached_before(store: Blockstore, before: Sequence[VdiRecord], known: BlockSet) -> BlockSet:
    """Return what older records lead to, down to what is `known`; damage is left out."""
    marks = _Marks(store, silent, 0, _in(known), _ignore)
    for record in before:
        marks.add_vdi(record)
    return marks.done()


def retire(store: Blockstore, locks: Locks, records: Sequence[VdiRecord]) -> None:
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
            modified_ns=time.time_ns(),
            deleted_ns=record.deleted_ns,
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
