"""When a snapshot is due, which ones a schedule still keeps, and how people write intervals.

No clock and no thread: whoever has them asks. The times are those of a clock that never
goes backwards, in nanoseconds.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Final

from core.errors import BadRequest

MIN_INTERVAL_NS: Final = 10_000_000
"""Shortest interval of a schedule: 10 ms."""
MAX_KEEP: Final = (1 << 32) - 1
"""Most snapshots that a schedule keeps."""

_OFF: Final = "off"
_UNITS: Final = {
    "d": 86_400_000_000_000,
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
}
_INTERVAL: Final = re.compile(r"([0-9]{1,12})(ms|[smhd])")
_MAX_NS: Final = (1 << 63) - 1
_FORMS: Final = "write a number with ms, s, m, h or d, such as 10ms, 5m or 1d, or 'off'"


def parse_interval(text: str) -> int:
    """Return the nanoseconds that `10ms`, `1s`, `5m`, `1h` or `1d` stands for; `off` is 0.

    Raises:
        BadRequest: it is no interval, or too short or too long a one.
    """
    if text.lower() == _OFF:
        return 0
    match = _INTERVAL.fullmatch(text.lower())
    if match is None:
        raise BadRequest(f"{text!r} is no interval", _FORMS)
    nanoseconds = int(match[1]) * _UNITS[match[2]]
    if nanoseconds < MIN_INTERVAL_NS:
        raise BadRequest(f"an interval of {text} is too short", "the shortest is 10ms")
    if nanoseconds > _MAX_NS:
        raise BadRequest(f"an interval of {text} is too long", "the longest is 106751d")
    return nanoseconds


def interval_text(nanoseconds: int) -> str:
    """Return an interval as `parse_interval` reads it, in the largest unit that fits."""
    if not nanoseconds:
        return _OFF
    for unit, size in _UNITS.items():
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds / _UNITS['ms']:g}ms"


def check_schedule(every_ns: int, keep: int) -> None:
    """Refuse a schedule that cannot be: no interval goes with nothing to keep.

    Raises:
        BadRequest: with what would be accepted.
    """
    if not every_ns:
        if keep:
            raise BadRequest("a schedule that is off keeps nothing", "leave --keep out")
        return
    if not MIN_INTERVAL_NS <= every_ns <= _MAX_NS:
        raise BadRequest(f"an interval of {every_ns} ns is not possible", "the shortest is 10ms")
    if not 1 <= keep <= MAX_KEEP:
        raise BadRequest(
            f"a schedule cannot keep {keep} snapshots", "say how many with --keep, such as 100"
        )


class Schedule:
    """Ticks at even intervals; those that nobody had time for are left out.

    Args:
        every_ns: from one tick to the next.
        now_ns: when it begins; the first tick is one interval later.

    Attributes:
        missed: ticks that were left out.
    """

    def __init__(self, every_ns: int, now_ns: int) -> None:
        """Begin with the first interval."""
        self.every_ns = every_ns
        self.missed = 0
        self._next = now_ns + every_ns

    def due(self, now_ns: int) -> bool:
        """Say whether a tick has come since it was last asked; the next is in the future then.

        The rhythm stays: after a delay the next tick comes when it would have come anyway.
        """
        late = now_ns - self._next
        if late < 0:
            return False
        missed = late // self.every_ns
        self.missed += missed
        self._next += (missed + 1) * self.every_ns
        return True

    def left(self, now_ns: int) -> int:
        """Return the nanoseconds until the next tick, 0 when it has come."""
        return max(0, self._next - now_ns)


class Retention:
    """Where in the log the scheduled snapshots are that are not deleted, oldest first.

    Args:
        lines: their places in the log, in any order.
    """

    def __init__(self, lines: Iterable[int]) -> None:
        """Begin with those there are."""
        self._lines = deque(sorted(lines))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._lines)

    def add(self, line: int) -> None:
        """Note that one was taken; it is the newest."""
        self._lines.append(line)

    def remove(self, line: int) -> None:
        """Note that somebody deleted one."""
        self._lines.remove(line)

    def retire(self, keep: int) -> tuple[int, int]:
        """Let go of the oldest beyond `keep`.

        Returns:
            How many that were, and the line of the log before which all are gone; (0, 0)
            when there are no more than `keep`.
        """
        over = len(self._lines) - keep
        if over <= 0:
            return 0, 0
        for _ in range(over - 1):
            self._lines.popleft()
        return over, self._lines.popleft() + 1
