"""The loop: one thread, and what it calls when a socket has something for it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Final

from core.errors import unexpected

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
GONE: Final = select.EPOLLHUP | select.EPOLLERR

_LOOK: Final = 50e-6
"""Seconds to look for the next event without sleeping."""
_SOON: Final = 150e-6
"""An event that comes this fast makes looking worth while the next time."""

Handler = Callable[[int], None]
"""Called with the events that happened, some of READ, WRITE and GONE."""


class Loop:
    """File descriptors and their handlers. Level triggered: what is not read comes again.

    `select.epoll` itself, not `selectors`: that makes an object of each event.

    Attributes:
        gather: requests come many at a time, so that sleeping until more are there costs
            less than answering each as it comes.
        look: called after each wait and before any handler, if there is one.
    """

    def __init__(self) -> None:
        """Watch nothing but `wake`."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = RLock()
        self._soon = False
        self.gather = False
        self.look: Callable[[], None] | None = None
        self.watch(self._wake, self._woken, READ)

    def watch(self, fd: int, handler: Handler, events: int) -> None:
        """Have `handler` called when any of `events` (or GONE) happens to `fd`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor that is watched."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; call it before closing that."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def turn(self, timeout: float) -> None:
        """Wait until something happens, `timeout` seconds at most, and handle it."""
        handlers = self._handlers
        ready = self._wait(timeout)
        if self.look is not None:
            self.look()
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(events)
                except Exception as error:
                    unexpected(error, "an event")
                    if fd in handlers:  # it would come again at once, and for ever
                        self.unwatch(fd)

    def _wait(self, timeout: float) -> list[tuple[int, int]]:
        """Return what happened. Look a few times before sleeping, where that paid last time.

        A client with few requests under way sends the next one within microseconds of a
        reply; to be put to sleep and woken up takes longer than that. (QEMU's event loop
        polls in the same way, for up to 32 us.)
        """
        poll = self._epoll.poll
        ready = poll(0)
        if ready or not timeout:
            return ready
        start = time.monotonic()
        if self._soon and not self.gather:
            while not ready and time.monotonic() - start < _LOOK:
                ready = poll(0)
            self._soon = bool(ready)
        if not ready:
            ready = poll(timeout)
            self._soon = time.monotonic() - start < _SOON
        return ready

    def wake(self) -> None:
        """End the wait of `turn`; may be called from any thread or signal handler."""
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _woken(self, _events: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def close(self) -> None:
        """Close what the loop itself has open."""
        with self._closing:
            self._epoll.close()
            os.close(self._wake)
            self._wake = -1
