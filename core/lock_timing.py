"""The times that exclusion rests on, in one place, and the clock they are read from.

A lease is counted twice: by the client from the moment it sent the renewal, by the master
from the moment it received it. The client stops early, the master gives away late, and all
that lies between is time for what was submitted to land. `docs/locks.md` has the sum.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from core.errors import BadRequest

SHORTEST: Final = 1.0
LONGEST: Final = 3600.0
"""Seconds a lease may last."""
DECIDED_WITHIN: Final = 0.5
"""Seconds from reading a superblock to submitting the claim that rests on it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long leases last, in seconds; the master says it to each client.

    The defaults have the proportions of sanlock: 5 (renew), 20 (lease), 35 (give away).

    Args:
        lease: how long a renewal lasts.
        worst_io: the longest that a write may take in an ordinary way.
        skew: what clocks that run at different speeds may add up to.
        margin: how much longer than the lease the master waits before it gives a lost
            session's locks away.

    Raises:
        BadRequest: they leave a client no time to renew.
    """

    lease: float = 20.0
    worst_io: float = 5.0
    skew: float = 1.0
    margin: float = 15.0

    @classmethod
    def of(cls, lease: float) -> Timing:
        """Return times in the usual proportions, for a lease of so many seconds.

        Raises:
            BadRequest: it is too short for a network and a disk to keep.
        """
        if not SHORTEST <= lease <= LONGEST:
            raise BadRequest(
                f"a lease of {lease:g} s is not possible", f"{SHORTEST:g} to {LONGEST:g} s are"
            )
        return cls(lease, worst_io=lease / 4, skew=lease / 20, margin=lease * 3 / 4)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if min(self.worst_io, self.skew, self.margin) <= 0:
            raise BadRequest("the I/O time, the skew and the margin must be more than nothing")
        if self.stop_after < 2 * self.renew_every:
            raise BadRequest(
                f"a lease of {self.lease:g} s leaves no time to renew it twice",
                "make the lease longer, or the I/O time and the skew shorter",
            )

    @property
    def renew_every(self) -> float:
        """After how long a client renews."""
        return self.lease / 4

    @property
    def retry_every(self) -> float:
        """After how long a client repeats what was not answered."""
        return self.lease / 20

    @property
    def stop_after(self) -> float:
        """How long after sending a renewal a client may still submit writes."""
        return self.lease - self.worst_io - self.skew

    @property
    def give_away_after(self) -> float:
        """How long after receiving the last renewal the master gives the locks away."""
        return self.lease + self.margin

    @property
    def landing(self) -> float:
        """How long a write submitted in time may take before it can meet another writer's."""
        return self.worst_io + self.margin

    @property
    def drift(self) -> float:
        """By which fraction a clock may run fast or slow without harm."""
        return self.skew / (self.stop_after + self.give_away_after)


def now() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
