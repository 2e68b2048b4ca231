"""Connections that nobody vouches for yet: limited in number and in time.

Whoever connects and then says nothing, or does not take what it asked for, costs memory and a
descriptor. When there are too many, the one that was there first has to go: whoever means it is
done within a moment.
"""

from __future__ import annotations

from typing import Protocol


class Stranger(Protocol):
    """One such connection.

    Attributes:
        since: when it connected, on the monotonic clock.
    """

    since: float

    def close(self, why: str) -> None:
        """Hang up, and tell the crowd."""


class Crowd:
    """Connections of one kind, the oldest first.

    Args:
        most: how many there may be.
        patience: seconds that each has.
    """

    def __init__(self, most: int, patience: float) -> None:
        """Begin empty."""
        self._most = most
        self._patience = patience
        self._strangers: dict[Stranger, None] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._strangers)

    def add(self, stranger: Stranger) -> None:
        """Take one more; if those are too many, the oldest has to go."""
        while len(self._strangers) >= self._most:
            self.evict()
        self._strangers[stranger] = None

    def discard(self, stranger: Stranger) -> None:
        """Forget one that is gone, or known by now."""
        self._strangers.pop(stranger, None)

    def evict(self) -> bool:
        """Hang up on the oldest; false if there is none."""
        for oldest in self._strangers:
            self.discard(oldest)
            oldest.close("others came, and it had not said what it wants")
            return True
        return False

    def expire(self, now: float) -> None:
        """Hang up on those that take too long; `now` is on the monotonic clock."""
        for stranger in [s for s in self._strangers if now - s.since > self._patience]:
            stranger.close("it took too long")

    def close(self) -> None:
        """Hang up on all."""
        for stranger in list(self._strangers):
            stranger.close("the server stopped")
