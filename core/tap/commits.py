"""Group commit: flushes that arrive together share one trip to the disk.

The loop thread prepares a commit and finishes it; only the wait for the disk in between
happens on a thread of its own. Flushes that arrive meanwhile make up the next group, so
each is answered after a commit that began after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from types import MappingProxyType
from typing import Final

from core.commit import PendingCommit
from core.errors import ParallaxError, unexpected
from core.session import Session
from core.tap.counts import Durations
from core.vdi import Vdi

logger = logging.getLogger(__name__)

Done = Callable[[ParallaxError | None], None]
"""Told that a commit is durable (None), or why it is not."""


_NONE: Final[Mapping[int, ParallaxError]] = MappingProxyType({})


class Commits:
    """The commits of one session, one at a time.

    Args:
        session: what is committed.
        wake: callable from any thread; makes the loop call `poll` soon.

    Attributes:
        took: how long commits took, from their beginning to their end.
        failures: how many failed.
        held: none is begun; what was asked for waits.
    """

    def __init__(self, session: Session, wake: Callable[[], None]) -> None:
        """Start the thread that waits for the disk."""
        self._session = session
        self._wake = wake
        self._waiting: list[tuple[Vdi, Done]] = []
        self._group: list[tuple[Vdi, Done]] = []
        self._running: PendingCommit | None = None
        self._begun = 0.0
        self.took = Durations()
        self.failures = 0
        self.held = False
        self._synced = False
        self._queue: SimpleQueue[PendingCommit | None] = SimpleQueue()
        self._thread = Thread(target=self._sync, name="tap-commit", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether anyone still waits for an answer."""
        return bool(self._waiting) or self._running is not None

    @property
    def running(self) -> bool:
        """Whether a commit is on its way to the disk."""
        return self._running is not None

    def add(self, vdi: Vdi, done: Done) -> None:
        """Have a VDI committed; `done` is called in the loop thread when it is durable."""
        self._waiting.append((vdi, done))

    def poll(self) -> None:
        """Finish a commit that reached the disk and begin the next one."""
        if self._running is not None and self._synced:
            pending, self._running = self._running, None
            group, self._group = self._group, []
            error: ParallaxError | None = None
            try:
                pending.finish()
            except ParallaxError as failure:
                error = failure
            except Exception as failure:
                error = unexpected(failure, "the end of a commit")
            self._answer(group, error, pending.left_out)
        while self._waiting and self._running is None and not self.held:
            self._group, self._waiting = self._waiting, []
            self._begin()

    def drop(self, error: ParallaxError) -> None:
        """Tell everyone who waits for a commit to begin that there will be none."""
        group, self._waiting = self._waiting, []
        for _, done in group:
            done(error)

    def _begin(self) -> None:
        """Prepare a commit of the group and hand it to the thread."""
        self._begun = time.monotonic()
        vdis = {vdi.id: vdi for vdi, _ in self._group}
        try:
            pending = self._session.begin_commit(vdis.values())
        except Exception as failure:
            error = (
                failure if isinstance(failure, ParallaxError) else unexpected(failure, "a commit")
            )
            group, self._group = self._group, []
            self._answer(group, error)
            return
        self._synced = False
        self._running = pending
        self._queue.put(pending)

    def _sync(self) -> None:
        """Wait for the disk; all that this thread does."""
        while (pending := self._queue.get()) is not None:
            pending.sync()
            self._synced = True
            self._wake()

    def _answer(
        self,
        group: list[tuple[Vdi, Done]],
        error: ParallaxError | None,
        left_out: Mapping[int, ParallaxError] = _NONE,
    ) -> None:
        """Tell everyone in a group what became of their commit, which may leave VDIs out."""
        self.took.add(time.monotonic() - self._begun)
        if error is not None:
            self.failures += 1
            logger.error("commit failed: %s", error, extra={"event": "commit_failed"})
        for vdi, done in group:
            try:
                done(error or left_out.get(vdi.id))
            except Exception as failure:
                unexpected(failure, f"VDI {vdi.id}: after its commit")

    def close(self) -> None:
        """End the thread, after the commit it is at."""
        self._queue.put(None)
        self._thread.join()
