"""The doors of the tap: listening sockets, and how many may come in through them.

Some descriptors are kept for the tap itself and for the tools beside it: its store, the lock
master's connections, a child that collects garbage. When clients have all the others, whoever
has yet to say what it wants makes room, and if there is nobody like that a new one is refused.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from core.errors import unexpected
from core.listen import listen_unix
from core.tap.crowd import Crowd
from core.tap.loop import READ, Loop
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

Welcome = Callable[[socket.socket], None]
"""Takes a connection that was just accepted."""

RESERVE: Final = 24
"""Descriptors that connections of clients leave to the tap itself."""
_AT_ONCE: Final = 16
"""Connections that are accepted before others have a turn."""
_LOOK_EVERY: Final = 1.0
"""Seconds between looks at those who take too long, and before the doors are opened again."""
_COMPLAIN_EVERY: Final = 60.0


class Doors:
    """Listening sockets.

    Args:
        crowds: those who can be sent away when room is needed.

    Attributes:
        inside: returns how many connections there are.
        refused: how many were turned away at once.
    """

    def __init__(self, crowds: Sequence[Crowd]) -> None:
        """Listen nowhere yet."""
        self._crowds = crowds
        self._doors: list[tuple[socket.socket, Welcome]] = []
        self._unlink: list[tuple[str, int]] = []
        self._loop: Loop | None = None
        self._timers: Timers | None = None
        self._most = 0
        self._looking = False
        self._shut = False
        self._complain_at = 0.0
        self.inside: Callable[[], int] = lambda: 0
        self.refused = 0

    def open(self, sockets: list[socket.socket], welcome: Welcome) -> list[socket.socket]:
        """Have connections to these sockets welcomed."""
        self._doors += [(sock, welcome) for sock in sockets]
        return sockets

    def open_unix(self, path: str, welcome: Welcome) -> list[socket.socket]:
        """Listen on a Unix socket; raises as `core.listen.listen_unix`."""
        sock = listen_unix(path)
        self._unlink.append((path, os.stat(path).st_ino))
        return self.open([sock], welcome)

    def watch(self, loop: Loop, timers: Timers) -> None:
        """Let people in from now on; all that the tap itself has open is open by now."""
        self._loop, self._timers = loop, timers
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(limit - len(os.listdir("/proc/self/fd")) - RESERVE, 1)
        self._watch()

    def _watch(self) -> None:
        assert self._loop is not None
        self._shut = False
        for sock, welcome in self._doors:
            sock.setblocking(False)
            self._loop.watch(sock.fileno(), partial(self._accept, sock, welcome), READ)

    def _unwatch(self) -> None:
        assert self._loop is not None
        if not self._shut:
            self._shut = True
            for sock, _ in self._doors:
                self._loop.unwatch(sock.fileno())

    def close(self) -> None:
        """Stop listening and remove the socket files, unless somebody replaced them."""
        if self._loop is not None:
            self._unwatch()
        for sock, _ in self._doors:
            sock.close()
        self._doors.clear()
        for path, inode in self._unlink:
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._unlink.clear()

    # -- accepting ---------------------------------------------------------------------

    def _accept(self, listener: socket.socket, welcome: Welcome, _events: int) -> None:
        """Let some of those in who are at a door."""
        with suppress(BlockingIOError, ConnectionAbortedError):
            for _ in range(_AT_ONCE):
                try:
                    sock, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    raise
                except OSError as error:
                    # Out of descriptors all the same: ask again later rather than all the time.
                    fields = {"event": "accept_failed"}
                    logger.error("cannot accept a connection: %s", error, extra=fields)
                    self._make_room()
                    self._unwatch()
                    break
                self._let_in(sock, welcome)
        self._look_later()

    def _let_in(self, sock: socket.socket, welcome: Welcome) -> None:
        if self.inside() >= self._most and not self._make_room():
            self.refused += 1
            self._complain()
            sock.close()
            return
        try:
            welcome(sock)
        except Exception as error:
            unexpected(error, "a new connection")
            sock.close()

    def _make_room(self) -> bool:
        """Send somebody away who has yet to say what it wants; false if there is nobody.

        Of the largest crowd: a flood at one door is no reason to turn people away at another.
        """
        return any(crowd.evict() for crowd in sorted(self._crowds, key=len, reverse=True))

    def _complain(self) -> None:
        """Say that there are too many clients, once in a while."""
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAIN_EVERY
            logger.error(
                "connections are refused: there are %d, and no descriptor is left for more;"
                " raise the limit of open files (LimitNOFILE in the unit)",
                self.inside(),
                extra={"event": "too_many", "connections": self.inside()},
            )

    def _look_later(self) -> None:
        if not self._looking:
            assert self._timers is not None
            self._looking = True
            self._timers.at(time.monotonic() + _LOOK_EVERY, self._look)

    def _look(self) -> None:
        """Send those away who take too long, and open doors that were shut."""
        self._looking = False
        now = time.monotonic()
        for crowd in self._crowds:
            crowd.expire(now)
        if self._shut and self._doors:
            self._watch()
        if any(self._crowds):
            self._look_later()
