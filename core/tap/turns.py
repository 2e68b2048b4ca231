"""Turns for clients that have chosen nothing yet, so that those who have are served meanwhile.

What such a client asks for may be worth much work: the table of all VDIs is read to find a name
that does not exist. So each client has one piece of work done a turn of the loop, and all of
them together get a share of the loop's time. A burst is not held up: hundreds of virtual
machines that start at once connect as fast as they can.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

Piece = Callable[[], None]

_SHARE: Final = 5
"""One part in so many of the loop's time is for them, while they want more than that."""
_BURST: Final = 0.01
"""Seconds of work that may be done ahead of that."""


class Turns:
    """Pieces of work, done first come, first served.

    Args:
        clock: tells the time in seconds.

    Attributes:
        pieces: what is to be done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Have nothing to do."""
        self._clock = clock
        self.pieces: deque[Piece] = deque()
        self._paid = -math.inf

    def add(self, piece: Piece) -> None:
        """Have something done when it is its turn; it must not raise."""
        self.pieces.append(piece)

    def due(self) -> float:
        """Return when `run` has something to do, by the clock; infinite for never."""
        return self._paid - _BURST if self.pieces else math.inf

    def run(self) -> None:
        """Do what is there, as long as there is time for it; what that adds waits."""
        for _ in range(len(self.pieces)):
            start = self._clock()
            if start < self._paid - _BURST:
                return
            self.pieces.popleft()()
            took = self._clock() - start
            self._paid = max(self._paid, start) + took * _SHARE
