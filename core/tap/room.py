"""Room for what clients write: extents are claimed before they are needed.

Where other sessions may have the store open, an extent has to be asked for, and the lock
master may be away at that moment or grant nothing yet. So one more is asked for when what is
left falls under a reserve: by the time that is used up the lock master has been away for long.
Where it is not enough, because somebody writes very fast or for too long, the request that
finds no room waits, and no other request of its export is begun. All of them go on when an
extent is there, or when it is certain that there is none, which is what "no space" means.

The loop thread waits for none of this: it is asked aside.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from core.claiming import Found
from core.errors import Fenced, NoSpaceYet, ParallaxError
from core.session import Session
from core.tap.aside import Aside
from core.tap.exports import Export, Exports
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

_NONE_FOR: Final = 5.0
"""Seconds for which it stays true that there is no extent."""
_NOT_AT_ONCE: Final = 1.0
_LOOK_AGAIN: Final = 60.0
"""Seconds until one that is not needed yet is looked for again after none was free."""


class Room:
    """Claims extents for one session.

    Args:
        session: whose allocator it is.
        exports: whose clients write.
        aside: asks the lock master.
        timers: have exports go on.

    Attributes:
        waited: how many requests had to wait for an extent.
    """

    def __init__(self, session: Session, exports: Exports, aside: Aside, timers: Timers) -> None:
        """Claim nothing yet."""
        self._session = session
        self._exports = exports
        self._aside = aside
        self._timers = timers
        self._allocator = session.store.allocator
        self._asking = False
        self._needed = False
        self._waiting: list[tuple[Export, Callable[[], None]]] = []
        self._none_until = 0.0
        self._failure: ParallaxError | None = None
        self._look_from = 0.0
        self.waited = 0

    def start(self) -> None:
        """Claim extents for the session from now on, also after it has begun again."""
        self._allocator = self._session.store.allocator
        self._allocator.claim = self._claim
        self._allocator.low = self._allocator.reserve_ahead
        self._allocator.when_low = self.look
        self._none_until = self._look_from = 0.0
        self.look()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._allocator.finder.stop()

    def look(self) -> None:
        """Ask for another extent if one will be needed soon."""
        allocator = self._allocator
        if (
            not self._asking
            and allocator.free < allocator.low
            and time.monotonic() >= self._look_from
            and self._exports.writable()
        ):
            self._ask(False)

    def wait(self, export: Export, again: Callable[[], None]) -> None:
        """Call `again` when a request that met `NoSpaceYet` can be tried again."""
        export.hold()
        self.waited += 1
        self._waiting.append((export, again))

    def _claim(self) -> bool:
        """Say that there is no more room, if that is known; else have it looked for.

        Raises:
            NoSpaceYet: it is looked for.
            Corrupt, IoFailed: it could not be looked for a moment ago.
        """
        if time.monotonic() < self._none_until:
            if self._failure is not None:
                raise self._failure
            return False
        self._needed = True
        if not self._asking:
            self._ask(True)
        raise NoSpaceYet("an extent was asked for and is not there yet", "try again in a moment")

    def _ask(self, by_all_means: bool) -> None:
        """Have an extent looked for."""
        self._asking = True
        allocator = self._allocator
        finder = allocator.finder
        self._aside.ask(
            finder.find if by_all_means else finder.find_free,
            lambda outcome: self._found(allocator is self._allocator, by_all_means, outcome),
            _give_back,
        )

    def _found(
        self, is_mine: bool, by_all_means: bool, outcome: Found | ParallaxError | None
    ) -> None:
        """Take note of what was found; `is_mine` unless the session has begun again."""
        self._asking = False
        if isinstance(outcome, Found) and not is_mine:
            _give_back(outcome)
        elif isinstance(outcome, Found):
            outcome = self._take_in(outcome)
        failed = isinstance(outcome, ParallaxError) and not isinstance(outcome, Fenced)
        if failed:
            logger.error("cannot claim an extent: %s", outcome, extra={"event": "no_extent"})
        now = time.monotonic()
        if isinstance(outcome, Fenced):
            self._look_from = now + _NOT_AT_ONCE
        if is_mine and (failed or outcome is None):
            if not self._needed:
                self._look_from = now + _LOOK_AGAIN
            elif not by_all_means and not failed:
                self._ask(True)
                return
            else:
                self._none_until = now + _NONE_FOR
                self._failure = outcome if isinstance(outcome, ParallaxError) else None
        self._go_on()
        self.look()

    def _take_in(self, found: Found) -> Found | ParallaxError:
        """Allocate from an extent, from now on."""
        try:
            self._allocator.take_in(found)
        except ParallaxError as error:
            return error
        return found

    def _go_on(self) -> None:
        """Have requests that waited tried again, and only then go on with the others."""
        self._needed = False
        waiting, self._waiting = self._waiting, []
        now = time.monotonic()
        for export, again in waiting:
            again()
            self._timers.at(now, export.go_on)


def _give_back(found: Found | None) -> None:
    """Release an extent that nobody wants any more."""
    if found is not None:
        found.grant.release()
