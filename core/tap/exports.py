"""Exports: the names clients ask for, and the images behind them.

A name is a VDI's id, name or UUID; `VDI@LABEL` or `VDI@BLOCK.OFFSET` is a snapshot of it,
read only; the empty name is the only VDI of a store that has one. Several connections to
one VDI share it. Opening takes the VDI's lock; when the last connection is gone what was
written is committed, and then the VDI is given up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from core.errors import BadRequest, Fenced, InUse, NoSpace, ParallaxError, unexpected
from core.format import LIVE, VdiRecord
from core.image import Image
from core.locks import Grant
from core.session import Session
from core.snaplog import Snapshot
from core.tap.commits import Commits
from core.tap.listing import Listing, told_of
from core.tap.opening import NotYet, Openings, Outcome
from core.text import uuid_text
from core.vdi import Vdi

if TYPE_CHECKING:
    from core.tap.transmission import Transmission

logger = logging.getLogger(__name__)

MAX_DIRTY: Final = 16 << 10
"""Changed nodes of a VDI that are worth a commit of their own."""


class Description(NamedTuple):
    """What a client may know of an export before it opens it."""

    name: str
    text: str
    size: int
    read_only: bool


class Export:
    """An image that at least one client has open, or that waits for its last commit.

    Attributes:
        image: what is read.
        vdi: what is written, None for a snapshot.
        connections: the clients that have it open.
        since: when it was opened, in seconds of Unix time.
        shut: no request of its clients is begun, and no commit of what they wrote.
        paused: no request of its clients is begun, because it is shut or short of room.
        leaving: it is being handed over.
        held_until: it stays open without a client until then, on the monotonic clock.
        trouble: why its last commit failed, None if it did not.
    """

    def __init__(self, name: str, record: VdiRecord, image: Image, snapshot: Snapshot | None):
        """Take an image that is open."""
        self.name = name
        self.id = record.id
        self.uuid = record.uuid
        self.snapshot = str(snapshot.id) if snapshot else None
        self.image = image
        self.vdi = image if isinstance(image, Vdi) else None
        self.connections: set[Transmission] = set()
        self.since = time.time()
        self.committing = False
        self.shut = False
        self.paused = False
        self._short = 0
        self.leaving = False
        self.held_until = 0.0
        self.trouble: ParallaxError | None = None

    def pause(self, shut: bool) -> None:
        """Begin no request of its clients any more, or go on."""
        self.shut = shut
        self._tell()

    def hold(self) -> None:
        """Begin no request of its clients before as many `go_on`: one of them waits for room.

        They find out when they are about to begin one.
        """
        self._short += 1
        self.paused = True

    def go_on(self) -> None:
        """Begin requests again that waited because of `hold`."""
        self._short -= 1
        self._tell()

    def _tell(self) -> None:
        self.paused = self.shut or self._short > 0
        for connection in list(self.connections):
            connection.resume()

    @property
    def key(self) -> tuple[int, str | None]:
        """What tells it from other exports: the VDI's id and the snapshot's."""
        return self.id, self.snapshot


class Exports:
    """All exports of one session.

    Args:
        session: whose VDIs they are.
        commits: what makes them durable.
        openings: has locks of another process waited for.
        listing: the names of all of them.

    Attributes:
        listing: the same.
        open: those that are open.
        refuse: says why nothing can be opened now, for writing (True) or for reading; empty
            if it can.
        admit: raises why clients are not to have an export now.
        changed: called when a VDI was opened or is not open any more.
    """

    def __init__(
        self, session: Session, commits: Commits, openings: Openings, listing: Listing
    ) -> None:
        """Open nothing yet."""
        self.listing = listing
        self._session = session
        self._commits = commits
        self._ids: dict[str, int] = {}
        self._openings = openings
        self._awaited: dict[int, list[Callable[[], None]]] = {}
        self._answered: dict[int, Outcome] = {}
        self._away: dict[int, float] = {}
        self.open: dict[tuple[int, str | None], Export] = {}
        self.refuse: Callable[[bool], str] = _no_reason
        self.admit: Callable[[VdiRecord, Snapshot | None], None] = _everybody
        self.changed: Callable[[], None] = _nothing

    def _find(self, reference: str) -> VdiRecord:
        """Return the live VDI a reference names; a known name costs one record to read."""
        registry = self._session.registry
        record = self._known(reference)
        if record is None and not reference.isdigit():
            records = registry.vdis()
            self._ids = {name: record.id for record in records for name in _names(record)}
            record = self._known(reference)
        return record or registry.find(reference)

    def _known(self, reference: str) -> VdiRecord | None:
        """Return the live VDI of a name or UUID that was seen before, if it has it still."""
        known = self._ids.get(reference)
        record = None if known is None else self._session.registry.get(known)
        return record if record and record.state == LIVE and reference in _names(record) else None

    def _resolve(self, name: str) -> tuple[VdiRecord, Snapshot | None]:
        """Return the VDI, and the snapshot of it, that an export name stands for."""
        if not name:
            records = self._session.registry.vdis()
            if len(records) != 1:
                raise BadRequest(
                    f"the store has {len(records)} VDIs, so an export has to be named",
                    "use a VDI's UUID, name or id",
                )
            return records[0], None
        vdi, at, _ = name.rpartition("@")
        if not at:
            return self._find(name), None
        return self._find(vdi), self._session.find_snapshot(name)

    def describe(self, name: str) -> Description:
        """Return what there is to know about an export without opening it.

        Raises:
            NotFound, BadRequest, Corrupt: there is no such export.
        """
        record, snapshot = self._resolve(name)
        if snapshot is not None:
            text = f"snapshot {snapshot.id} of VDI {record.id}"
            return Description(_name_of(record, snapshot), text, snapshot.size, True)
        export = self.open.get((record.id, None))
        size = export.image.size if export else record.size
        return Description(record.name, told_of(record), size, False)

    def acquire(self, name: str) -> Export:
        """Open an export, or share one that is open.

        Raises:
            NotFound, BadRequest: there is no such export.
            InUse, ReadOnly: the VDI cannot be opened for writing here.
            IoFailed: it cannot be read, or the lock master cannot be reached.
            NotYet: its lock is on its way.
        """
        record, snapshot = self._resolve(name)
        self.admit(record, snapshot)
        key = (record.id, str(snapshot.id) if snapshot else None)
        export = self.open.get(key)
        if export is None:
            if snapshot is None:
                return self._open_vdi(record)
            self._refuse_now(record, False)
            export = Export(
                _name_of(record, snapshot), record, self._session.image(snapshot), snapshot
            )
            self.open[key] = export
        elif export.leaving:
            raise _going(export.name)
        export.held_until = 0.0  # the client it was kept open for has come: it goes with the last
        return export

    def _open_vdi(self, record: VdiRecord) -> Export:
        """Open a VDI, if its lock can be had; raises as `acquire`."""
        self._refuse_now(record, True)
        if self._away.get(record.id, 0.0) > time.monotonic():
            raise _going(record.name)
        if not self._session.locks.leased:
            return self.open_with(record, None)
        outcome = self._answered.pop(record.id, None)
        if isinstance(outcome, ParallaxError):
            self._answered[record.id] = outcome  # for the others who asked
            raise outcome
        if outcome is not None:
            return self._open_granted(record, outcome)
        if record.id not in self._awaited:
            self._openings.ask(
                f"vdi/{record.id}", record.token, 0.0, partial(self._arrived, record.id)
            )
            self._awaited[record.id] = []
        raise NotYet(partial(self._when_ready, record.id))

    def _refuse_now(self, record: VdiRecord, writing: bool) -> None:
        why = self.refuse(writing)
        if why:
            raise InUse(f"VDI {record.name!r} cannot be opened: {why}", "try again in a moment")

    def _open_granted(self, record: VdiRecord, grant: Grant) -> Export:
        """Open a VDI under a grant, which is given back if that fails."""
        try:
            return self.open_with(record, grant)
        except ParallaxError:
            grant.release()
            raise

    def open_with(self, record: VdiRecord, grant: Grant | None) -> Export:
        """Open a VDI that is not open, under a grant for it, or else one that it gets now.

        Raises:
            NotFound, InUse, ReadOnly: as `Session.open_vdi`.
        """
        vdi = self._session.open_vdi(record, grant)
        export = Export(_name_of(record, None), vdi.record, vdi, None)
        self.open[export.key] = export
        self.changed()
        return export

    def _when_ready(self, vdi: int, told: Callable[[], None]) -> None:
        self._awaited.setdefault(vdi, []).append(told)

    def _arrived(self, vdi: int, outcome: Outcome) -> None:
        """Let those try again who wait for a VDI; what none of them wants is given back."""
        self._answered[vdi] = outcome
        for told in self._awaited.pop(vdi, ()):
            told()
        left = self._answered.pop(vdi, None)
        if left is not None and not isinstance(left, ParallaxError):
            left.release()

    def find(self, vdi: int) -> Export | None:
        """Return the writable export of a VDI, if it is open."""
        return self.open.get((vdi, None))

    def writable(self) -> list[Export]:
        """Return the open exports that clients write to."""
        return [export for export in self.open.values() if export.vdi is not None]

    def reading(self) -> list[Export]:
        """Return the open exports that nobody writes to."""
        return [export for export in self.open.values() if export.vdi is None]

    def is_open(self, export: Export) -> bool:
        """Return whether an export is open still."""
        return self.open.get(export.key) is export

    def keep_away(self, vdi: int, seconds: float) -> None:
        """Do not open a VDI for a while: it is on its way to or from another host."""
        now = time.monotonic()
        self._away = {number: until for number, until in self._away.items() if until > now}
        self._away[vdi] = now + seconds

    # -- committing and giving up ------------------------------------------------------

    def leave(self, export: Export, connection: Transmission) -> None:
        """Note that a client is gone; after the last one the export is given up."""
        export.connections.discard(connection)
        self.settle(export)

    def settle(self, export: Export) -> None:
        """Commit what was written to an export; give it up if nobody has it open.

        When the file system is full it stays, until a later try succeeds.
        """
        if export.committing or not self.is_open(export) or (export.shut and export.vdi):
            return
        vdi = export.vdi
        failed = self._session.store.failed or (vdi.failed if vdi else None)
        if vdi is not None and vdi.written and failed is None:
            export.committing = True
            self._commits.add(vdi, partial(self._settled, export))
        elif not export.connections and export.held_until <= time.monotonic():
            if vdi is not None and vdi.written:
                export.trouble = failed
            try:
                self._forget(export)
            except ParallaxError as error:
                export.trouble = error
                logger.error("export %s: %s", export.name, error)
            except Exception as error:
                export.trouble = unexpected(error, f"export {export.name}: giving it up")

    def _settled(self, export: Export, error: ParallaxError | None) -> None:
        """Go on after a commit that `settle` asked for."""
        export.committing = False
        export.trouble = error
        if not export.connections and not isinstance(error, NoSpace):
            self.settle(export)

    def give_up(self, export: Export, done: Callable[[ParallaxError | None], None]) -> None:
        """Commit an export without clients and give its lock back; then tell `done`.

        When the commit fails it stays open.
        """
        assert export.vdi is not None

        def committed(error: ParallaxError | None) -> None:
            if error is None and self.is_open(export):
                try:
                    self._forget(export)
                except ParallaxError as failure:
                    error = failure
            done(error)

        self._commits.add(export.vdi, committed)

    def lose(self, export: Export, why: str) -> None:
        """Disconnect the clients of an export whose VDI is somebody else's; commit nothing."""
        if not self.is_open(export):
            return
        del self.open[export.key]
        export.trouble = Fenced(why)
        for connection in list(export.connections):
            connection.disconnect(why)
        if export.vdi is not None:
            self._session.drop(export.vdi)
        else:
            self._session.done_with(export.image)
        self.changed()

    def settle_all(self) -> None:
        """Do for all exports what `settle` does; a timer calls this."""
        for export in list(self.open.values()):
            self.settle(export)

    def _forget(self, export: Export) -> None:
        """Give up an export, with a commit if something was written."""
        del self.open[export.key]
        if export.vdi is None:
            self._session.done_with(export.image)
            return
        try:
            self._session.release(export.vdi)
        finally:
            self.changed()

    def close(self) -> None:
        """Commit and give up everything.

        Raises:
            NoSpace, IoFailed, Fenced: the commit failed; everything is given up.
        """
        failure: ParallaxError | None = None
        vdis = [export.vdi for export in self.open.values() if export.vdi and export.vdi.written]
        try:
            if vdis and self._session.store.failed is None:
                self._session.commit(vdis)
        except ParallaxError as error:
            failure = error
        for export in list(self.open.values()):
            try:
                self._forget(export)
            except ParallaxError as error:
                failure = failure or error
            except Exception as error:
                failure = failure or unexpected(error, f"export {export.name}: giving it up")
        if failure or self._session.store.failed:
            # one of the two is an error, as the line above says
            raise failure or self._session.store.failed  # type: ignore[misc]


def _no_reason(_writing: bool) -> str:
    """Refuse nothing."""
    return ""


def _everybody(_record: VdiRecord, _snapshot: Snapshot | None) -> None:
    """Refuse nobody."""


def _nothing() -> None:
    """Stand for what nobody wants to hear of."""


def _going(name: str) -> InUse:
    return InUse(f"VDI {name!r} is being handed over", "connect to the host that it goes to")


def _names(record: VdiRecord) -> tuple[str, str]:
    """Return what most clients call a VDI; its id needs no looking up."""
    return record.name, uuid_text(record.uuid)


def _name_of(record: VdiRecord, snapshot: Snapshot | None) -> str:
    """Return the name to show for an export."""
    if snapshot is None:
        return record.name
    return f"{record.name}@{snapshot.label or snapshot.id}"
