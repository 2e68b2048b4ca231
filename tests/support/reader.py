"""A second, small reader of the format: what does this heap of pages contain?

It shares only `core.format` with the engine, opens nothing and repairs nothing. Pages are
immutable and most crash states share nearly all of them, so whatever is learned about a
page or a tree is remembered: that is what lets the crash tests look at thousands of
states a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core import format as layout
from core.format import (
    BLOCK_MASK,
    FANOUT_SHIFT,
    FREE,
    KIND_SNAPSHOT,
    KIND_TOMBSTONE,
    LOG_RECORDS,
    WRITABLE,
    ZERO_BLOCK,
    BitmapBlock,
    ExtentHeader,
    LogBlock,
    LogRecord,
    Superblock,
    VdiRecord,
)

Get = Callable[[int], bytes]
"""Returns the page of a block."""


class Violation(Exception):
    """A store is not as it must be."""


@dataclass(frozen=True)
class Tree:
    """What a radix root leads to.

    `mapping` is virtual block to block, `owned` the blocks that belong to the tree alone,
    `reach` all its blocks, `nodes` the (block, page) that were read to find out.
    """

    mapping: dict[int, int]
    owned: frozenset[int]
    owned_data: frozenset[int]
    reach: frozenset[int]
    nodes: tuple[tuple[int, bytes], ...]


EMPTY = Tree({}, frozenset(), frozenset(), frozenset(), ())


@dataclass(frozen=True)
class VdiFound:
    """A VDI as it is on disk; snapshots oldest first."""

    record: VdiRecord
    tree: Tree
    snapshots: tuple[tuple[tuple[int, int], LogRecord, Tree], ...]
    log: frozenset[int]


class Reader:
    """Reads stores of one geometry and identity."""

    def __init__(self, sb: Superblock) -> None:
        self.sb = sb
        self._records: dict[tuple[int, bytes], VdiRecord | None] = {}
        self._headers: dict[tuple[int, bytes], bool] = {}
        self._bitmaps: dict[tuple[int, int, bytes], tuple[int, frozenset[int]] | None] = {}
        self._nodes: dict[bytes, tuple[int, tuple[tuple[int, int], ...]]] = {}
        self._logs: dict[bytes, LogBlock | None] = {}
        self._trees: dict[tuple[int, int], list[Tree]] = {}

    # -- the parts ---------------------------------------------------------------------

    def record(self, get: Get, vdi: int) -> VdiRecord | None:
        """Return the current record of a VDI, None when it was never made."""
        pages = [get(self.sb.vdi_slot(vdi, slot)) for slot in (0, 1)]
        slots = [self._slot(vdi, page) for page in pages]
        found = layout.newer(*slots)
        if found is None and ZERO_BLOCK not in pages:
            raise Violation(f"both records of VDI {vdi} are damaged")
        return found

    def _slot(self, vdi: int, page: bytes) -> VdiRecord | None:
        if page == ZERO_BLOCK:
            return None
        key = vdi, page
        if key not in self._records:
            self._records[key] = VdiRecord.unpack(page, self.sb.uuid, vdi)
        return self._records[key]

    def used(self, get: Get, extent: int) -> frozenset[int]:
        """Return the blocks of an extent that its bitmap calls allocated."""
        headers = [get(self.sb.extent_start(extent) + slot) for slot in (0, 1)]
        if not any(self._header(extent, page) for page in headers):
            raise Violation(f"both headers of extent {extent} are damaged")
        used: frozenset[int] = frozenset()
        for index in range(self.sb.bitmap_blocks):
            slots = [
                self._bitmap(extent, index, get(self.sb.bitmap_slot(extent, index, slot)))
                for slot in (0, 1)
            ]
            valid = [slot for slot in slots if slot is not None]
            if not valid:
                raise Violation(f"both bitmaps {index} of extent {extent} are damaged")
            used |= max(valid, key=lambda slot: slot[0])[1]
        return used

    def _header(self, extent: int, page: bytes) -> bool:
        """Say whether this is a valid header of an extent."""
        key = extent, page
        if key not in self._headers:
            self._headers[key] = ExtentHeader.unpack(page, self.sb.uuid, extent) is not None
        return self._headers[key]

    def _bitmap(self, extent: int, index: int, page: bytes) -> tuple[int, frozenset[int]] | None:
        key = extent, index, page
        if key not in self._bitmaps:
            part = BitmapBlock.unpack(page, self.sb.uuid, extent, index)
            found = None
            if part is not None:
                bits = np.unpackbits(np.frombuffer(part.bits, np.uint8), bitorder="little")
                start = self.sb.extent_start(extent) + index * layout.BITMAP_BITS
                found = part.sequence, frozenset((np.flatnonzero(bits) + start).tolist())
            self._bitmaps[key] = found
        return self._bitmaps[key]

    def tree(self, get: Get, root: int, height: int) -> Tree:
        """Return all that a root entry leads to."""
        if not root:
            return EMPTY
        known = self._trees.setdefault((root, height), [])
        for tree in known:
            if all(get(block) is page for block, page in tree.nodes):
                return tree
        mapping: dict[int, int] = {}
        owned: list[int] = []
        data: list[int] = []
        nodes: list[tuple[int, bytes]] = []

        def visit(entry: int, level: int, base: int, mine: int) -> None:
            block = entry >> 1 & BLOCK_MASK
            if not self.sb.holds_payload(block):
                raise Violation(f"a pointer leads to block {block}")
            mine &= entry
            if mine & WRITABLE:
                owned.append(block)
            if level < 0:
                if entry >> layout.CHECK_SHIFT:
                    raise Violation(f"a data entry has a check: {entry:#x}")
                mapping[base] = block
                if mine & WRITABLE:
                    data.append(block)
                return
            page = get(block)
            check, entries = self._node(page)
            if check != entry >> layout.CHECK_SHIFT:
                raise Violation(f"node {block} (level {level}) is not what its pointer promises")
            nodes.append((block, page))
            for slot, child in entries:
                visit(child, level - 1, base + (slot << FANOUT_SHIFT * level), mine)

        visit(root, height - 1, 0, root)
        reach = [block for block, _ in nodes] + list(mapping.values())
        if len(set(reach)) != len(reach):
            raise Violation(f"the tree of root {root:#x} uses a block twice")
        found = Tree(mapping, frozenset(owned), frozenset(data), frozenset(reach), tuple(nodes))
        known.append(found)
        return found

    def _node(self, page: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        found = self._nodes.get(page)
        if found is None:
            entries = np.frombuffer(page, np.uint64)
            slots = np.flatnonzero(entries).tolist()
            found = (
                layout.node_check(page),
                tuple((slot, int(entries[slot])) for slot in slots),
            )
            self._nodes[page] = found
        return found

    def _log(self, get: Get, record: VdiRecord) -> tuple[list[tuple[int, LogBlock]], set[int]]:
        """Return the full pages of a snapshot log, newest first, and all its blocks."""
        pages: list[tuple[int, LogBlock]] = []
        blocks = {record.log_block} - {0}
        newer: VdiRecord | LogBlock = record
        previous, end = record.log_previous, record.log_number
        while end:
            kept, kept_number = _kept(newer, previous, end)
            if end * LOG_RECORDS <= record.log_retired:
                pointer, number = kept, kept_number
            else:
                pointer, number = previous, end - 1
            block = pointer >> 1 & BLOCK_MASK
            raw = get(block)
            if layout.node_check(raw) != pointer >> layout.CHECK_SHIFT:
                raise Violation(f"log page {block} is not what its pointer promises")
            if raw not in self._logs:
                self._logs[raw] = LogBlock.unpack(raw, self.sb.uuid)
            page = self._logs[raw]
            if page is None or page.vdi != record.id or page.number != number or block in blocks:
                raise Violation(f"block {block} is not page {number} of the log of {record.id}")
            blocks.add(block)
            pages.append((block, page))
            newer, previous, end = page, page.previous, number
        if previous:
            raise Violation(f"the log of VDI {record.id} has pages before its first")
        return pages, blocks

    # -- the whole ---------------------------------------------------------------------

    def vdi(self, get: Get, record: VdiRecord) -> VdiFound:
        """Return all about one VDI, with its own account of it checked."""
        pages, log = self._log(get, record)
        lines = [
            ((block, offset), line)
            for block, number, page in (
                *((block, page.number, page.page) for block, page in reversed(pages)),
                (record.log_block, record.log_number, record.page),
            )
            for offset, line in enumerate(page)
            if not line.scheduled or number * LOG_RECORDS + offset >= record.log_retired
        ]
        gone = {(line.root, line.size) for _, line in lines if line.kind == KIND_TOMBSTONE}
        snapshots = tuple(
            (where, line, self.tree(get, line.root, line.height))
            for where, line in lines
            if line.kind == KIND_SNAPSHOT and where not in gone
        )
        if len(snapshots) != record.snapshots:
            raise Violation(f"VDI {record.id} counts its snapshots wrong")
        for where, line, tree in snapshots:
            if line.root & WRITABLE or tree.owned:
                raise Violation(f"snapshot {where} of VDI {record.id} owns blocks")
            if len(tree.mapping) != line.mapped:
                raise Violation(f"snapshot {where} of VDI {record.id} counts its blocks wrong")
        tree = self.tree(get, record.root, record.height)
        if len(tree.mapping) != record.mapped or len(tree.owned) != record.own:
            raise Violation(
                f"VDI {record.id} says {record.mapped} mapped and {record.own} own blocks,"
                f" has {len(tree.mapping)} and {len(tree.owned)}"
            )
        if tree.mapping and max(tree.mapping) >= layout.blocks_for(record.size):
            raise Violation(f"VDI {record.id} maps blocks behind its end")
        return VdiFound(record, tree, snapshots, frozenset(log))

    def store(self, get: Get, vdis: int) -> tuple[dict[int, VdiRecord], dict[int, VdiFound]]:
        """Return all records and all VDIs of a sound store, deleted ones included.

        Args:
            get: returns pages.
            vdis: how many table entries to look at.

        Raises:
            Violation: an invariant does not hold.
        """
        records = {n: r for n in range(vdis) if (r := self.record(get, n)) is not None}
        found = {n: self.vdi(get, r) for n, r in records.items() if r.state != FREE}
        self._check_blocks(get, found)
        return records, found

    def _check_blocks(self, get: Get, found: dict[int, VdiFound]) -> None:
        """Check that owned blocks have one user, and that all that is used is allocated."""
        seen: set[int] = set()
        shared: set[int] = set()
        nodes: set[int] = set()
        data: set[int] = set()
        for vdi in found.values():
            if vdi.log & seen:
                raise Violation(f"log block {vdi.log & seen} is used twice")
            seen |= vdi.log
            nodes |= vdi.log
            for tree in [vdi.tree, *(tree for _, _, tree in vdi.snapshots)]:
                shared |= seen & tree.reach
                seen |= tree.reach
                nodes.update([block for block, _ in tree.nodes])
                data.update(tree.mapping.values())
        for vdi in found.values():
            if vdi.tree.owned & shared:
                raise Violation(
                    f"VDI {vdi.record.id} owns {set(vdi.tree.owned & shared)}, as does another"
                )
            if vdi.log & shared:
                raise Violation(f"log blocks {set(vdi.log & shared)} are used twice")
        if nodes & data:
            raise Violation(f"blocks {nodes & data} are data and metadata")
        used: set[int] = set()
        for extent in range(1, self.sb.extents):
            used |= self.used(get, extent)
        if seen - used:
            raise Violation(f"blocks {seen - used} are in use, but free in the bitmap")

    def owned_data(self, get: Get, record: VdiRecord) -> frozenset[int]:
        """Return the data blocks that a record allows to be overwritten in place."""
        try:
            return self.tree(get, record.root, record.height).owned_data
        except Violation:
            return frozenset()


def _kept(newer: VdiRecord | LogBlock, previous: int, end: int) -> tuple[int, int]:
    """The page before that no retention drops: pointer and number, as the one after it says."""
    if isinstance(newer, LogBlock):
        pointer, number = newer.kept, newer.kept_number
    else:
        pointer, number = newer.log_kept, newer.log_kept_number
    return (pointer, number) if pointer else (previous, end - 1)
