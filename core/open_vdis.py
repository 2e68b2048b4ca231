"""The VDIs that a session has open: who uses them, and their commits.

Callers of one session share one `Vdi`; whoever is the last to release it has it committed and
given up. Commits never overlap: each begins with the end of the one before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from core.blockstore import Blockstore
from core.commit import PendingCommit
from core.errors import Bug, Fenced, InUse, NoSpace, NotFound, ParallaxError
from core.format import LIVE, VdiRecord
from core.locks import Grant, Locks
from core.registry import Registry
from core.taking_over import acquire, take_over
from core.vdi import Vdi, prepare_commit


class OpenVdis(ABC):
    """The VDIs that are open.

    Args:
        store: the open store.
        locks: grants VDIs and extents.

    Attributes:
        registry: the table of VDIs.
        worth_collecting: something was dropped that a collection has not looked for yet.
    """

    def __init__(self, store: Blockstore, locks: Locks) -> None:
        """Open no VDI yet."""
        self.store = store
        self.locks = locks
        self.registry = Registry(store)
        self.worth_collecting = True
        self._open: dict[int, tuple[Vdi, int]] = {}
        self._changing: list[int] = []
        self._standing: dict[int, Grant] = {}
        self._pending: PendingCommit | None = None

    @abstractmethod
    def make_room(self) -> bool:
        """Free what can be freed; say whether there is any use in trying again."""

    # -- opening and closing -----------------------------------------------------------

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
                if self.locks.shared:  # the sessions that had it before leave it to this one
                    self.store.touched.add(record.id)
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

    def refuse_open(self, record: VdiRecord) -> None:
        """Refuse a VDI that this session has open.

        Raises:
            InUse: it has.
        """
        if record.id in self._open:
            raise InUse(f"VDI {record.name!r} is open", "close it first")

    @property
    def open_vdis(self) -> list[Vdi]:
        """The VDIs that are open."""
        return [vdi for vdi, _ in self._open.values()]

    def all_held(self) -> list[Vdi]:
        """Return all open VDIs, for a commit that must leave nothing out.

        Those that were taken from this session are lost for good from now on. A lapsed lease is
        an error instead: when it is renewed, VDIs come back with blocks no commit has named.

        Raises:
            Fenced: the lease has lapsed.
        """
        self.locks.check()
        held = []
        for vdi in self.open_vdis:
            try:
                vdi.check()
            except (Fenced, Bug) as error:
                vdi.lose(error)
            else:
                held.append(vdi)
        return held

    # -- committing --------------------------------------------------------------------

    def begin_commit(self, vdis: Iterable[Vdi], last: Collection[Vdi] = ()) -> PendingCommit:
        """Prepare a commit of some VDIs, after the one before; see `PendingCommit`.

        VDIs that this session has lost are left out, and it says so.

        Args:
            vdis: what to commit.
            last: those of them that are given up right after it; see `Vdi.change`.

        One that something is wrong with is left out too.

        Raises:
            NoSpace, IoFailed, Fenced: as `prepare_commit`, or the one before failed.
        """
        self.settle()
        held: list[Vdi] = []
        left_out: dict[int, ParallaxError] = {}
        for vdi in vdis:
            try:
                vdi.check()
            except (Fenced, Bug) as error:
                left_out[vdi.id] = error
                continue
            held.append(vdi)
            old, new = vdi.record, vdi.latest
            if new.snapshots < old.snapshots or new.log_retired > old.log_retired:
                self.worth_collecting = True
        commit = prepare_commit(self.store, held, last, left_out)
        self._pending = PendingCommit(commit, left_out)
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

    def _commit_last(self, vdis: Collection[Vdi]) -> None:
        """Commit VDIs that are given up, and leave word that nobody writes to them.

        That takes a commit of its own only where another session could come next.
        """
        left = []
        for vdi in vdis:
            ours = self.locks.shared and vdi.record.session == self.store.session
            if ours and not vdi.is_lost:
                vdi.amend()
            if vdi.written:  # one that is lost too: whoever wrote to it has to hear of that
                left.append(vdi)
        if left:
            self.commit(left, left)
        shared = self.locks.shared  # then nobody makes both records say the same but who has it
        again = [v for v in vdis if (v.keeps or (shared and v.behind)) and not v.is_lost]
        if again:
            with suppress(NoSpace):  # a collection finds what it would have freed
                self.repeat(again, again)

    def repeat(self, vdis: Collection[Vdi], last: Collection[Vdi] = ()) -> None:
        """Commit VDIs so that, if they have not changed, both records of each say the same.

        Arguments and errors as `commit`.
        """
        for vdi in vdis:
            vdi.repeat()
        self.commit(vdis, last)

    def free_superseded(self) -> None:
        """Free what commits have superseded, or will; raises as `commit`.

        The first commit supersedes it, with the second one no record refers to it.
        """
        for _ in range(2):
            self.repeat([vdi for vdi in self.all_held() if vdi.keeps])

    def commit_for_seal(self) -> None:
        """Commit everything, and have both records say the same where that is done already.

        Raises:
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        self.repeat(self.all_held())
        waiting = [vdi for vdi in self.all_held() if vdi.keeps]
        if waiting:
            self.repeat(waiting)

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
