"""What is so for locks without a lease: the process that has them is the lock master's own."""

from __future__ import annotations

import math


class Unleased:
    """The part of `core.locks.Locks` that asks for a lease; both live and die together."""

    leased = False
    master = ""
    settling = 0.0

    def check(self) -> None:
        """Do nothing: this process may write as long as it lives."""

    def lease_left(self) -> float:
        """Return infinity: there is no lease."""
        return math.inf

    def lease_over(self) -> bool:
        """Return False: there is no lease."""
        return False

    def is_lost(self) -> bool:
        """Return False: only single grants can be lost, by a break."""
        return False

    def begin_again(self) -> None:
        """Do nothing: nothing was lost."""
