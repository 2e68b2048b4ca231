"""A small NBD client that knows what a server has promised, and what it may have left.

One request at a time, so that for each sector it is known what may be there after the
server is killed: what the last acknowledged flush covered, or anything written since.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

SECTOR = 512
WRITE, FLUSH, TRIM = 1, 3, 4
FUA = 1

_OPTION = 0x49484156454F5054
_REPLY = 0x3E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_SIMPLE = struct.Struct(">IIQ")
_SIMPLE_MAGIC = 0x67446698
_PATIENCE = 60.0


class Promises:
    """What the sectors of one VDI may hold after a crash.

    Args:
        contents: what is on disk now.
    """

    def __init__(self, contents: bytes) -> None:
        self.latest = bytearray(contents)
        self._durable = bytes(contents)
        self._since: dict[int, set[bytes]] = {}
        self._failed: dict[int, set[bytes]] = {}

    def asked(self, offset: int, data: bytes) -> None:
        """Note a write that was sent: from now on it may be there."""
        for at in range(0, len(data), SECTOR):
            self._since.setdefault(offset + at, set()).add(data[at : at + SECTOR])

    def done(self, offset: int, data: bytes) -> None:
        """Note that a write was acknowledged."""
        self.latest[offset : offset + len(data)] = data
        for at in range(offset, offset + len(data), SECTOR):
            self._failed.pop(at, None)

    def failed(self, offset: int, data: bytes) -> None:
        """Note a write that was refused: until the next one, some of it may be there."""
        for at in range(0, len(data), SECTOR):
            self._failed.setdefault(offset + at, set()).add(data[at : at + SECTOR])

    def durable(self, offset: int = 0, length: int | None = None) -> None:
        """Note that what was acknowledged in a range will stay."""
        end = len(self.latest) if length is None else offset + length
        durable = bytearray(self._durable)
        durable[offset:end] = self.latest[offset:end]
        self._durable = bytes(durable)
        for at in range(offset, end, SECTOR):
            self._since.pop(at, None)

    def broken(self, found: bytes) -> list[int]:
        """Return the offsets of the sectors that are not as promised."""
        assert len(found) == len(self._durable)
        return [
            at
            for at in range(0, len(found), SECTOR)
            if found[at : at + SECTOR] != self._durable[at : at + SECTOR]
            and found[at : at + SECTOR] not in self._since.get(at, ())
            and found[at : at + SECTOR] not in self._failed.get(at, ())
        ]


class Client:
    """One connection to one export.

    Args:
        path: Unix socket of the server; it may take a while to appear.
        export: name of the export.
        promises: what is noted of that export.
        alive: says whether there is still a point in waiting for the server.

    Raises:
        ConnectionError: the server is gone.
    """

    def __init__(
        self, path: Path, export: str, promises: Promises, alive: Callable[[], bool]
    ) -> None:
        self.promises = promises
        self._cookie = 0
        self._sock = _connect(path, alive)
        self._sock.settimeout(_PATIENCE)
        try:
            self._choose(export)
        except BaseException:
            self._sock.close()
            raise

    def _choose(self, export: str) -> None:
        """Shake hands and open an export."""
        assert self._take(8) == b"NBDMAGIC"
        assert self._take(8) == struct.pack(">Q", _OPTION)
        self._take(2)
        name = export.encode()
        info = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._sock.sendall(struct.pack(">IQII", 3, _OPTION, 7, len(info)) + info)
        kind = 0
        while kind != 1:
            magic, option, kind, length = struct.unpack(">QIII", self._take(20))
            assert (magic, option) == (_REPLY, 7)
            assert kind < 1 << 31, self._take(length)
            self._take(length)

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._sock.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the server is gone")
            data += part
        return data

    def _ask(self, kind: int, offset: int, length: int, flags: int = 0, data: bytes = b"") -> int:
        """Send a request and return the error in its reply."""
        self._cookie += 1
        head = _REQUEST.pack(_REQUEST_MAGIC, flags, kind, self._cookie, offset, length)
        self._sock.sendall(head + data)
        magic, error, cookie = _SIMPLE.unpack(self._take(_SIMPLE.size))
        assert (magic, cookie) == (_SIMPLE_MAGIC, self._cookie)
        return int(error)

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        """Write whole sectors; return the error."""
        self.promises.asked(offset, data)
        error = self._ask(WRITE, offset, len(data), flags, data)
        self._changed(error, offset, data, flags)
        return error

    def trim(self, offset: int, length: int, flags: int = 0) -> int:
        """Give whole blocks back; return the error."""
        self.promises.asked(offset, bytes(length))
        error = self._ask(TRIM, offset, length, flags)
        self._changed(error, offset, bytes(length), flags)
        return error

    def _changed(self, error: int, offset: int, data: bytes, flags: int) -> None:
        if error:
            self.promises.failed(offset, data)
            return
        self.promises.done(offset, data)
        if flags & FUA:
            self.promises.durable(offset, len(data))

    def flush(self) -> int:
        """Make durable what was acknowledged; return the error."""
        error = self._ask(FLUSH, 0, 0)
        if not error:
            self.promises.durable()
        return error

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def _connect(path: Path, alive: Callable[[], bool]) -> socket.socket:
    until = time.monotonic() + _PATIENCE
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            assert time.monotonic() < until, "the server does not listen"
            if not alive():
                raise ConnectionResetError("the server is gone") from None
            time.sleep(0.01)
