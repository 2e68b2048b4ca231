"""Leaving a store tidy: both slots of all that was written say the same.

A session does so when it ends, and then takes itself off the list of sessions. What a session
that died has left is tidied up by the next one that is alone with the store and ends.

Whoever has a VDI or an extent at that moment does it for the sessions that had it before: so one
that is not to be had needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from core.blockstore import Blockstore
from core.errors import BadRequest, InUse, IoFailed, TooEarly
from core.extent_disk import bitmap_pairs, header_pair, packed_bitmap, packed_header
from core.format import BLOCK_SHIFT, ZERO_BLOCK, VdiRecord
from core.locks import Grant, Locks
from core.mkfs import write_superblock
from core.registry import Registry


class Tidying:
    """Tidies up on behalf of a session that has stopped writing.

    Args:
        store: the store; all that the session wrote is durable.
        locks: those of the session.
    """

    def __init__(self, store: Blockstore, locks: Locks) -> None:
        self._store = store
        self._locks = locks
        self._registry = Registry(store)

    def own(self) -> None:
        """Tidy up what the session has touched, and forget of that what is tidy.

        Raises:
            NoSpace, IoFailed, Fenced: something could not be written.
        """
        vdis = {number for number in self._store.touched if self._tidy_vdi(number)}
        touched = self._store.allocator.finder.touched
        extents = {number for number in touched if self._tidy_extent(number)}
        if vdis or extents:
            self._store.device.flush()
        self._store.touched -= vdis
        touched -= extents

    def vdis(self, alive: Collection[bytes] | None = None) -> None:
        """Make both slots of every VDI say the same that is not in use; raises as `own`.

        To be called by one who has the lock `registry`.

        Args:
            alive: sessions that do so for theirs; without it nobody does.
        """
        behind = [
            number
            for number, pair in self._registry.pairs()
            if not pair.are_twins
            and (alive is None or (pair.current and pair.current.session not in alive))
        ]
        if not behind:
            return
        try:
            self._store.enroll()
            for number in behind:
                self._tidy_vdi(number)
            self._store.device.flush()
        except IoFailed as error:
            self._store.fail(error)  # nothing is written after a failed flush
            raise

    def all(self) -> bool:
        """Tidy up what all sessions have left; to be called by one that is alone, after `own`.

        Returns:
            Whether everything is tidy now.

        Raises:
            As `own`.
        """
        sb = self._store.sb
        numbers = [number for number, _ in self._registry.pairs()]
        untidy = [number for number in numbers if not self._tidy_vdi(number)]
        untidy += [number for number in range(1, sb.extents) if not self._tidy_extent(number)]
        if self._store.superblocks() != (sb, sb):
            write_superblock(self._store.device, sb)
        self._store.device.flush()
        return not untidy and not self._store.touched and not self._store.allocator.finder.touched

    def _tidy_vdi(self, number: int) -> bool:
        """Make both slots of a VDI say the same; say whether they do."""
        pair = self._registry.pair(number)
        if pair.are_twins:
            return True
        current = pair.current
        name, floor = f"vdi/{number}", current.token if current else 0
        return self._locked(
            lambda: self._locks.acquire(name, floor), name, lambda: self._write_vdi(number)
        )

    def _write_vdi(self, number: int) -> bool:
        pair = self._registry.pair(number)
        if pair.never_made:  # what a crash left of its creation
            self._write([(self._store.sb.vdi_slot(number, slot), ZERO_BLOCK) for slot in (0, 1)])
            return True
        if pair.doubtful:
            return False
        self._write(map(self._packed, pair.twins()))
        return True

    def _packed(self, record: VdiRecord) -> tuple[int, bytes]:
        sb = self._store.sb
        block = sb.vdi_slot(record.id, record.sequence % 2)
        return block, record.pack(sb.uuid, sb.stamped)

    def _tidy_extent(self, number: int) -> bool:
        """Make both slots of header and bitmap of an extent say the same; say whether they do."""
        device, sb = self._store.device, self._store.sb
        bitmap = bitmap_pairs(device, sb, number)
        if header_pair(device, sb, number).are_twins and all(part.are_twins for part in bitmap):
            return True
        allocator = self._store.allocator
        if number in allocator.held:
            return self._write_extent(number)
        return self._locked(
            lambda: allocator.finder.lock(number),
            f"extent/{number}",
            lambda: self._write_extent(number),
        )

    def _write_extent(self, number: int) -> bool:
        device, sb = self._store.device, self._store.sb
        header = header_pair(device, sb, number)
        parts = [pair for pair in bitmap_pairs(device, sb, number) if not pair.are_twins]
        if header.doubtful or any(pair.doubtful for pair in parts):
            return False
        if not header.are_twins:
            self._write(packed_header(sb, new) for new in header.twins())
        for pair in parts:
            self._write(packed_bitmap(sb, new) for new in pair.twins())
        return True

    def _write(self, writes: Iterable[tuple[int, bytes]]) -> None:
        for block, data in writes:
            self._store.device.pwritev(block << BLOCK_SHIFT, [data])

    def _locked(self, get: Callable[[], Grant | None], name: str, work: Callable[[], bool]) -> bool:
        """Do work under a lock; whoever has it does it in the end, if it may write.

        It is left undone where a lock master is away, or what it is asked for makes no sense.
        """
        try:
            grant = get()
        except (BadRequest, IoFailed, TooEarly):
            return False
        except InUse:
            grant = None
        if grant is None:
            return all(not held.shared for held in self._locks.holdings() if held.name == name)
        try:
            return work()
        finally:
            grant.release()
