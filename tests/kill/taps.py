"""A tap under strace, a client's work on it, and what the log says about the answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kill.client import FLUSH, FUA, TRIM, WRITE, Client, Promises
from kill.jobs import KIB, noise
from kill.tracing import PLXSH, SOCKETS, SYNCS, WRITES, Call, calls_in, strace

from core.session import Session

BLOCK = 4 * KIB
_HEAD = 28
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')

Step = Callable[[], int]


def contents(store: Path, name: str) -> bytes:
    """Return all bytes of a VDI."""
    with Session.open(str(store), "shared") as session:
        record = session.registry.find(name)
        return session.live_image(record).read(0, record.size)


def real_tap(store: Path) -> list[str]:
    """Return the command that serves a store on `socket` in its folder."""
    return [*PLXSH, "-q", "-s", str(store), "tap", "serve", "--unix", str(store.parent / "socket")]


class Tap:
    """A running tap.

    Attributes:
        log: what strace saw.
        promises: by name of the VDI, what clients were told.
    """

    def __init__(self, command: Sequence[str], store: Path, inject: str | None) -> None:
        self.store = store
        self.log = store.parent / "log"
        self.promises = {name: Promises(contents(store, name)) for name in ("base", "web")}
        self._clients: list[Client] = []
        self._process = subprocess.Popen(
            strace(command, self.log, inject, (*WRITES, *SYNCS, *SOCKETS), _HEAD),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def connect(self, name: str) -> Client:
        """Open a VDI."""
        socket = self.store.parent / "socket"
        client = Client(socket, name, self.promises[name], lambda: self._process.poll() is None)
        self._clients.append(client)
        return client

    def send(self, number: int) -> None:
        """Send a signal to the tap itself, not to strace."""
        pid = self._process.pid
        with suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), number)

    def end(self) -> tuple[int, str]:
        """Wait until the tap has ended; return its exit status and what it said."""
        _, said = self._process.communicate(timeout=60)
        for client in self._clients:
            client.close()
        return self._process.returncode, said

    def broken(self) -> dict[str, list[int]]:
        """Return which sectors are not as promised, by VDI."""
        return {
            name: promises.broken(contents(self.store, name))
            for name, promises in self.promises.items()
        }


@contextmanager
def running(
    store: Path, inject: str | None = None, command: Sequence[str] | None = None
) -> Iterator[Tap]:
    """Run a tap for the length of a `with` block; whatever happens, it is gone after it."""
    tap = Tap(command or real_tap(store), store, inject)
    try:
        yield tap
    finally:
        if tap._process.poll() is None:
            tap.send(signal.SIGKILL)
            tap.end()


def work(tap: Tap) -> Iterator[Step]:
    """Yield requests, to be made in this order: each changes a VDI or makes that durable."""
    one, two = tap.connect("base"), tap.connect("base")
    clone = tap.connect("web")
    yield lambda: one.write(0, noise(BLOCK, 10))
    yield lambda: one.write(100 * KIB, noise(2 * BLOCK, 11))  # was a hole
    yield one.flush
    yield lambda: one.write(100 * KIB + 1536, noise(512, 12))  # part of a block of its own
    yield lambda: clone.write(BLOCK, noise(3 * BLOCK, 13))  # shared with the snapshot
    yield two.flush  # covers what came over the other connection
    yield clone.flush
    yield lambda: one.write(240 * KIB, noise(512, 14), FUA)
    yield lambda: one.trim(200 * KIB, 2 * BLOCK)
    yield lambda: two.write(8 * KIB, noise(BLOCK, 15))
    yield one.flush
    yield lambda: two.write(100 * KIB, noise(8 * BLOCK, 16))
    yield lambda: clone.write(0, noise(4 * BLOCK, 17))
    yield lambda: clone.trim(BLOCK, BLOCK, FUA)
    yield lambda: one.write(0, noise(BLOCK, 18))
    yield two.flush
    yield lambda: one.write(16 * KIB, noise(BLOCK, 19))  # nobody makes this one durable
    yield lambda: clone.write(64 * KIB, noise(BLOCK, 20))


def audit(tap: Tap) -> list[str]:
    """Return the answers in the log that promised what was not durable yet.

    A FLUSH or FUA request may be answered with success only when, after the last write to
    the store before the answer, a sync was begun and has succeeded. The client asks for
    one thing at a time, so nothing else is under way.
    """
    store = "".join(f"\\x{byte:02x}" for byte in str(tap.store).encode())  # as strace -xx does
    asked: dict[tuple[str, str], str] = {}
    last_write = synced = -1
    lies = []
    promises = 0
    for call in sorted(calls_in(tap.log), key=lambda call: call.end):
        data = _data(call)
        connection = call.text.partition(",")[0]
        if call.name in WRITES and store in connection:
            last_write = call.end
        elif call.name in SYNCS and store in connection and call.result == 0:
            if call.start > last_write:
                synced = call.end
        elif call.name == "recvfrom" and data.startswith("25609513"):
            flags, kind = int(data[8:12], 16), int(data[12:16], 16)
            if kind == FLUSH or (kind in (WRITE, TRIM) and flags & FUA):
                asked[connection, data[16:32]] = f"request {kind}, flags {flags}"
        elif call.name == "sendto" and data.startswith("67446698"):
            request = asked.pop((connection, data[16:32]), None)
            if request is not None and data[8:16] == "00000000":
                promises += 1
                if synced < last_write:
                    lies.append(f"line {call.start + 1} of the log: {request}")
    assert promises, "nobody promised anything: the log was not understood"
    return lies


def _data(call: Call) -> str:
    """Return the bytes that a call sent or received, as hexadecimal digits."""
    match = _BYTES.search(call.text)
    return match[1].replace("\\x", "") if match else ""
