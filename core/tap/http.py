"""One page over HTTP, for monitoring: `GET /metrics`, answered by the tap's own loop.

Not a web server: whatever else is asked for is refused in one line. A page is put together
a piece at a time between the requests of virtual machines, at most once a second, and all
who asked meanwhile get the same. Whoever asks is limited in number, size and time.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from core.errors import unexpected
from core.tap.crowd import Crowd
from core.tap.jobs import Jobs, Steps
from core.tap.loop import GONE, READ, WRITE, Loop

logger = logging.getLogger(__name__)

PATH: Final = "/metrics"
MOST_VISITORS: Final = 16
"""Connections at a time; one more, and the oldest has to go."""
PATIENCE: Final = 10.0
"""Seconds a visitor has for everything."""
_FRESH: Final = 1.0
"""Seconds for which a page is given out again."""
_MOST_HEAD: Final = 8 << 10
_CHUNK: Final = 4 << 10
_MOST_REST: Final = 64 << 10
"""Bytes of what nobody asked for that are read, so that the answer is not lost."""

Page = Callable[[], Iterator[bytes]]
"""Takes the numbers as they are now and yields the text they make, in pieces."""


class Pages:
    """Those who ask for the page, and the page.

    Args:
        loop: tells when a socket is ready.
        jobs: where the page is put together.
        page: the page.
        kind: its content type.

    Attributes:
        visitors: those who are there.
    """

    def __init__(self, loop: Loop, jobs: Jobs, page: Page, kind: str) -> None:
        """Wait for visitors."""
        self._loop = loop
        self._jobs = jobs
        self._page = page
        self._kind = kind
        self.visitors = Crowd(MOST_VISITORS, PATIENCE)
        self._waiting: list[_Visitor] = []
        self._text = b""
        self._made = float("-inf")

    def greet(self, sock: socket.socket) -> None:
        """Take a new connection."""
        self.visitors.add(_Visitor(self._loop, sock, self))

    def gone(self, visitor: _Visitor) -> None:
        """Forget a visitor."""
        self.visitors.discard(visitor)
        if visitor in self._waiting:
            self._waiting.remove(visitor)

    def want(self, visitor: _Visitor) -> None:
        """Give a visitor the page, at once if it is fresh."""
        if time.monotonic() - self._made < _FRESH:
            visitor.answer("200 OK", self._text, self._kind)
            return
        self._waiting.append(visitor)
        if len(self._waiting) == 1:
            self._jobs.add(self._making())

    def _making(self) -> Steps:
        """Put the page together, and give it to all who wait for it."""
        status, kind, parts = "200 OK", self._kind, []
        try:
            for part in self._page():
                parts.append(part)
                yield None
        except Exception as error:
            logger.error("the metrics cannot be told", exc_info=error)
            status, kind, parts = "500 Internal Server Error", _TEXT, [b"see the log\n"]
        else:
            self._made = time.monotonic()
        self._text = b"".join(parts)
        waiting, self._waiting = self._waiting, []
        for visitor in waiting:
            visitor.answer(status, self._text, kind)


_TEXT: Final = "text/plain; charset=utf-8"


class _Visitor:
    """One connection: one request, one answer."""

    def __init__(self, loop: Loop, sock: socket.socket, pages: Pages) -> None:
        """Wait for the request."""
        self.since = time.monotonic()
        self._loop = loop
        self._sock = sock
        self._pages = pages
        self._head = b""
        self._bodiless = False
        self._rest = memoryview(b"")
        self._unread = 0
        self._on_ready = self._receive
        self._open = True
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._on_event, READ)

    def close(self, _why: str = "") -> None:
        """Hang up; a second call does nothing."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._pages.gone(self)

    def answer(self, status: str, body: bytes, kind: str = _TEXT, more: str = "") -> None:
        """Send the answer, and hang up behind it."""
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{more}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self._rest = memoryview(head.encode() + (b"" if self._bodiless else body))
        self._on_ready = self._send
        self._loop.change(self._sock.fileno(), WRITE)

    def _on_event(self, events: int) -> None:
        try:
            if events & GONE:
                self.close()
            else:
                self._on_ready()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        except Exception as error:
            unexpected(error, "a question for metrics")
            self.close()

    def _receive(self) -> None:
        data = self._sock.recv(_CHUNK)
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if not data:
            self.close()
        elif len(head) > _MOST_HEAD:
            self.answer("431 Request Header Fields Too Large", b"the request is too long\n")
        elif end:
            self._loop.change(self._sock.fileno(), 0)
            self._decide(head)

    def _decide(self, head: bytes) -> None:
        """Answer a request whose head is complete."""
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self.answer("400 Bad Request", b"this is no HTTP/1 request\n")
            return
        method, target, _ = words
        self._bodiless = method == "HEAD"
        if target.partition("?")[0] != PATH:
            self.answer("404 Not Found", f"there is only {PATH}\n".encode())
        elif method not in ("GET", "HEAD"):
            self.answer("405 Method Not Allowed", b"use GET or HEAD\n", more="Allow: GET, HEAD\r\n")
        else:
            self._pages.want(self)

    def _send(self) -> None:
        self._rest = self._rest[self._sock.send(self._rest) :]
        if not self._rest:
            # Closed with something unread, a connection takes the answer with it.
            self._sock.shutdown(socket.SHUT_WR)
            self._on_ready = self._discard
            self._loop.change(self._sock.fileno(), READ)

    def _discard(self) -> None:
        data = self._sock.recv(_CHUNK)
        self._unread += len(data)
        if not data or self._unread > _MOST_REST:
            self.close()
