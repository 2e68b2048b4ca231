"""A WebSocket connection of the lock master, on either side: whole messages, and no waiting.

The protocol is the one of `websockets`, without its input and output: sockets, limits and
the reasons why somebody was refused are ours. `send` never waits. What the other side does
not read is kept up to a limit; then the connection is cut, which harms nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from contextlib import suppress
from typing import Final, NoReturn

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidOrigin, PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from core.lock_wire import MOST_BYTES, MOST_BYTES_BACK

SUBPROTOCOL: Final = Subprotocol("parallax-lock-1")
_CHUNK: Final = 64 << 10
_MOST_UNREAD: Final = MOST_BYTES_BACK
"""Bytes that wait for the other side to read them."""
_POLICY: Final = 1008

_silent = logging.getLogger(f"{__name__}.protocol")
_silent.disabled = True
"""What is worth a line is logged by the owner of a channel, who knows whose it is."""


class Gone(Exception):
    """The connection ended; the text says how."""


class Refusal(Exception):
    """The other side did what it may not do.

    Args:
        reason: a word for the log and the metrics.
        why: for people.
    """

    def __init__(self, reason: str, why: str) -> None:
        """Keep both."""
        super().__init__(why)
        self.reason = reason


class Channel:
    """Messages over one connection.

    Args:
        protocol: which side this is.
        reader, writer: the connection.
    """

    def __init__(
        self,
        protocol: ServerProtocol | ClientProtocol,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Say nothing yet."""
        self._protocol = protocol
        self._reader = reader
        self._writer = writer
        self._arrived: deque[bytes] = deque()
        self._heads: list[Request | Response] = []
        self._at_end = False

    def send(self, data: bytes) -> None:
        """Send a message; what was sent on a connection that has ended is lost.

        Raises:
            Refusal: the other side has not read for too long.
        """
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)
            self._flush()

    async def receive(self) -> bytes:
        """Wait for the next message.

        Raises:
            Gone: the connection has ended.
            Refusal: what came is no message.
        """
        while not self._arrived:
            await self._read()
        return self._arrived.popleft()

    def refuse(self, why: str) -> None:
        """Tell the other side why it is hung up on."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(_POLICY, why.encode()[:120].decode(errors="ignore"))
            self._flush(limit=False)

    async def part(self, seconds: float) -> None:
        """Say that nothing more will come, and wait until the other side has read all.

        It shows that by hanging up. Who hangs up first may take away what was sent: an answer
        that meets a closed connection is an error there, and what was not read yet is lost.
        """
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1001)
            self._flush(limit=False)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._reader.read(_CHUNK):
                    pass

    async def close(self, seconds: float) -> None:
        """Hang up; who reads has so many seconds to take what was sent."""
        with suppress(OSError):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1001)
                self._flush(limit=False)
        self._writer.close()
        closed = asyncio.ensure_future(self._writer.wait_closed())
        with suppress(asyncio.CancelledError):  # then there is no time left
            await asyncio.wait((closed,), timeout=seconds)
        if not closed.done():
            self.abort()
            await asyncio.wait((closed,), timeout=1.0)
        if closed.done() and not closed.cancelled():
            closed.exception()  # how it ended was told before

    def abort(self) -> None:
        """Hang up at once."""
        self._writer.transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes that still wait to be sent."""
        return self._writer.transport.get_write_buffer_size()

    # -- the opening -------------------------------------------------------------------

    async def accept(self) -> None:
        """Take a client: one that is no browser and speaks this protocol.

        Raises:
            Gone: it went away.
            Refusal: it is something else.
        """
        assert isinstance(self._protocol, ServerProtocol)
        request = await self._head()
        assert isinstance(request, Request)
        if self._arrived or self._at_end or not self._is(State.CONNECTING):
            raise Refusal("handshake", "it did not wait to be answered")
        response = self._protocol.accept(request)
        accepted = response.status_code == 101
        if accepted and self._protocol.subprotocol != SUBPROTOCOL:
            response = self._protocol.reject(400, f"this is a lock master: {SUBPROTOCOL}\n")
        self._protocol.send_response(response)
        self._flush()
        if isinstance(self._protocol.handshake_exc, InvalidOrigin):
            raise Refusal("browser", "a browser")
        if not self._is(State.OPEN):
            raise Refusal("handshake", f"no client of a lock master ({response.status_code})")

    async def connect(self) -> None:
        """Be taken by a lock master.

        Raises:
            Gone: it went away.
            Refusal: it is something else.
        """
        assert isinstance(self._protocol, ClientProtocol)
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        await self._head()
        if not self._is(State.OPEN):
            raise Refusal("handshake", f"no lock master answers there ({self._ended()})")
        if self._protocol.subprotocol != SUBPROTOCOL:
            raise Refusal("handshake", "the lock master speaks another version")

    def _is(self, state: State) -> bool:
        return self._protocol.state is state

    async def _head(self) -> Request | Response:
        while not self._heads:
            await self._read()
        return self._heads.pop()

    # -- bytes -------------------------------------------------------------------------

    async def _read(self) -> None:
        """Wait for bytes, and take what they complete.

        That the other side's end was seen is said only when all before it was taken: who
        says goodbye and waits for that knows that the goodbye was followed.
        """
        self._flush()
        if self._protocol.state in (State.CLOSING, State.CLOSED):
            self._end()
        try:
            data = await self._reader.read(_CHUNK)
        except ssl.SSLError:
            raise
        except (OSError, EOFError) as error:
            raise Gone(str(error)) from error
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            self._take(event)
        if not self._arrived:
            self._flush()
        self._judge()
        over = not data or self._protocol.state in (State.CLOSING, State.CLOSED)
        if over and not self._arrived and not self._heads:
            self._end()

    def _judge(self) -> None:
        """Raise Refusal if what came breaks the rules of the protocol."""
        wrong, failed = self._protocol.parser_exc, self._protocol.handshake_exc
        if isinstance(wrong, PayloadTooBig):
            raise Refusal("oversized", "a message that is too long")
        if isinstance(failed, EOFError):
            raise Gone("it went away before it said what it wants")
        if failed is not None and isinstance(self._protocol, ServerProtocol):
            raise Refusal("handshake", "no client of a lock master")
        if wrong is not None and not isinstance(wrong, EOFError):
            raise Refusal("malformed", f"no WebSocket: {wrong}")

    def _take(self, event: object) -> None:
        if isinstance(event, (Request, Response)):
            self._heads.append(event)
        elif isinstance(event, Frame) and event.opcode is Opcode.BINARY and event.fin:
            self._arrived.append(bytes(event.data))
        elif isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            raise Refusal("malformed", "a message in another form than one binary frame")

    def _flush(self, limit: bool = True) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._at_end:
                self._writer.write(data)
            elif not data and self._writer.can_write_eof():
                self._at_end = True
                self._writer.write_eof()
        if limit and self.unsent > _MOST_UNREAD:
            raise Refusal("slow_reader", "it does not read what it asked for")

    def _end(self) -> NoReturn:
        """Say that it has ended, and whether the other side wanted it to."""
        said = self._protocol.close_rcvd
        if said is not None and said.code == _POLICY:
            raise Refusal("refused", said.reason)
        raise Gone(self._ended())

    def _ended(self) -> str:
        """Return how the connection ended, in the other side's words if it said some."""
        said = self._protocol.close_rcvd
        if said is not None and said.reason:
            return said.reason
        error = self._protocol.handshake_exc
        return str(error) if error is not None else "the connection was closed"


def server_channel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel:
    """Return the master's side of a connection; a browser would name an origin."""
    protocol = ServerProtocol(
        origins=[None], subprotocols=[SUBPROTOCOL], max_size=MOST_BYTES, logger=_silent
    )
    return Channel(protocol, reader, writer)


def client_channel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
) -> Channel:
    """Return a client's side of a connection to a host."""
    protocol = ClientProtocol(
        parse_uri(f"ws://{host}/"),
        subprotocols=[SUBPROTOCOL],
        max_size=MOST_BYTES_BACK,
        logger=_silent,
    )
    return Channel(protocol, reader, writer)


async def streams(
    sock: socket.socket, **options: object
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connected socket as streams.

    Args:
        sock: the socket; closed when it fails.
        options: for `loop.connect_accepted_socket`.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_CHUNK, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        # mypy cannot match options in a dict with the arguments
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, **options)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
