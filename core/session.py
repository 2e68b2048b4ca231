"""A session: one process that has a store open, and all that can be done with its VDIs.

Commands and the tap work through this class. Opened for reading it needs no lock and
works beside a writer: it sees what is committed.

Several sessions may have one store open for writing, each with its own VDIs and extents.
Who wants something done with a VDI that another one has open asks it (`core.beside`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from weakref import WeakSet

from core import snaplog
from core.answering import Answers
from core.beside import attend, tell_grown, wherever_open
from core.blockstore import Blockstore, Mode
from core.collection import Collection as Plan
from core.collection import Member, Sealing, others
from core.commit import PendingCommit
from core.device import Cache
from core.errors import BadRequest, Corrupt, Fenced, InUse, NoSpace, NotFound, ParallaxError
from core.features import enable
from core.finding import find_snapshot, parse_snapshot_id
from core.format import INCOMPAT_SCHEDULES, LIVE, Superblock, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.locks import Grant, Locks
from core.mkfs import extend
from core.progress import Progress, silent
from core.radix import RadixMap
from core.reclaim import KEEP_LIVE
from core.registry import Registry
from core.remote import Argument
from core.schedule import check_schedule
from core.snaplog import Snapshot, SnapshotId
from core.taking_over import acquire, take_over
from core.vdi import Vdi, prepare_commit
from core.vdi_table import PATIENCE, VdiTable

__all__ = ["Session", "parse_snapshot_id"]

_SEAL_EVERY: Final = 2.0
"""Seconds after which to look again whether a collection is still on."""


class Session:
    """An open store and its VDIs.

    Where other sessions may have the store open too, it holds `session/HEX` as long as it is
    open for writing: so others know that it is there, and ask it.

    Args:
        store: the open store.
        locks: grants VDIs and extents.

    Attributes:
        join_name: the lock that says that it is there.
        answers: what it does when others ask it.
        member: its part in collections, its own and those of others.

    Raises:
        InUse, IoFailed: the lock master does not let it join.
    """

    def __init__(self, store: Blockstore, locks: Locks) -> None:
        """Open no VDI yet."""
        self.store = store
        self.locks = locks
        self.registry = Registry(store)
        self.member = Member(store, locks, self.settle, self.reading_now)
        self.answers = Answers(self)
        self._table = VdiTable(self)
        self._open: dict[int, tuple[Vdi, int]] = {}
        self._changing: list[int] = []
        self._look_at_seal = 0.0
        self._standing: dict[int, Grant] = {}
        self._pending: PendingCommit | None = None
        self._collected = False
        self._deleted: set[Snapshot] = set()
        self._images: WeakSet[Image] = WeakSet()
        self._join()

    def _join(self) -> None:
        """Say to the lock master that this session is there."""
        self.join_name = f"session/{self.store.session.hex()}"
        self._joined: Grant | None = None
        if self.locks.shared and self.store.writable:
            self._joined = self.locks.acquire(self.join_name, wait=PATIENCE)

    @classmethod
    def open(
        cls, path: str, mode: Mode = "write", cache: Cache = "host", locks: Locks | None = None
    ) -> Session:
        """Open the store in a file or device; raises as `Blockstore.open`.

        Args:
            path: the file or device.
            mode: what for.
            cache: whose memory stands before it.
            locks: a session with a lock master; without one this process has the store for
                itself. Leased ones are closed with the session, also when this fails.
        """
        mine = locks or LockMaster()
        try:
            store = Blockstore.open(path, mode, mine, cache)
            try:
                return cls(store, mine)
            except BaseException:
                store.close()
                raise
        except BaseException:
            if mine.leased:
                mine.close()
            raise

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
            self.member.close()
            if self._open and self.store.failed is None:
                self._commit_last(self.open_vdis)
        finally:
            for vdi in self.open_vdis:
                self.drop(vdi)
            for grant in self._standing.values():
                grant.release()
            with suppress(ParallaxError):
                self.attend()  # whoever waits for a VDI that is free now can go on
            try:
                self.store.close()
            finally:
                if self._joined is not None:
                    self._joined.release()
                if self.locks.leased:
                    self.locks.close()

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
        return find_snapshot(self.store, reference)

    def image(self, snapshot: Snapshot) -> Image:
        """Return the contents of a snapshot, for reading.

        As long as it is in use, this session frees none of its blocks.
        """
        image = Image(self.store, snapshot.root, snapshot.height, snapshot.size)
        image.attend = self.attend
        self._images.add(image)
        return image

    def reading_now(self) -> list[RadixMap]:
        """Return the trees of the snapshots that are in use."""
        return [image.map for image in self._images]

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

        Meaningful only while nobody writes: open the session as "shared" or "write". Where
        others may write, they are kept from opening the VDI until this session is closed
        or opens it itself.

        Raises:
            InUse: another session has it open.
            NotFound: it was deleted in the meantime.
        """
        if self.locks.shared and record.id not in self._open:
            if record.id not in self._standing:
                self._standing[record.id] = acquire(self, self.current(record), shared=True)
            record = self.current(record)
        image = Image(self.store, record.root, record.height, record.size)
        image.attend = self.attend
        return image

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
            and r.created_ns >= snapshot.time_ns  # the place may be that of an earlier one
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
            NotFound: the snapshot was deleted.
        """
        record = self._table.create(name, size, parent)
        if parent is not None and size > parent.size:
            self.resize(record, size)
        return record

    def rename(self, record: VdiRecord, name: str) -> None:
        """Give a VDI another name, wherever it is open; raises as `create` and `snapshot`."""

        def here(vdi: Vdi) -> Argument:
            vdi.amend(name=name)
            return {}

        with self._table.renaming(record, name):
            wherever_open(self, record, "rename", {"name": name}, here)

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
        self._table.delete(record, snapshots)
        self._collected = False

    def refuse_delete(self, record: VdiRecord, snapshots: bool) -> None:
        """Raise what `delete` would raise, and change nothing."""
        self._table.refuse_delete(record, snapshots)

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
        self._table.restore(record, name)

    # -- snapshots ---------------------------------------------------------------------

    def snapshot(self, record: VdiRecord, label: str = "") -> SnapshotId:
        """Take a snapshot of a VDI, wherever it is open, and return its id.

        Raises:
            BadRequest, NoSpace: as `Vdi.snapshot`.
            InUse, IoFailed: as `core.beside.wherever_open`.
        """

        def here(vdi: Vdi) -> Argument:
            return vdi.snapshot(label)._asdict()

        answer = wherever_open(self, record, "snapshot", {"label": label}, here)
        return SnapshotId(int(answer["block"]), int(answer["offset"]))

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Delete a snapshot; clones made from it are not affected. Raises as `snapshot`."""

        def here(vdi: Vdi) -> Argument:
            if self.locks.shared:
                self.owner(snapshot)  # it may have been deleted before the VDI was free
            vdi.delete_snapshot(snapshot)
            return {}

        named = {**snapshot.id._asdict(), "time_ns": snapshot.time_ns}
        wherever_open(self, self.owner(snapshot), "delete_snapshot", named, here)
        self._deleted.add(snapshot)
        self._collected = False

    def schedule(self, record: VdiRecord, every_ns: int, keep: int) -> None:
        """Have snapshots of a VDI taken while it is served; see `Vdi.set_schedule`.

        Raises:
            BadRequest: there can be no such schedule.
            Others: as `snapshot`.
        """
        check_schedule(every_ns, keep)

        def here(vdi: Vdi) -> Argument:
            vdi.set_schedule(every_ns, keep)
            return {}

        if every_ns:
            with self._table.locked():
                self.store.refresh()  # what it says is written back with one feature more
                enable(self.store, INCOMPAT_SCHEDULES)
        named = {"every_ns": every_ns, "keep": keep}
        wherever_open(self, record, "schedule", named, here)

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
        self.owner(snapshot)
        self.refuse_open(record)
        with self.opened(record) as vdi:
            self.owner(snapshot)
            vdi.rollback(snapshot)

    def owner(self, snapshot: Snapshot) -> VdiRecord:
        """Return the VDI of a snapshot.

        Raises:
            NotFound: the VDI or the snapshot was deleted in the meantime.
        """
        record = self.registry.get(snapshot.vdi)
        gone = record is None or record.uuid != snapshot.vdi_uuid or record.state != LIVE
        if record is not None and not gone and self.locks.shared:
            found = snaplog.find(self.store, record, snapshot.id)
            gone = found is None or found.time_ns != snapshot.time_ns
        if record is None or gone or snapshot in self._deleted:
            raise NotFound(f"snapshot {snapshot.id} was deleted", "list the snapshots again")
        return record

    def refuse_open(self, record: VdiRecord) -> None:
        """Refuse a VDI that this session has open.

        Raises:
            InUse: it has.
        """
        if record.id in self._open:
            raise InUse(f"VDI {record.name!r} is open", "close it first")

    # -- opening and committing --------------------------------------------------------

    def open_vdi(self, record: VdiRecord, grant: Grant | None = None) -> Vdi:
        """Open a VDI for writing; each call needs its `release`.

        Callers of one session share one `Vdi`.

        Args:
            record: the VDI, as it was found.
            grant: the right to write it, if the caller got that already; it is given back
                when this fails.

        Raises:
            NotFound: it was deleted in the meantime.
            InUse: another session has it open; the message says who.
            ReadOnly: the store is open for reading.
        """
        vdi, users = self._open.get(record.id, (None, 0))
        if vdi is None:
            self.store.allocator  # noqa: B018  # refuses a store open for reading
            if record.id in self._standing:
                self._standing.pop(record.id).release()
            try:
                current = self.current(record)
                grant = grant or acquire(self, current)
                vdi = take_over(self, current, grant)
            except BaseException:
                if grant is not None:
                    grant.release()
                raise
        elif grant is not None:
            grant.release()
        self._open[record.id] = (vdi, users + 1)
        return vdi

    def current(self, record: VdiRecord) -> VdiRecord:
        """Return the record of a VDI as it is on disk now.

        Raises:
            NotFound: it was deleted in the meantime.
        """
        current = self.registry.get(record.id)
        if current is None or current.uuid != record.uuid or current.state != LIVE:
            raise NotFound(f"there is no VDI {record.name!r} any more", "list them again")
        return current

    def release(self, vdi: Vdi) -> None:
        """Undo one `open_vdi`; the last one commits and gives the VDI up.

        One that was dropped meanwhile has been given up already.

        Raises:
            NoSpace, IoFailed, Fenced: the commit failed; the VDI is given up.
        """
        known, users = self._open.get(vdi.id, (None, 0))
        if known is not vdi:
            return
        if users > 1:
            self._open[vdi.id] = (vdi, users - 1)
            return
        try:
            if self.store.failed is None:
                self._commit_last([vdi])
        finally:
            self.drop(vdi)

    def drop(self, vdi: Vdi) -> None:
        """Give up a VDI with all its users and without a commit, for instance a lost one.

        A commit under way ends first: nothing may be on its way when the lock is given back.
        """
        with suppress(ParallaxError):
            self.settle()
        if self._open.get(vdi.id, (None, 0))[0] is vdi:
            del self._open[vdi.id]
        vdi.close()

    @contextmanager
    def opened(self, record: VdiRecord) -> Iterator[Vdi]:
        """Open a VDI for the length of a `with` block; commit at its end.

        An error inside gives the VDI up without a commit, unless others have it open.
        """
        with self.closing(self.open_vdi(record)) as vdi:
            yield vdi

    @contextmanager
    def closing(self, vdi: Vdi) -> Iterator[Vdi]:
        """Commit and release a VDI at the end of a `with` block; see `opened`."""
        self._changing.append(vdi.id)
        try:
            yield vdi
            _, users = self._open[vdi.id]
            self.commit([vdi], [vdi] if users == 1 else ())
        except BaseException:
            known, users = self._open.get(vdi.id, (None, 0))
            if known is vdi and users > 1:
                self._open[vdi.id] = (vdi, users - 1)
            else:
                self.drop(vdi)
            raise
        finally:
            self._changing.remove(vdi.id)
        self.release(vdi)

    def is_changing(self, vdi: Vdi) -> bool:
        """Return whether a VDI is in the middle of a change that ends with a commit."""
        return vdi.id in self._changing

    @property
    def open_vdis(self) -> list[Vdi]:
        """The VDIs that are open."""
        return [vdi for vdi, _ in self._open.values()]

    @property
    def held_vdis(self) -> list[Vdi]:
        """The VDIs that are open and still this session's."""
        return [vdi for vdi in self.open_vdis if not vdi.is_lost]

    def begin_commit(self, vdis: Iterable[Vdi], last: Collection[Vdi] = ()) -> PendingCommit:
        """Prepare a commit of some VDIs, after the one before; see `PendingCommit`.

        VDIs that this session has lost are left out, and it says so.

        Args:
            vdis: what to commit.
            last: those of them that are given up right after it; see `Vdi.change`.

        Raises:
            NoSpace, IoFailed, Fenced: as `prepare_commit`, or the one before failed.
        """
        self.settle()
        held: list[Vdi] = []
        left_out: dict[int, Fenced] = {}
        for vdi in vdis:
            try:
                vdi.check()
            except Fenced as error:
                left_out[vdi.id] = error
                continue
            held.append(vdi)
            old, new = vdi.record, vdi.latest
            if new.snapshots < old.snapshots or new.log_retired > old.log_retired:
                self._collected = False
        self._pending = PendingCommit(prepare_commit(self.store, held, last), left_out)
        return self._pending

    def commit(self, vdis: Iterable[Vdi], last: Collection[Vdi] = ()) -> None:
        """Make all that was written to some VDIs durable; arguments as `begin_commit`.

        Raises:
            NoSpace: the file system under the store is full; nothing is lost, try again.
            Fenced: one of the VDIs is lost; the others are committed.
            Fenced, IoFailed: see `Commit`.
        """
        pending = self.begin_commit(vdis, last)
        pending.sync()
        self.settle()
        for error in pending.left_out.values():
            raise error

    def _commit_last(self, vdis: Iterable[Vdi]) -> None:
        """Commit VDIs that are given up, and leave word that nobody writes to them.

        That takes a commit of its own only where another session could come next.
        """
        left = []
        for vdi in vdis:
            if self.locks.shared and vdi.record.session == self.store.session:
                vdi.amend()
            if vdi.written and not vdi.is_lost:
                left.append(vdi)
        if left:
            self.commit(left, left)

    def settle(self) -> None:
        """Finish the commit under way, if there is one: two never overlap.

        Raises:
            IoFailed, Fenced: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()
            for number, error in pending.lost.items():
                if number in self._open:
                    self._open[number][0].lose(error)

    # -- beside other sessions ---------------------------------------------------------

    def attend(self) -> None:
        """Follow the calls of other sessions that wait; costs next to nothing without any.

        Whoever does long work calls it now and then. A server follows them in its own way.
        """
        attend(self, self.answers)
        now = time.monotonic()
        if self.member.token and now >= self._look_at_seal:
            self._look_at_seal = now + _SEAL_EVERY
            self.member.expire()

    @contextmanager
    def registry_lock(self) -> Iterator[None]:
        """Keep all other sessions from giving and taking names, ids and extents."""
        with self._table.locked():
            yield

    def grow(self, extents: int) -> Superblock:
        """Give the store more extents, while others go on writing; raises as `mkfs.extend`."""
        self.store.allocator  # noqa: B018  # refuses a store open for reading
        with self._table.locked():
            self.store.refresh()
            extend(self.store, extents)
            self.store.refresh()
        tell_grown(self)
        return self.store.sb

    def start_over(self) -> None:
        """Go on as a new session after the lock master has ended this one.

        What was not committed is gone, and all VDIs are closed; nothing is written.

        Raises:
            InUse, IoFailed: the lock master cannot be reached, or grants nothing; try again.
        """
        for vdi in self.open_vdis:
            self.drop(vdi)
        with suppress(ParallaxError):
            self.settle()  # of VDIs that were closed; after that no write is under way
        self.locks.begin_again()
        self._standing.clear()
        self._table.forget()
        self.store.start_over()
        self.member = Member(self.store, self.locks, self.settle, self.reading_now)
        self._join()

    # -- room --------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Free what waits for a commit or for the end of a collection, or what deletions left.

        It collects only where no other session is: they are not made to wait for that.

        Returns:
            Whether there is any use in trying again what did not fit.
        """
        allocator = self.store.allocator
        before = allocator.free
        try:
            self.member.make_room()
            self.commit([vdi for vdi in self.held_vdis if vdi.map.freed])
            alone = not others(self.store, self.locks)
            if alone and allocator.free == before and not self._collected:
                self.collect()
        except Fenced:
            raise
        except (Corrupt, NoSpace, InUse):
            pass  # what a damaged block refers to is not known to be free
        return allocator.free > before

    def seal(self) -> Sealing:
        """Have every tree as it is now stay readable until `close` of what is returned.

        Raises:
            InUse: someone collects or checks the store.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        everything = self.open_vdis
        return Sealing(
            self.member, self.store, self.locks, lambda: self.commit(everything), self.attend
        )

    def plan_collection(
        self, keep: Collection[int] = KEEP_LIVE, progress: Progress = silent
    ) -> Plan:
        """Mark what a collection has to leave alone; `collect` then frees the rest.

        Args:
            keep: states of the VDIs that lose nothing.
            progress: see `core.collection.Collection`.

        Raises:
            InUse: someone else collects.
            Corrupt: what a damaged block refers to is unknown.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        return Plan(
            self.member,
            self.store,
            self.locks,
            lambda: self.commit(self.held_vdis),
            self.attend,
            keep,
            progress,
        )

    def collect(self, plan: Plan | None = None) -> int:
        """Free what nothing refers to and what deleted VDIs hold; return the blocks freed.

        Args:
            plan: what to free; by default all that can be freed now.

        Raises:
            Corrupt: what a damaged block refers to is unknown; nothing is freed.
            InUse: someone else collects, or the plan does not hold any more; nothing is freed.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        self._collected = True
        collection = plan or self.plan_collection()
        try:
            freed = collection.run()
        finally:
            if plan is None:
                collection.close()
        self._table.forget()
        return freed
