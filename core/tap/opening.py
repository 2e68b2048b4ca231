"""Locks on their way: the loop never waits for a lock master.

An export that needs a lock of another process is not opened at once: `NotYet` is raised,
the option stays in the client's buffer, and when the answer has come the client's option is
looked at again. This is what reads do that miss the page cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from core.errors import IoFailed, ParallaxError
from core.locks import Asked, Grant, Locks
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

_LONGEST = 5.0
"""Seconds beyond its turn that a lock master may take to answer."""

Outcome = Grant | ParallaxError
Told = Callable[[Outcome], None]
"""Given what came of asking; who is given a grant has to release it."""


class NotYet(Exception):
    """The answer is on its way: a VDI's lock was asked for, or a list is being read.

    Args:
        when_ready: has a function called when it makes sense to try again.
    """

    def __init__(self, when_ready: Callable[[Callable[[], None]], None]) -> None:
        """Remember what to wait for."""
        super().__init__()
        self.when_ready = when_ready


class Openings:
    """The locks that were asked for and not answered yet.

    Args:
        locks: who is asked.
        timers: end what is not answered in time.
    """

    def __init__(self, locks: Locks, timers: Timers) -> None:
        """Ask for nothing yet."""
        self._locks = locks
        self._timers = timers
        self._asked: list[tuple[Asked, float, Told]] = []

    def ask(self, name: str, floor: int, wait: float, told: Told) -> None:
        """Ask for an exclusive lock; `told` hears of it from `poll`.

        Args:
            name: what to lock.
            floor: the highest token on record for it.
            wait: seconds to wait for its turn.
            told: called once.

        Raises:
            InUse, IoFailed: it is clear already that it cannot be had.
        """
        until = time.monotonic() + wait + _LONGEST
        self._asked.append((self._locks.ask(name, floor, wait=wait), until, told))
        self._timers.at(time.monotonic(), self.poll)  # it may be decided already
        self._timers.at(until, self.poll)

    def poll(self) -> None:
        """Tell what is decided; called when something is, and when time is over."""
        asked, self._asked = self._asked, []
        for each in asked:
            wish, until, told = each
            try:
                outcome: Outcome | None = wish.poll()
            except ParallaxError as error:
                outcome = error
            if outcome is None and time.monotonic() >= until:
                wish.cancel()
                outcome = IoFailed(
                    "the lock master does not answer", "look whether it runs and can be reached"
                )
            if outcome is None:
                self._asked.append(each)
            else:
                told(outcome)

    def close(self) -> None:
        """Want nothing any more."""
        for wish, _, _ in self._asked:
            wish.cancel()
        self._asked.clear()
