"""The gate before VDIs that are written: shut while nobody knows whether they are still ours.

Only with a lock master that may give locks to others while this process lives (a lease).
The loop looks at the lease after each wait and before it reads any socket, so a tap that was
suspended finds out before it begins a request. What was begun before is stopped by the
engine, which looks again right before each write.

A lapsed lease is a pause: sockets of writable exports are not read, commits wait, and all
goes on when the lock master has renewed it. A lost one is an end: those clients are
disconnected, what was not committed is gone, and the session begins again.

Snapshots, which nobody writes, are served on while the lease has merely lapsed. But a
collection asks every session what it reads, and stops asking one that the lock master has
given up: what that one reads may then be freed and hold the data of another VDI, which no check
would find. So they wait as well when the whole lease is over, and are closed when it is lost.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from core.errors import Bug, Fenced, ParallaxError
from core.locks import Locks
from core.session import Session
from core.tap.commits import Commits
from core.tap.exports import Export, Exports
from core.tap.jobs import Jobs
from core.tap.room import Room
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

LEAST: Final = 0.5
"""Seconds of the lease that have to be left to begin a request."""
_SHARE: Final = 0.1
"""The same as a share of the lease, for short ones."""
_WATCH_EVERY: Final = 1.0
_CLOSE_WATCH: Final = 0.1
"""Seconds between looks while there is no lease, when no socket wakes the loop."""
_TRY_AGAIN: Final = 1.0
_WHAT_TO_DO: Final = "clients can connect again; look at the lock master if this repeats"


class Gate:
    """Whether writable exports may be served now.

    Args:
        session: whose lease it is.
        locks: its lock master.
        exports: what is open.
        commits: they wait while the gate is shut.
        jobs: those of writable exports wait as well.
        room: claims extents, for the new session too after a loss.
        timers: make it look now and then.

    Attributes:
        shut: no request of a writable export is begun.
        over: no request at all is begun.
        seconds: how long it was shut, without the present time.
        losses: VDIs that were lost to others.
    """

    def __init__(
        self,
        session: Session,
        locks: Locks,
        exports: Exports,
        commits: Commits,
        jobs: Jobs,
        room: Room,
        timers: Timers,
    ) -> None:
        """Begin open."""
        self._session = session
        self._locks = locks
        self._exports = exports
        self._commits = commits
        self._jobs = jobs
        self._room = room
        self._timers = timers
        self.shut = False
        self.over = False
        self.seconds = 0.0
        self.losses = 0
        self._since = 0.0
        self._lost = False
        self._again = 0.0
        self._most = 0.0

    def start(self) -> None:
        """Look now and then, from now on."""
        self._watch()

    def _watch(self) -> None:
        """Look at all locks, also those that a request would not meet."""
        try:
            self.look()
            if not self.shut:
                for export in self._exports.writable():
                    self._look_at(export)
        finally:
            wait = _CLOSE_WATCH if self.shut else _WATCH_EVERY
            self._timers.at(time.monotonic() + wait, self._watch)

    def refusal(self, writing: bool) -> str:
        """Return why no VDI, or no snapshot, can be opened now; empty if it can."""
        return "there is no valid lease" if self.over or (writing and self.shut) else ""

    def shut_for(self) -> float:
        """Return how many seconds the gate was shut so far."""
        return self.seconds + (time.monotonic() - self._since if self.shut else 0.0)

    def look(self) -> None:
        """Open or shut the gate as the lease says; call it before any request is begun."""
        locks = self._locks
        if not locks.leased:
            return
        if self._lost or locks.is_lost() or isinstance(self._session.store.failed, Fenced):
            self._begin_again()
            return
        left = locks.lease_left()
        if left > self._most:
            self._most = left
        if (left < min(LEAST, self._most * _SHARE)) != self.shut:
            if self.shut:
                self._open()
            else:
                self._shut("the lock master has not renewed the lease")
        if self.shut and locks.lease_over() != self.over:
            self._stop_reading(not self.over)

    def _look_at(self, export: Export) -> None:
        """Let go of an export whose VDI was taken from this session."""
        assert export.vdi is not None
        try:
            export.vdi.check()
        except Bug:
            return  # its clients are told so with each request
        except Fenced as error:
            self.look()  # the whole session is another matter than one VDI
            if not self.shut:
                self.lose(export, error)

    def fenced(self, export: Export, error: Fenced) -> None:
        """Note that a request or a commit was refused: the lease lapsed or a lock is lost."""
        self.look()
        if not self.shut and self._exports.is_open(export):
            logger.info("export %s: %s", export.name, error.message)
            self._look_at(export)

    def lose(self, export: Export, error: ParallaxError) -> None:
        """Disconnect the clients of a VDI that somebody else may write now."""
        self.losses += 1
        logger.error(
            "export %s is lost, its clients are disconnected: %s (%s)",
            export.name,
            error.message,
            _WHAT_TO_DO,
            extra={"event": "lost", "export": export.name, "reason": error.message},
        )
        self._exports.lose(export, f"the VDI is lost: {error.message}")

    # -- shutting and opening ----------------------------------------------------------

    def _shut(self, why: str) -> None:
        self.shut = True
        self._since = time.monotonic()
        self._commits.held = self._jobs.held = True
        count = 0
        for export in self._exports.writable():
            export.pause(True)
            count += len(export.connections)
        logger.warning(
            "%s; writable exports wait", why, extra={"event": "gate_shut", "connections": count}
        )

    def _stop_reading(self, over: bool) -> None:
        """Begin no request of a snapshot either, or go on."""
        self.over = self._jobs.stopped = over
        exports = self._exports.reading()
        for export in exports:
            export.pause(over)
        if over:
            logger.warning(
                "the lease is over; snapshots wait as well", extra={"event": "gate_reads_shut"}
            )
        else:
            self._jobs.release()

    def _open(self) -> None:
        if self.over:
            self._stop_reading(False)
        seconds = time.monotonic() - self._since
        self.seconds += seconds
        self.shut = False
        self._commits.held = self._jobs.held = False
        self._jobs.release()
        for export in self._exports.writable():
            export.pause(False)
        logger.warning(
            "the lease is valid again after %.1f s; writable exports go on",
            seconds,
            extra={"event": "gate_opened", "seconds": round(seconds, 3)},
        )

    # -- beginning again ---------------------------------------------------------------

    def _begin_again(self) -> None:
        """Let go of everything and start the session over, as soon as that is possible.

        The commit that the thread is at comes to its end first: it may still be writing, and
        a new session must not reuse what it writes to.
        """
        if not self._lost:
            self._lost = True
            if not self.shut:
                self._shut("this session is lost")
            error = Fenced("the lock master has given this session's locks away", _WHAT_TO_DO)
            for export in self._exports.writable():
                self.lose(export, error)
            for export in self._exports.reading():
                self._exports.lose(export, "the session is lost, the snapshot may be gone")
            self._commits.drop(error)
            self.over = True
        now = time.monotonic()
        if self._commits.running or now < self._again:
            return
        try:
            self._session.start_over()
        except ParallaxError as error:
            self._again = time.monotonic() + _TRY_AGAIN
            logger.warning("cannot begin a new session yet: %s", error, extra={"event": "rejoin"})
            return
        self._lost = False
        self._open()
        self._room.start()
