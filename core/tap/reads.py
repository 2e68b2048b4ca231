"""Requests that read: READ, CACHE and BLOCK_STATUS.

None of them waits for the disk in the loop thread: what is not in memory is brought there
by a job, and then the request looks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from core.errors import ParallaxError, WouldBlock
from core.image import Image
from core.tap.handshake import CONTEXT_ID, Agreed
from core.tap.jobs import Steps
from core.tap.protocol import (
    EINVAL,
    FLAG_DF,
    FLAG_REQ_ONE,
    MAX_BLOCK,
    SIMPLE,
    STATE_DATA,
    STATE_HOLE,
)
from core.tap.replies import ARENA, Replies

if TYPE_CHECKING:
    from core.tap.transmission import Transmission

QUICK: Final = 64 << 10
"""Reads below this length are answered without looking for holes."""
_ROUNDS: Final = 8
"""How often a read looks again before it simply waits."""
_MAX_LEAVES: Final = 128
"""Leaves of the tree, of 2 MiB each, that a BLOCK_STATUS looks at; holes cost nothing."""
_MAX_EXTENTS: Final = 2048


class Reads:
    """Reads one connection's image.

    Args:
        connection: whose requests they are.
        image: what is read.
        replies: where answers go.
        agreed: the result of the handshake.
    """

    def __init__(
        self, connection: Transmission, image: Image, replies: Replies, agreed: Agreed
    ) -> None:
        """Read nothing yet."""
        self._connection = connection
        self._image = image
        self._replies = replies
        self._structured = agreed.structured
        self._allocation = agreed.allocation

    def fail(self, cookie: int, error: int, message: str) -> None:
        """Answer a request whose success would have been a structured reply."""
        if self._structured:
            self._replies.error(cookie, error, message)
        else:
            self._replies.simple(cookie, error)

    def is_long(self, offset: int, length: int) -> bool:
        """Say whether a READ makes sense and needs so much memory that it has to be asked for."""
        return ARENA < length <= MAX_BLOCK and offset + length <= self._image.size

    def read(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """READ, when it is long, has flags or is wrong."""
        self._connection.counts.reads += 1
        if not 0 < length <= MAX_BLOCK or offset + length > self._image.size:
            self.fail(cookie, EINVAL, f"cannot read {length} bytes at {offset}")
            return
        self._connection.counts.bytes_read += length
        if self._replies.used + length > ARENA:
            self._connection.send()
        miss = self._try_read(cookie, offset, length, flags, False)
        if miss is not None:
            self._connection.counts.missed += 1
            self._connection.later(self.reading(cookie, offset, length, flags), miss)

    def reading(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Read after some bytes were missing in memory."""
        for turn in range(_ROUNDS):
            miss = self._try_read(cookie, offset, length, flags, turn == _ROUNDS - 1)
            if miss is None:
                return
            yield miss

    def _try_read(
        self, cookie: int, offset: int, length: int, flags: int, wait: bool
    ) -> WouldBlock | None:
        """Answer a READ, or say which bytes are missing in memory."""
        replies = self._replies
        used = replies.used
        try:
            if self._structured and length >= QUICK and not flags & FLAG_DF:
                self._read_chunks(cookie, offset, length, wait)
            elif self._structured:
                part = replies.chunk_of_data(cookie, offset, length, True)
                self._image.read_into(offset, part, wait)
            else:
                replies.room(SIMPLE.size + length)
                replies.simple(cookie)
                start = replies.used
                replies.used += length
                self._image.read_into(offset, replies.view[start : replies.used], wait)
        except WouldBlock as miss:
            replies.used = used
            return miss
        except ParallaxError as error:
            replies.used = used
            self.fail(cookie, self._connection.errno_of(error), error.message)
        if length > ARENA:
            self._connection.replied(length)
        return None

    def _read_chunks(self, cookie: int, offset: int, length: int, wait: bool) -> None:
        """Answer a READ with its data and its holes."""
        replies = self._replies
        end = offset + length
        missing: list[tuple[int, int]] = []
        for start, part, data in self._image.extents(offset, length, wait):
            last = start + part == end
            if data:
                place = replies.chunk_of_data(cookie, start, part, last)
                try:
                    self._image.read_into(start, place, wait)
                except WouldBlock as miss:
                    missing += miss.ranges
            else:
                replies.chunk_of_hole(cookie, start, part, last)
        if missing:
            raise WouldBlock(*missing)

    def cache(self, cookie: int, offset: int, length: int, _flags: int) -> None:
        """CACHE: bring a range into memory."""
        self._connection.counts.caches += 1
        if not length or offset + length > self._image.size:
            self._replies.simple(cookie, EINVAL)
        else:
            self._connection.later(self._caching(cookie, offset, length))

    def _caching(self, cookie: int, offset: int, length: int) -> Steps:
        """Read a range for the sake of it, some at a time, to where no reply is yet."""
        end = offset + length
        misses = 0
        while offset < end:
            size = min(ARENA, end - offset)
            self._replies.room(size)
            part = self._replies.view[self._replies.used : self._replies.used + size]
            try:
                self._image.read_into(offset, part, misses == _ROUNDS)
            except WouldBlock as miss:
                misses += 1
                yield miss
                continue
            except ParallaxError as error:
                self._replies.simple(cookie, self._connection.errno_of(error))
                return
            misses = 0
            offset += len(part)
            yield None
        self._replies.simple(cookie)

    def block_status(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """BLOCK_STATUS: which parts of a range are stored."""
        self._connection.counts.statuses += 1
        if not self._allocation:
            self.fail(cookie, EINVAL, "base:allocation was not asked for")
        elif not length or offset + length > self._image.size:
            self.fail(cookie, EINVAL, f"there are no {length} bytes at {offset}")
        else:
            miss = self._try_status(cookie, offset, length, flags, False)
            if miss is not None:
                self._connection.later(self._finding(cookie, offset, length, flags), miss)

    def _finding(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Look for the state of blocks after nodes were missing in memory."""
        for turn in range(_ROUNDS):
            miss = self._try_status(cookie, offset, length, flags, turn == _ROUNDS - 1)
            if miss is None:
                return
            yield miss

    def _try_status(
        self, cookie: int, offset: int, length: int, flags: int, wait: bool
    ) -> WouldBlock | None:
        """Answer a BLOCK_STATUS for the start of its range, which is all it has to be."""
        found: list[int] = []
        most = 2 if flags & FLAG_REQ_ONE else 2 * _MAX_EXTENTS
        try:
            for _, part, data in self._image.extents(offset, length, wait, _MAX_LEAVES):
                found += (part, STATE_DATA if data else STATE_HOLE)
                if len(found) >= most:
                    break
        except WouldBlock as miss:
            if not found:
                return miss
        except ParallaxError as error:
            if not found:
                self.fail(cookie, self._connection.errno_of(error), error.message)
                return None
        self._replies.block_status(cookie, CONTEXT_ID, found)
        return None
