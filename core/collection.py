"""Garbage collection while others use the store: every session in it has a part.

One session collects; every session that has the store open for writing is a *member*, the
collecting one too. With one process alone the same code runs with one member.

0. The collector holds `gc`. The token of that grant is the name of the collection.
1. *Seal.* Each member copies the bitmaps of its extents, then commits everything. From then on
   it hands out no block that gets free, for the trees of step 2 may reach it. Extents that
   nobody has are borrowed by the collector.
2. *Roots.* Under `registry` all VDI records are read, once; both of a VDI, where they do not say
   the same. Before, those that sessions have left by dying are made to do so.
3. *Mark.* The members say which snapshots they are reading, then everything that a record of
   step 2 or one of them reaches is marked.
4. *Retire.* Under `registry` the records of deleted VDIs are made free for new ones, durably,
   if they are still what they were in step 2.
5. *Sweep.* Each member frees, in each of its extents, what is in its copy and not marked. It
   marks by itself first, and refuses to free what its own marks say is needed.
6. *Finish.* Bitmaps are made durable, free blocks go back to the host, seals end.

Why nothing reachable is freed
==============================

*Candidates.* Only a block in a copy is ever freed by a sweep. A block leaves the copy when it
is freed in any other way, and until then it is handed out to nobody. So a candidate has been
one and the same piece of data (or node, or log page) since its extent was sealed. It remains
to be shown that what is reachable at the sweep and was allocated at the seal is marked.

*What a commit can reach.* A tree grows in two ways only: by blocks that its session allocates,
and by pointing to what a snapshot on disk reaches (clone, rollback). So what any state of a
VDI, in memory or committed, reaches is among: what its last committed record reaches (snapshots
in its log included), what was allocated since, and what a snapshot that it was cloned from or
rolled back to reaches.

*A member that sealed* committed everything after it copied its bitmaps. So what it allocated
before the copy is reached by its records on disk, or is free, before step 2. What it
allocated after is in no copy of its own. In extents of others it allocates nothing.

*Order of commits.* What a commit drops is released with the next commit of the VDI, since the
record in the other slot still leads to it: that one is among the roots too. Nothing is freed
twice: what waits to be released is in no copy from the end of the commit that dropped it on, or
from the seal on (`Allocator.supersede`), and a sweep first finishes the commit under way
(`settle`). A commit that began after the sweep was asked for dropped what was still reachable in
step 2, which is marked.

*Case by case:*

* **A session that did not seal** (it joined later, did not answer in time, or had no room for its
  commit): its extents are not in the collection, nobody borrows what it holds, and what it
  refers to elsewhere it has from records and logs on disk. It does not keep what it frees, so
  a tree of a VDI that it has open may change under the marks. A pointer carries a check of its
  node, so that is noticed: the records are read again under `registry`, and if one has changed,
  marking begins again with all of them (and with no marks: below a node that could not be read
  nothing was marked). If none has changed, it is damage, and nothing is freed.
* **An extent claimed after the seal**, by anyone, is in no copy, so a sweep of it is refused.
  One that was sealed and is given to another session is in no copy any more either.
* **An extent that its session gave back** holds no block that is allocated and not committed:
  it allocates no more from it, commits everything, and only then gives it back. Otherwise the
  collector could borrow it, and find data unreachable that is about to be committed.
* **A clone made during the collection**: before step 2 it is among the records. After it, the
  snapshot it is made from was on disk, looked up under `registry`: either it was there in step
  2, then it is marked, or it was taken since. That one reaches what the live tree did
  (marked) and what was allocated since (in no copy).
* **A rollback** looks its snapshot up in the log while it holds the VDI; the rest is as above.
* **A snapshot that is being read** while it is deleted: deleted after step 2, it is marked;
  before, it was opened before, and the members are asked in step 3, after the roots. A member
  that does not answer ends the collection. Who reads without a lock finds out at the end
  (`Session.reading`).
* **A VDI deleted during the collection** was live in step 2 and is marked. One that was
  *restored* has another record than in step 2, so step 4 refuses and nothing is freed. After
  step 4 it cannot be restored. Whoever restores holds `registry`, as step 4 does, and the
  commit of step 4 compares the record on disk.
* **The collector is killed**: before step 4 nothing was changed; in it, some deleted VDIs are
  gone and their blocks are found by the next collection; after it, blocks are freed that
  nothing reaches, by members that make their bitmaps durable when they next commit. A member
  ends its seal when `gc` is not held under the token any more.
* **A collector that lost `gc`** and goes on late: a member sweeps only under the token it sealed
  under. If it has ended that seal, or another collection has sealed it, the sweep is refused;
  if not, its copy still stands, and all that was said holds. Extents that the collector borrowed
  it cannot write to any more: its lease is over.
* **A member that was suspended and lost everything**: it begins with a new allocator without any
  seal, and so does whoever claims its extents; a sweep of them is refused.
* **No room while sealed**: a member that runs out of space ends its seal; what it kept is free
  then, what is marked is not. A sweep that comes afterwards is refused.

A second opinion
================

All of that trusts the collector's marks. So before its first sweep for another session a member
makes sure that `gc` is held under the token of the seal, reads all records itself, and marks
what they reach and what it is reading (`Member.look`). A sweep that names a candidate among
these marks is refused as a whole, with an error, and the seal ends: nothing of it is freed,
and no other sweep of that collection either, here or, when the collector hears of it, elsewhere.

*A collector that is right is never refused.* A member looks after step 4, since only then is it
asked to sweep. What a record reaches then is, as above, marked, or was allocated since the
seal and is no candidate. The doomed VDIs are free table entries by then; those that are deleted
and still on record are marked, and were in step 2 if they were deleted later. The member's own
readers said in step 3 what they read, or have opened since what was on record.

*What it looks at stands still.* While it is sealed nothing that its own commits drop is handed
out, and so it is in all who sealed; trees of those who did not may change under it, and then it
reads the records again, like the collector.

*What it costs.* Each node is read once, as in step 3, but by each member, on its own host and (in
a tap) on a thread of its own. The collector does not do it for itself: those would be the
same marks.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Collection as Container
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.blockset import BlockSet
from core.blockstore import Blockstore
from core.claiming import NOBODY
from core.errors import Corrupt, InUse, NoSpace, ParallaxError
from core.format import VdiRecord
from core.give_back import GiveBack
from core.lock_messages import Holding
from core.locks import Grant, Locks
from core.progress import Progress, silent
from core.radix import RadixMap
from core.reclaim import (
    KEEP_DELETED,
    KEEP_LIVE,
    Account,
    Garbage,
    Roots,
    read_before,
    read_records,
    retire,
)
from core.registry import Registry
from core.remote import Argument, ask
from core.tidying import Tidying

logger = logging.getLogger(__name__)

Bits = NDArray[np.uint8]
"""Bit *i* of byte *j* is block 8 *j* + *i* of an extent."""

_ROUNDS: Final = 5
"""How often marking begins again, or sessions that came meanwhile are asked to seal."""
_REGISTRY_WAIT: Final = 30.0
_SEAL_WAIT: Final = 20.0
_SWEEP_WAIT: Final = 600.0
"""Seconds: a member marks all that is needed before its first sweep."""
_FINISH_WAIT: Final = 120.0


def pack_bits(bits: Bits) -> str:
    """Return bits as text; long stretches of the same cost next to nothing."""
    return base64.b64encode(zlib.compress(bits.tobytes(), 1)).decode()


def unpack_bits(text: str, size: int) -> Bits:
    """Return the bits that `pack_bits` made a text of, `size` bytes of them.

    Raises:
        ValueError: it is no such text; a few bytes cannot be made to fill the memory either.
    """
    unpacking = zlib.decompressobj()
    try:
        bits = unpacking.decompress(base64.b64decode(text, validate=True), size + 1)
    except zlib.error as error:
        raise ValueError("these are no bits") from error
    if len(bits) != size:
        raise ValueError(f"these are not {size} bytes of bits")
    return np.frombuffer(bits, np.uint8)


def others(store: Blockstore, locks: Locks) -> list[Holding]:
    """Return the other sessions that have the store open for writing."""
    if not locks.shared:
        return []
    own = f"session/{store.session.hex()}"
    return [h for h in locks.holdings() if h.name.startswith("session/") and h.name != own]


class Leaving:
    """One time that an extent is on its way to another session.

    Args:
        token: the collection that its session was sealed for when that began.
    """

    def __init__(self, token: int) -> None:
        """Begin."""
        self.token = token


class Member:
    """What one session does for collections, its own and those of others.

    Args:
        store: the store, open for writing or not.
        locks: the session with the lock master.
        settle: finishes the commit under way.
        reading: says which trees are read at the moment.

    Attributes:
        token: the collection that this session is sealed for, 0 when it is not.
        collection: the one that this session runs itself.
        giving: gives free space back to the host.
    """

    def __init__(
        self,
        store: Blockstore,
        locks: Locks,
        settle: Callable[[], None],
        reading: Callable[[], Iterable[RadixMap]],
    ) -> None:
        """Be sealed for nothing."""
        self._store = store
        self._locks = locks
        self.settle = settle
        self._reading = reading
        self._leaving: dict[int, Leaving] = {}
        self._needed: BlockSet | None = None
        self.token = 0
        self.collection: Sealing | None = None
        self.giving = GiveBack(store)

    def seal(self, token: int) -> None:
        """Begin to take part: copy the bitmaps. Then commit everything and call `sealed`.

        Raises:
            IoFailed: the store takes no writes.
        """
        self._store.check_writable()
        self._store.allocator.seal()
        self._needed = None
        self.token = token

    def sealed(self) -> list[int]:
        """Note that everything was committed; return which extents are sealed.

        What the commit has dropped no root shows any more. The bitmaps are written for the
        collector to read. So is what is queued still: the nodes of a VDI that was given up
        are garbage, and must not be written when their blocks are somebody else's.

        Raises:
            InUse: the seal has ended already.
            NoSpace, IoFailed: they could not be written.
        """
        if not self.token:
            raise InUse("the seal has ended", "collect again")
        self.settle()
        self._store.allocator.free_waiting()
        self._store.write_queued()
        return self._store.allocator.sealed

    def unseal(self) -> None:
        """End the part in a collection; nothing more is freed by it."""
        self._needed = None
        if self.token:
            self.token = 0
            self._store.allocator.unseal()

    def make_room(self) -> None:
        """End what keeps space from being used: a seal, and extents held for others."""
        if self.collection is not None:
            self.collection.close()
        self.unseal()
        self._keep_leaving()

    def _keep_leaving(self) -> None:
        """Go on with extents that were to go to others."""
        for number in self._leaving:
            self._store.allocator.take_back(number)
        self._leaving.clear()

    def expire(self) -> None:
        """End what others began and did not go on with; call it every few seconds.

        Raises:
            IoFailed: the lock master cannot be reached.
        """
        self.expire_unless(not self.token or self.is_held(self.token))

    def expire_unless(self, held: bool) -> None:
        """Do as `expire`, for one who has asked already; `held` is what `is_held` said."""
        self._keep_leaving()
        if self.token and not held:
            self.unseal()

    def is_held(self, token: int) -> bool:
        """Say whether someone holds `gc` under the token of a seal; on any thread.

        Raises:
            IoFailed: the lock master cannot be reached.
        """
        held = self._locks.holdings()
        return any(h.name == "gc" and h.token == token for h in held)

    def images(self) -> list[tuple[int, int]]:
        """Return root and height of the trees that are read at the moment."""
        return [(tree.root, tree.height) for tree in self._reading()]

    @property
    def has_looked(self) -> bool:
        """Whether it is known here what is needed, for the collection that it is sealed for."""
        return self._needed is not None

    def look(self, token: int) -> Callable[[], BlockSet]:
        """Begin to find out what is needed, before the first sweep for another session.

        Returns:
            What does it and takes long; to be called on any thread. `looked` takes the answer.
            It raises InUse if nobody collects under that token, or VDIs change all the time;
            Corrupt if what is needed is unknown; IoFailed if the lock master is away.

        Raises:
            InUse: it is not sealed for that collection (any more).
        """
        self._refuse(token)
        store, images = self._store.view(), self.images()

        def find() -> BlockSet:
            if not self.is_held(token):
                raise InUse("nobody collects under that token", "collect again")
            return needed(store, images)

        return find

    def looked(self, token: int, found: BlockSet) -> None:
        """Note what is needed; raises as `look`."""
        self._refuse(token)
        self._needed = found

    def sweep(self, token: int, number: int, garbage: Bits) -> int:
        """Free what another session's collection calls garbage; return how many blocks.

        Of what was allocated when the extent was sealed. It looks first, unless it has.

        Raises:
            InUse: it is not sealed for that collection (any more); nothing is freed.
            Corrupt: some of it is needed; nothing is freed, and the seal has ended.
            Others: as `look`.
        """
        self._refuse(token)
        if self._needed is None:
            self._needed = self.look(token)()
        self._refuse_needed(number, garbage, self._needed)
        return self.free(token, number, garbage)

    def _refuse_needed(self, number: int, garbage: Bits, needed: BlockSet) -> None:
        """Refuse a sweep of what is needed, and all that follow it."""
        start = self._store.sb.extent_start(number)
        marks = needed.bits[start >> 3 : (start >> 3) + garbage.size]
        candidates = self._store.allocator.candidates(number)
        size = min(marks.size, candidates.size)
        wrong = garbage[:size] & candidates[:size] & marks
        if not wrong.any():
            return
        count = int(np.bitwise_count(wrong).sum())
        block = start + int(np.flatnonzero(np.unpackbits(wrong, bitorder="little"))[0])
        self.unseal()
        logger.error(
            "a collection called %d blocks garbage that are needed, block %d first: nothing was"
            " freed for it",
            count,
            block,
            extra={"event": "sweep_refused", "blocks": count, "block": block},
        )
        raise Corrupt("it is needed, so it is not freed, whatever a collection says", block)

    def free(self, token: int, number: int, garbage: Bits) -> int:
        """Free what this session's own collection calls garbage; raises InUse as `sweep`."""
        self._refuse(token)
        self.settle()  # what the commit under way has dropped is to be freed once
        return self._store.allocator.sweep(number, garbage)

    def finish(self, token: int, give_back: bool, reached: BlockSet | None = None) -> Iterator[int]:
        """End the part in a collection, step by step, each of them short.

        The first step makes bitmaps durable. If `give_back`, each of the others returns some
        blocks to the host that are free at that very moment: in between, this session may
        write as it likes. `reached` is as for `GiveBack.extent`.

        Yields:
            How many blocks went back.

        Raises:
            InUse: it is not sealed for that collection (any more).
            NotSupported: the device has no way to take blocks back.
            NoSpace, IoFailed: the bitmaps could not be written; nothing is given back.
        """
        self._refuse(token)
        self.settle()
        self.unseal()
        write_bitmaps(self._store)
        yield 0
        if give_back:
            allocator = self._store.allocator
            for number in [*allocator.claimed, *allocator.aside]:
                yield from self.giving.extent(number, reached)

    def _refuse(self, token: int) -> None:
        if not self.token or token != self.token:
            raise InUse("this session is not sealed for that collection", "collect again")

    # -- extents -----------------------------------------------------------------------

    def spare(self, number: int) -> Leaving:
        """Begin to give an extent to another session. Commit everything, then `hand_over`.

        Returns:
            Which time this is, for `hand_over`: in between it may be taken back, allocated
            from, and spared again, and then that commit is not enough.

        Raises:
            InUse: it cannot be spared.
        """
        self._store.check_writable()
        self._store.allocator.set_aside(number)
        self._leaving[number] = time = Leaving(self.token)
        return time

    def hand_over(self, number: int, time: Leaving) -> Argument:
        """Give back an extent that was spared, after the commit; return an empty answer.

        Raises:
            InUse: it was taken back; or sealed, and what is freed in it waits for the end of that.
            NoSpace, IoFailed: it could not be written down; the extent stays here.
        """
        if self._leaving.get(number) is not time:
            raise InUse(f"extent {number} is needed after all", "try again later")
        self.settle()
        if self.token != time.token:
            raise InUse(f"extent {number} is part of a collection", "try again later")
        del self._leaving[number]
        give_back_extents(self._store, [number])
        return {}

    def close(self) -> None:
        """End what is under way: the session closes, or has lost everything."""
        if self._locks.is_lost():
            self.collection = None
        elif self.collection is not None:
            self.collection.close()
        self.token = 0


