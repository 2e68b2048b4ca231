"""Virtual disk images that are open for writing: writes, snapshots, and their commit.

Everything is byte-granular on the outside and whole blocks on the inside: a part of a
block is read, changed and written back as one block. Blocks of zeros are not stored.

A `Vdi` belongs to one thread. Only `Commit.sync` may run beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from core.batch import WriteBatch
from core.blockstore import Blockstore
from core.commit import Change, Commit
from core.device import Buffer
from core.errors import (
    BadRequest,
    Bug,
    Fenced,
    NoSpace,
    NoSpaceYet,
    NotFound,
    ParallaxError,
    unexpected,
)
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    KIND_SNAPSHOT,
    KIND_TOMBSTONE,
    MAX_VDI_SIZE,
    WRITABLE,
    LogRecord,
    VdiRecord,
    blocks_for,
    height_for,
)
from core.image import Image
from core.locks import Grant
from core.radix import RadixMap
from core.registry import alike, check_label
from core.schedule import Retention, check_schedule
from core.snaplog import Snapshot, SnapshotId, append, last_id, last_line, snapshots

if TYPE_CHECKING:
    from core.extent import Run as AllocatedRun

NOBODY: Final = bytes(16)
"""Stands in a record for the session when no session can still be writing to the VDI."""

_OFFSET: Final = BLOCK - 1
_ZEROS: Final = 1 << 20


class Vdi(Image):
    """A VDI that is open for writing.

    Args:
        store: the store, open for writing.
        record: its record as it is on disk.
        grant: the right to write it.
        make_room: called when the store is full; says whether trying again makes sense.
        announce: called before anything is changed, where others must be able to see on disk
            that this session may be writing in place into blocks of the last commit.
    """

    def __init__(
        self,
        store: Blockstore,
        record: VdiRecord,
        grant: Grant,
        make_room: Callable[[], bool] = lambda: False,
        announce: Callable[[Vdi], None] | None = None,
    ) -> None:
        """Take over the state of the last commit."""
        super().__init__(store, record.root, record.height, record.size)
        self.map = RadixMap(store, record.root, record.height, record.mapped, record.own)
        self.record = record
        self._grant = grant
        self._make_room = make_room
        self._announce = announce if record.root & WRITABLE else None
        self._lost: ParallaxError | None = None
        self._edits: VdiRecord | None = None
        self._fresh: list[AllocatedRun] = []
        self._written = False
        self._retention: Retention | None = None
        self._newest: tuple[int, int] | None = None
        self._superseded: list[int] = []
        self._behind = True  # nobody knows, until it is committed
        self._committed = False

    @property
    def id(self) -> int:
        """Its number."""
        return self.record.id

    @property
    def name(self) -> str:
        """Its name, with a rename that is not committed yet."""
        return (self._edits or self.record).name

    @property
    def changed(self) -> bool:
        """Whether a commit would have to write metadata."""
        changed = self.map.dirty or self.map.freed or self.map.root != self.record.root
        return bool(changed or self._edits)

    @property
    def written(self) -> bool:
        """Whether anything was written since the last commit began."""
        return self._written or self.changed

    @property
    def latest(self) -> VdiRecord:
        """Its record, with changes of single fields that are not committed yet."""
        return self._edits or self.record

    def check(self) -> None:
        """Make sure that it is still this session's.

        Raises:
            Fenced: its grant was broken or lost, or the lease has lapsed.
            Bug: see `fail`.
        """
        if self._lost is not None:
            raise self._lost
        self._grant.check()

    @property
    def is_lost(self) -> bool:
        """Whether it is this session's no more, for good or until a lease is renewed."""
        try:
            self.check()
        except (Fenced, Bug):
            return True
        return False

    @property
    def failed(self) -> Bug | None:
        """Why nothing of it can be committed any more, or None; see `fail`."""
        return self._lost if isinstance(self._lost, Bug) else None

    def lose(self, error: ParallaxError) -> None:
        """Write no more: a commit of it did not happen, so the map has run ahead."""
        self._lost = error

    def fail(self, error: Exception, what: str) -> Bug:
        """Write no more after an exception that nobody thought of; return what to raise.

        Nobody knows what was done before it, so nothing of that is committed. Other VDIs of
        the store are as they were; this one, opened again, is as of its last commit.
        """
        bug = unexpected(error, f"VDI {self.id}: {what}")
        self.lose(bug)
        return bug

    def _freeze(self) -> None:
        """Make its tree one that can be committed.

        Raises:
            Bug: that is not possible, because of what is in the tree.
        """
        try:
            self.map.freeze()
        except Exception as error:
            self.map.give_up()
            raise self.fail(error, "its tree cannot be committed") from error

    # -- writing -----------------------------------------------------------------------

    def _begin_writing(self) -> None:
        """Make sure that it may be written now; called once for each batch of requests.

        Raises:
            Fenced: it was lost, or the lease has lapsed.
            IoFailed: the store takes no more writes after an earlier failure.
        """
        self.store.check_writable()
        self.check()
        if self._announce is not None:
            announce, self._announce = self._announce, None
            try:
                announce(self)
            except BaseException:
                self._announce = announce
                raise
        self._written = True

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at byte `offset`; see `write_many` for the errors."""
        [error] = self.write_many([(offset, memoryview(data))])
        if error is not None:
            raise error

    def write_many(self, requests: Sequence[tuple[int, memoryview]]) -> list[ParallaxError | None]:
        """Carry out several writes, putting blocks next to each other where it can.

        Args:
            requests: (byte offset, bytes) of each; where they overlap, later ones win.

        Returns:
            What went wrong with each, None where nothing did. A request that failed may
            have been written in part. `NoSpace`: the store or the file system under it
            is full. `NoSpaceYet`: room is on its way, the whole request is to be tried again.
            `BadRequest`: it is not within the VDI.

        Raises:
            Fenced: the VDI was lost, or the lease of the session has lapsed.
            IoFailed: the store takes no more writes after an earlier failure.
        """
        return self._write_all(requests, keep_zeros=False)

    def _write_all(
        self, requests: Sequence[tuple[int, memoryview]], keep_zeros: bool
    ) -> list[ParallaxError | None]:
        """Carry out writes; where the store is full, make room and try once more."""
        errors = self._write_once(requests, keep_zeros)
        full = [n for n, error in enumerate(errors) if error is not None and _is_full(error)]
        if full and self._make_room():
            again = self._write_once([requests[n] for n in full], keep_zeros)
            for number, error in zip(full, again, strict=True):
                errors[number] = error
        return errors

    def _write_once(
        self, requests: Sequence[tuple[int, memoryview]], keep_zeros: bool
    ) -> list[ParallaxError | None]:
        self._begin_writing()
        batch = WriteBatch(self, self.take, self._grant.check, keep_zeros)
        errors: list[ParallaxError | None] = [None] * len(requests)
        for number, (offset, data) in enumerate(requests):
            try:
                self.check_range(offset, len(data))
                batch.add(number, offset, data)
            except ParallaxError as error:
                errors[number] = error
        for number, failure in batch.run():
            errors[number] = errors[number] or failure
        return errors

    def trim(self, offset: int, length: int) -> None:
        """Turn a byte range into zeros that take no space, whole blocks and parts alike.

        Raises:
            BadRequest: the range is not within the VDI.
            NoSpace: the store is so full that not even this can be noted.
            IoFailed, Corrupt: as `read_into`.
        """
        self.check_range(offset, length)
        self._begin_writing()
        end = offset + length
        first = blocks_for(offset)
        last = blocks_for(end) if end == self.size else end >> BLOCK_SHIFT
        if first > last:  # within one block
            self._zero_part(offset, length)
            return
        if offset & _OFFSET:
            self._zero_part(offset, min(first << BLOCK_SHIFT, end) - offset)
        if offset <= last << BLOCK_SHIFT < end:
            self._zero_part(last << BLOCK_SHIFT, end & _OFFSET)
        self.map.trim(first, last)

    def _zero_part(self, offset: int, length: int) -> None:
        """Write zeros into a part of one block, unless it is a hole."""
        if length and self.map.lookup(offset >> BLOCK_SHIFT):
            self.write(offset, bytes(length))

    def allocate_zeros(self, offset: int, length: int) -> None:
        """Write zeros that do take space, so that later writes there find it.

        Raises:
            BadRequest, NoSpace, IoFailed, Corrupt: as `trim`.
        """
        self.check_range(offset, length)
        self._begin_writing()
        zeros = memoryview(bytes(_ZEROS))
        while length:
            part = min(length, _ZEROS - offset % _ZEROS)
            [error] = self._write_all([(offset, zeros[:part])], keep_zeros=True)
            if error is not None:
                raise error
            offset += part
            length -= part

    def resize(self, size: int) -> None:
        """Change the size in bytes; what is cut off is gone, what is added is zeros.

        Raises:
            BadRequest: the size is not possible.
            NoSpace: there is no room for the nodes.
        """
        if not 0 <= size <= MAX_VDI_SIZE:
            raise BadRequest(
                f"a VDI of {size} bytes is not possible", f"the most is {MAX_VDI_SIZE} (256T)"
            )
        if size < self.size:
            self.trim(size, self.size - size)
        else:  # there is nothing behind the end, unless the store was made elsewhere
            self.map.trim(blocks_for(self.size), self.map.capacity)
        self.map.raise_to(height_for(size))
        self.size = size
        self.amend(size=size)

    def amend(self, **fields: object) -> None:
        """Change fields of the record, already checked, at the next commit."""
        # mypy cannot match names in a dict with the fields of a class
        self._edits = replace(self._edits or self.record, **fields)  # type: ignore[arg-type]

    def repeat(self) -> None:
        """Have the next commit leave two records that say the same, if it changes nothing else.

        What the older one alone leads to is free then.
        """
        if self._behind:
            self._edits = self.latest

    @property
    def behind(self) -> bool:
        """Whether this session's last commit has left two records that do not say the same."""
        return self._committed and self._behind

    @property
    def keeps(self) -> bool:
        """Whether there are blocks that get free with the next commits."""
        return bool(self.map.freed or self._superseded)

    # -- snapshots ---------------------------------------------------------------------

    def snapshot(self, label: str = "", scheduled: bool = False) -> SnapshotId:
        """Keep the contents as they are now; durable with the next commit.

        Args:
            label: a name for it.
            scheduled: its schedule takes it, so it goes when it is too old.

        Raises:
            BadRequest: the label is not possible.
            NoSpace: the store has not one block left.
        """
        if label:
            check_label(label)
        self.store.check_writable()
        self.check()
        self._freeze()
        entry = LogRecord(
            KIND_SNAPSHOT,
            time.time_ns(),
            self.map.root & ~WRITABLE,
            self.size,
            self.map.height,
            self.map.mapped,
            self.map.own,
            label,
            scheduled,
        )
        record = append(self.store, self.latest, entry)
        self.map.disown()
        self._announce = None  # no block of the last commit is written in place any more
        self._edits = replace(record, snapshots=record.snapshots + 1)
        self._newest = (entry.root, entry.size)
        if scheduled and self._retention is not None:
            self._retention.add(last_line(self._edits))
        return last_id(self._edits)

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Drop a snapshot of this VDI from its log, at the next commit.

        Raises:
            NotFound: its schedule has dropped it meanwhile.
            NoSpace: the store has not one block left.
        """
        record = self.latest
        if snapshot.scheduled and snapshot.line < record.log_retired:
            raise NotFound(f"snapshot {snapshot.id} was deleted", "list the snapshots again")
        entry = LogRecord(KIND_TOMBSTONE, time.time_ns(), snapshot.id.block, snapshot.id.offset)
        record = append(self.store, record, entry)
        self._edits = replace(record, snapshots=max(0, record.snapshots - 1))
        self._newest = None
        if snapshot.scheduled and self._retention is not None:
            self._retention.remove(snapshot.line)

    # -- schedule ----------------------------------------------------------------------

    @property
    def schedule(self) -> tuple[int, int]:
        """Its schedule: nanoseconds between snapshots, and how many are kept; 0 is none."""
        record = self.latest
        return record.schedule_ns, record.schedule_keep

    def set_schedule(self, every_ns: int, keep: int) -> None:
        """Have snapshots taken each `every_ns`, from the next commit on; 0 ends that.

        The store must say that it uses schedules (`core.features`). Snapshots there are stay
        until the schedule has more than `keep`, or for good when it ends.

        Raises:
            BadRequest: there can be no such schedule.
        """
        check_schedule(every_ns, keep)
        self.amend(schedule_ns=every_ns, schedule_keep=keep)

    @property
    def unsaved(self) -> bool:
        """Whether the contents are others than those of the newest snapshot.

        A tree that has not changed has the same root: only what a snapshot holds keeps its
        block, whatever is written after it goes to new ones.

        Raises:
            Corrupt: a page of the log is damaged.
        """
        if self.map.dirty:
            return True
        if self._newest is None:
            newest = next(snapshots(self.store, self.latest), None)
            self._newest = (newest.root, newest.size) if newest else (0, self.size)
        return (self.map.root, self.size) != self._newest

    def drop_scheduled(self) -> int:
        """Drop the oldest scheduled snapshots that the schedule does not keep.

        It costs the same however many snapshots there are, and no line of the log: the
        record says up to which line they are gone. Durable with the next commit.

        Returns:
            How many were dropped.

        Raises:
            Corrupt: a page of the log is damaged; nothing is dropped.
        """
        record = self.latest
        if not record.schedule_ns:
            return 0
        if self._retention is None:
            found = snapshots(self.store, record)
            self._retention = Retention(snap.line for snap in found if snap.scheduled)
        dropped, before = self._retention.retire(record.schedule_keep)
        if dropped:
            left = max(0, record.snapshots - dropped)
            self._edits = replace(record, log_retired=before, snapshots=left)
        return dropped

    def rollback(self, snapshot: Snapshot) -> None:
        """Make the contents those of a snapshot of this VDI, at the next commit."""
        self.store.check_writable()
        self.check()
        self._announce = None  # as after a snapshot
        self._written = True
        self.map.clear()
        self.map.replace(snapshot.root, snapshot.height, snapshot.mapped)
        self.size = snapshot.size
        self.amend(size=snapshot.size)

    # -- committing --------------------------------------------------------------------

    def change(self, last: bool = False) -> Change | None:
        """Return what a commit has to write for this VDI, None when that is nothing.

        When its commit could not be prepared, `not_committed` takes it back. What the commit
        supersedes is free with the next one: until then the record before leads to it.

        Args:
            last: nothing is written in place after this commit, and the record says so. Whoever
                opens the VDI then may trust that no write of this session is on its way.

        Raises:
            Bug: there is something wrong with it; others can be committed.
        """
        self._written = False
        if not self.changed:
            return None
        self._freeze()
        self._fresh.clear()
        freed, self._superseded, self.map.freed = self._superseded, self.map.freed, []
        old = self.record
        edited, self._edits = self._edits or old, None
        new = replace(
            edited,
            sequence=old.sequence + 1,
            root=self.map.root,
            height=self.map.height,
            mapped=max(
                0, self.map.mapped
            ),  # too few were on record, perhaps: `store check` says so
            own=max(0, self.map.own),
            token=self._grant.token,
            session=NOBODY if last else self.store.session,
        )
        changed = not alike(new, old)
        self._behind = changed or bool(self._superseded)
        self._committed = True
        self.record = replace(new, modified_ns=time.time_ns()) if changed else new
        return Change(old, self.record, self._grant, freed, self._superseded)

    def not_committed(self, change: Change) -> None:
        """Take a change back into the list of what the next commit has to write."""
        self.map.freed = [*self._superseded, *self.map.freed]
        self._superseded = [*change.freed]
        edits = self._edits or change.new
        self._edits = replace(edits, sequence=change.old.sequence, token=change.old.token)
        self.record = change.old
        self._written = True

    def take(self, count: int) -> list[AllocatedRun]:
        """Return runs of `count` blocks for data that a commit will make this VDI's.

        Raises:
            NoSpace: there are not that many; nothing is taken.
        """
        runs = self.store.allocator.take(count)
        self._fresh += runs
        return runs

    def close(self) -> None:
        """Give up the right to write; what was not committed is as if never written.

        If it is lost, its blocks are left to collection: one that was sealed without it may
        have freed them already, and they may be someone else's.
        """
        if self._fresh and self.store.failed is None and self._lost is None:
            fresh = chain.from_iterable(range(start, start + size) for start, size in self._fresh)
            self.store.allocator.release(list(fresh))
        self.store.allocator.supersede(self.id, ())
        self.map.abandon()
        self._grant.release()


def _is_full(error: ParallaxError) -> bool:
    """Say whether a write found the store full, and more room is not on its way."""
    return isinstance(error, NoSpace) and not isinstance(error, NoSpaceYet)


def prepare_commit(
    store: Blockstore,
    vdis: Iterable[Vdi],
    last: Collection[Vdi] = (),
    left_out: dict[int, ParallaxError] | None = None,
) -> Commit:
    """Begin one commit for several VDIs: `sync` and `finish` are left to do.

    Args:
        store: where they are.
        vdis: what to commit.
        last: those of them that are closed right after it.
        left_out: takes those that cannot be committed, by number; the others are.

    Raises:
        NoSpace: the file system under the store is full; nothing is lost, try again.
        Fenced: this session may not write now; the same.
        IoFailed: see `Commit.prepare`.
        Bug: one of them cannot be committed, without `left_out`.
    """
    store.check_writable()
    pairs: list[tuple[Vdi, Change]] = []
    for vdi in vdis:
        try:
            change = vdi.change(vdi in last)
        except Bug as error:
            if left_out is None:
                raise
            left_out[vdi.id] = error
            continue
        if change is not None:
            pairs.append((vdi, change))
    commit = Commit(store, [change for _, change in pairs])
    try:
        commit.prepare()
    except (NoSpace, Fenced):
        for vdi, change in pairs:
            vdi.not_committed(change)
        raise
    return commit
