"""A session: one process that has a store open, and all that can be done with its VDIs.

Commands and the tap work through this class. Opened for reading it needs no lock and
works beside a writer: it sees what is committed.

Several sessions may have one store open for writing, each with its own VDIs and extents.
Who wants something done with a VDI that another one has open asks it (`core.beside`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

from core.answering import Answers
from core.beside import attend, tell_grown, wherever_open
from core.blockstore import Blockstore, Mode
from core.collecting import Collecting
from core.collection import others
from core.device import Cache
from core.errors import BadRequest, Corrupt, InUse, IoFailed, NoSpace, NotFound, ParallaxError
from core.features import enable
from core.finding import find_snapshot, has_snapshot, parse_snapshot_id, snapshots
from core.format import INCOMPAT_SCHEDULES, LIVE, Superblock, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.locks import Grant, Locks
from core.mkfs import extend
from core.registry import alike
from core.remote import Argument
from core.schedule import check_schedule
from core.sharing import share
from core.snaplog import Snapshot, SnapshotId
from core.taking_over import acquire
from core.tidying import Tidying
from core.vdi import Vdi
from core.vdi_table import VdiTable

__all__ = ["Session", "parse_snapshot_id"]

_JOIN_PATIENCE: Final = 60.0
"""Seconds to wait for the lock master; one that was started a moment ago grants nothing for 35."""
_SEAL_EVERY: Final = 2.0
"""Seconds after which to look again whether a collection is still on."""


class Session(Collecting):
    """An open store and its VDIs.

    Where other sessions may have the store open too, it holds `session/HEX` as long as it is
    open for writing: so others know that it is there, and ask it.

    Args:
        store: the open store.
        locks: grants VDIs and extents.

    Attributes:
        join_name: the lock that says that it is there.
        answers: what it does when others ask it.

    Raises:
        InUse, IoFailed: the lock master does not let it join.
    """

    def __init__(self, store: Blockstore, locks: Locks) -> None:
        """Open no VDI yet."""
        super().__init__(store, locks)
        self.answers = Answers(self)
        self._table = VdiTable(self)
        self._look_at_seal = 0.0
        self._deleted: set[Snapshot] = set()
        self._join()

    def _join(self) -> None:
        """Say to the lock master that this session is there."""
        self.join_name = f"session/{self.store.session.hex()}"
        self._joined: Grant | None = None
        if self.locks.shared and self.store.writable:
            self._joined = self.locks.acquire(self.join_name, wait=_JOIN_PATIENCE)
            share(self.store, self.locks)
            with self._table.locked():
                self.store.enroll()

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
                if mode == "shared" and mine.master and not store.sb.settled:
                    # What stands still under one lock master must not be written under another.
                    with closing(Blockstore.open(path, "write", mine, cache)) as claiming:
                        share(claiming, mine)
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
                self.store.leave()
                self._tidy_up()
                self.store.close()
            finally:
                self.store.close()
                if self._joined is not None:
                    self._joined.release()
                if self.locks.leased:
                    self.locks.close()

    def _tidy_up(self) -> None:
        """Leave nothing that a crash could have left, and say so; see `core.tidying`.

        What cannot be done now is done later: until then this session stays on the list. So a
        lock master that is away, or a file system that is full, is no reason for an error.

        Raises:
            IoFailed: the system could not write.
        """
        if not self.store.enrolled or self.store.failed is not None:
            return
        harmless = ParallaxError if self.locks.shared else NoSpace
        try:
            with suppress(harmless), self._table.locked():
                tidying = Tidying(self.store, self.locks)
                tidying.own()
                alone = self.store.found_others and not others(self.store, self.locks)
                self.store.withdraw(all_others=alone and tidying.all())
        except IoFailed as error:
            self.store.fail(error)  # nothing is written after a failed flush
            raise

    # -- finding -----------------------------------------------------------------------

    def snapshots(self, record: VdiRecord) -> Iterator[Snapshot]:
        """Yield the snapshots of a VDI, newest first; see `core.finding.snapshots`."""
        return snapshots(self.store, record)

    def find_snapshot(self, reference: str) -> Snapshot:
        """Return the snapshot that `BLOCK.OFFSET`, `VDI@LABEL` or `VDI@BLOCK.OFFSET` names.

        When several snapshots of a VDI have the label, the newest is meant.

        Raises:
            NotFound: there is no such VDI or snapshot; the hint has labels that come close.
            BadRequest: the reference has none of these forms.
        """
        return find_snapshot(self.store, reference)

    @contextmanager
    def reading(self, snapshot: Snapshot) -> Iterator[Image]:
        """Give out the contents of a snapshot for the length of a `with` block.

        Raises:
            NotFound: another session deleted it meanwhile: then what was read may be
                anything. That is looked at in the end, and when damage was found.
        """
        try:
            yield self.image(snapshot)
        except Corrupt:
            self._refuse_deleted(snapshot)
            raise
        self._refuse_deleted(snapshot)

    def _refuse_deleted(self, snapshot: Snapshot) -> None:
        record = self._vdi_of(snapshot)
        if record is None or not has_snapshot(self.store, record, snapshot):
            raise NotFound(
                f"snapshot {snapshot.id} was deleted while it was read", "use another snapshot"
            )

    def _vdi_of(self, snapshot: Snapshot) -> VdiRecord | None:
        """Return the record of the VDI of a snapshot, None if it was deleted."""
        record = self.registry.get(snapshot.vdi)
        same = record is not None and record.uuid == snapshot.vdi_uuid and record.state == LIVE
        return record if same else None

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

    def secure(self, record: VdiRecord) -> None:
        """Make both records of a VDI say the same, before another one builds on what it says.

        One that others read stays as it is: they keep it from being written to.

        Raises:
            NotFound, IoFailed: as `core.beside.wherever_open`.
        """

        def here(vdi: Vdi) -> Argument:
            vdi.amend()
            return {}

        one, other = self.registry.pair(record.id).found
        if one is None or other is None or not alike(one, other):
            with suppress(InUse):
                wherever_open(self, record, "repeat", {}, here)

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
        self.worth_collecting = True

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
        self.worth_collecting = True

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
        record = self._vdi_of(snapshot)
        gone = record is None or snapshot in self._deleted
        if record is not None and self.locks.shared:
            gone = gone or not has_snapshot(self.store, record, snapshot)
        if record is None or gone:
            raise NotFound(f"snapshot {snapshot.id} was deleted", "list the snapshots again")
        return record

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
        self.member = self._new_member()
        self._join()
