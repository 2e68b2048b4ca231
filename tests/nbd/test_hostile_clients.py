"""Clients that ask for too much, take nothing, or say nothing: others are served all the same."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support.fake_locks import wait_for
from support.stores import small_store
from support.tap import (
    CONTENTS,
    MIB,
    RawClient,
    TapProcess,
    both_caches,
    contents_of,
    free_port,
    listens,
    short_folder,
    tap_in_thread,
)

from core.device import Cache
from core.registry import Registry
from core.session import Session
from core.tap import protocol as p
from core.tap.handshake import Handshake
from core.tap.jobs import Jobs
from core.tap.reads import Reads
from core.tap.server import Tap
from core.tap.status import status_path

LIST = p.OPTION.pack(p.OPTION_MAGIC, p.OPT_LIST, 0)
LARGE = b"".join(struct.pack(">Q", n + 1) * 512 for n in range(40 * MIB // 4096))


class Counted:
    """How often the table of VDIs is read from its beginning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        scan = Registry.scan

        def counting(registry: Registry) -> Iterator[object]:
            self.count += 1
            return scan(registry)

        monkeypatch.setattr(Registry, "scan", counting)


def listed(client: RawClient) -> list[str]:
    """The answer to a LIST that was sent before."""
    names = []
    while (reply := client.option_reply())[1] == p.REP_SERVER:
        (length,) = struct.unpack_from(">I", reply[2])
        names.append(reply[2][4 : 4 + length].decode())
    assert reply == (p.OPT_LIST, p.REP_ACK, b"")
    return names


# -- options ---------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> str:
    """A store with 50 VDIs."""
    path = small_store(tmp_path, 4096, 6)
    with Session.open(path) as session:
        for number in range(50):
            session.create(f"vdi-{number}", 1 << 20)
    return path


def test_a_thousand_lists_in_one_packet_read_the_table_once(
    many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"vdi-{number}" for number in range(50)]
    with tap_in_thread(many) as (_, unix), RawClient(unix) as client:
        reads = Counted(monkeypatch)
        client.sock.sendall(LIST * 1000)
        for _ in range(1000):
            assert listed(client) == names
        assert reads.count == 1


def test_a_list_is_never_older_than_the_question(many: str) -> None:
    with tap_in_thread(many) as (tap, unix), RawClient(unix) as client:
        client.send_option(p.OPT_LIST)
        assert "more" not in listed(client)
        tap._session.create("more", 4096)  # nothing else happens in the tap
        client.send_option(p.OPT_LIST)
        assert "more" in listed(client)


def test_each_option_has_a_turn_of_its_own(unix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who pipeline options each is answered in turn, however many there are."""
    order: list[Handshake] = []
    step = Handshake.step

    def noted(handshake: Handshake) -> bytes | None:
        answer = step(handshake)
        if answer:
            order.append(handshake)
        return answer

    with RawClient(unix) as greedy, RawClient(unix) as modest:
        monkeypatch.setattr(Handshake, "step", noted)
        go_on = threading.Event()
        first = noted

        def waiting(handshake: Handshake) -> bytes | None:
            go_on.wait(90)  # until both have sent all they have
            return first(handshake)

        monkeypatch.setattr(Handshake, "step", waiting)
        greedy.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, 77, 0) * 500)
        modest.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, 77, 0) * 20)
        go_on.set()
        for _ in range(20):
            assert modest.option_reply()[1] == p.REP_ERR_UNSUP
        for _ in range(500):
            assert greedy.option_reply()[1] == p.REP_ERR_UNSUP
    modest_one = order[-1] if order.count(order[-1]) == 20 else min(set(order), key=order.count)
    last = max(n for n, one in enumerate(order) if one is modest_one)
    assert last < 20 * 2 + 5


@pytest.mark.slow
def test_a_signal_is_heard_while_lists_are_asked_for_without_end(many: str) -> None:
    with short_folder() as folder:
        tap = TapProcess(many, str(folder / "nbd"))
        with RawClient(tap.unix) as greedy, RawClient(tap.unix) as modest:

            def flood() -> None:
                with suppress(OSError):
                    while True:
                        greedy.sock.sendall(LIST * 1000)

            def drink() -> None:
                with suppress(OSError):
                    while greedy.sock.recv(1 << 20):
                        pass

            threads = [threading.Thread(target=work) for work in (flood, drink)]
            for thread in threads:
                thread.start()
            client = modest.go("vdi-7")
            assert client.write(0, b"kept") == 0
            assert tap.stop() == 0
            for thread in threads:
                thread.join()
    assert contents_of(many, "vdi-7")[:4] == b"kept"


# -- connections -----------------------------------------------------------------------


def test_too_many_who_choose_nothing_make_room_for_who_does(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.server.MOST_STRANGERS", 5)
    with tap_in_thread(store) as (_, unix), ExitStack() as stack:
        chosen = stack.enter_context(RawClient(unix)).go("golden")
        idle = [stack.enter_context(RawClient(unix)) for _ in range(9)]
        for gone in idle[:3]:
            assert gone.hung_up()
        assert stack.enter_context(RawClient(unix)).go("golden").read(0, 4) == CONTENTS[:4]
        assert chosen.read(0, 4) == CONTENTS[:4]


def test_who_chooses_nothing_in_time_is_dropped(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.server.HANDSHAKE", 0.2)
    with tap_in_thread(store, commit_interval=3600.0) as (tap, unix):
        with RawClient(unix) as chosen, RawClient(unix) as idle:
            chosen.go("golden")
            assert idle.hung_up()
            assert chosen.read(0, 4) == CONTENTS[:4]
        assert not tap._strangers


def test_who_does_not_take_the_status_is_dropped(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.server.MOST_ASKING", 4)
    monkeypatch.setattr("core.tap.server.PATIENCE", 0.2)
    monkeypatch.setattr(
        "core.tap.server.document", lambda *_: {"long": "x" * (8 << 20)}
    )  # more than a socket takes
    with tap_in_thread(store) as (tap, unix), ExitStack() as stack:
        asking = []
        for _ in range(6):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(90)
            sock.connect(status_path(unix))
            asking.append(sock)
        for sock in asking:
            while sock.recv(1 << 20):
                pass
        wait_for(lambda: not tap._asking)


def test_when_clients_have_all_descriptors_a_new_one_is_refused(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    with tap_in_thread(store) as (tap, unix), RawClient(unix) as client:
        client.go("golden")
        tap._doors._most = 1
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(90)
            late.connect(unix)
            assert late.recv(1) == b""
        assert client.read(0, 4) == CONTENTS[:4]
        assert tap._doors.refused == 1
    assert [r for r in caplog.records if getattr(r, "event", "") == "too_many"]


@pytest.mark.slow
def test_idle_connections_leave_descriptors_to_the_tap_and_to_tools(store: str) -> None:
    """With 64 descriptors in all, and 239 connections that say nothing."""
    with short_folder() as folder, ExitStack() as stack:
        unix = str(folder / "nbd.sock")
        variables = os.environ | {
            "PARALLAX_RUN_DIR": str(folder),
            "PARALLAX_STORE": store,
            "PARALLAX_CONFIG": "/dev/null",
        }
        plxsh = [sys.executable, "-m", "plxsh"]
        port = free_port()
        words = ["tap", "serve", "--unix", unix, "--metrics", f"127.0.0.1:{port}"]
        process = subprocess.Popen(
            ["prlimit", "--nofile=64:64", *plxsh, *words],
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            while not listens(unix):
                assert process.poll() is None, process.stderr.read()
            for path in [unix] * 179 + [status_path(unix)] * 30:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(path)
            for _ in range(30):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with RawClient(unix) as client:
                assert client.go("clone").write(0, b"kept") == 0
                done = subprocess.run(
                    [*plxsh, "snap", "create", "clone", "--label", "now"],
                    env=variables,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    with Session.open(store, "read") as session:
        assert session.find_snapshot("clone@now")


# -- memory ----------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A store with a VDI of 40 MiB, `large`, whose every block is another."""
    path = small_store(tmp_path, 4096, 6)
    with Session.open(path) as session, session.opened(session.create("large", 40 * MIB)) as vdi:
        vdi.write(0, LARGE)
    return path


def held(tap: Tap) -> int:
    """Bytes of replies and receive buffers that a tap has for its clients."""
    parts = [c.transmission for c in list(tap._clients) if c.transmission]
    return sum(c.queued for c in list(tap._clients)) + sum(len(part._buffer) for part in parts)


@both_caches
@pytest.mark.parametrize("structured", [False, True])
def test_replies_that_nobody_takes_are_not_made(large: str, cache: Cache, structured: bool) -> None:
    """256 READs of 32 MiB: a few are answered, the others when the client takes replies."""
    with tap_in_thread(large, cache) as (tap, unix), RawClient(unix) as client:
        client.go("large", structured)
        client.sock.sendall(
            b"".join(client.request(p.CMD_READ, n << 12, 32 * MIB) for n in range(256))
        )
        with RawClient(unix) as other:
            other.go("large")
            for _ in range(3):
                assert other.read(0, 33 * 4096) == LARGE[: 33 * 4096]
            assert held(tap) <= (32 + 4 + 2) * MIB
            assert tap._shared.budget.taken <= 64 * MIB
        for _ in range(5):
            got = whole(client) if structured else client.reply(32 * MIB).payload
            at = struct.unpack_from(">Q", got)[0] - 1 << 12
            assert got == LARGE[at : at + 32 * MIB]
        assert held(tap) <= (32 + 4 + 2) * MIB
    assert not tap._shared.budget.taken


def whole(client: RawClient) -> bytes:
    """The data of a structured reply, wherever it begins."""
    parts = sorted((c.payload[:8], c.payload[8:]) for c in client.chunks())
    return b"".join(data for _, data in parts)


def test_half_requests_do_not_take_all_memory(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that announce 32 MiB and send nothing: no more than the budget is held."""
    monkeypatch.setattr("core.tap.budget.LOOK_EVERY", 0.3)
    with tap_in_thread(large) as (tap, unix), ExitStack() as stack:
        idle = [stack.enter_context(RawClient(unix)).go("large") for _ in range(12)]
        for client in idle:
            client.sock.sendall(client.request(p.CMD_WRITE, 0, 32 * MIB) + bytes(MIB))
        with RawClient(unix) as other:
            other.go("large")
            assert other.read(0, 4096) == LARGE[:4096]
            assert held(tap) <= (8 * 32 + 13) * MIB
            assert other.write(4096, LARGE[: 2 * MIB]) == 0  # when one that stood still is gone
    assert not tap._shared.budget.taken


def test_a_buffer_is_given_back_when_others_need_it(large: str) -> None:
    with tap_in_thread(large, commit_interval=3600.0) as (tap, unix), ExitStack() as stack:
        clients = [stack.enter_context(RawClient(unix)).go("large") for _ in range(10)]
        for client in clients:
            assert client.write(0, LARGE[: 32 * MIB]) == 0
        assert tap._shared.budget.taken <= 256 * MIB
        assert len(tap._clients) == 10


def test_cache_takes_no_memory_of_its_own(large: str) -> None:
    with tap_in_thread(large) as (_, unix), RawClient(unix) as client:
        client.go("large")
        tracemalloc.start()
        try:
            requests = [client.request(p.CMD_CACHE, 0, 2 * MIB) for _ in range(250)]
            client.sock.sendall(b"".join(requests))
            assert {client.reply().flags for _ in requests} == {0}
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 8 * MIB


def test_others_have_a_turn_between_long_requests(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many BLOCK_STATUS are in one packet, a turn of the loop deals with a few."""
    most, turn = 0, [0]
    run_jobs, block_status = Jobs.run, Reads.block_status

    def ended(jobs: Jobs) -> None:
        turn[0] = 0
        run_jobs(jobs)

    def counted(reads: Reads, *arguments: int) -> None:
        nonlocal most
        turn[0] += 1
        most = max(most, turn[0])
        block_status(reads, *arguments)

    monkeypatch.setattr(Jobs, "run", ended)
    monkeypatch.setattr(Reads, "block_status", counted)
    with tap_in_thread(large) as (_, unix), RawClient(unix) as client:
        client.go("large", structured=True, contexts=True)
        requests = [client.request(p.CMD_BLOCK_STATUS, 0, 40 * MIB) for _ in range(1000)]
        client.sock.sendall(b"".join(requests))
        for _ in requests:
            [chunk] = client.chunks()
            assert chunk.type == p.CHUNK_BLOCK_STATUS
    assert 0 < most <= 16
