"""Mistakes to plant in the engine, each of which the crash tests must notice.

A bug replaces a method of the engine for the length of a test; the engine itself has no
switch for any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.bench import Bench

from core import batch, claiming, collection, commit, extent, radix, reclaim, registry, snaplog, vdi
from core import format as layout
from core.blockstore import Blockstore
from core.format import BLOCK, BLOCK_SHIFT, LOG_RECORDS, WRITABLE

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]


def _replace(patch: Patch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    patch.setattr(owner, name, make(getattr(owner, name)))


def _without_flush(patch: Patch, number: int) -> None:
    def make(sync: Any) -> Any:
        def lying(self: commit.Commit) -> None:
            if not self._changes:
                return sync(self)
            device = self._store.device
            flush, calls = device.flush, iter(range(2))
            device.flush = lambda: None if next(calls) == number else flush()  # type: ignore[method-assign]
            try:
                return sync(self)
            finally:
                del device.flush

        return lying

    _replace(patch, commit.Commit, "sync", make)


def first_flush_left_out(patch: Patch) -> None:
    _without_flush(patch, 0)


def second_flush_left_out(patch: Patch) -> None:
    _without_flush(patch, 1)


def data_flush_left_out(patch: Patch) -> None:
    """A flush with no change of metadata does nothing."""
    _replace(
        patch,
        commit.Commit,
        "sync",
        lambda sync: lambda self: sync(self) if self._changes else None,
    )


def one_record_slot(patch: Patch) -> None:
    def write(self: registry.Registry, record: layout.VdiRecord) -> None:
        sb = self._store.sb
        at = sb.vdi_slot(record.id, 0) << BLOCK_SHIFT
        self._store.device.pwritev(at, [record.pack(sb.uuid)])

    patch.setattr(registry.Registry, "write", write)
    patch.setattr(Bench, "lax", True)


def no_record_checksum(patch: Patch) -> None:
    _replace(
        patch,
        layout,
        "open_slot",
        lambda real: lambda kind, block: _opened(real, kind, block, layout.VDI_SLOT),
    )


def _opened(
    real: Any, kind: layout.SlotKind, block: bytes, believed: layout.SlotKind
) -> bytes | None:
    """What a slot holds, whatever its checksum says if it is of the kind that is believed."""
    if kind is not believed:
        return real(kind, block)  # type: ignore[no-any-return]
    return bytes(layout._without_stamps(kind, block)[0]) if block[:8] == kind.magic else None


def _rescan(store: Blockstore) -> None:
    """Have freed blocks handed out at once, not after all others."""
    for part in store.allocator._extents.values():
        part._rescan()


def block_reused_before_commit(patch: Patch) -> None:
    """What is trimmed or replaced is free at once."""

    def make(change: Any) -> Any:
        def eager(self: radix.RadixMap, *arguments: Any) -> None:
            change(self, *arguments)
            freed, self.freed = self.freed, []
            self._store.allocator.release(freed)
            _rescan(self._store)

        return eager

    _replace(patch, radix.RadixMap, "trim", make)
    _replace(patch, radix.RadixMap, "update", make)


def freed_before_commit_ended(patch: Patch) -> None:
    """What a commit supersedes is free when it is prepared, not when it is durable."""

    def make(prepare: Any) -> Any:
        def eager(self: commit.Commit) -> None:
            prepare(self)
            for change in self._changes:
                self._store.allocator.release(change.superseded)
                _rescan(self._store)

        return eager

    def finish(self: commit.Commit) -> None:
        if self._changes:
            self._store.allocator.settled(twice=True)

    _replace(patch, commit.Commit, "prepare", make)
    patch.setattr(commit.Commit, "finish", finish)


def freed_bits_written_early(patch: Patch) -> None:
    """The bits of superseded blocks are cleared by the commit itself, not after it."""

    def make(prepare: Any) -> Any:
        def eager(self: commit.Commit) -> None:
            for change in self._changes:
                self._store.allocator.release(change.superseded)
            prepare(self)

        return eager

    def finish(self: commit.Commit) -> None:
        if self._changes:
            self._store.allocator.settled(twice=True)

    _replace(patch, commit.Commit, "prepare", make)
    patch.setattr(commit.Commit, "finish", finish)


def snapshot_overwritten_in_place(patch: Patch) -> None:
    """A snapshot leaves the blocks to the VDI as its own."""
    patch.setattr(radix.RadixMap, "disown", lambda _: None)


def clone_overwrites_its_origin(patch: Patch) -> None:
    """Below the root, the flags of a copied node are not cleared."""

    def copy(self: radix.RadixMap, entry: int, owned: bool, node: Any) -> Any:
        if node is None:
            return radix.empty_node()
        if owned:
            self.freed.append(entry >> 1 & layout.BLOCK_MASK)
            self.own -= 1
        return memoryview(bytearray(node)).cast("Q")

    patch.setattr(radix.RadixMap, "_copy", copy)


def bit_set_too_late(patch: Patch) -> None:
    """Bitmaps are written after the commit that uses the blocks."""

    def make_changes(changes: Any) -> Any:
        def held(self: extent.Allocator) -> list[tuple[int, bytes]]:
            self.late = [*getattr(self, "late", []), *changes(self)]  # type: ignore[attr-defined]
            return []

        return held

    def make_finish(finish: Any) -> Any:
        def late(self: commit.Commit) -> None:
            allocator = self._store.allocator
            for b, page in getattr(allocator, "late", []):
                self._store.write(b, [page])
            allocator.late = []  # type: ignore[attr-defined]
            finish(self)

        return late

    _replace(patch, extent.Allocator, "changes", make_changes)
    _replace(patch, commit.Commit, "finish", make_finish)


def one_bitmap_slot(patch: Patch) -> None:
    def make(bitmap_slot: Any) -> Any:
        return lambda self, number, index, _: bitmap_slot(self, number, index, 1)

    def read(device: Any, sb: layout.Superblock, number: int, *_: Any) -> list[layout.BitmapBlock]:
        pages = [
            device.pread(sb.bitmap_slot(number, index, 1) << BLOCK_SHIFT, BLOCK)
            for index in range(sb.bitmap_blocks)
        ]
        return [
            part
            for index, page in enumerate(pages)
            if (part := layout.BitmapBlock.unpack(page, sb.uuid, number, index))
        ]

    _replace(patch, layout.Superblock, "bitmap_slot", make)
    patch.setattr(extent, "read_bitmap", read)
    patch.setattr(claiming, "read_bitmap", read)


def child_after_parent(patch: Patch) -> None:
    """One node of each commit is written only after the record that leads to it."""

    def make_queue(write_queued: Any) -> Any:
        def held(self: Blockstore) -> None:
            nodes = [b for b in self._queue if self.sb.holds_payload(b)]
            self.late = {b: self._queue.pop(b) for b in nodes[:1]}  # type: ignore[attr-defined]
            write_queued(self)

        return held

    def make_finish(finish: Any) -> Any:
        def late(self: commit.Commit) -> None:
            for block, data in getattr(self._store, "late", {}).items():
                self._store.write(block, [data])
            finish(self)

        return late

    _replace(patch, Blockstore, "write_queued", make_queue)
    _replace(patch, commit.Commit, "finish", make_finish)


def log_page_reused(patch: Patch) -> None:
    """The next page of a snapshot log moves to where the one before it is."""

    def append(store: Blockstore, record: Any, entry: Any) -> Any:
        block = record.log_block if len(record.page) == LOG_RECORDS else 0
        record = original(store, record, entry)
        return replace(record, log_block=block) if block else record

    original = snaplog.append
    patch.setattr(vdi, "append", append)


def log_page_not_written(patch: Patch) -> None:
    """A full page of the snapshot log is only remembered."""

    def append(store: Blockstore, record: Any, entry: Any) -> Any:
        full = len(record.page) == LOG_RECORDS
        new = original(store, record, entry)
        if full:
            store._queue.pop(record.log_block)
        return new

    original = snaplog.append
    patch.setattr(vdi, "append", append)


def dropped_pages_freed_at_once(patch: Patch) -> None:
    """The blocks of pages that retention drops are used again before it is durable."""

    def make(drop: Any) -> Any:
        def eager(self: vdi.Vdi) -> int:
            before = {block for block, _ in snaplog.pages(self.store, self._edits or self.record)}
            dropped: int = drop(self)
            after = {block for block, _ in snaplog.pages(self.store, self._edits or self.record)}
            self.store.allocator.release(sorted(before - after))
            return dropped

        return eager

    _replace(patch, vdi.Vdi, "drop_scheduled", make)


def kept_page_skipped(patch: Patch) -> None:
    """A page with a snapshot that somebody took counts as dropped with those around it."""

    def make(moved_out: Any) -> Any:
        def forgetful(store: Blockstore, record: Any) -> Any:
            new = moved_out(store, record)
            if not record.log_kept:
                return new
            return replace(new, log_kept=record.log_kept, log_kept_number=record.log_kept_number)

        return forgetful

    _replace(patch, snaplog, "_moved_out", make)


def partial_write_forgets_the_rest(patch: Patch) -> None:
    """A part of a block is written as a block of which the rest is zeros."""

    def whole(_: Any, offset: int, data: memoryview, count: int) -> memoryview:
        block = memoryview(bytearray(count << BLOCK_SHIFT))
        start = offset & BLOCK - 1
        block[start : start + len(data)] = data
        return block

    patch.setattr(batch.WriteBatch, "_whole", whole)


def rollback_frees_the_snapshot(patch: Patch) -> None:
    """A rollback gives away all blocks of the old tree, shared or not."""

    def clear(self: radix.RadixMap) -> None:
        for visit in self.walk():
            if visit.entry < radix.PENDING:
                self.freed.append(visit.entry >> 1 & layout.BLOCK_MASK)
        self.root = 0
        self.own = 0

    patch.setattr(radix.RadixMap, "clear", clear)


def rollback_owns_the_snapshot(patch: Patch) -> None:
    """A rollback takes the snapshot's blocks for its own."""

    def take_over(self: radix.RadixMap, root: int, height: int, mapped: int) -> None:
        self.root, self.height, self.mapped = root and root | WRITABLE, height, mapped

    patch.setattr(radix.RadixMap, "replace", take_over)


