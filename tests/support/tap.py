"""A running tap, and a client that speaks NBD by hand, rules and all or none of them."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.stores import noise, small_store

from core.device import Cache
from core.session import Session
from core.tap import protocol as p
from core.tap.server import Tap

MIB = 1 << 20
CONTENTS = noise(MIB, "golden") + bytes(MIB) + noise(MIB, "end")
"""What `golden` and its snapshot hold: data, a hole, data."""
both_caches = pytest.mark.parametrize("cache", ["host", "none"])
"""Run a test with the page cache, and with O_DIRECT."""
TIMEOUT = 90.0  # a busy disk may take its time over a flush


def make_store(folder: Path, blocks: int = 4096, extents: int = 6) -> str:
    """A store with VDI 0 `golden`, its snapshot `golden@base`, its clone 1 `clone`."""
    path = small_store(folder, blocks, extents)
    with Session.open(path) as session:
        golden = session.create("golden", len(CONTENTS))
        with session.opened(golden) as vdi:
            vdi.write(0, CONTENTS)
        session.snapshot(session.registry.find("golden"), "base")
        session.create("clone", parent=session.find_snapshot("golden@base"))
        session.create("empty", 8 * MIB)
    return path


def contents_of(store: str, name: str) -> bytes:
    """All of a VDI as of the last commit, from the store itself."""
    with Session.open(store, "read") as session:
        record = session.registry.find(name)
        return session.live_image(record).read(0, record.size)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the 107 bytes of a socket's."""
    with tempfile.TemporaryDirectory(prefix="tap") as folder:
        yield Path(folder)


@contextmanager
def running(tap: Tap) -> Iterator[None]:
    """Run a tap in a thread; what it raises is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            tap.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        tap.stop()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


@contextmanager
def tap_in_thread(store: str, cache: Cache = "host", **options: Any) -> Iterator[tuple[Tap, str]]:
    """Serve a store from a thread of this process; yields the tap and its socket."""
    with short_folder() as folder, Session.open(store, cache=cache) as session:
        path = str(folder / "nbd")
        tap = Tap(session, path, **options)
        with running(tap):
            yield tap, path


_RUNNER = """
import sys
from core.session import Session
from core.tap.server import serve
store, unix, port, tls, cache = sys.argv[1:]
with Session.open(store, cache=cache) as session:
    serve(session, unix=unix or None, tcp=("127.0.0.1", int(port)) if port else None,
          tls=tls or None, ready=lambda: print("ready", flush=True))
"""


class TapProcess:
    """A tap in a process of its own."""

    def __init__(
        self, store: str, unix: str, port: str = "", tls: str = "", cache: Cache = "host"
    ) -> None:
        self.unix = unix
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER, store, unix, port, tls, cache],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.unix}"

    def stop(self) -> int:
        """End it as systemd would, if it still runs; returns its exit status."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def tap_process(store: str, **options: Any) -> Iterator[TapProcess]:
    """Serve a store from a process of its own, until the end of the block."""
    with short_folder() as folder:
        tap = TapProcess(store, str(folder / "nbd"), **options)
        try:
            yield tap
        finally:
            tap.stop()


def free_port() -> int:
    """A TCP port of the loopback address, for servers that let it be used again at once.

    It stays bound, and nobody listens: so the kernel gives it to nobody else meanwhile.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.detach()  # until this process ends
    return port


def listens(unix: str | Path) -> bool:
    """Whether somebody listens on a Unix socket, whose file is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(unix)) == 0


class Chunk(NamedTuple):
    """One structured reply chunk, or a simple reply (type -1, the error as flags)."""

    flags: int
    type: int
    cookie: int
    payload: bytes


class NbdError(Exception):
    """The server answered with this error."""


