"""An engine on a recording device, and a model that is told the same things.

Each method is one operation of a user: it changes the model, then the engine, and tells
the model what was acknowledged. An operation that makes no sense at the moment does
nothing, so that any list of operations may be run and shortened.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from support.memory import MemoryDevice, Pages, RecordingDevice
from support.model import Disk, SnapshotModel, VdiModel, old_or_new, read_disk
from support.reader import Violation
from support.syncing import Syncing

from core.blockstore import Blockstore
from core.check import check_store
from core.commit import PendingCommit
from core.errors import NoSpace
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    DELETED,
    FREE,
    LIVE,
    ZERO_BLOCK,
    SessionList,
    Superblock,
    VdiRecord,
    blocks_for,
)
from core.image import Image
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.schedule import MIN_INTERVAL_NS
from core.session import Session
from core.snaplog import Snapshot, SnapshotId
from core.vdi import Vdi

Op = tuple[Any, ...]
"""The name of a `Bench` method and its arguments."""


def empty_store(extent_blocks: int = 64, extents: int = 6) -> Pages:
    """The pages of a freshly formatted store."""
    device = MemoryDevice(extent_blocks * extents << BLOCK_SHIFT)
    format_device(device, extent_blocks << BLOCK_SHIFT, extents)
    return device.pages


def contents(length: int, seed: int) -> bytes:
    """Bytes that no other seed makes; zeros for seed 0."""
    return random.Random(seed).randbytes(length) if seed else bytes(length)


def _ignore() -> None:
    pass


class Bench:
    """A session and a model side by side.

    Args:
        pages: a formatted store.
        vdis: the model of what is in it.

    Attributes:
        vdis: the models by id, deleted VDIs included.
        refused: operations that did not fit.
        lossy: whether there may be unreachable blocks.
    """

    def __init__(self, pages: Pages, vdis: Iterable[VdiModel] = ()) -> None:
        sb = Superblock.unpack(pages[0])
        assert sb is not None
        self.sb = sb
        self.device = RecordingDevice(sb.size, pages)
        self.device.on_write = self._written
        self.vdis = {vdi.id: vdi.copy() for vdi in vdis}
        self.lossy = bool(self.vdis)
        self.refused = 0
        self._creating: VdiModel | None = None
        self._serial = 0
        self._open()

    def _open(self) -> None:
        locks = LockMaster()
        self.session = Session(Blockstore(self.device, locks), locks)
        self.handles: dict[int, Vdi] = {}
        self.pending: PendingCommit | None = None
        self._wait: Callable[[], None] = _ignore
        self._syncing: Syncing | None = None

    def run(self, operations: Iterable[Op]) -> None:
        for name, *arguments in operations:
            getattr(self, name)(*arguments)

    # -- finding -----------------------------------------------------------------------

    @property
    def live(self) -> list[VdiModel]:
        return [vdi for vdi in self.vdis.values() if not vdi.deleted]

    @property
    def restorable(self) -> list[VdiModel]:
        return [vdi for vdi in self.vdis.values() if vdi.deleted and not vdi.collected]

    def vdi(self, number: int) -> VdiModel | None:
        """The live VDI that a number of an operation means, modulo how many there are."""
        live = self.live
        return live[number % len(live)] if live else None

    def snapshots(self) -> list[tuple[VdiModel, SnapshotModel]]:
        return [(vdi, snap) for vdi in self.live for snap in vdi.snapshots]

    def record(self, vdi: VdiModel) -> VdiRecord:
        record = self.session.registry.get(vdi.id)
        assert record is not None
        return record

    def engine_snapshot(self, vdi: VdiModel, snap: SnapshotModel) -> Snapshot:
        [found] = [s for s in self.session.snapshots(self.record(vdi)) if s.id == snap.id]
        return found

    def handle(self, vdi: VdiModel) -> Vdi:
        if vdi.id not in self.handles:
            self.handles[vdi.id] = self.session.open_vdi(self.record(vdi))
        return self.handles[vdi.id]

    def image(self, vdi: VdiModel) -> Image:
        """What the engine reads from now on: the open VDI, or its last commit."""
        if vdi.id in self.handles:
            return self.handles[vdi.id]
        return self.session.live_image(self.record(vdi))

    # -- what the device saw -----------------------------------------------------------

    def _written(self, first: int, run: Sequence[bytes]) -> None:
        for block, page in enumerate(run, first):
            if block in (self.sb.sessions_slot(0), self.sb.sessions_slot(1)):
                assert SessionList.unpack(page, self.sb.uuid) is not None
            elif page == ZERO_BLOCK and 2 <= block < self.sb.copy_block:
                pass  # what a crash left of a creation is tidied up
            elif 2 <= block < self.sb.copy_block:
                number = (block - 2) // 2
                record = VdiRecord.unpack(page, self.sb.uuid, number)
                assert record is not None, f"block {block} of the VDI table is no record"
                assert block == self.sb.vdi_slot(number, record.sequence % 2) or self.lax
                self._recorded(record)
            else:
                assert block >= self.sb.extent_blocks, f"block {block} is written by a session"

    lax = False
    """Whether a planted bug may write records into wrong slots."""

    def _recorded(self, record: VdiRecord) -> None:
        new = self._creating
        if new is not None and new.id < 0:
            old = self.vdis.get(record.id)
            if old is None or (old.deleted and record.state == LIVE):
                new.id = record.id
                if old is not None:
                    new.floor, new.versions = old.floor, dict(old.versions)
                    new.committed = old.committed
                self.vdis[record.id] = new
        vdi = self.vdis[record.id]
        vdi.recorded(record.sequence)
        vdi.collected = record.state == FREE

    # -- doing -------------------------------------------------------------------------

    def _attempt(
        self, vdi: VdiModel, change: Callable[[], None], do: Callable[[], Any], commits: bool
    ) -> Any:
        """Do one thing to one VDI; a full store must leave all else as it was."""
        vdi.before = vdi.now()
        change()
        result = None
        try:
            result = do()
        except NoSpace:
            self.refused += 1
            vdi.failed(self._salvage(vdi))
        else:
            if commits:
                vdi.promised(vdi.now())
        finally:
            vdi.before = None
        return result

    def _salvage(self, vdi: VdiModel) -> Disk:
        """Read what a failed operation left: each sector old or new."""
        assert vdi.before is not None
        before, image = vdi.before, self.image(vdi)
        disk: Disk = {}
        for vblock in sorted({*before.disk, *vdi.disk, *(b for _, b, _ in vdi.history)}):
            at = vblock << BLOCK_SHIFT
            if at >= image.size:
                continue
            found = image.read(at, min(BLOCK, image.size - at)).ljust(BLOCK, b"\0")
            old = before.disk.get(vblock, ZERO_BLOCK)
            if not old_or_new(found, old, [vdi.disk.get(vblock, ZERO_BLOCK)]):
                raise Violation(f"a write that failed left block {vblock} of {vdi.name} wrong")
            if found != ZERO_BLOCK:
                disk[vblock] = found
        return disk

    def settle(self) -> None:
        """End the commit under way, as most operations do first."""
        if self.pending is not None:
            self.pending.finish()

    def create(self, size: int) -> None:
        self._make(VdiModel(-1, self._name(), size), None)

    def clone(self, number: int) -> None:
        snapshots = self.snapshots()
        if not snapshots:
            return
        self.settle()
        vdi, snap = snapshots[number % len(snapshots)]
        if vdi.committed is None or snap not in vdi.committed.snapshots:
            self.flush(self.live.index(vdi))
        new = VdiModel(-1, self._name(), snap.size, dict(snap.disk))
        self._make(new, self.engine_snapshot(vdi, snap))

    def _make(self, new: VdiModel, parent: Snapshot | None) -> None:
        self.settle()
        if len(self.live) >= self.sb.max_vdis // 2:
            return
        self._creating = new
        try:
            record = self.session.create(new.name, new.size, parent)
        finally:
            self._creating = None
        new.created(record.sequence - 1)

    def _name(self) -> str:
        """A name, or a label, that nothing has and nothing had lately."""
        taken = {vdi.name for vdi in self.vdis.values()}
        taken |= {vdi.committed.name for vdi in self.vdis.values() if vdi.committed}
        taken |= {snap.label for _, snap in self.snapshots()}
        self._serial += 1
        while f"n{self._serial}-äöü" in taken:
            self._serial += 1
        return f"n{self._serial}-äöü"

    def write(self, number: int, offset: int, length: int, seed: int) -> None:
        vdi = self.vdi(number)
        if vdi is None or not vdi.size:
            return
        offset %= vdi.size
        data = contents(min(length, vdi.size - offset), seed)
        handle = self.handle(vdi)
        self._attempt(
            vdi, lambda: vdi.write(offset, data), lambda: handle.write(offset, data), False
        )

    def trim(self, number: int, offset: int, length: int) -> None:
        self._zero(number, offset, length, Vdi.trim)

    def allocate_zeros(self, number: int, offset: int, length: int) -> None:
        self._zero(number, offset, length, Vdi.allocate_zeros)

    def _zero(
        self, number: int, offset: int, length: int, how: Callable[[Vdi, int, int], None]
    ) -> None:
        vdi = self.vdi(number)
        if vdi is None or not vdi.size:
            return
        offset %= vdi.size
        length = min(length, vdi.size - offset)
        handle = self.handle(vdi)
        self._attempt(
            vdi, lambda: vdi.zero(offset, length), lambda: how(handle, offset, length), False
        )

    def resize(self, number: int, size: int) -> None:
        """Change the size, durable only with the next flush."""
        vdi = self.vdi(number)
        if vdi is not None:
            handle = self.handle(vdi)
            self._attempt(vdi, lambda: vdi.resize(size), lambda: handle.resize(size), False)

    def resize_now(self, number: int, size: int) -> None:
        vdi = self.vdi(number)
        if vdi is not None:
            self.settle()
            record = self.record(vdi)
            self._attempt(
                vdi,
                lambda: vdi.resize(size),
                lambda: self.session.resize(record, size, force=True),
                True,
            )

    def rename(self, number: int) -> None:
        vdi = self.vdi(number)
        if vdi is not None:
            self.settle()
            name, record = self._name(), self.record(vdi)
            self._attempt(
                vdi, lambda: vdi.rename(name), lambda: self.session.rename(record, name), True
            )

    def snapshot(self, number: int) -> None:
        """Take a snapshot that is durable only with the next flush."""
        vdi = self.vdi(number)
        if vdi is not None:
            handle = self.handle(vdi)
            self._snapshot(vdi, lambda label: handle.snapshot(label), False)

    def snapshot_now(self, number: int) -> None:
        vdi = self.vdi(number)
        if vdi is not None:
            self.settle()
            record = self.record(vdi)
            self._snapshot(vdi, lambda label: self.session.snapshot(record, label), True)

    def _snapshot(self, vdi: VdiModel, take: Callable[[str], Any], commits: bool) -> None:
        label = self._name()

        def change() -> None:
            vdi.moment += 1
            snap = SnapshotModel(None, label, vdi.size, dict(vdi.disk))
            vdi.snapshots = (*vdi.snapshots, snap)

        def do() -> Any:
            where = take(label)
            vdi.snapshots = (*vdi.snapshots[:-1], replace(vdi.snapshots[-1], id=tuple(where)))
            return where

        self._attempt(vdi, change, do, commits)

    def ticks(self, number: int, keep: int, count: int = 1) -> None:
        """Have a schedule take snapshots and keep some; durable only with the next flush."""
        vdi = self.vdi(number)
        if vdi is None:
            return
        handle = self.handle(vdi)
        handle.set_schedule(MIN_INTERVAL_NS, keep)
        for _ in range(count):
            self._tick(vdi, handle, keep)

    def _tick(self, vdi: VdiModel, handle: Vdi, keep: int) -> None:
        label = self._name()
        self.lossy = True

        def change() -> None:
            vdi.moment += 1
            snap = SnapshotModel(None, label, vdi.size, dict(vdi.disk), scheduled=True)
            vdi.snapshots = (*vdi.snapshots, snap)

        def do() -> None:
            where = handle.snapshot(label, scheduled=True)
            vdi.snapshots = (*vdi.snapshots[:-1], replace(vdi.snapshots[-1], id=tuple(where)))
            handle.drop_scheduled()
            vdi.retain(keep)

        self._attempt(vdi, change, do, False)

    def _durable_snapshot(self, number: int) -> tuple[VdiModel, SnapshotModel] | None:
        """The snapshot that a number means, committed if need be."""
        snapshots = self.snapshots()
        if not snapshots:
            return None
        vdi, snap = snapshots[number % len(snapshots)]
        self.settle()
        if vdi.committed is None or snap.label not in {s.label for s in vdi.committed.snapshots}:
            self._commit([vdi])
        return vdi, snap

    def delete_snapshot(self, number: int) -> None:
        chosen = self._durable_snapshot(number)
        if chosen is None:
            return
        vdi, snap = chosen
        engine = self.engine_snapshot(vdi, snap)
        self.lossy = True

        def change() -> None:
            vdi.moment += 1
            vdi.snapshots = tuple(s for s in vdi.snapshots if s is not snap)

        self._attempt(vdi, change, lambda: self.session.delete_snapshot(engine), True)

    def rollback(self, number: int) -> None:
        chosen = self._durable_snapshot(number)
        if chosen is None:
            return
        vdi, snap = chosen
        self.release(self.live.index(vdi))
        engine, record = self.engine_snapshot(vdi, snap), self.record(vdi)
        self._attempt(
            vdi, lambda: vdi.rollback(snap), lambda: self.session.rollback(record, engine), True
        )

    def delete(self, number: int) -> None:
        vdi = self.vdi(number)
        if vdi is None:
            return
        self.settle()
        record = self.record(vdi)
        if self.session.clones(record):
            return
        self.release(self.live.index(vdi))
        record = self.record(vdi)
        self._attempt(vdi, vdi.delete, lambda: self.session.delete(record, snapshots=True), True)

    def restore(self, number: int) -> None:
        restorable = self.restorable
        if not restorable:
            return
        self.settle()
        vdi = restorable[number % len(restorable)]
        record = self.session.registry.find_deleted(str(vdi.id))
        self._attempt(vdi, vdi.restore, lambda: self.session.restore(record), True)

    def collect(self) -> None:
        """Commit all, collect and give back: no deleted VDI is left, and nothing unreachable.

        What a VDI shared with something that is gone now, it will leave behind later.
        """
        self.flush_all()
        plan = self.session.plan_collection()
        account = plan.account()
        assert {record.id for record, _ in account.own} == {vdi.id for vdi in self.restorable}
        assert self.session.collect(plan) == account.total
        assert not self.restorable, "a deleted VDI survived a collection"
        plan.give_back()
        unreachable = check_store(self.session.store).unreachable
        assert not unreachable, f"{unreachable} blocks are unreachable after a collection"

    # -- committing --------------------------------------------------------------------

    def flush(self, *numbers: int) -> None:
        """Commit some VDIs together."""
        self.settle()
        chosen = {vdi.id: vdi for n in numbers if (vdi := self.vdi(n)) is not None}
        if chosen:
            self._commit(list(chosen.values()))

    def flush_all(self) -> None:
        self.settle()
        self._commit(self.live)

    def _commit(self, vdis: list[VdiModel]) -> None:
        handles = [self.handle(vdi) for vdi in vdis]
        self.session.commit(handles)
        for vdi in vdis:
            vdi.promised(vdi.now())

    def without_room(self, room: int, name: str, *arguments: Any) -> None:
        """Flush or write while the device has room for so many blocks only.

        Records always fit: creating a VDI wrote to both their slots.
        """
        assert name in ("flush", "write", "trim", "allocate_zeros")
        self.settle()
        self.device.room, self.device.always = room, range(self.sb.extent_blocks)
        try:
            getattr(self, name)(*arguments)
        except NoSpace:
            self.refused += 1
        finally:
            self.device.room = sys.maxsize

    def begin(self, *numbers: int) -> None:
        """Prepare a commit; what follows happens while it waits for the disk."""
        self.settle()
        vdis = {vdi.id: vdi for n in numbers if (vdi := self.vdi(n)) is not None}
        handles = [self.handle(vdi) for vdi in vdis.values()]
        for vdi in vdis.values():
            vdi.prepared = vdi.now()
        self.pending = pending = self.session.begin_commit(handles)
        self._wait = pending.sync
        engine_finish = pending.finish

        def finish() -> None:
            """Wait, which with one thread means to do it, and note what is promised."""
            self.sync()
            engine_finish()
            if self.pending is pending:
                self.pending = None
                for vdi in vdis.values():
                    assert vdi.prepared is not None
                    version, vdi.prepared = vdi.prepared, None
                    vdi.promised(version)

        pending.finish = finish  # type: ignore[method-assign]

    def sync(self) -> None:
        """Do the waiting of a commit that was begun, not yet its end."""
        if self.pending is not None:
            wait, self._wait = self._wait, _ignore
            wait()
            assert self.pending.error is None

    def commit_beside(self, name: str, *arguments: Any) -> None:
        """Begin a commit of all; what the name says happens between its two flushes.

        So it is when one thread waits for the disk and another goes on serving. Such a
        commit is ended by whatever comes next.
        """
        self.begin(*range(len(self.live)))
        assert self.pending is not None
        self._syncing = Syncing(self.device, self.pending)
        self._wait = self._syncing.end
        getattr(self, name)(*arguments)

    def abandon(self) -> None:
        """Let no thread wait for this bench any more."""
        if self._syncing is not None:
            self._syncing.abandon()

    def release(self, number: int) -> None:
        vdi = self.vdi(number)
        self.settle()
        if vdi is not None and vdi.id in self.handles:
            self.session.release(self.handles.pop(vdi.id))
            vdi.promised(vdi.now())

    def close(self) -> None:
        """Close the session cleanly."""
        self.settle()
        self.session.close()
        for vdi in self.live:
            if vdi.id in self.handles:
                vdi.promised(vdi.now())
        self.handles.clear()

    def reopen(self) -> None:
        """Close cleanly, which leaks nothing, and open again."""
        self.close()
        self._open()
        if not self.lossy:
            unreachable = check_store(self.session.store).unreachable
            assert not unreachable, f"{unreachable} blocks are unreachable"

    def go_on(self, pages: Pages, vdis: Iterable[VdiModel]) -> None:
        """Go on from what a power cut left; the old session is never heard of again."""
        self.abandon()
        self.device = RecordingDevice(self.sb.size, pages)
        self.device.on_write = self._written
        self.vdis = {vdi.id: vdi for vdi in vdis}
        self.lossy = True
        self._open()

    # -- agreeing ----------------------------------------------------------------------

    def check(self) -> None:
        """Check everything: the store by the engine's own check, contents by the model."""
        self.check_contents()
        report = check_store(self.session.store)
        damage = [finding for finding in report.findings if finding.severity == "damage"]
        assert not damage, damage

    def check_contents(self) -> None:
        """Read all VDIs and snapshots through the engine and compare with the model."""
        registry = self.session.registry
        assert {record.id for record in registry.vdis()} == {v.id for v in self.live}
        deleted = {record.id for record in registry.vdis(DELETED)}
        assert deleted == {v.id for v in self.restorable}
        for vdi in [*self.live, *self.restorable]:
            self.compare(self.image(vdi), vdi.size, vdi.disk, vdi.name)
            self._check_record(vdi, self.record(vdi))

    def _check_record(self, vdi: VdiModel, record: VdiRecord) -> None:
        """Compare the record on disk, which may be newer than what was promised."""
        found = {snap.id: snap for snap in self.session.snapshots(record)}
        assert record.snapshots == len(found)
        [version] = [
            version
            for version in vdi.base(record.sequence)[:1]
            if record.name == version.name and [s.id for s in version.snapshots] == [*found][::-1]
        ]
        for snap in version.snapshots:
            assert snap.id is not None
            engine = found[SnapshotId(*snap.id)]
            assert (engine.label, engine.scheduled) == (snap.label, snap.scheduled)
            self.compare(self.session.image(engine), snap.size, snap.disk, snap.label)

    def compare(self, image: Image, size: int, disk: Any, name: str) -> None:
        """Compare what is stored, in one long read of each part, and one of all if small."""
        assert image.size == size, f"{name} has {image.size} bytes, not {size}"
        mapped = {
            vblock
            for extent in image.extents(0, size)
            if extent.data
            for vblock in range(
                extent.offset >> BLOCK_SHIFT, blocks_for(extent.offset + extent.length)
            )
        }
        for vblock in mapped | set(disk):
            at = vblock << BLOCK_SHIFT
            length = min(BLOCK, size - at)
            assert length > 0, f"{name} has data behind its end"
            expected = disk.get(vblock, ZERO_BLOCK)
            assert image.read(at, length) == expected[:length], f"{name}, block {vblock}"
        if size <= 1 << 20:
            assert image.read(0, size) == read_disk(disk, 0, size), name
