"""Making and dropping VDIs: who gives and takes names and ids, and when.

All of it happens under the lock `registry`. Where other sessions may have the store open, the
table is read anew under it, so a name or an id is never given twice: what another session
gave is durable before it lets go of the lock.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from core.errors import BadRequest, InUse, NoSpace, NotFound, ParallaxError
from core.format import DELETED, LIVE, MAX_VDI_SIZE, WRITABLE, VdiRecord, height_for
from core.locks import Grant
from core.parts import Whole
from core.registry import Registry, check_name
from core.snaplog import Snapshot
from core.text import counted
from core.vdi import NOBODY, Vdi

PATIENCE: Final = 30.0
"""Seconds to wait for `registry` while another session has it."""


class VdiTable:
    """Names and ids, on behalf of a session.

    Args:
        session: the session.
    """

    def __init__(self, session: Whole) -> None:
        """Read nothing yet."""
        self._session = session
        self._store = session.store
        self._locks = session.locks
        self._registry = Registry(session.store)
        self._names: dict[str, int] | None = None
        self._free_ids = self._registry.free_ids()

    def forget(self) -> None:
        """Read the names anew when they are needed the next time."""
        self._names = None

    @contextmanager
    def locked(self) -> Iterator[Grant]:
        """Keep all other sessions from giving and taking names, ids and extents.

        Yields:
            The right to do so oneself.

        Raises:
            InUse: another session has been doing so for too long.
            IoFailed: the lock master cannot be reached.
        """
        grant = self._locks.acquire("registry", wait=PATIENCE)
        try:
            if self._locks.shared:
                self.forget()
            yield grant
        finally:
            grant.release()

    # -- making ------------------------------------------------------------------------

    def create(self, name: str, size: int, parent: Snapshot | None) -> VdiRecord:
        """Make a VDI; see `Session.create`."""
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
        self._store.allocator  # noqa: B018  # refuses a store open for reading
        with self.locked() as right:
            self._refuse_taken(name, "choose another name")
            self._session.settle()
            record = self._write_new(name, parent.size if parent else size, parent, right)
            self._taken_names()[name] = record.id
        return record

    def _taken_names(self) -> dict[str, int]:
        """Return the id of every name."""
        if self._names is None:
            self._names = {record.name: record.id for record in self._registry.vdis()}
        return self._names

    def _refuse_taken(self, name: str, hint: str) -> None:
        number = self._taken_names().get(name)
        if number is not None:
            raise BadRequest(f"the name {name!r} is taken by VDI {number}", hint)

    def _next_id(self) -> int:
        number = next(self._free_ids, None)
        if number is None:  # some may have been freed since it was looked for them
            self._free_ids = self._registry.free_ids()
            number = next(self._free_ids, None)
        if number is None:
            raise BadRequest(
                f"the store has room for {self._store.sb.max_vdis} VDIs and all are taken",
                "delete some and run 'plxsh store gc'",
            )
        return number

    def _write_new(self, name: str, size: int, parent: Snapshot | None, right: Grant) -> VdiRecord:
        """Write the record of a new VDI, make it durable, then fill its second slot.

        The snapshot of a clone is looked for on disk under the lock. Its blocks stay even if
        it is deleted a moment later: only a collection frees them, which reads the records
        under the same lock, and so finds the clone.
        """
        source = None if parent is None else self._session.owner(parent)
        if source is not None:
            self._session.secure(source)
        number = self._next_id()
        old = self._registry.get(number)
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
            session=NOBODY,
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
            right.check()  # otherwise the id may have been given to another VDI meanwhile
            self._commit_new(record)
            with suppress(NoSpace):  # one slot is enough until the first change
                again = replace(record, sequence=record.sequence + 1)
                self._registry.write(again)
                record = again
        finally:
            grant.release()
        return record

    def _commit_new(self, record: VdiRecord) -> None:
        """Make the first record of a VDI durable: all that it refers to is durable already."""
        self._store.check_writable()
        self._registry.write(record)
        try:
            self._store.device.flush()
        except ParallaxError as error:
            self._store.fail(error)
            raise

    def restore(self, record: VdiRecord, name: str) -> None:
        """Bring a deleted VDI back; see `Session.restore`."""
        self._store.allocator  # noqa: B018  # refuses a store open for reading
        with self.locked():
            current = self._registry.get(record.id)
            if current is None or current.uuid != record.uuid or current.state != DELETED:
                raise NotFound(
                    f"VDI {record.id} {record.name!r} cannot be restored any more",
                    "'plxsh vdi list --deleted' shows those that can",
                )
            name = name or record.name
            check_name(name)
            self._refuse_taken(name, "give another one with --name")
            grant = self._locks.acquire(f"vdi/{record.id}", current.token)
            vdi = Vdi(self._store, current, grant, self._session.make_room)
            try:
                vdi.amend(state=LIVE, deleted_ns=0, name=name)
                self._session.commit([vdi], [vdi])
                self._session.repeat([vdi], [vdi])  # a lost record must not delete it again
            finally:
                vdi.close()
        self.forget()

    # -- changing and dropping ---------------------------------------------------------

    @contextmanager
    def renaming(self, record: VdiRecord, name: str) -> Iterator[None]:
        """Keep a name free for a VDI while it is renamed."""
        check_name(name)
        with self.locked():
            if name != record.name:
                self._refuse_taken(name, "choose another name")
            try:
                yield
            finally:
                self.forget()

    def delete(self, record: VdiRecord, snapshots: bool) -> None:
        """Delete a VDI; see `Session.delete`."""
        with self.locked():
            self.refuse_delete(record, snapshots)
            with self._session.opened(record) as vdi:
                _refuse_snapshots(vdi.record, snapshots)  # one may have been taken meanwhile
                vdi.amend(state=DELETED, deleted_ns=time.time_ns())
        self.forget()

    def refuse_delete(self, record: VdiRecord, snapshots: bool) -> None:
        """Raise what `delete` would raise, and change nothing."""
        record = self._session.current(record)
        _refuse_snapshots(record, snapshots)
        clones = self._session.clones(record)
        if clones:
            names = ", ".join(repr(clone.name) for clone in clones[:5])
            more = f" and {len(clones) - 5} more" if len(clones) > 5 else ""
            raise InUse(f"VDI {record.name!r} has clones: {names}{more}", "delete the clones first")
        self._session.refuse_open(record)


def _refuse_snapshots(record: VdiRecord, snapshots: bool) -> None:
    if record.snapshots and not snapshots:
        raise InUse(
            f"VDI {record.name!r} has {counted(record.snapshots, 'snapshot')}",
            "delete them too with --snapshots",
        )
