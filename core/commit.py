"""The commit protocol: how a change to VDIs becomes durable, all of it or nothing.

1. data blocks are already written;
2. nodes, log pages, extent headers and bitmaps are written (`prepare`);
3. the device is flushed;
4. bitmaps go to their other slots too, and each VDI's record goes to its other slot, with the
   next sequence number;
5. the device is flushed again (3 to 5 are `sync`);
6. only now are the blocks free that the commit before had superseded (`finish`).

So whichever slot is lost, the one that is left is safe to go on with: a bitmap that is lost has
a twin, and what the record before the last one leads to is still there.

Step 4 first compares the sequence number and the fencing token on disk with those this
session left there: a session that lost its VDI cannot overwrite what came after it.
Several VDIs may share one commit. A grant that was broken takes its VDI out of it, and the
others go on. With no change of metadata, `sync` is one flush.

`prepare` and `finish` belong to the thread that owns the VDIs. `sync` touches nothing
that changes and may run on any thread while that one goes on serving requests; two
commits never overlap. `docs/format.md` argues why a crash anywhere leaves the last commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from types import MappingProxyType

from core.blockstore import Blockstore
from core.errors import Fenced, IoFailed, NoSpace, ParallaxError, unexpected
from core.format import VdiRecord
from core.locks import Grant
from core.registry import Registry


@dataclass(frozen=True, slots=True)
class Change:
    """One VDI's part in a commit.

    `old` is the record on disk, `new` what replaces the one before that, `grant` the right to do
    so, `freed` the blocks that neither of them refers to, `superseded` those that only `old`
    may refer to: they are in `freed` of the next commit.
    """

    old: VdiRecord
    new: VdiRecord
    grant: Grant
    freed: Sequence[int] = ()
    superseded: Sequence[int] = ()


@contextmanager
def _fatal(store: Blockstore, but: tuple[type[ParallaxError], ...] = ()) -> Iterator[None]:
    """Have a store take no more writes after an error other than `but`.

    Ctrl-C is one: what the commit would change may be durable or not.
    """
    try:
        yield
    except but:
        raise
    except ParallaxError as error:
        store.fail(error)
        raise
    except BaseException:
        store.fail(IoFailed("a commit was interrupted", "open the store again"))
        raise


class Commit:
    """One run of the protocol for a group of VDIs (or for data alone).

    Attributes:
        lost: VDIs, by number, whose grant was broken before their record was written, or
            whose record cannot be written: what they changed is not durable and never will be.
    """

    def __init__(self, store: Blockstore, changes: Sequence[Change] = ()) -> None:
        """Plan it; nothing is written yet."""
        self._store = store
        self._registry = Registry(store)
        self._changes = changes
        self.lost: dict[int, ParallaxError] = {}
        self._twins: list[tuple[int, bytes]] = []

    def run(self) -> None:
        """Do all of it on this thread; raises as `prepare` and `sync` do."""
        self.prepare()
        self.sync()
        self.finish()

    def prepare(self) -> None:
        """Write what the new records will refer to.

        Raises:
            NoSpace: the file system under the store is full. Nothing is lost: the same
                change may be committed later.
            Fenced: this session may not write now; the same.
            IoFailed: the system could not write, or the store was cut off or replaced; it
                takes no more writes.
        """
        self._store.check_writable()
        with _fatal(self._store):
            self._store.device.verify()  # before anything is written behind what was cut off
        if not self._changes:
            return
        with _fatal(self._store, but=(NoSpace, Fenced)):
            self._store.write_queued()
        self._twins = self._store.allocator.twins()

    def sync(self) -> None:
        """Make the change durable.

        Raises:
            Fenced: another session has committed to one of the VDIs, or this one may not
                write any more; the store takes no more writes.
            IoFailed: the system could not flush or write. Whether the change is durable
                is unknown, so the store takes no more writes.
        """
        with _fatal(self._store):
            self._store.device.flush()
            if not self._changes:
                return
            self._write_twins()
            for change in self._changes:
                if self._is_held(change):
                    with self._alone(change):
                        self._check_fence(change)
                        self._registry.write(change.new)
            self._store.device.flush()

    def _write_twins(self) -> None:
        """Write bitmaps a second time; where that cannot be, once has to be enough."""
        try:
            for block, bitmap in self._twins:
                self._store.write(block, [bitmap])
        except (NoSpace, Fenced):
            self._twins = []

    @contextmanager
    def _alone(self, change: Change) -> Iterator[None]:
        """Have what nobody thought of, with one VDI, be the loss of that one only."""
        try:
            yield
        except ParallaxError:
            raise
        except Exception as error:
            self.lost[change.new.id] = unexpected(error, f"VDI {change.new.id}: its commit")

    def _is_held(self, change: Change) -> bool:
        """Return whether a VDI is still this session's; if not, leave it out."""
        try:
            change.grant.check()
        except Fenced as error:
            self.lost[change.new.id] = error
            return False
        return True

    def _check_fence(self, change: Change) -> None:
        """Make sure that the record on disk is the one this session knows."""
        current = self._registry.get(change.new.id)
        old = change.old
        if current is None or (current.sequence, current.token) != (old.sequence, old.token):
            raise Fenced(f"VDI {change.new.id} was changed by another session", "open it again")

    def finish(self) -> None:
        """Free what no record refers to now. Call it once, after `sync` succeeded.

        Of a VDI that was lost nothing is free: its records on disk may still refer to it.
        """
        if self._changes:
            self._store.allocator.settled(twice=bool(self._twins))
        for change in self._changes:
            if change.new.id not in self.lost:
                with self._alone(change):
                    self._store.allocator.release(change.freed)
                    self._store.allocator.supersede(change.new.id, change.superseded)


class PendingCommit:
    """A commit whose `sync` may run on another thread while this one goes on.

    Args:
        commit: prepared.
        left_out: VDIs of the group, by number, that are not in it, and why.

    Attributes:
        left_out: the same, and after `finish` also those that were lost meanwhile.
    """

    def __init__(
        self, commit: Commit, left_out: Mapping[int, ParallaxError] = MappingProxyType({})
    ) -> None:
        """Wrap a prepared commit."""
        self._commit = commit
        self._synced = Event()
        self._finished = False
        self.left_out = dict(left_out)
        self.error: ParallaxError | None = None

    def sync(self) -> None:
        """Wait for the disk, on any thread; what fails is in `error`."""
        self.error = IoFailed("a commit was interrupted", "open the store again")
        try:
            self._commit.sync()
            self.error = None
        except ParallaxError as error:
            self.error = error
        except Exception as error:
            self.error = unexpected(error, "a commit")
        finally:
            self._synced.set()

    def finish(self) -> None:
        """Wait for `sync`, then free what nothing refers to; a second call does nothing.

        Raises:
            IoFailed, Fenced: what went wrong in `sync`.
        """
        self._synced.wait()
        if self.error is not None:
            raise self.error
        if not self._finished:
            self._finished = True
            self._commit.finish()
            self.left_out |= self._commit.lost

    @property
    def lost(self) -> Mapping[int, ParallaxError]:
        """The VDIs that were lost after they were prepared: their maps have run ahead."""
        return self._commit.lost