class RawClient:
    """One connection; nothing is checked on this side."""

    def __init__(self, unix: str, flags: int = p.FIXED_NEWSTYLE | p.NO_ZEROES) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(unix)  # however many are at the door
        self.sock.settimeout(TIMEOUT)
        self.structured = False
        self.cookie = 0
        self.size = self.flags = 0
        self.greeting = self.receive(p.GREETING.size)
        self.sock.sendall(p.CLIENT_FLAGS.pack(flags))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def receive(self, length: int) -> bytes:
        """Exactly that many bytes; ConnectionError when the server hung up before."""
        parts = []
        while length:
            part = self.sock.recv(length)
            if not part:
                raise ConnectionError("the server hung up")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def hung_up(self) -> bool:
        """Wait until the server hangs up or says something."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # -- handshake ---------------------------------------------------------------------

    def send_option(self, option: int, data: bytes = b"", magic: int = p.OPTION_MAGIC) -> None:
        self.sock.sendall(p.OPTION.pack(magic, option, len(data)) + data)

    def option_reply(self) -> tuple[int, int, bytes]:
        magic, option, kind, length = p.OPTION_REPLY.unpack(self.receive(p.OPTION_REPLY.size))
        assert magic == p.OPTION_REPLY_MAGIC
        return option, kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return (type, payload) of all replies to it."""
        self.send_option(option, data)
        replies = []
        while True:
            about, kind, payload = self.option_reply()
            assert about == option
            replies.append((kind, payload))
            if kind == p.REP_ACK or kind & 1 << 31:
                return replies

    def go(self, name: str, structured: bool = False, contexts: bool = False) -> RawClient:
        """Negotiate and choose an export."""
        if structured:
            assert self.option(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
            self.structured = True
        if contexts:
            self.option(p.OPT_SET_META_CONTEXT, contexts_for(name, "base:allocation"))
        for kind, payload in self.option(p.OPT_GO, info_for(name)):
            if kind & 1 << 31:
                raise NbdError(kind & 0xFFFF, payload.decode())
            if kind == p.REP_INFO and payload[:2] == b"\0\0":
                _, self.size, self.flags = p.INFO_EXPORT_REPLY.unpack(payload)
        return self

    # -- transmission ------------------------------------------------------------------

    def send(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        data: bytes = b"",
        magic: int = p.REQUEST_MAGIC,
    ) -> int:
        """Send one request; return its cookie."""
        self.sock.sendall(self.request(kind, offset, length, flags, data, magic))
        return self.cookie

    def request(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        data: bytes = b"",
        magic: int = p.REQUEST_MAGIC,
    ) -> bytes:
        """One request, with the next cookie, for who sends several in one go.

        A server that nobody reads from stops reading, and a socket takes few small pieces.
        """
        self.cookie += 1
        head = struct.pack(">IHHQQI", magic, flags, kind, self.cookie, offset, length or len(data))
        return head + data

    def reply(self, length: int = 0) -> Chunk:
        """The next reply; `length` is what follows a simple one that succeeded."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == p.SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Chunk(error, -1, cookie, b"" if error else self.receive(length))
        assert magic == p.STRUCTURED_MAGIC
        flags, kind, cookie, size = struct.unpack(">HHQI", self.receive(16))
        return Chunk(flags, kind, cookie, self.receive(size))

    def chunks(self) -> list[Chunk]:
        """All chunks of the next reply, in a conversation with structured replies."""
        found = [self.reply()]
        while not found[-1].flags & p.CHUNK_DONE:
            found.append(self.reply())
        return found

    def call(
        self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send a request whose reply has no data; return the error."""
        cookie = self.send(kind, offset, length, flags, data)
        reply = self.reply()
        assert reply.cookie == cookie
        return reply.flags if reply.type == -1 else error_of(reply)

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return self.call(p.CMD_WRITE, offset, 0, flags, data)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """Read, in whichever form the server answers; NbdError when it refuses."""
        self.send(p.CMD_READ, offset, length, flags)
        if not self.structured:
            reply = self.reply(length)
            if reply.flags:
                raise NbdError(reply.flags)
            return reply.payload
        data = bytearray(length)
        for chunk in self.chunks():
            if chunk.type & 1 << 15:
                raise NbdError(error_of(chunk))
            (at,) = struct.unpack_from(">Q", chunk.payload)
            if chunk.type == p.CHUNK_OFFSET_DATA:
                data[at - offset : at - offset + len(chunk.payload) - 8] = chunk.payload[8:]
        return bytes(data)


def error_of(chunk: Chunk) -> int:
    """The error in an error chunk."""
    error: int = struct.unpack_from(">I", chunk.payload)[0]
    return error


def info_for(name: str, *wanted: int) -> bytes:
    """The data of OPT_INFO and OPT_GO."""
    encoded = name.encode()
    kinds = struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
    return struct.pack(">I", len(encoded)) + encoded + kinds


def contexts_for(name: str, *queries: str) -> bytes:
    """The data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""
    data = struct.pack(">I", len(name.encode())) + name.encode()
    data += struct.pack(">I", len(queries))
    for query in queries:
        data += struct.pack(">I", len(query)) + query.encode()
    return data
