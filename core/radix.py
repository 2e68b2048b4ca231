"""The radix map: a copy-on-write tree from virtual block to blockstore block.

The only module that walks a tree. A node is 4 KiB of 512 entries, an entry is a block
number, a check of what is there, and the writable flag (`core.format`).

*Ownership.* A block belongs to this VDI alone when the writable flag is set on every
entry from the root down to it. A snapshot or clone clears the flag on the root entry
only, which takes it from the whole tree at once; the flags further down are cleared one
node at a time, as changes copy the path (`_dirty`). What is owned is overwritten in
place (data) or freed after the next commit (data and nodes); all else is left alone.

*Changes* are kept in memory as dirty nodes. A dirty node has no block yet: the entry that
points to it holds a number from the top of the 40-bit space (`PENDING`), under which the
node is in `_dirty`. Its block is reserved at once, so a commit never runs out of space.
`freeze` gives every dirty node its block, children first, and leaves a tree of immutable
nodes. The technique is shadow paging, as in LMDB (Chu 2011) and ZFS; the lazily cleared
ownership flags are from Parallax (Meyer et al., EuroSys 2008, section 3.2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from core.blockstore import Blockstore, Node, empty_node, node_key
from core.entries import Entries, blocks_of
from core.errors import Corrupt, IoFailed, WouldBlock
from core.format import (
    BLOCK_MASK,
    CHECK_MASK,
    CHECK_SHIFT,
    FANOUT,
    FANOUT_SHIFT,
    MAX_HEIGHT,
    WRITABLE,
    node_check,
    pack_entry,
)

assert sys.byteorder == "little", "nodes are used as they are on disk"

_SLOT: Final = FANOUT - 1
_SHIFTS: Final = tuple(
    tuple(FANOUT_SHIFT * level for level in range(height - 1, -1, -1))
    for height in range(MAX_HEIGHT + 1)
)
_BLOCK_FIELD: Final = BLOCK_MASK << 1
_HOLE: Final = -(1 << 62)

PENDING: Final = CHECK_MASK << CHECK_SHIFT | 1 << 40
"""The lowest entry that points to a dirty node; no real block number reaches this far."""


class Run(NamedTuple):
    """Adjacent virtual blocks that are adjacent in the store as well, or a hole.

    `length` is in blocks; `block` is 0 for a hole; `owned` says that the blocks may be
    overwritten in place.
    """

    first: int
    length: int
    block: int
    owned: bool


class Visit(NamedTuple):
    """One node met on a walk.

    `level` is 0 for a leaf; `base` is the first virtual block below the node; `entry` is
    what points to it; `owned` says whether it belongs to this VDI alone; `entries` are
    its 512 entries; `other` those of the tree compared with (all 0 without one).
    """

    level: int
    base: int
    entry: int
    owned: bool
    entries: Entries
    other: Entries


class _Met:
    """The nodes that a walk has read, and so a bound for it.

    A tree has each of its nodes in one place. One that has a node in two is forged, and four
    such nodes can claim to map 256 TiB: to walk it would take for ever.
    """

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}

    def add(self, entry: int) -> None:
        """Note the node that an entry points to.

        Raises:
            Corrupt: it was met before.
        """
        block = entry >> 1 & BLOCK_MASK
        group, bit = self._groups.get(block >> _GROUP_SHIFT, 0), 1 << (block & _GROUP - 1)
        if group & bit:
            raise Corrupt("is a node in two places of one tree", block)
        self._groups[block >> _GROUP_SHIFT] = group | bit


class _Scope(NamedTuple):
    """What a walk covers, see `RadixMap.walk`, and what it has met in the tree and in `other`."""

    first: int
    end: int
    enter: Callable[[int, int, int], bool] | None
    damaged: Callable[[int, int, IoFailed], None] | None
    other: RadixMap | None
    wait: bool
    met: _Met
    met_there: _Met


_GROUP_SHIFT: Final = 9
_GROUP: Final = 1 << _GROUP_SHIFT
"""Blocks of which one integer says whether they were met: nodes lie close together."""
_NO_LEAF: Final = empty_node().toreadonly()
_NOTHING: Final[Entries] = np.zeros(FANOUT, np.uint64)
_NOTHING.flags.writeable = False


def check_tree(store: Blockstore, root: int, height: int) -> None:
    """Refuse a root entry or a height that no tree has.

    Raises:
        Corrupt: with the block of the root.
    """
    block = root >> 1 & BLOCK_MASK
    if not 1 <= height <= MAX_HEIGHT or (root and not store.holds_payload(block)):
        raise Corrupt(f"cannot be the root of a tree of {height} levels", block)


def _run(start: int, end: int, key: int) -> Run:
    """Return the run of the virtual blocks from `start` up to `end`, given what they share."""
    if key == _HOLE:
        return Run(start, end - start, 0, False)
    return Run(start, end - start, (key >> 1) + start, bool(key & 1))


class RadixMap:
    """One tree: that of a snapshot, or the live one of a VDI with its changes.

    Args:
        store: where nodes are read and, for a live map, reserved and queued.
        root: the root entry; 0 is an empty map.
        height: levels, 1 to 4.
        mapped: data blocks it maps.
        own: blocks, data and nodes, that belong to this VDI alone.

    Attributes:
        freed: blocks to release after the commit of the changes so far.

    Raises:
        Corrupt: there can be no such tree.
    """

    def __init__(
        self, store: Blockstore, root: int, height: int, mapped: int = 0, own: int = 0
    ) -> None:
        """Take a committed tree."""
        check_tree(store, root, height)
        self.root = root
        self.height = height
        self.mapped = mapped
        self.own = own
        self.freed: list[int] = []
        self._store = store
        self._cache = store.nodes
        self._dirty: dict[int, Node] = {}
        self._leaves: dict[int, Node] = {}
        self._known: dict[int, tuple[Node, int]] = {}
        self._pending = PENDING
        self._cache.follow(self)

    @property
    def dirty(self) -> int:
        """How many nodes wait for a commit."""
        return len(self._dirty)

    @property
    def capacity(self) -> int:
        """Virtual blocks that a tree of this height can map."""
        return 1 << (FANOUT_SHIFT * self.height)

    # -- reading -----------------------------------------------------------------------

    def lookup(self, vblock: int, wait: bool = True) -> int:
        """Return the data entry of one virtual block, 0 for a hole.

        Its writable flag says whether the block may be overwritten in place.

        Raises:
            WouldBlock: `wait` is false and a node on the path is not in memory.
            Corrupt: a node on the path is damaged.
        """
        found = self._known.get(vblock >> FANOUT_SHIFT) or self._know(vblock, wait)
        return found[0][vblock & _SLOT] & found[1]

    def _know(self, vblock: int, wait: bool) -> tuple[Node, int]:
        """Walk down to the leaf of a virtual block, and remember the way.

        Returns:
            Its entries, and a mask that clears their writable flags if it is not owned.
        """
        entry = owned = self.root
        node = _NO_LEAF
        for shift in _SHIFTS[self.height]:
            if not entry:
                return _NO_LEAF, 0
            node = self._node(entry, shift, wait)
            owned &= entry
            entry = node[vblock >> shift & _SLOT]
        found = node, -1 if owned & WRITABLE else -2
        self._known[vblock >> FANOUT_SHIFT] = found
        return found

    def lookup_range(self, first: int, count: int, wait: bool = True) -> list[Run]:
        """Return the runs that make up `count` virtual blocks from `first` on, in order.

        Raises:
            WouldBlock, Corrupt: as `lookup`.
        """
        return list(self.runs(first, count, wait))

    def runs(
        self, first: int, count: int, wait: bool = True, leaves: int | None = None
    ) -> Iterator[Run]:
        """Yield what `lookup_range` returns, and walk no further than is asked for.

        Holes cost nothing, however long they are: nodes that do not exist are not read. Where
        an error ends the walk, what was found before is yielded before it is raised.

        Args:
            first: the first virtual block.
            count: how many.
            wait: as for `lookup`.
            leaves: end behind so many leaves, 2 MiB each, even if that is not all.
        """
        end = first + count
        start = position = first
        current = _HOLE
        left = leaves or -1
        try:
            for visit in self.walk(first, end, wait=wait):
                if visit.level:
                    continue
                low = max(first, visit.base)
                high = min(end, visit.base + FANOUT)
                if position < low and current != _HOLE:
                    yield _run(start, position, current)
                    start, current = position, _HOLE
                entries = visit.entries[low - visit.base : high - visit.base]
                blocks = blocks_of(entries)
                owned = (entries & visit.owned).astype(np.int64)
                key = np.where(blocks, (blocks - np.arange(low, high)) * 2 + owned, _HOLE)
                breaks = np.flatnonzero(key[1:] != key[:-1]) + 1
                for at in chain((0,), breaks.tolist()):
                    value = int(key[at])
                    if value != current:
                        if start < low + at:
                            yield _run(start, low + at, current)
                        start, current = low + at, value
                position = high
                left -= 1
                if not left:
                    end = position
                    break
        except (WouldBlock, IoFailed):
            if start < position:
                yield _run(start, position, current)
            raise
        if position < end and current != _HOLE:
            yield _run(start, position, current)
            start, current = position, _HOLE
        if start < end:
            yield _run(start, end, current)

    def forget(self) -> None:
        """Let go of remembered leaves; the node cache calls this."""
        self._known.clear()

    def walk(
        self,
        first: int = 0,
        end: int | None = None,
        *,
        enter: Callable[[int, int, int], bool] | None = None,
        damaged: Callable[[int, int, IoFailed], None] | None = None,
        other: RadixMap | None = None,
        wait: bool = True,
    ) -> Iterator[Visit]:
        """Visit the nodes above the virtual blocks from `first` up to `end`, parents first.

        Args:
            first: first virtual block of interest.
            end: the one behind the last; the whole tree by default.
            enter: asked with (level, base, entry) before a node is read, the writable
                flag saying whether it is owned; false leaves it out with all below it.
            damaged: told (level, base, error) of nodes that cannot be read, which are then
                left out; without it the error is raised.
            other: leave out what this tree has in common with the map.
            wait: read nodes from the device if need be.

        Raises:
            WouldBlock: as `lookup`.
            Corrupt: a node is damaged, or is met twice.
        """
        end = 1 << 62 if end is None else end
        scope = _Scope(first, end, enter, damaged, other, wait, _Met(), _Met())
        theirs = other.root if other else 0
        level = max(self.height, other.height if other else 0) - 1
        yield from self._visit(level, 0, self.root, self.root, theirs, scope)

    def _visit(
        self, level: int, base: int, entry: int, flags: int, theirs: int, scope: _Scope
    ) -> Iterator[Visit]:
        """Visit one subtree; bit 0 of `flags` says whether its parent and it are owned."""
        if not (entry ^ theirs) & ~WRITABLE:
            return
        if scope.enter and not scope.enter(level, base, entry & -2 | flags & WRITABLE):
            return
        try:
            entries = self._entries(entry, level, scope.wait, scope.met)
            other = _NOTHING
            if scope.other:
                other = scope.other._entries(theirs, level, scope.wait, scope.met_there)
        except IoFailed as error:
            if scope.damaged is None:
                raise
            scope.damaged(level, base, error)
            return
        yield Visit(level, base, entry, bool(flags & WRITABLE), entries, other)
        if not level:
            return
        shift = FANOUT_SHIFT * level
        low = max(0, scope.first - base) >> shift
        high = min(FANOUT, -((base - scope.end) >> shift))
        changed = (entries[low:high] ^ other[low:high]) > WRITABLE
        for slot in (np.flatnonzero(changed) + low).tolist():
            child = int(entries[slot])
            yield from self._visit(
                level - 1, base + (slot << shift), child, flags & child, int(other[slot]), scope
            )

    def _entries(self, entry: int, level: int, wait: bool, met: _Met) -> Entries:
        """Return the entries of a node, also of those a higher tree would have on top."""
        if not entry:
            return _NOTHING
        if level >= self.height:
            entries = np.zeros(FANOUT, np.uint64)
            entries[0] = entry
            return entries
        met.add(entry)
        return np.frombuffer(self._node(entry, level, wait), np.uint64)

    def diff(self, other: RadixMap, limit: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (first virtual block, count) where this map and `other` differ.

        Shared subtrees are skipped unread, so the cost follows the change. Two blocks
        differ when they are stored in different places, even if their bytes are equal:
        `Image.differences` compares those.

        Args:
            other: what to compare with.
            limit: the first virtual block that is of no interest; all are by default.
        """
        start = end = 0
        for visit in self.walk(end=limit, other=other):
            if visit.level:
                continue
            changed = np.flatnonzero((visit.entries ^ visit.other) & _BLOCK_FIELD) + visit.base
            for low in changed[: None if limit is None else changed.searchsorted(limit)].tolist():
                if low != end:
                    if end > start:
                        yield start, end - start
                    start = low
                end = low + 1
        if end > start:
            yield start, end - start

    # -- changing ----------------------------------------------------------------------

    def prepare(self, first: int, count: int) -> None:
        """Make sure that a later `update` of these virtual blocks cannot fail.

        Raises:
            NoSpace: the store has no room for the nodes.
            Corrupt: a node on the path is damaged.
        """
        if count == 1 and first >> FANOUT_SHIFT in self._leaves:
            return
        for leaf in range(first >> FANOUT_SHIFT, ((first + count - 1) >> FANOUT_SHIFT) + 1):
            if leaf not in self._leaves:
                self._make_dirty(0, leaf, False)

    def update(self, first: int, block: int, count: int = 1) -> None:
        """Map `count` virtual blocks from `first` on to blocks from `block` on, as owned.

        What they were mapped to is freed after the commit if this VDI owned it.

        Raises:
            NoSpace, Corrupt: as `prepare`; what was done before stays.
        """
        while count:
            leaf, at = first >> FANOUT_SHIFT, first & _SLOT
            part = min(count, FANOUT - at)
            node = self._leaves.get(leaf) or self._make_dirty(0, leaf, False)
            if part == 1:
                old = node[at]
                node[at] = block << 1 | WRITABLE
                if not old:
                    self.mapped += 1
                    self.own += 1
                elif old & WRITABLE:
                    self.freed.append(old >> 1 & BLOCK_MASK)
                else:
                    self.own += 1
            else:
                entries = np.frombuffer(node, np.uint64)[at : at + part]
                self._forget(entries)
                entries[:] = np.arange(block, block + part, dtype=np.uint64) << 1 | WRITABLE
                self.mapped += part
                self.own += part
            first += part
            block += part
            count -= part

    def trim(self, first: int, end: int, unread: bool = False) -> None:
        """Turn the virtual blocks from `first` up to `end` into holes.

        Args:
            first: first virtual block.
            end: the one behind the last.
            unread: cut committed nodes off without a look at what is below, for a repair. None
                of it is freed, and `mapped` is for the caller to count.

        Raises:
            NoSpace: not even the space kept back for such work suffices; commit, then
                try again. What was done before stays.
            Corrupt: a node on the path is damaged.
        """
        end = min(end, self.capacity)
        if not self.root or first >= end:
            return
        if first == 0 and end == self.capacity:
            self._drop(self.height - 1, 0, self.root)
            self.root = 0
        else:
            self._trim(self.height - 1, 0, first, end, unread)

    def _trim(self, level: int, index: int, first: int, end: int, unread: bool) -> None:
        """Trim a part of the virtual blocks below one node that exists."""
        shift = FANOUT_SHIFT * level
        base = index << (shift + FANOUT_SHIFT)
        low, high = (first - base) >> shift, (end - 1 - base) >> shift
        node = self._find(level, index)
        slots = (np.flatnonzero(np.frombuffer(node, np.uint64)[low : high + 1]) + low).tolist()
        for slot in slots:
            start = base + (slot << shift)
            after = start + (1 << shift)
            if level and (first > start or end < after):
                child = index << FANOUT_SHIFT | slot
                self._trim(level - 1, child, max(first, start), min(end, after), unread)
                continue
            if level == 0:
                node = self._make_dirty(0, index, True)
                entries = np.frombuffer(node, np.uint64)[low : high + 1]
                self._forget(entries)
                entries[:] = 0
                return
            node = self._make_dirty(level, index, True)
            if not unread or node[slot] >= PENDING:
                self._drop(level - 1, index << FANOUT_SHIFT | slot, node[slot])
            self._known.clear()
            node[slot] = 0

    def clear(self) -> None:
        """Make the map empty, freeing what this VDI owns; for a rollback."""
        self.trim(0, self.capacity)

    def replace(self, root: int, height: int, mapped: int) -> None:
        """Take over another committed tree, which this VDI does not own; after `clear`.

        Raises:
            Corrupt: there can be no such tree; nothing is changed.
        """
        check_tree(self._store, root, height)
        self.root, self.height, self.mapped = root & ~WRITABLE, height, mapped
        self._known.clear()

    def raise_to(self, height: int) -> None:
        """Add levels on top so that the tree can map more.

        Raises:
            NoSpace: the store has no room for the nodes.
        """
        while self.height < height:
            if self.root:
                self._store.allocator.reserve(1)
                node = empty_node()
                node[0] = self.root
                self.root = self._add_dirty(node)
            self.height += 1

    def freeze(self) -> None:
        """Give every dirty node a block, queue them all, and become a committed tree."""
        if not self._dirty:
            return
        allocator = self._store.allocator
        count = len(self._dirty)
        runs = allocator.take_reserved(count)
        blocks = chain.from_iterable(range(start, start + size) for start, size in runs)
        self.root = self._freeze(self.root, self.height - 1, blocks)
        unused = list(blocks)
        self.own -= len(unused)
        allocator.release(unused)
        self._dirty.clear()
        self._leaves.clear()
        self._known.clear()

    def abandon(self) -> None:
        """Forget every change since the last freeze and give its reservations back."""
        self._store.allocator.unreserve(len(self._dirty))
        self._dirty.clear()
        self._leaves.clear()
        self._known.clear()
        self.freed.clear()

    def give_up(self) -> None:
        """Forget every change after a `freeze` that failed: its blocks are left to collection."""
        self._dirty.clear()
        self._leaves.clear()
        self._known.clear()
        self.freed.clear()

    def _freeze(self, entry: int, level: int, blocks: Iterator[int]) -> int:
        """Freeze one dirty subtree; return the entry that points to it from now on."""
        node = self._dirty[entry >> 1]
        entries = np.frombuffer(node, np.uint64)
        if level:
            for slot in np.flatnonzero(entries >= PENDING).tolist():
                node[slot] = self._freeze(node[slot], level - 1, blocks)
        if not entries.any():
            return 0
        data = bytes(node)
        frozen = pack_entry(next(blocks), node_check(data), True)
        self._store.queue(frozen >> 1 & BLOCK_MASK, data)
        self._cache.put(node_key(frozen, level), memoryview(data).cast("Q"))
        return frozen

    def disown(self) -> None:
        """Leave the whole tree to a snapshot: from now on every change copies."""
        self.root &= ~WRITABLE
        self.own = 0
        self._known.clear()

    def _node(self, entry: int, level: int, wait: bool = True) -> Node:
        return self._dirty.get(entry >> 1) or self._store.node(entry, level, wait)

    def _find(self, level: int, index: int) -> Node:
        """Return the existing node at (level, index)."""
        entry = self.root
        for depth in range(self.height - 1, level, -1):
            entry = self._node(entry, depth)[index >> FANOUT_SHIFT * (depth - 1 - level) & _SLOT]
        return self._node(entry, level)

    def _make_dirty(self, level: int, index: int, urgent: bool) -> Node:
        """Return the node at (level, index) as a dirty one, with the path to it."""
        path: list[tuple[int, bool, Node | None]] = []
        entry, owned = self.root, bool(self.root & WRITABLE)
        for depth in range(self.height - 1, level - 1, -1):
            node = self._node(entry, depth) if entry else None
            path.append((entry, owned, node))
            if depth > level and node is not None:
                entry = node[index >> FANOUT_SHIFT * (depth - 1 - level) & _SLOT]
                owned = owned and bool(entry & WRITABLE)
            else:
                entry = 0
        clean = sum(entry < PENDING for entry, _, _ in path)
        self._store.allocator.reserve(clean, urgent)
        parent: Node | None = None
        for step, (entry, owned, node) in enumerate(path):
            if entry < PENDING:
                node = self._copy(entry, owned, node)
                entry = self._add_dirty(node)
                if parent is None:
                    self.root = entry
                else:
                    depth = self.height - 1 - step
                    parent[index >> FANOUT_SHIFT * (depth - level) & _SLOT] = entry
            parent = node
        assert parent is not None
        if level == 0:
            self._leaves[index] = parent
            self._known[index] = parent, -1
        return parent

    def _copy(self, entry: int, owned: bool, node: Node | None) -> Node:
        """Return a node to change instead of a committed one (or of none)."""
        if node is None:
            return empty_node()
        copy = memoryview(bytearray(node)).cast("Q")
        if owned:
            self.freed.append(entry >> 1 & BLOCK_MASK)
            self.own -= 1
        else:
            entries = np.frombuffer(copy, np.uint64)
            entries &= np.uint64(~WRITABLE & (1 << 64) - 1)
        return copy

    def _add_dirty(self, node: Node) -> int:
        """Keep a dirty node; return the entry that points to it. Its block is reserved."""
        entry = self._pending | WRITABLE
        self._pending += 2
        self._dirty[entry >> 1] = node
        self.own += 1
        return entry

    def _forget(self, entries: Entries) -> None:
        """Account for data entries of a dirty leaf that are about to be replaced."""
        old = entries[entries != 0]
        if old.size:
            owned = blocks_of(old[(old & WRITABLE) != 0])
            self.freed.extend(owned.tolist())
            self.mapped -= old.size
            self.own -= owned.size

    def _drop(self, level: int, index: int, entry: int) -> None:
        """Account for a subtree that is about to be cut off a node that is owned.

        What lies below a damaged node stays allocated: nobody knows what it is. So does what
        is met a second time.
        """
        base = index << FANOUT_SHIFT * (level + 1)
        self._known.clear()
        scope = _Scope(0, 1 << 62, None, lambda *_: None, None, True, _Met(), _Met())
        for visit in self._visit(level, base, entry, entry, 0, scope):
            if visit.level == 0:
                entries = visit.entries[visit.entries != 0]
                self.mapped -= entries.size
                if visit.owned:
                    data = blocks_of(entries[(entries & WRITABLE) != 0])
                    self.freed.extend(data.tolist())
                    self.own -= data.size
                self._leaves.pop(visit.base >> FANOUT_SHIFT, None)
            if visit.entry >= PENDING:
                del self._dirty[visit.entry >> 1]
                self._store.allocator.unreserve(1)
                self.own -= 1
            elif visit.owned:
                self.freed.append(visit.entry >> 1 & BLOCK_MASK)
                self.own -= 1
