"""An NBD client with several requests under way, which says who is told what, and when."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

READ, WRITE, FLUSH, TRIM = 0, 1, 3, 4
FUA = 1
_OPTION = 0x49484156454F5054
_GO = 7
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_PIECE = 256 << 10


class Refused(Exception):
    """The server does not open the export; the text says why."""


class Failed(Exception):
    """The server answered with an error."""


class Request(NamedTuple):
    """One request; `data` only for a write."""

    kind: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: bytes = b""


class Client:
    """One connection to one export.

    Args:
        path: Unix socket of the server.
        export: what to open.
        patience: seconds to wait for any one answer.

    Raises:
        Refused: the server says no.
        ConnectionError: there is no server, or it hung up.
        TimeoutError: it does not answer.
    """

    def __init__(self, path: Path, export: str, patience: float = 60.0) -> None:
        self.size = 0
        self._cookie = 0
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(patience)
        try:
            try:
                self._sock.connect(str(path))
            except FileNotFoundError as error:
                raise ConnectionRefusedError(f"no socket {path}") from error
            self._open(export)
        except BaseException:
            self._sock.close()
            raise

    def _open(self, export: str) -> None:
        self._take(18)
        name = export.encode()
        info = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._sock.sendall(struct.pack(">IQII", 3, _OPTION, _GO, len(info)) + info)
        kind = 0
        while kind != 1:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            payload = self._take(length)
            if kind & 1 << 31:
                raise Refused(payload.decode())
            if kind == 3 and payload[:2] == b"\0\0":
                (self.size,) = struct.unpack_from(">Q", payload, 2)

    def _take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._sock.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the server hung up")
            data += part
        return bytes(data)

    def send(self, requests: Sequence[Request]) -> int:
        """Send requests in one go; return the cookie of the first, the others count on."""
        first = self._cookie + 1
        parts = []
        for request in requests:
            self._cookie += 1
            length = request.length or len(request.data)
            parts.append(
                _REQUEST.pack(
                    0x25609513, request.flags, request.kind, self._cookie, request.offset, length
                )
            )
            parts.append(request.data)
        self._sock.sendall(b"".join(parts))
        return first

    def answer(self) -> tuple[int, int]:
        """Wait for the next answer to a request that reads nothing; its cookie and error."""
        magic, error, cookie = _REPLY.unpack(self._take(_REPLY.size))
        assert magic == 0x67446698
        return cookie, error

    def ask(self, request: Request) -> int:
        """Send one request that reads nothing and return the error in the answer."""
        cookie = self.send([request])
        found, error = self.answer()
        assert found == cookie
        return error

    def read_all(self) -> bytes:
        """All of the export."""
        data = []
        for at in range(0, self.size, _PIECE):
            length = min(_PIECE, self.size - at)
            self.send([Request(READ, at, length)])
            _, error = self.answer()
            if error:
                raise Failed(f"error {error} to a read at {at}")
            data.append(self._take(length))
        return b"".join(data)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
