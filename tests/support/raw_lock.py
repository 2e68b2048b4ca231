"""A client of a lock master that does what it is told, byte by byte, and reads when it is told."""

from __future__ import annotations

import socket
import struct

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import State
from websockets.uri import parse_uri

from core.lock_messages import Hello, Reply, Request, Welcome
from core.lock_wire import decode_reply, encode


class RawLockClient:
    """A connection without a thread.

    Args:
        unix: path of its Unix socket.
    """

    def __init__(self, unix: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(unix)
        self.protocol = ClientProtocol(
            parse_uri("ws://localhost/"),
            subprotocols=["parallax-lock-1"],  # type: ignore[list-item]
            max_size=None,
        )
        self._frames: list[bytes] = []
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        while self.protocol.state is State.CONNECTING:
            self._read()
        self.next()  # the challenge

    def put(self, *requests: Request) -> RawLockClient:
        """Have requests ready; `flush` sends all that is ready at once."""
        for request in requests:
            self.protocol.send_binary(encode(request))
        return self

    def flush(self) -> None:
        data = b"".join(self.protocol.data_to_send())
        if data:
            self.sock.sendall(data)

    def hello(self, nonce: str) -> int:
        self.put(Hello(nonce, "host", 1, "raw")).flush()
        said = self.reply()
        assert isinstance(said, Welcome)
        return said.session

    def reply(self) -> Reply:
        return decode_reply(self.next())

    def next(self) -> bytes:
        while not self._frames:
            self._read()
        return self._frames.pop(0)

    def reset(self) -> None:
        """Hang up without a word."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def _read(self) -> None:
        data = self.sock.recv(1 << 16)
        assert data, "it hung up"
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Frame):
                self._frames.append(bytes(event.data))
