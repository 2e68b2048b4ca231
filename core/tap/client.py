"""One client: its socket, what waits to be sent to it, and the phase it is in."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Final

from core.errors import Fenced, unexpected
from core.tap.handshake import Handshake, ProtocolError, State
from core.tap.loop import GONE, READ, WRITE, Loop
from core.tap.shared import Shared
from core.tap.transmission import Transmission
from core.text import counted, human_size

logger = logging.getLogger(__name__)

_CHUNK: Final = 16 << 10
_TLS_ROUNDS: Final = 16
_FEW: Final = 2
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Client:
    """A connection from its first byte to its last.

    Nothing that goes wrong here reaches the other clients.

    Args:
        loop: tells when the socket is ready.
        shared: what carries out its requests.
        sock: the socket, not blocking.
        tls: makes the connection private, None when there is no TLS.
        tls_required: whether the client must start TLS.
        told: told when it has chosen an export, and when it is gone.

    Attributes:
        open: whether it is there.
        sock: the socket.
        peer: who it is, to show.
        since: when it connected, on the monotonic clock.
        transmission: its requests, None during the handshake.
        queued: bytes of replies that it has not taken.
        taken: bytes of those that it has taken late.
    """

    def __init__(
        self,
        loop: Loop,
        shared: Shared,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        tls_required: bool,
        told: Callable[[Client], None],
    ) -> None:
        """Greet the client."""
        self.sock = sock
        self.peer = peer_name(sock)
        self.since = time.monotonic()
        self.transmission: Transmission | None = None
        self.queued = 0
        self.taken = 0
        self._loop = loop
        self._shared = shared
        self._tls = tls
        self._told = told
        self._handshake = Handshake(shared.exports, tls is not None, tls_required)
        self._receive: Callable[[], None] = self._await_turn
        self._turn: Callable[[], None] = self._negotiate
        self._out: deque[memoryview] = deque()
        self._events = READ
        self.open = True
        self._stopping = False
        self._queued = False
        self._fd = sock.fileno()
        loop.watch(self._fd, self._on_event, READ)
        self.guard(self.send, memoryview(Handshake.greeting()))

    @property
    def blocked(self) -> bool:
        """Whether replies wait because the client does not take them."""
        return bool(self._out)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be answered or sent."""
        return not self._out and (self.transmission is None or not self.transmission.waiting)

    # -- events ------------------------------------------------------------------------

    def _on_event(self, events: int) -> None:
        self.guard(self._handle, events)

    def _handle(self, events: int) -> None:
        if events & WRITE:
            self._drain()
        if not self.open:
            return
        if isinstance(self.sock, ssl.SSLSocket):  # it may hold more than the kernel knows
            for _ in range(_TLS_ROUNDS if self.transmission is not None else 1):
                if self._reading():
                    self._receive()
        elif events & READ & self._events:  # it may have been paused since the loop was woken
            self._receive()
        if events & GONE and not events & READ:
            raise ConnectionResetError("the connection broke")

    def _reading(self) -> bool:
        return self.open and bool(self._events & READ)

    def guard(self, action: Callable[..., None], *arguments: object) -> None:
        """Do something for this client; if that fails, only this client is dropped."""
        if not self.open:
            return
        try:
            action(*arguments)
        except _NOT_NOW:
            pass
        except ProtocolError as error:
            self._refuse(f"protocol error: {error}")
            self.close("protocol error")
        except Fenced as error:
            self.fenced(error)
        except ssl.SSLError as error:
            if self.transmission is None:  # later it is only a client that leaves rudely
                self._refuse(f"TLS: {error.reason or error}")
            self.close(str(error))
        except OSError as error:
            self.close(str(error))
        except Exception as error:
            self.failed(error)

    def _refuse(self, why: str) -> None:
        """Log that the client does not get what it wants."""
        if self.transmission is None:
            self._shared.totals.refused += 1
        logger.warning("%s: %s", self.peer, why, extra={"event": "refused", "peer": self.peer})

    def fenced(self, error: Fenced) -> None:
        """Hang up without an answer, because nobody knows whose the VDI is now.

        What was not answered the client sends again to whoever serves the VDI then; an
        answer would be an error that a guest takes for a broken disk.
        """
        export = None if self.transmission is None else self.transmission.export
        self.close(error.message)
        if export is not None:
            self._shared.gate.fenced(export, error)

    def failed(self, error: Exception) -> None:
        """Drop the client because of a bug."""
        unexpected(error, self.peer)
        self.close("internal error")

    def update(self) -> None:
        """Wait for what makes sense now: the client's requests, or that it takes replies."""
        transmission = self.transmission
        if self._out:
            events = WRITE
        elif transmission is not None and transmission.done:
            self.close("disconnected")
            return
        elif self._waits:
            events = 0
        else:
            events = READ
            if isinstance(self.sock, ssl.SSLSocket) and not self._events & READ:
                events |= WRITE  # comes at once: what TLS holds already has to be looked at
        if events != self._events and self.open:
            self._events = events
            self._loop.change(self._fd, events)

    @property
    def _waits(self) -> bool:
        """Whether nothing is to be read, for now or for good."""
        if self.transmission is None:
            return self._stopping or self._queued or self._handshake.waits is not None
        return self._stopping or self.transmission.full

    def took(self, requests: int) -> None:
        """Note how many requests came together."""
        self._loop.gather = requests > _FEW

    def stop(self) -> None:
        """Take no more requests; those that were taken are answered."""
        self._stopping = True
        if self.transmission is None:
            self.close("the server is stopping")
        else:
            self.update()

    def resume(self) -> None:
        """Go on after a pause, with what was received before it."""
        if self.transmission is not None and not self._out:
            self.guard(self.transmission.process)

    def close(self, why: str) -> None:
        """Drop the connection; a second call does nothing."""
        if not self.open:
            return
        self.open = False
        self._say_goodbye(why)
        self._shared.replies.clear()
        self._out.clear()
        self._loop.unwatch(self._fd)
        self.sock.close()
        if self.transmission is not None:
            self.transmission.close()
        self._told(self)

    def _say_goodbye(self, why: str) -> None:
        """Log why the connection ends, and what was done over it."""
        fields: dict[str, object] = {"event": "disconnect", "peer": self.peer, "reason": why}
        transmission = self.transmission
        if transmission is None:
            logger.debug("%s: %s", self.peer, why, extra=fields)
            return
        counts = transmission.counts
        seconds = time.monotonic() - self.since
        fields |= {"export": transmission.name, "seconds": round(seconds, 3), **asdict(counts)}
        logger.info(
            "%s: %s left after %s: %s, %s read, %s written (%s)",
            transmission.name,
            self.peer,
            f"{seconds:.0f} s",
            counted(counts.requests, "request"),
            human_size(counts.bytes_read),
            human_size(counts.bytes_written),
            why,
            extra=fields,
        )

    # -- sending -----------------------------------------------------------------------

    def send(self, data: memoryview) -> None:
        """Send `data`, or keep a copy of what cannot be sent yet.

        Raises:
            OSError: the client is gone.
        """
        if not self._out:
            sent = self._send_some(data)
            if sent == len(data):
                return
            data = data[sent:]
        self._out.append(memoryview(bytes(data)))
        self.queued += len(data)
        self.update()

    def _send_some(self, data: memoryview) -> int:
        """Send as much as the socket takes; return how much that was."""
        sent = 0
        try:
            sent = self.sock.send(data)
            while sent < len(data) and isinstance(self.sock, ssl.SSLSocket):
                sent += self.sock.send(data[sent:])  # it takes one record at a time
        except _NOT_NOW:
            pass
        return sent

    def _drain(self) -> None:
        """Send what was kept; then go on with the requests that waited for it."""
        out = self._out
        while out:
            sent = self._send_some(out[0])
            self.queued -= sent
            self.taken += sent
            if sent < len(out[0]):
                out[0] = out[0][sent:]
                return
            out.popleft()
        self._proceed()

    def _proceed(self) -> None:
        """Go on when all that there was to send is sent."""
        if self.transmission is not None:
            self.update()
            if self.open:
                self.transmission.process()
        elif self._handshake.state is State.START_TLS:
            self._begin_tls()
        elif self._handshake.state is State.ABORTED:
            self.close("aborted")
        elif self._handshake.pending or self._unread:
            self._await_turn()
        else:
            self.update()

    # -- handshake ---------------------------------------------------------------------

    def _await_turn(self) -> None:
        """Have the handshake go on when it is this client's turn."""
        if not self._queued:
            self._queued = True
            self._shared.turns.add(partial(self.guard, self._take_turn))
        self.update()

    def _take_turn(self) -> None:
        self._queued = False
        try:
            self._turn()
        except _NOT_NOW:
            self.update()

    @property
    def _unread(self) -> bool:
        """Whether TLS holds bytes that the kernel does not tell of."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def _negotiate(self) -> None:
        """Deal with one message of the client, or go on with a long answer."""
        handshake = self._handshake
        answer = handshake.step()
        if answer is None and handshake.waits is None:
            data = self.sock.recv(_CHUNK)
            if not data:
                raise ConnectionResetError("the client closed the connection")
            handshake.take(data)
            answer = handshake.step()
        for why in handshake.refusals:
            self._refuse(f"refused: {why}")
        handshake.refusals.clear()
        if handshake.waits is not None:
            handshake.waits.when_ready(partial(self.guard, self._take_turn))
            self.update()
            return
        if handshake.state is State.DONE:
            self._begin_transmission()
        if answer:
            self.send(memoryview(answer))
        if not self._out:
            self._proceed()

    def _begin_tls(self) -> None:
        self._handshake.securing()
        assert self._tls is not None
        self.sock = self._tls.wrap_socket(
            self.sock, server_side=True, do_handshake_on_connect=False
        )
        self._turn = self._shake_hands
        self.update()

    def _shake_hands(self) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        self._handshake.secured()
        self._turn = self._negotiate
        self._proceed()

    def _begin_transmission(self) -> None:
        agreed = self._handshake.agreed
        assert agreed.export is not None
        transmission = Transmission(
            self, self._shared, agreed, agreed.export, self._handshake.rest()
        )
        self.transmission = transmission
        self._receive = transmission.receive
        self._told(self)
        access = "r" if agreed.export.vdi is None else "w"
        logger.info(
            "%s: opened by %s%s",
            transmission.name,
            self.peer,
            ", read-only" if access == "r" else "",
            extra={
                "event": "connect",
                "export": transmission.name,
                "peer": self.peer,
                "access": access,
            },
        )


def peer_name(sock: socket.socket) -> str:
    """Return who is at the other end of a connection."""
    if sock.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        pid, _, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return f"pid {pid}"
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