class Sealing:
    """Steps 0 to 2 of a collection: every tree as of its records stays readable.

    Args:
        member: this session's own part.
        store: open for writing.
        locks: the session with the lock master.
        commit: commits everything of this session.
        attend: follows calls of other sessions; called between steps and while marking.

    Attributes:
        unsealed: sessions that do not take part: what they have may change.

    Raises:
        InUse: someone else collects or checks.
        NoSpace, IoFailed, Fenced: as a commit.
    """

    def __init__(
        self,
        member: Member,
        store: Blockstore,
        locks: Locks,
        commit: Callable[[], None],
        attend: Callable[[], None],
    ) -> None:
        """Seal all members."""
        if member.collection is not None:
            member.collection.close()
        self._member = member
        self._store = store
        self._locks = locks
        self._commit = commit
        self._attend = attend
        self._sealed: dict[str, list[int]] = {}
        self._closed = False
        self.unsealed: list[str] = []
        self._gc: Grant = locks.acquire("gc")
        member.collection = self
        try:
            self._seal()
        except BaseException:
            self.close()
            raise

    def _seal(self) -> None:
        """Have every session seal its extents, and borrow those of nobody."""
        self._member.seal(self._gc.token)
        self._commit()
        self._member.sealed()
        asked: set[str] = set()
        for _ in range(_ROUNDS):
            new = [h for h in others(self._store, self._locks) if h.name not in asked]
            if not new:
                break
            for holding in new:
                asked.add(holding.name)
                self._ask_to_seal(holding)
        self._borrow()

    def _ask_to_seal(self, holding: Holding) -> None:
        argument = {"collection": self._gc.token}
        self._attend()
        try:
            answer = ask(self._locks, holding.name, "seal", argument, _SEAL_WAIT)
        except ParallaxError:
            self.unsealed.append(str(holding.who))
            return
        self._sealed[holding.name] = [int(number) for number in answer["extents"]]

    def _borrow(self) -> None:
        """Borrow the extents that nobody has, if there is anything in them."""
        for number in self._idle():
            allocator = self._store.allocator
            try:
                used = self._store.was_claimed(number) and allocator.allocated(number).any()
            except Corrupt as error:  # the others are collected all the same
                allocator.finder.unusable[number] = error
                continue
            if used:
                allocator.borrow(number)

    def _idle(self) -> list[int]:
        """Return the extents that nobody has."""
        names = {holding.name for holding in self._locks.holdings()}
        return [n for n in range(1, self._store.sb.extents) if f"extent/{n}" not in names]

    def allocated(self) -> BlockSet:
        """Return what is allocated in the extents that are sealed."""
        sb, allocator = self._store.sb, self._store.allocator
        allocated = BlockSet(sb.blocks)
        for number in chain_values(self._sealed, allocator.sealed):
            allocated.put(sb.extent_start(number), allocator.allocated(number))
        return allocated

    @contextmanager
    def registry(self) -> Iterator[None]:
        """Hold `registry`: nobody makes, names, restores or deletes a VDI meanwhile."""
        grant = self._locks.acquire("registry", wait=_REGISTRY_WAIT)
        try:
            yield
        finally:
            grant.release()

    def heard(self, progress: Progress) -> Progress:
        """Return a progress that follows calls of others too."""

        def tell(done: int, total: int | None) -> None:
            self._attend()
            progress(done, total)

        return tell

    def _ask_to_finish(self, name: str, give_back: bool) -> int:
        """End the part of a member; return how many blocks it gave back."""
        self._sealed.pop(name, None)
        argument = {"collection": self._gc.token, "give_back": give_back}
        try:
            answer = ask(self._locks, name, "finish", argument, _FINISH_WAIT)
        except ParallaxError:
            return 0  # it ends its seal when `gc` is not held any more
        return int(answer["given_back"])

    def close(self) -> None:
        """End the collection wherever it is; what was not freed stays; twice does nothing.

        A session that is alone keeps the extents it borrowed.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._member.token == self._gc.token:
                self._member.unseal()
            self._return()
            for name in list(self._sealed):
                self._ask_to_finish(name, False)
        finally:
            self._member.collection = None
            self._gc.release()

    def _return(self) -> None:
        """Give back the extents that were borrowed, or keep them if nobody else wants them."""
        allocator = self._store.allocator
        if self._store.failed is not None:
            return
        if not others(self._store, self._locks):
            for number in allocator.aside:
                allocator.take_back(number)
        elif allocator.aside:
            with suppress(NoSpace):  # they stay until there is room to write it down
                give_back_extents(self._store, allocator.aside)


class Collection(Sealing):
    """One collection, seen from the session that runs it.

    The marks are made first. `account` says what would be freed and changes nothing, `run`
    frees it, `give_back` then returns the space to the host, `close` ends it at any point.

    Args:
        member, store, locks, commit, attend: as for `Sealing`.
        keep: states of VDIs of which nothing is freed; deleted VDIs in another state are
            given up.
        progress: told about marked blocks, of those that are allocated.

    Attributes:
        keep: as it was given.

    Raises:
        InUse: someone else collects, or a session does not say what it reads.
        Corrupt: a record, a log page or a node cannot be read, so what it refers to is
            unknown; nothing is freed.
        NoSpace, IoFailed, Fenced: as a commit.
    """

    def __init__(
        self,
        member: Member,
        store: Blockstore,
        locks: Locks,
        commit: Callable[[], None],
        attend: Callable[[], None],
        keep: Container[int] = KEEP_LIVE,
        progress: Progress = silent,
    ) -> None:
        """Seal all members, read the roots and mark what is to stay."""
        super().__init__(member, store, locks, commit, attend)
        self.keep = keep
        self._swept = False
        try:
            self._garbage = self._mark(progress)
        except BaseException:
            self.close()
            raise

    @property
    def doomed(self) -> list[VdiRecord]:
        """The deleted VDIs that are given up."""
        return self._garbage.doomed

    def account(self, progress: Progress = silent) -> Account:
        """Say whose blocks would be freed; see `Garbage.account`."""
        return self._garbage.account(self.heard(progress))

    def _mark(self, progress: Progress) -> Garbage:
        """Read the roots and mark what they reach.

        All of it again, if a session that did not seal changed a tree meanwhile.
        """
        for _ in range(_ROUNDS):
            allocated = self.allocated()
            self._attend()
            records, before = self._read_records()
            self._attend()
            roots = Roots(records, before, self.keep, self._reading())
            try:
                return Garbage(self._store, roots, allocated, self.heard(progress))
            except Corrupt:
                if not self._locks.shared or self._read_records()[0] == records:
                    raise
        raise _changing()

    def _read_records(self) -> tuple[list[VdiRecord], list[VdiRecord]]:
        """Return what the slots of all VDIs say: the newer ones, and older ones that differ."""
        with self.registry():
            self._tidy_up()
            return read_records(self._store), read_before(self._store)

    def _tidy_up(self) -> None:
        """Make both records of VDIs that nobody has say the same, so that all else is garbage.

        Beside others only those of sessions that died: who opens another one must not find it in
        use for a moment. Where that cannot be, both records are marked.
        """
        tidying = Tidying(self._store, self._locks)
        if not self._locks.shared:
            tidying.vdis()
            return
        names = [holding.name for holding in others(self._store, self._locks)]
        alive = {bytes.fromhex(name.removeprefix("session/")) for name in names}
        tidying.vdis({NOBODY, self._store.session, *alive})

    def _reading(self) -> list[RadixMap]:
        """Return the trees that are read at the moment, by whatever session.

        Raises:
            InUse: a session does not say.
        """
        trees = list(self._member.images())
        for holding in others(self._store, self._locks):
            try:
                answer = ask(self._locks, holding.name, "images", {})
            except ParallaxError as error:
                if any(h.name == holding.name for h in others(self._store, self._locks)):
                    raise InUse(
                        f"{holding.who} does not say which snapshots it reads: {error.message}",
                        "try again, or end that process",
                    ) from error
                continue  # it has ended
            trees += [(int(root), int(height)) for root, height in answer["trees"]]
        return [RadixMap(self._store, root, height) for root, height in dict.fromkeys(trees)]

    # -- steps 4 to 6 ------------------------------------------------------------------

    def run(self) -> int:
        """Give up the deleted VDIs and free every block that is not marked.

        Returns:
            How many blocks were freed.

        Raises:
            InUse: a deleted VDI was restored meanwhile, or the collection is over; nothing
                is freed.
            Corrupt: another session says that something is needed; what was freed before stays so.
            IoFailed, Fenced: see `Commit`.
        """
        self._refuse(not self._is_on() or self._swept)
        self._gc.check()
        registry = Registry(self._store)
        with self.registry():
            self._refuse(any(registry.get(record.id) != record for record in self.doomed))
            self._member.settle()
            retire(self._store, self._locks, self.doomed)
        self._swept = True
        freed = 0
        for number in self._store.allocator.sealed:
            freed += self._member.free(self._gc.token, number, self._of(number))
        for name, numbers in self._sealed.items():
            for number in numbers:
                freed += self._ask_to_sweep(name, number)
        return freed

    def _is_on(self) -> bool:
        return not self._closed and self._member.token == self._gc.token

    def _refuse(self, stale: bool) -> None:
        if stale:
            raise InUse("the store has changed since its blocks were marked", "collect again")

    def _of(self, number: int) -> Bits:
        """Return the garbage in one extent."""
        sb = self._store.sb
        return self._garbage.blocks.bits[
            sb.extent_start(number) >> 3 : sb.extent_start(number + 1) >> 3
        ]

    def _ask_to_sweep(self, name: str, number: int) -> int:
        """Have a member sweep an extent; what it does not do waits for the next collection.

        Raises:
            Corrupt: it says that some of it is needed, so the marks are wrong.
        """
        garbage = self._of(number)
        if not garbage.any():
            return 0
        self._attend()
        self._gc.check()
        argument = {
            "collection": self._gc.token,
            "extent": number,
            "garbage": pack_bits(garbage),
        }
        try:
            return int(ask(self._locks, name, "sweep", argument, _SWEEP_WAIT)["freed"])
        except Corrupt:
            raise
        except ParallaxError:
            return 0

    def give_back(self, progress: Progress = silent) -> int:
        """Return free space of the store to the host, after `run`; this ends the collection.

        Args:
            progress: told about blocks given back; nobody knows before how many there are.

        Returns:
            How many blocks that was. On a disk, which does not say what takes space, they
            may have been given back before by another session.

        Raises:
            NotSupported: the device or the file system has no way to take it.
            InUse: nothing was freed yet, or the collection is over.
            NoSpace, IoFailed: the bitmaps could not be written; nothing is given back.
        """
        self._refuse(not self._swept or not self._is_on())
        done = 0
        try:
            for blocks in self._giving_back():
                done += blocks
                self._attend()
                progress(done, None)
        finally:
            self.close()
        return done

    def _giving_back(self) -> Iterator[int]:
        """Give back what is free in extents of this session, of others, and of nobody."""
        reached = self._garbage.reached
        yield from self._member.finish(self._gc.token, True, reached)
        for name in list(self._sealed):
            yield self._ask_to_finish(name, True)
        for number in self._idle():
            if self._member.giving.is_due(number) and self._store.allocator.borrow(number):
                yield from self._member.giving.extent(number, reached)
                self._return()


def needed(store: Blockstore, images: Sequence[tuple[int, int]]) -> BlockSet:
    """Return what the VDIs on record reach, deleted ones too, and the given trees.

    Raises:
        InUse: sessions that do not take part change their trees all the time.
        Corrupt: what a damaged block refers to is unknown.
    """
    for _ in range(_ROUNDS):
        records = read_records(store)
        trees = [RadixMap(store, root, height) for root, height in images]
        try:
            return Garbage(
                store, Roots(records, keep=KEEP_DELETED, reading=trees), BlockSet(0)
            ).reached
        except Corrupt:
            if read_records(store) == records:
                raise
    raise _changing()


def _changing() -> InUse:
    return InUse(
        "VDIs of sessions that do not take part in the collection change all the time",
        "try again later",
    )


def chain_values(named: dict[str, list[int]], more: Sequence[int]) -> list[int]:
    """Return all numbers of the lists."""
    return [*more, *(number for numbers in named.values() for number in numbers)]


def write_bitmaps(store: Blockstore) -> None:
    """Make what the allocator knows durable; no commit may be under way.

    Raises:
        NoSpace: the file system under the store is full; it may be tried again.
        IoFailed: the system could not write; the store takes no more writes.
    """
    store.check_writable()
    try:
        store.write_queued()
        store.device.flush()
    except NoSpace:
        raise
    except ParallaxError as error:
        store.fail(error)
        raise
    store.allocator.settled()


def give_back_extents(store: Blockstore, numbers: Sequence[int]) -> None:
    """Give extents that were set aside to whoever wants them, marked as cleanly left.

    Bitmaps and marks are durable before the locks are free. Raises as `write_bitmaps`; then
    the extents are still this session's, and it may allocate from them.
    """
    allocator = store.allocator
    allocator.leave(numbers)
    try:
        write_bitmaps(store)
    except ParallaxError:
        for number in numbers:
            allocator.take_back(number)
        raise
    allocator.give_back(numbers)
