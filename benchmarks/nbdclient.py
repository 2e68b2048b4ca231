"""As little of an NBD client as it takes to open an export and read from it."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

_FLAGS: Final = 3  # fixed newstyle, no zeroes
_OPTION: Final = struct.Struct(">8sII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")


class Client:
    """One connection to one export."""

    def __init__(self, path: Path, export: str) -> None:
        """Connect and open the export."""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._receive(18)  # two magic words and the server's flags
        name = export.encode()
        self._sock.sendall(_FLAGS.to_bytes(4, "big"))
        self._sock.sendall(_OPTION.pack(b"IHAVEOPT", 1, len(name)) + name)
        self._receive(10)  # size and flags of the export

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at byte `offset`."""
        self._sock.sendall(_REQUEST.pack(0x25609513, 0, 0, 0, offset, length))
        _, error, _ = _REPLY.unpack(self._receive(_REPLY.size))
        if error:
            raise OSError(error, "the server could not read")
        return self._receive(length)

    def close(self) -> None:
        """Go without a word."""
        self._sock.close()

    def _receive(self, length: int) -> bytes:
        data = self._sock.recv(length, socket.MSG_WAITALL)
        if len(data) != length:
            raise ConnectionError("the server closed the connection")
        return data
