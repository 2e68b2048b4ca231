"""Space for what a session writes: what it frees when the store is full, and collections.

What others are told and asked in a collection is in `core.collection`; here is the session's
own side: what is committed before, what it reads meanwhile, and when it is worth the trouble.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from weakref import WeakSet

from core.blockstore import Blockstore
from core.collection import Collection as Plan
from core.collection import Member, Sealing, others
from core.errors import Fenced, InUse, IoFailed, NoSpace
from core.image import Image
from core.locks import Locks
from core.open_vdis import OpenVdis
from core.progress import Progress, silent
from core.radix import RadixMap
from core.reclaim import KEEP_LIVE
from core.snaplog import Snapshot


class Collecting(OpenVdis):
    """A session that makes room, and collects.

    Args:
        store, locks: as for `OpenVdis`.

    Attributes:
        member: its part in collections, its own and those of others.
    """

    def __init__(self, store: Blockstore, locks: Locks) -> None:
        """Take part in no collection yet."""
        super().__init__(store, locks)
        self._images: WeakSet[Image] = WeakSet()
        self.member = self._new_member()

    def _new_member(self) -> Member:
        return Member(self.store, self.locks, self.settle, self.reading_now)

    @abstractmethod
    def attend(self) -> None:
        """Follow the calls of other sessions that wait."""

    # -- what is read ------------------------------------------------------------------

    def image(self, snapshot: Snapshot) -> Image:
        """Return the contents of a snapshot, for reading.

        As long as it is in use, this session frees none of its blocks. It ends with the
        object; who may have it in a cycle of references says so with `done_with`.
        """
        image = Image(self.store, snapshot.root, snapshot.height, snapshot.size)
        image.attend = self.attend
        self._images.add(image)
        return image

    def done_with(self, image: Image) -> None:
        """Note that the contents of a snapshot are not read any more."""
        self._images.discard(image)

    def reading_now(self) -> list[RadixMap]:
        """Return the trees of the snapshots that are in use."""
        return [image.map for image in self._images]

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
            self.free_superseded()
            alone = not others(self.store, self.locks)
            if alone and allocator.free == before and self.worth_collecting:
                self.collect()
        except Fenced:
            raise
        except (IoFailed, NoSpace, InUse):
            pass  # for instance a lock master that is away: no reason for another error
        return allocator.free > before

    def seal(self) -> Sealing:
        """Have every tree as it is now stay readable until `close` of what is returned.

        Raises:
            InUse: someone collects or checks the store.
            NoSpace, IoFailed, Fenced: as `commit`.
        """
        return Sealing(self.member, self.store, self.locks, self.commit_for_seal, self.attend)

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
            self.commit_for_seal,
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
        self.worth_collecting = False
        collection = plan or self.plan_collection()
        try:
            freed = collection.run()
        finally:
            if plan is None:
                collection.close()
        return freed
