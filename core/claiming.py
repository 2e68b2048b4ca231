"""Finding extents that this session can have, with whoever grants them.

Apart from the allocator because it may take a while: for a lock master that is away or was
just started, and for other sessions that are asked to spare one. A tool simply waits; a
server has `find` done on a thread of its own and takes in what was found when that is there.
So nothing in here touches what an allocator allocates from. One thread at a time may find.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Container
from threading import Event
from typing import Final, NamedTuple

from core.device import BlockDevice
from core.errors import (
    Corrupt,
    Fenced,
    InUse,
    IoFailed,
    NoSpace,
    NotFound,
    ParallaxError,
    TooEarly,
)
from core.extent_disk import read_bitmap, read_header
from core.format import BLOCK_SHIFT, BitmapBlock, ExtentHeader, Superblock
from core.lock_messages import Holding
from core.locks import Grant, Locks
from core.text import human_size

NOBODY: Final = bytes(16)
"""In a header instead of a session: whoever had the extent has stopped writing to it."""
_FULL_HINT: Final = "delete VDIs or snapshots, trim, or add extents with 'plxsh store grow'"
_ASK_AGAIN: Final = 5.0
"""Seconds before others are asked again for an extent after none could spare one."""
_ANSWER_WITHIN: Final = 2.0
_TRY_AGAIN: Final = 0.1
"""Seconds between questions to a lock master that can grant nothing now."""
_ASKED: Final = 4
"""Extents of one session that are asked for."""
_COUNTED: Final = 16
"""Extents of others in which free blocks are counted for a message."""


class Found(NamedTuple):
    """An extent with room, and the right to allocate from it."""

    number: int
    grant: Grant


class Finder:
    """Finds extents for one session.

    Args:
        device: where headers and bitmaps are read.
        sb: the geometry; set it anew when the store has grown.
        locks: grants the extents.
        session: UUID of this session.
        held: the numbers of those that it has.

    Attributes:
        unusable: extents whose newest header or bitmap may be lost, and the error that says so.
            What they call free may be in use, so nobody gets them before a repair.
        touched: extents that this session has written to, held or not.
    """

    def __init__(
        self,
        device: BlockDevice,
        sb: Superblock,
        locks: Locks,
        session: bytes,
        held: Container[int],
    ) -> None:
        """Ask nobody yet."""
        self._device = device
        self._sb = sb
        self._locks = locks
        self._session = session
        self._held = held
        self._untried = deque(range(1, sb.extents))
        self._full: dict[int, int] = {}
        self.unusable: dict[int, Corrupt] = {}
        self.touched: set[int] = set()
        self._ask_from = 0.0
        self._seen: list[tuple[int, Holding]] = []
        self._stopped = Event()

    def grown(self, sb: Superblock) -> None:
        """Take note of extents that the store was given."""
        self._untried.extend(range(self._sb.extents, sb.extents))
        self._sb = sb

    def stop(self) -> None:
        """Have a `find` on another thread end soon; there will be no other."""
        self._stopped.set()

    # -- finding -----------------------------------------------------------------------

    def find(self) -> Found | None:
        """Find an extent with room, by all means.

        First one that nobody has, then one whose last holder may not have stopped writing to
        it, then one that another session can spare.

        Raises:
            Fenced: this session was lost, or would have to wait without a lease.
            IoFailed: what is on disk of an extent cannot be read.
        """
        found = self._never_tried()
        if found is not None or not self._locks.shared:
            return found
        held = self._of_others()
        return self._idle(held, False) or self._idle(held, True) or self._ask_others(held)

    def find_free(self) -> Found | None:
        """Find an extent that nobody has or may be writing to; raises as `find`.

        For one who does not need it yet: nobody is asked to spare one.
        """
        found = self._never_tried()
        if found is not None or not self._locks.shared:
            return found
        return self._idle(self._of_others(), False)

    def _never_tried(self) -> Found | None:
        """Get the next extent that this session was not refused yet."""
        while self._untried:
            number = self._untried[0]
            if number not in self._held and (grant := self._get(number)):
                return Found(number, grant)
            self._untried.popleft()
        return None

    def _idle(self, of_others: list[tuple[int, Holding]], suspect: bool) -> Found | None:
        """Get an extent that nobody has.

        Late writes of one that was lost may still hit an extent that is suspect.
        """
        elsewhere = {number for number, _ in of_others}
        for number in range(1, self._sb.extents):
            if number in self._held or number in elsewhere:
                continue
            if self._is_usable(number, suspect) and (grant := self._get(number, suspect)):
                return Found(number, grant)
        return None

    def lock(self, number: int) -> Grant | None:
        """Take the lock of an extent; None when another session has it.

        Whoever writes cannot be told to come back later: the error would reach a guest. So a
        lock master that is away or grants nothing yet is waited for, as long as it may
        still know this session.

        Raises:
            Fenced: it does not any more.
            Corrupt: the extent is unusable.
        """
        floor = self._header(number).token
        while True:
            try:
                return self._locks.acquire(f"extent/{number}", floor)
            except TooEarly:
                pass
            except IoFailed:
                if not self._locks.leased:
                    raise
            except Fenced:
                raise
            except InUse:
                return None
            self._pause()

    def _pause(self) -> None:
        """Wait a little, if there is anything to wait for."""
        if self._locks.lease_over():
            raise Fenced(
                "the lease is over, and the lock master does not answer",
                "look whether it can be reached, then try again",
            )
        if self._stopped.wait(_TRY_AGAIN):
            raise Fenced("this session ends", "open the store again")

    def _is_usable(self, number: int, suspect: bool) -> bool:
        """Say whether an extent can be read, and is suspect or not as was asked for."""
        try:
            return self._is_unclean(number) == suspect
        except Corrupt as error:
            self.unusable[number] = error
            return False

    def _get(self, number: int, suspect: bool = False) -> Grant | None:
        """Take the lock of an extent, unless it is full or unusable, or suspect unasked for."""
        try:
            grant = self._get_usable(number, suspect)
        except Corrupt as error:
            self.unusable[number] = error
            return None
        self.unusable.pop(number, None)
        return grant

    def read(self, number: int) -> tuple[ExtentHeader, list[BitmapBlock]]:
        """Return header and bitmap of an extent.

        Raises:
            Corrupt: the extent is unusable.
        """
        return self._header(number), self._bitmap(number)

    def _header(self, number: int) -> ExtentHeader:
        return read_header(self._device, self._sb, number, self._unlisted(number))

    def _bitmap(self, number: int) -> list[BitmapBlock]:
        return read_bitmap(self._device, self._sb, number, self._unlisted(number))

    def _unlisted(self, number: int) -> bytes:
        """Return this session if it cannot have left an extent untidy."""
        return b"" if number in self.touched else self._session

    def _get_usable(self, number: int, suspect: bool) -> Grant | None:
        header = self._header(number)
        if self._full.get(number) == header.sequence:
            return None
        grant = self.lock(number)
        if grant is None or not self._locks.shared:
            return grant
        try:
            header = self._header(number)
            used = sum(part.used for part in self._bitmap(number))
            full = used >= self._sb.extent_blocks
            if full:
                self._full[number] = header.sequence
            if full or (self._is_unclean(number) and not suspect):
                grant.release()
                return None
        except BaseException:
            grant.release()
            raise
        return grant

    def is_suspect(self, number: int) -> bool:
        """Say whether whoever had an extent before may still be writing to it."""
        return self._locks.suspect(f"extent/{number}")

    def _is_unclean(self, number: int) -> bool:
        """Say whether an extent was not given back, and its holder may be writing to it."""
        header = self._header(number)
        return header.session not in (NOBODY, self._session) and self.is_suspect(number)

    # -- others ------------------------------------------------------------------------

    def _of_others(self) -> list[tuple[int, Holding]]:
        """Return the extents that other sessions have."""
        found = []
        for holding in self._holdings():
            kind, _, number = holding.name.partition("/")
            if kind == "extent" and number.isdigit() and int(number) not in self._held:
                found.append((int(number), holding))
        self._seen = found
        return found

    def _holdings(self) -> list[Holding]:
        """Return who holds what, as soon as the lock master says it."""
        while True:
            try:
                return [*self._locks.holdings()]
            except IoFailed:
                if not self._locks.leased:
                    raise
            self._pause()

    def _ask_others(self, found: list[tuple[int, Holding]]) -> Found | None:
        """Get an extent that another session gives back because it is asked to."""
        now = time.monotonic()
        if now < self._ask_from:
            return None
        of: dict[int, list[int]] = defaultdict(list)
        for number, holding in found:
            of[holding.who.session].append(number)
        for numbers in of.values():
            for number in numbers[: -_ASKED - 1 : -1]:
                if self._spared(number) and (grant := self._get(number, suspect=True)):
                    return Found(number, grant)
        self._ask_from = now + _ASK_AGAIN
        return None

    def _spared(self, number: int) -> bool:
        """Ask the holder of an extent to give it back; say whether it did."""
        try:
            self._locks.call(f"extent/{number}", "yield", "{}", _ANSWER_WITHIN)
        except NotFound:
            return True  # nobody has it any more
        except ParallaxError:
            return False
        return True

    def no_space(self) -> NoSpace:
        """Return the error for a store without room; space that others have is named.

        It says who had extents when the last one was looked for, and asks nobody.
        """
        free: dict[str, int] = defaultdict(int)
        for number, holding in self._seen[:_COUNTED]:
            try:
                used = sum(part.used for part in self._bitmap(number))
            except IoFailed:
                continue
            if used < self._sb.extent_blocks:
                free[str(holding.who)] += self._sb.extent_blocks - used
        if not free and self.unusable:
            damaged = " and ".join(str(number) for number in sorted(self.unusable))
            return NoSpace(
                f"the blockstore is full but for extent {damaged}, where the newest header or"
                " bitmap may be lost",
                "stop what has the store open and run 'plxsh store check --repair'",
            )
        if not free:
            return NoSpace("the blockstore is full", _FULL_HINT)
        blocks = sum(free.values())
        return NoSpace(
            f"no extent with room is left for this session; {human_size(blocks << BLOCK_SHIFT)}"
            f" are free in extents of {' and '.join(free)}",
            "try again when that session has ended, or add extents with 'plxsh store grow'",
        )
