"""What the tap counts while it works: plain numbers that only the loop thread changes.

A connection counts for itself, so a request costs no look-up; its numbers are added up when
somebody asks, and kept in `Totals` when it is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Final

MOST_EXPORTS: Final = 1000
"""Exports whose numbers are kept after their last client has gone."""
METHODS: Final = frozenset(
    {
        *("snapshot", "delete_snapshot", "rename", "schedule", "repeat", "give_up", "take"),
        *("clients", "disconnect"),
        *("seal", "images", "sweep", "finish", "grown", "yield"),
    }
)
"""What one session can ask of another."""
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds up to which the durations of commits are counted together."""


@dataclass(slots=True)
class Counts:
    """What a connection did so far.

    Each kind of request counts for itself and only ever grows, also when the connection
    breaks in the middle of something. `requests` are those that were carried through, of
    any kind, the last one (disconnect) included.
    """

    requests: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    zeroes: int = 0
    caches: int = 0
    statuses: int = 0
    missed: int = 0
    """Reads that had to wait for the disk."""
    bytes_read: int = 0
    bytes_written: int = 0

    def add(self, other: Counts) -> None:
        """Add the numbers of another connection; written out, because there may be many."""
        self.requests += other.requests
        self.reads += other.reads
        self.writes += other.writes
        self.flushes += other.flushes
        self.trims += other.trims
        self.zeroes += other.zeroes
        self.caches += other.caches
        self.statuses += other.statuses
        self.missed += other.missed
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written


class Recent:
    """A connection's counts as they were a moment ago, from which rates are made.

    Of two samples the older is told, so that there is always a full interval behind it.
    """

    def __init__(self, now: float) -> None:
        """Begin with a connection that has done nothing yet."""
        self.told = self._next = (now, Counts())

    def sample(self, now: float, counts: Counts) -> None:
        """Remember `counts`, which are those of now, in seconds of Unix time."""
        self.told, self._next = self._next, (now, replace(counts))


class Totals:
    """What connections did that are gone.

    The number of exports is bounded by `prune`; `all` keeps the numbers of those that are
    forgotten.

    Attributes:
        all: the numbers of all connections.
        exports: those of each export, by name.
        connections: how many were accepted, those that are there included.
        refused: handshakes that asked for an export and got none.
        calls: what other sessions asked for, by method and whether it failed.
        scheduled_snapshots: snapshots that were taken on a schedule.
        skipped_ticks: times at which a scheduled snapshot was due and not taken.
    """

    def __init__(self) -> None:
        """Nobody was here yet."""
        self.all = Counts()
        self.exports: dict[str, Counts] = {}
        self.connections = 0
        self.refused = 0
        self.calls: dict[tuple[str, bool], int] = {}
        self.scheduled_snapshots = 0
        self.skipped_ticks = 0

    def called(self, method: str, failed: bool) -> None:
        """Count a call of another session; methods that nobody knows count together."""
        key = (method if method in METHODS else "other", failed)
        self.calls[key] = self.calls.get(key, 0) + 1

    def retire(self, export: str, counts: Counts) -> None:
        """Take over the numbers of a connection that is gone."""
        self.all.add(counts)
        kept = self.exports.pop(export, None) or Counts()
        kept.add(counts)
        self.exports[export] = kept

    def prune(self, still_open: Container[str]) -> None:
        """Forget the exports that were closed first, if there are too many.

        One that is open is not forgotten: its numbers would seem to go back.
        """
        closed = [name for name in self.exports if name not in still_open]
        for name in closed[: max(len(self.exports) - MOST_EXPORTS, 0)]:
            del self.exports[name]


class Durations:
    """How long something took, as a histogram.

    Attributes:
        buckets: how many took no longer than each of `BOUNDS`, and more than the bound
            before; last those that took longer.
        sum: seconds they took together.
    """

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds
