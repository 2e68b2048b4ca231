"""Real processes: a tap with tools beside it, killed, suspended, without its lock master."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.tap import NbdError, RawClient, contents_of, free_port, short_folder

from core.collection import pack_bits
from core.errors import Corrupt, InUse
from core.lock_connection import LockConnection
from core.lock_key import find_own_key
from core.remote import ask
from core.session import Session
from core.tap import protocol as p

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LEASE = 6.0
"""Seconds: to be waited for, and not over while a busy machine lets a process stand still."""
LONG_LEASE = 20.0
"""In which a lock master is started again, however busy the machine is."""
PLXSH = [sys.executable, "-m", "plxsh"]


class Place:
    """A folder with a store's processes in it."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.unix = str(folder / "nbd.sock")
        self.variables = os.environ | {
            "PARALLAX_RUN_DIR": str(folder),
            "PARALLAX_STORE": store,
            "PARALLAX_CONFIG": "/dev/null",
        }
        self.log = folder / "log"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, ready: str) -> subprocess.Popen[bytes]:
        """Start a server; return when it has said that it serves."""
        with open(self.log, "ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                [*PLXSH, "-v", *words], env=self.variables, stdout=log, stderr=log
            )
        self._running.append(process)
        wait_for(lambda: ready in self.log.read_text()[begin:] or process.poll() is not None)
        assert process.poll() is None, self.log.read_text()
        return process

    def tap(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start("tap", "serve", *words, ready="listening on")

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command to its end; return what it said."""
        done = subprocess.run(
            [*PLXSH, *words], env=self.variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stdout or done.stderr

    def stop(self) -> None:
        for process in reversed(self._running):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
            process.wait(90)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def place(store: str) -> Iterator[Place]:
    with short_folder() as folder:
        here = Place(folder, store)
        try:
            yield here
        finally:
            here.stop()


class Writer(threading.Thread):
    """Writes a counter into two blocks at once, again and again, and remembers errors."""

    def __init__(self, unix: str, export: str, flush: bool = False) -> None:
        super().__init__()
        self.unix, self.export, self.flush = unix, export, flush
        self.done = 0
        self.failure: BaseException | None = None
        self._enough = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with RawClient(self.unix) as client:
                client.go(self.export)
                while not self._enough.is_set():
                    stamp = (self.done + 1).to_bytes(8, "big") * 1024
                    assert client.write(0, stamp) == 0
                    if self.flush:
                        assert client.call(p.CMD_FLUSH) == 0
                    self.done += 1
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        self._enough.set()
        self.join(90)
        assert not self.is_alive()


@contextmanager
def writing(unix: str, export: str, flush: bool = False) -> Iterator[Writer]:
    """A client that writes during the block; it must not see an error."""
    writer = Writer(unix, export, flush)
    try:
        wait_for(lambda: writer.done or writer.failure)
        yield writer
    finally:
        writer.end()
    assert writer.failure is None


def stamps(store: str, name: str) -> list[int]:
    """The counter in each snapshot, oldest first; each must be a state between two writes."""
    found = []
    with Session.open(store, "read") as session:
        for snapshot in session.snapshots(session.registry.find(name)):
            data = session.image(snapshot).read(0, 8192)
            assert data == data[:8] * 1024
            found.append(int.from_bytes(data[:8], "big"))
    return found[::-1]


def test_tools_work_beside_a_tap_whose_client_writes(place: Place) -> None:
    place.tap()
    with writing(place.unix, "empty") as writer:
        seen = []
        for number in range(3):
            before = writer.done
            place.run("snap", "create", "empty", "--label", f"s{number}")
            seen.append((before, writer.done + 1))
        place.run("vdi", "create", "new", "--from", "empty@s1")
        place.run("vdi", "rename", "empty", "full")
        told = place.run("vdi", "resize", "full", "16M", status=4)
        assert "full" in told
    found = stamps(place.store, "full")
    assert found == sorted(found)
    assert all(low <= stamp <= high for stamp, (low, high) in zip(found, seen, strict=True))
    place.stop()
    assert "sound" in place.run("store", "check")
    assert contents_of(place.store, "new")[:8] == found[1].to_bytes(8, "big")


def test_a_schedule_under_a_writing_client(place: Place) -> None:
    place.tap("--gc-every", "1s")
    with writing(place.unix, "empty"):
        place.run("snap", "every", "empty", "10ms", "--keep", "10")
        wait_for(lambda: "collected garbage" in place.log.read_text())
        wait_for(lambda: len(stamps_now(place)) >= 10)
    found = stamps(place.store, "empty")
    assert found == sorted(set(found))
    place.stop()
    assert "sound" in place.run("store", "check")


def stamps_now(place: Place) -> list[str]:
    return place.run("snap", "list", "empty").splitlines()


def test_a_hostile_collector_has_nothing_freed_that_is_needed(place: Place) -> None:
    """Also of VDIs that nobody has open at the moment; and clients go on."""
    with Session.open(place.store, "read") as session:
        uuid, size = session.store.sb.uuid.hex(), session.store.sb.extent_blocks >> 3
    place.tap()
    with (
        writing(place.unix, "empty") as writer,
        closing(LockConnection(f"unix:{place.folder}/{uuid}.locks", "hostile")) as locks,
    ):
        gc = locks.acquire("gc", wait=60.0)
        [tap] = [held.name for held in locks.holdings() if held.name.startswith("session/")]
        seal = {"collection": gc.token}
        extents = ask(locks, tap, "seal", seal, 60.0)["extents"]
        everything = pack_bits(np.full(size, 0xFF, np.uint8))
        refused = [Corrupt, *[InUse] * (len(extents) - 1)]
        for extent, kind in zip(extents, refused, strict=True):
            with pytest.raises(kind):
                ask(locks, tap, "sweep", {**seal, "extent": extent, "garbage": everything}, 60.0)
        done = writer.done
        wait_for(lambda: writer.done > done + 1)
    assert "that are needed" in place.log.read_text()
    place.stop()
    assert "sound" in place.run("store", "check")


def test_a_tap_that_was_killed_is_no_obstacle(place: Place) -> None:
    first = place.tap()
    with RawClient(place.unix) as client:
        client.go("empty").write(0, b"flushed")
        assert client.call(p.CMD_FLUSH) == 0
        first.kill()
        first.wait()
        place.tap()  # not quiet, because nobody is left; at once
        with RawClient(place.unix) as again:
            assert again.go("empty").read(0, 7) == b"flushed"
            assert again.write(0, b"go on..") == 0
            place.run("snap", "create", "empty")
    place.stop()
    assert contents_of(place.store, "empty")[:7] == b"go on.."
    assert "sound" in place.run("store", "check")


Master = Callable[[float], subprocess.Popen[bytes]]


@pytest.fixture
def master(place: Place) -> Master:
    """Starts the lock master that the processes of the place use."""
    port = free_port()
    place.variables["PARALLAX_LOCK_MASTER"] = f"127.0.0.1:{port}"
    words = ["--listen", f"127.0.0.1:{port}", "--state", str(place.folder / "epoch")]

    def start(lease: float) -> subprocess.Popen[bytes]:
        return place.start("lock", "master", *words, "--lease", f"{lease:g}", ready="listens on")

    return start


def test_a_lock_master_that_comes_back_soon_is_not_missed(place: Place, master: Master) -> None:
    process = master(LONG_LEASE)
    place.tap()
    with writing(place.unix, "empty", flush=True) as writer:
        process.terminate()
        process.wait()
        process = master(LONG_LEASE)
        back = writer.done
        wait_for(lambda: writer.done > back + 20)
        wait_for(lambda: "answers again" in place.log.read_text())
        time.sleep(LONG_LEASE)
    assert writer.failure is None
    assert " is lost" not in place.log.read_text()


def test_a_tap_that_slept_longer_than_its_lease_writes_nothing(
    place: Place, master: Master
) -> None:
    """Its VDI is somebody else's when it wakes up, with requests in its sockets."""
    master(LEASE)
    tap = place.tap()
    with RawClient(place.unix) as client:
        client.go("empty").write(0, b"a" * 8192)
        assert client.call(p.CMD_FLUSH) == 0
        tap.send_signal(signal.SIGSTOP)
        for _ in range(8):
            client.send(p.CMD_WRITE, 0, data=b"b" * 4096)
            client.send(p.CMD_FLUSH)
        other = place.folder / "other"
        place.variables["PARALLAX_RUN_DIR"] = str(other)
        place.tap("--unix", str(other) + ".sock")
        place.variables["PARALLAX_RUN_DIR"] = str(place.folder)
        wait_for(lambda: opened(f"{other}.sock"))
        with RawClient(f"{other}.sock") as successor:
            successor.go("empty").write(0, b"c" * 8192)
            assert successor.call(p.CMD_FLUSH) == 0
            tap.send_signal(signal.SIGCONT)
            assert client.hung_up()  # without a single reply
            assert successor.write(4096, b"d" * 4096) == 0
            assert successor.call(p.CMD_FLUSH) == 0
            wait_for(lambda: "writable exports go on" in place.log.read_text())
            with RawClient(place.unix) as late, pytest.raises(NbdError, match="held by"):
                late.go("empty")
        wait_for(lambda: opened(place.unix))
        with RawClient(place.unix) as again:
            assert again.go("empty").read(0, 8192) == b"c" * 4096 + b"d" * 4096
    place.stop()
    assert contents_of(place.store, "empty")[:8192] == b"c" * 4096 + b"d" * 4096


def opened(unix: str) -> bool:
    """Say whether the VDI can be opened at a tap now."""
    with RawClient(unix) as client:
        try:
            client.go("empty")
        except NbdError:
            return False
        return True


def test_a_vdi_goes_from_one_tap_to_another(place: Place, master: Master) -> None:
    """Under a writing client; what was answered at the source is there at the destination."""
    with Session.open(place.store, "read") as session:
        vdi, scope = session.registry.find("empty"), session.store.sb.uuid.hex()
    master(LEASE)
    place.tap()
    address = place.variables["PARALLAX_LOCK_MASTER"]
    key = partial(find_own_key, [place.variables["PARALLAX_STATE_DIR"]])
    with closing(LockConnection(address, "a test", scope=scope, key=key)) as locks:
        first = {held.name for held in locks.holdings()}
        other = f"{place.folder}/other.sock"
        place.tap("--unix", other)
        [there] = [
            held.name
            for held in locks.holdings()
            if held.name.startswith("session/") and held.name not in first
        ]
        writer = Writer(place.unix, "empty")
        wait_for(lambda: writer.done or writer.failure)
        ask(locks, there, "take", {"vdi": vdi.id, "uuid": vdi.uuid.hex(), "seconds": 30})
        ask(locks, f"vdi/{vdi.id}", "give_up", {}, 20.0)
        writer.end()
        assert isinstance(writer.failure, ConnectionError)
        wait_for(lambda: "taken over" in place.log.read_text())
        with RawClient(other) as client:
            found = int.from_bytes(client.go("empty").read(0, 8), "big")
            assert writer.done <= found <= writer.done + 1
            assert client.write(0, b"arrived") == 0
    place.stop()
    assert contents_of(place.store, "empty")[:7] == b"arrived"