def deleted_vdi_freed_before_it_is_gone(patch: Patch) -> None:
    """Blocks of deleted VDIs are used again before their table entries are durably free."""

    def retire(store: Blockstore, _locks: object, records: list[layout.VdiRecord]) -> None:
        for old in records:
            free = layout.VdiRecord(old.id, old.uuid, old.name, layout.FREE, old.sequence + 1)
            registry.Registry(store).write(replace(free, token=old.token))

    patch.setattr(collection, "retire", retire)


def records_before_nodes(patch: Patch) -> None:
    """Records are written with the nodes, under one flush."""

    def sync(self: commit.Commit) -> None:
        for change in self._changes:
            self._registry.write(change.new)
        self._store.device.flush()

    patch.setattr(commit.Commit, "sync", sync)


def commit_without_second_vdi(patch: Patch) -> None:
    """A commit of several VDIs writes the record of only one of them."""

    def sync(self: commit.Commit) -> None:
        self._store.device.flush()
        for change in self._changes[:1]:
            self._registry.write(change.new)
        if self._changes:
            self._store.device.flush()

    patch.setattr(commit.Commit, "sync", sync)


def given_back_before_vdis_are_gone(patch: Patch) -> None:
    """Blocks of deleted VDIs go back to the host while the VDIs can still be restored."""

    def make(run: Any) -> Any:
        def eager(self: collection.Collection) -> int:
            sb, allocator = self._store.sb, self._store.allocator
            for number in allocator.sealed:
                free = np.flatnonzero(np.unpackbits(self._of(number), bitorder="little"))
                for block in (free + sb.extent_start(number)).tolist():
                    self._store.device.discard(block << BLOCK_SHIFT, BLOCK)
            freed: int = run(self)
            return freed

        return eager

    _replace(patch, collection.Collection, "run", make)


def snapshots_not_marked(patch: Patch) -> None:
    """A collection takes what only snapshots reach for garbage, and gives it back."""

    def add_vdi(self: reclaim._Marks, record: layout.VdiRecord) -> None:
        self.add_tree(radix.RadixMap(self._store, record.root, record.height))
        self._add_log(record)

    patch.setattr(reclaim._Marks, "add_vdi", add_vdi)


BUGS: tuple[Bug, ...] = (
    first_flush_left_out,
    second_flush_left_out,
    data_flush_left_out,
    one_record_slot,
    no_record_checksum,
    block_reused_before_commit,
    freed_before_commit_ended,
    freed_bits_written_early,
    snapshot_overwritten_in_place,
    clone_overwrites_its_origin,
    bit_set_too_late,
    one_bitmap_slot,
    child_after_parent,
    log_page_reused,
    log_page_not_written,
    dropped_pages_freed_at_once,
    kept_page_skipped,
    partial_write_forgets_the_rest,
    rollback_frees_the_snapshot,
    rollback_owns_the_snapshot,
    deleted_vdi_freed_before_it_is_gone,
    given_back_before_vdis_are_gone,
    snapshots_not_marked,
    records_before_nodes,
    commit_without_second_vdi,
)
