"""A session: one process that has a store open, and all that can be done with its VDIs.

Commands and the tap work through this class. Opened for reading it needs no lock and
works beside a writer: it sees what is committed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final
from weakref import WeakSet

from core import snaplog
from core.blockstore import Blockstore, Mode
from core.commit import PendingCommit
from core.device import Cache
from core.errors import BadRequest, Corrupt, InUse, NoSpace, NotFound, ParallaxError
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    DELETED,
    LIVE,
    MAX_VDI_SIZE,
    WRITABLE,
    LogBlock,
    VdiRecord,
    height_for,
)
from core.image import Image
from core.lock_master import LockMaster
from core.progress import Progress, silent
from core.reclaim import KEEP_LIVE, Reclaim
from core.registry import Registry, check_name, suggest
from core.snaplog import Snapshot, SnapshotId
from core.text import counted
from core.vdi import Vdi, prepare_commit

_ID_LENGTH: Final = 24


class Session:
    """An open store and its VDIs.

    Args:
        store: the open store.
        locks: grants VDIs and extents.
    """

    def __init__(self, store: Blockstore, locks: LockMaster) -> None:
        """Open no VDI yet."""
        self.store = store
        self.registry = Registry(store)
        self._locks = locks
        self._open: dict[int, tuple[Vdi, int]] = {}
        self._pending: PendingCommit | None = None
        self._collected = False
        self._names: dict[str, int] | None = None
        self._free_ids = self.registry.free_ids()
        self._deleted: set[Snapshot] = set()
        self._images: WeakSet[Image] = WeakSet()

    @classmethod
    def open(cls, path: str, mode: Mode = "write", cache: Cache = "host") -> Session:
        """Open the store in a file or device; raises as `Blockstore.open`."""
        locks = LockMaster()
        return cls(Blockstore.open(path, mode, locks, cache), locks)

    def __enter__(self) -> Session:
        """Return itself; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Commit what is open and let go of the store; a second call does nothing.

        Raises:
            NoSpace, IoFailed, Fenced: the last commit failed; everything is closed.
        """
        try:
            if self._open and self.store.failed is None:
                self.commit([vdi for vdi, _ in self._open.values() if vdi.written])
        finally:
            for vdi, _ in self._open.values():
                vdi.close()
            self._open.clear()
            self.store.close()

    # -- finding -----------------------------------------------------------------------

    def snapshots(self, record: VdiRecord) -> Iterator[Snapshot]:
        """Yield the snapshots of a VDI, newest first; see `snaplog.snapshots`."""
        return snaplog.snapshots(self.store, record)

    def find_snapshot(self, reference: str) -> Snapshot:
        """Return the snapshot that `BLOCK.OFFSET`, `VDI@LABEL` or `VDI@BLOCK.OFFSET` names.

        When several snapshots of a VDI have the label, the newest is meant.

        Raises:
            NotFound: there is no such VDI or snapshot; the hint has labels that come close.
            BadRequest: the reference has none of these forms.
        """
        vdi, at, label = reference.rpartition("@")
        where = parse_snapshot_id(label)
        if where is None and not at:
            raise BadRequest(
                f"{reference!r} names no snapshot", "write BLOCK.OFFSET, VDI@LABEL or BLOCK OFFSET"
            )
        hint = "'plxsh snap list VDI' shows those of a VDI"
        if not at:
            assert where is not None
            found = self._snapshot_anywhere(where)
            if found is not None:
                return found
        else:
            labels = []
            for snapshot in self.snapshots(self.registry.find(vdi)):
                if snapshot.id == where or (where is None and snapshot.label == label):
                    return snapshot
                labels.append(snapshot.label)
            if where is None:
                hint = suggest(label, filter(None, labels), f"{vdi}@") or hint
        raise NotFound(f"there is no snapshot {reference}", hint)

    def _snapshot_anywhere(self, where: SnapshotId) -> Snapshot | None:
        """Find a snapshot by its id alone: its block tells whose it is."""
        sb = self.store.sb
        if not sb.holds_payload(where.block):
            return None
        raw = self.store.device.pread(where.block << BLOCK_SHIFT, BLOCK)
        page = LogBlock.unpack(raw, sb.uuid)
        record = self.registry.get(page.vdi) if page else None
        if record is not None and record.state == LIVE:
            found = snaplog.find(self.store, record, where)
            if found is not None:
                return found
        for record in self.registry.vdis():
            if record.log_block == where.block:
                return snaplog.find(self.store, record, where)
        return None

    def image(self, snapshot: Snapshot) -> Image:
        """Return the contents of a snapshot, for reading.

        As long as it is in use, this session frees none of its blocks.
        """
        image = Image(self.store, snapshot.root, snapshot.height, snapshot.size)
        self._images.add(image)
        return image

    @contextmanager
    def reading(self, snapshot: Snapshot) -> Iterator[Image]:
        """Give out the contents of a snapshot for the length of a `with` block.

        Raises:
            NotFound: at the end, when another session deleted it meanwhile: then what
                was read may be anything.
        """
        yield self.image(snapshot)
        record = self.registry.get(snapshot.vdi)
        same = record is not None and record.uuid == snapshot.vdi_uuid and record.state == LIVE
        if record is None or not same or snaplog.find(self.store, record, snapshot.id) is None:
            raise NotFound(
                f"snapshot {snapshot.id} was deleted while it was read", "use another snapshot"
            )

    def live_image(self, record: VdiRecord) -> Image:
        """Return the contents of a VDI as of its last commit, for reading.

        Meaningful only while nobody writes: open the session as "shared" or "write".
        """
        return Image(self.store, record.root, record.height, record.size)

    def clones(self, record: VdiRecord) -> list[VdiRecord]:
        """Return the VDIs that were made from a snapshot of this one."""
        return [r for r in self.registry.vdis() if r.parent_uuid == record.uuid]

    def clones_of(self, snapshot: Snapshot) -> list[VdiRecord]:
        """Return the VDIs that were made from one snapshot."""
        made_from = (snapshot.vdi_uuid, *snapshot.id)
        return [
            r
            for r in self.registry.vdis()
            if (r.parent_uuid, r.parent_block, r.parent_offset) == made_from
        ]

    # -- making and dropping VDIs ------------------------------------------------------

    def create(self, name: str, size: int = 0, parent: Snapshot | None = None) -> VdiRecord:
        """Make a VDI, empty or a clone of a snapshot, and return its record.

        Args:
            name: unique among the VDIs of the store.
            size: bytes; a clone has the size of its snapshot unless this is more.
            parent: the snapshot to clone.

        Raises:
            BadRequest: the name or the size is not possible, or the name is taken.
        """
        check_name(name)
        if not 0 <= size <= MAX_VDI_SIZE:
            raise BadRequest(
                f"a VDI of {size} bytes is not possible", f"the most is {MAX_VDI_SIZE} (256T)"
            )
        if parent is not None and 0 < size < parent.size:
            raise BadRequest(
                f"the snapshot has {parent.size} bytes, the clone cannot have {size}",
                "clone it without --size, then use 'vdi resize --force'",
            )
        self.store.allocator  # noqa: B018  # refuses a store open for reading
        grant = self._locks.acquire("registry")
        try:
            self._refuse_taken(name)
            self._settle()
            record = self._write_new(name, parent.size if parent else size, parent)
            self._vdi_names()[name] = record.id
        finally:
            grant.release()
        if parent is not None and size > parent.size:
            self.resize(record, size)
        return record

    def _vdi_names(self) -> dict[str, int]:
        """Return the id of every name; only this session changes them."""
        if self._names is None:
            self._names = {record.name: record.id for record in self.registry.vdis()}
        return self._names

    def _refuse_taken(self, name: str) -> None:
        number = self._vdi_names().get(name)
        if number is not None:
            raise BadRequest(f"the name {name!r} is taken by VDI {number}", "choose another name")

    def _next_id(self) -> int:
        number = next(self._free_ids, None)
        if number is None:
            raise BadRequest(
                f"the store has room for {self.store.sb.max_vdis} VDIs and all are taken",
                "delete some and run 'plxsh store gc'",
            )
        return number

    def _write_new(self, name: str, size: int, parent: Snapshot | None) -> VdiRecord:
        """Write the record of a new VDI, make it durable, then fill its second slot."""
        source = None if parent is None else self._owner(parent)
        number = self._next_id()
        old = self.registry.get(number)
        grant = self._locks.acquire(f"vdi/{number}", old.token if old else 0)
        now = time.time_ns()
        record = VdiRecord(
            number,
            uuid.uuid4().bytes,
            name,
            sequence=old.sequence + 1 if old else 1,
            size=size,
            height=height_for(size),
            token=grant.token,
            created_ns=now,
            modified_ns=now,
            session=self.store.session,
        )
        if parent is not None and source is not None:
            record = replace(
                record,
                root=parent.root & ~WRITABLE,
                height=parent.height,
                mapped=parent.mapped,
                parent_vdi=source.id,
                parent_uuid=source.uuid,
                parent_block=parent.id.block,
                parent_offset=parent.id.offset,
            )
        try:
            self._commit_new(record)
            with suppress(NoSpace):  # one slot is enough until the first change
                again = replace(record, sequence=record.sequence + 1)
                self.registry.write(again)
                record = again
        finally:
            grant.release()
        return record

    def _commit_new(self, record: VdiRecord) -> None:
        """Make the first record of a VDI durable: all that it refers to is durable already."""
        self.store.check_writable()
        self.registry.write(record)
        try:
            self.store.device.flush()
        except ParallaxError as error:
            self.store.fail(error)
            raise

    def rename(self, record: VdiRecord, name: str) -> None:
        """Give a VDI another name; raises as `create`."""
        check_name(name)
        if name != record.name:
            self._refuse_taken(name)
        with self.opened(record) as vdi:
            vdi.amend(name=name)
        self._names = None

    def resize(self, record: VdiRecord, size: int, force: bool = False) -> None:
        """Change the size of a VDI in bytes.

        Raises:
            BadRequest: the size is not possible, or data would be lost and `force` is
                not set.
        """
        with self.opened(record) as vdi:
            if size < vdi.size and not force:
                lost = sum(e.length for e in vdi.extents(size, vdi.size - size) if e.data)
                if lost:
                    raise BadRequest(
                        f"{lost} bytes of data lie behind byte {size} of VDI {vdi.name!r}",
                        "use --force to lose them, or take a snapshot first",
                    )
            vdi.resize(size)

    def delete(self, record: VdiRecord, snapshots: bool = False) -> None:
        """Delete a VDI; until garbage collection frees its space, `restore` brings it back.

        Raises:
            InUse: it has snapshots and `snapshots` is not set, it has clones, or it is
                open.
            NotFound: it was deleted in the meantime.
        """
        self.refuse_delete(record, snapshots)
        with self.opened(record) as vdi:
            vdi.amend(state=DELETED, deleted_ns=time.time_ns())
        self._names = None
        self._collected = False

    def refuse_delete(self, record: VdiRecord, snapshots: bool) -> None:
        """Raise what `delete` would raise, and change nothing."""
        record = self._current(record)
        if record.snapshots and not snapshots:
            raise InUse(
                f"VDI {record.name!r} has {counted(record.snapshots, 'snapshot')}",
                "delete them too with --snapshots",
            )
        clones = self.clones(record)
        if clones:
            names = ", ".join(repr(clone.name) for clone in clones[:5])
            more = f" and {len(clones) - 5} more" if len(clones) > 5 else ""
            raise InUse(f"VDI {record.name!r} has clones: {names}{more}", "delete the clones first")
        if record.id in self._open:
            raise InUse(f"VDI {record.name!r} is open", "close it first")

    def restore(self, record: VdiRecord, name: str = "") -> None:
        """Bring a deleted VDI back with all its snapshots.

        Nothing it refers to was freed: whatever frees unreachable blocks first makes all
        deleted VDIs free table entries, durably.

        Args:
            record: as it was when it was found.
            name: another name for it.

        Raises:
            BadRequest: the name is not possible, or taken.
            NotFound: it was collected in the meantime.
        """
        self.store.allocator  # noqa: B018  # refuses a store open for reading
        current = self.registry.get(record.id)
        if current is None or current.uuid != record.uuid or current.state != DELETED:
            raise NotFound(
                f"VDI {record.id} {record.name!r} cannot be restored any more",
                "'plxsh vdi list --deleted' shows those that can",
            )
        name = name or record.name
        check_name(name)
        number = self._vdi_names().get(name)
        if number is not None:
            raise BadRequest(
                f"the name {name!r} is taken by VDI {number}", "give another one with --name"
            )
        grant = self._locks.acquire(f"vdi/{record.id}", current.token)
        vdi = Vdi(self.store, current, grant, self.make_room)
        try:
            vdi.amend(state=LIVE, deleted_ns=0, name=name)
            self.commit([vdi])
        finally:
            vdi.close()
        self._names = None

    # -- snapshots ---------------------------------------------------------------------

    def snapshot(self, record: VdiRecord, label: str = "") -> SnapshotId:
        """Take a snapshot of a VDI and return its id; see `Vdi.snapshot`."""
        with self.opened(record) as vdi:
            return vdi.snapshot(label)

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Delete a snapshot; clones made from it are not affected."""
        with self.opened(self._owner(snapshot)) as vdi:
            vdi.delete_snapshot(snapshot)
        self._deleted.add(snapshot)
        self._collected = False

    def rollback(self, record: VdiRecord, snapshot: Snapshot) -> None:
        """Make the contents of a VDI those of one of its snapshots.

        Raises:
            BadRequest: it is a snapshot of another VDI.
            InUse: the VDI is open.
        """
        if snapshot.vdi != record.id:
            raise BadRequest(
                f"{snapshot.id} is no snapshot of VDI {record.name!r}",
                "clone it with 'vdi create NAME --from SNAPSHOT'",
            )
        self._owner(snapshot)
        if record.id in self._open:
            raise InUse(f"VDI {record.name!r} is open", "close it first")
        with self.opened(record) as vdi:
            vdi.rollback(snapshot)

    def _owner(self, snapshot: Snapshot) -> VdiRecord:
        """Return the VDI of a snapshot, which must not be deleted meanwhile."""
        record = self.registry.get(snapshot.vdi)
        gone = record is None or record.uuid != snapshot.vdi_uuid or record.state != LIVE
        if record is None or gone or snapshot in self._deleted:
            raise NotFound(f"snapshot {snapshot.id} was deleted", "list the snapshots again")
        return record

    # -- opening and committing --------------------------------------------------------

    def open_vdi(self, record: VdiRecord) -> Vdi:
        """Open a VDI for writing; each call needs its `release`.

        Callers of one session share one `Vdi`.

        Raises:
            NotFound: it was deleted in the meantime.
            ReadOnly: the store is open for reading.
        """
        vdi, users = self._open.get(record.id, (None, 0))
        if vdi is None:
            self.store.allocator  # noqa: B018  # refuses a store open for reading
            current = self._current(record)
            grant = self._locks.acquire(f"vdi/{record.id}", current.token)
            vdi = Vdi(self.store, current, grant, self.make_room)
        self._open[record.id] = (vdi, users + 1)
        return vdi

    def _current(self, record: VdiRecord) -> VdiRecord:
        """Return the record as it is on disk now."""
        current = self.registry.get(record.id)
        if current is None or current.uuid != record.uuid or current.state != LIVE:
            raise NotFound(f"there is no VDI {record.name!r} any more", "list them again")
        return current

    def release(self, vdi: Vdi) -> None:
        """Undo one `open_vdi`; the last one commits and gives the VDI up.

        Raises:
            NoSpace, IoFailed, Fenced: the commit failed; the VDI is given up.
        """
        _, users = self._open[vdi.id]
        if users > 1:
            self._open[vdi.id] = (vdi, users - 1)
            return
        try:
            if vdi.written and self.store.failed is None:
                self.commit([vdi])
        finally:
            del self._open[vdi.id]
            vdi.close()

    @contextmanager
    def opened(self, record: VdiRecord) -> Iterator[Vdi]:
        """Open a VDI for the length of a `with` block; commit at its end.

        An error inside gives the VDI up without a commit, unless others have it open.
        """
        vdi = self.open_vdi(record)
        try:
            yield vdi
            self.commit([vdi])
        except BaseException:
            _, users = self._open[vdi.id]
            if users == 1:
                del self._open[vdi.id]
                vdi.close()
            else:
                self._open[vdi.id] = (vdi, users - 1)
            raise
        self.release(vdi)

    @property
    def open_vdis(self) -> list[Vdi]:
        """The VDIs that are open."""
        return [vdi for vdi, _ in self._open.values()]

    def begin_commit(self, vdis: Iterable[Vdi]) -> PendingCommit:
        """Prepare a commit of some VDIs, after the one before; see `PendingCommit`.

        Raises:
            NoSpace, IoFailed, Fenced: as `prepare_commit`, or the one before failed.
        """
        self._settle()
        self._pending = PendingCommit(prepare_commit(self.store, vdis))
        return self._pending

    def commit(self, vdis: Iterable[Vdi]) -> None:
        """Make all that was written to some VDIs durable.

        Raises:
            NoSpace: the file system under the store is full; nothing is lost, try again.
            Fenced, IoFailed: see `Commit`.
        """
        self.begin_commit(vdis).sync()
        self._settle()

    def _settle(self) -> None:
        """Finish the commit under way, if there is one: two never overlap."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()

    def make_room(self) -> bool:
        """Free what waits for a commit, or else what deletions left.

        Returns:
            Whether there is any use in trying again what did not fit.
        """
        allocator = self.store.allocator
        before = allocator.free
        try:
            self.commit([vdi for vdi in self.open_vdis if vdi.map.freed])
            if allocator.free == before and not self._collected:
                self.collect()
        except (Corrupt, NoSpace):
            pass  # what a damaged block refers to is not known to be free
        return allocator.free > before

    def plan_collection(
        self, keep: Collection[int] = KEEP_LIVE, progress: Progress = silent
    ) -> Reclaim:
        """Mark what a collection has to leave alone; `collect` then frees the rest.

        Args:
            keep: states of the VDIs that lose nothing.
            progress: see `Reclaim`.

        Raises:
            Corrupt: what a damaged block refers to is unknown.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        self.commit(self.open_vdis)
        reading = [image.map for image in self._images]
        return Reclaim(self.store, self._locks, reading, keep, progress)

    def collect(self, plan: Reclaim | None = None) -> int:
        """Free what nothing refers to and what deleted VDIs hold; return the blocks freed.

        Args:
            plan: what to free; by default all that can be freed now.

        Raises:
            Corrupt: what a damaged block refers to is unknown; nothing is freed.
            InUse: something was written since the plan was made; nothing is freed.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        self._collected = True
        freed = (plan or self.plan_collection()).run()
        self._free_ids = self.registry.free_ids()
        return freed


def parse_snapshot_id(text: str) -> SnapshotId | None:
    """Return the id that `BLOCK.OFFSET` stands for, None for any other text."""
    block, dot, offset = text.partition(".")
    if (
        len(text) <= _ID_LENGTH
        and dot
        and block.isascii()
        and block.isdigit()
        and offset.isascii()
        and offset.isdigit()
    ):
        return SnapshotId(int(block), int(offset))
    return None
