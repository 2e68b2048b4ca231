"""A budget of memory for long requests, so that no client can have it all.

What is short is bounded for each connection by itself: a few MiB of replies that it has not
taken, one buffer that it sends into. A long READ or WRITE may need 32 MiB at once. So each of
those takes its bytes from one budget before it is begun, and gives them back when the reply has
left or the data is written. When there are too few, the request waits in its connection's
buffer, and nothing more is read from that connection.

Whoever has bytes and neither takes nor sends anything, while others wait for them, loses its
connection: a client that means it connects again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from core.tap.timers import Timers

MOST: Final = 256 << 20
"""Bytes for all connections together."""
MOST_EACH: Final = 64 << 20
"""Bytes for one connection; two of the largest requests."""
LOOK_EVERY: Final = 10.0
"""Seconds between looks at who moves while others wait."""
LEAST: Final = 64 << 10
"""Bytes that a client has to take or to send in that time."""


class Holder(Protocol):
    """A connection with long requests."""

    @property
    def moved(self) -> int | None:
        """How many bytes it has taken and sent so far; None if it is not its turn to."""

    def shrink(self) -> None:
        """Give back what is not needed at the moment."""

    def resume(self) -> None:
        """Try again."""

    def disconnect(self, why: str) -> None:
        """Hang up, and forget what was taken."""


class Budget:
    """Bytes that long requests may take.

    Args:
        timers: have those who wait try again.
        most: for all together.
        each: for one connection.
        clock: tells the time in seconds, as that of `timers`.

    Attributes:
        taken: bytes that were taken and not given back.
    """

    def __init__(
        self,
        timers: Timers,
        most: int = MOST,
        each: int = MOST_EACH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Have all of it."""
        self._timers = timers
        self._most = most
        self._each = each
        self._clock = clock
        self._held: dict[Holder, int] = {}
        self._waiting: dict[Holder, int] = {}
        self._seen: dict[Holder, int | None] = {}
        self._called: Holder | None = None
        self._looking = False
        self._watching = False
        self.taken = 0

    def take(self, holder: Holder, length: int) -> bool:
        """Take some bytes; if that is refused, the holder is told when to try again."""
        turn = holder is self._called or not any(
            self._is_next(other, n) for other, n in self._waiting.items() if other is not holder
        )
        if turn and self._is_next(holder, length) and self.taken + length <= self._most:
            self._waiting.pop(holder, None)
            self._held[holder] = self._held.get(holder, 0) + length
            self.taken += length
            return True
        self._waiting[holder] = length
        for other in [other for other in self._held if other is not holder]:
            other.shrink()
        if not self._watching:
            self._watching = True
            self._watch()
        return False

    def give(self, holder: Holder, length: int) -> None:
        """Give bytes back."""
        if not length:
            return
        left = self._held[holder] - length
        self.taken -= length
        if left:
            self._held[holder] = left
        else:
            del self._held[holder]
        self._look_soon()

    def forget(self, holder: Holder) -> None:
        """Give back whatever a connection has that is gone."""
        self._waiting.pop(holder, None)
        self.give(holder, self._held.get(holder, 0))

    def _is_next(self, holder: Holder, length: int) -> bool:
        """Say whether only others keep a holder from what it wants."""
        return self._held.get(holder, 0) + length <= self._each

    def _look_soon(self) -> None:
        if self._waiting and not self._looking:
            self._looking = True
            self._timers.at(self._clock(), self._look)

    def _look(self) -> None:
        """Have those try again for whom there are enough bytes now, first come, first served."""
        self._looking = False
        for holder, length in list(self._waiting.items()):
            if holder not in self._waiting or not self._is_next(holder, length):
                continue
            if self.taken + length > self._most:
                break
            del self._waiting[holder]
            self._called = holder
            holder.resume()
            self._called = None

    def _watch(self) -> None:
        """Disconnect those who have not moved since the last look, if others wait."""
        if not any(self._is_next(holder, n) for holder, n in self._waiting.items()):
            self._watching = False
            self._seen.clear()
            return
        self._timers.at(self._clock() + LOOK_EVERY, self._watch)
        seen, self._seen = self._seen, {holder: holder.moved for holder in self._held}
        for holder, moved in self._seen.items():
            before = seen.get(holder)
            if before is not None and moved is not None and moved - before < LEAST:
                holder.disconnect("it stood still, with memory that others wait for")
