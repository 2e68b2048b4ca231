"""The server around the requests: where it listens, how it ends, what survives."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.fake_locks import wait_for
from support.stores import noise
from support.tap import (
    CONTENTS,
    MIB,
    NbdError,
    RawClient,
    TapProcess,
    contents_of,
    info_for,
    short_folder,
    tap_in_thread,
    tap_process,
)

from core.errors import BadRequest, InUse, IoFailed, NoSpace, NotFound
from core.registry import Registry
from core.session import Session
from core.tap import protocol as p
from core.tap.server import Tap
from core.tap.status import query_status
from core.text import uuid_text


def test_a_write_reaches_the_store_when_the_server_ends(store: str) -> None:
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        assert client.go("clone").write(5, b"kept") == 0
    assert contents_of(store, "clone")[5:9] == b"kept"


def test_a_flushed_write_is_in_the_store_at_once(store: str) -> None:
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        client.go("clone").write(5, b"kept")
        assert client.call(p.CMD_FLUSH) == 0
        assert contents_of(store, "clone")[5:9] == b"kept"


def test_a_guest_never_meets_another_disk_where_its_own_was(store: str) -> None:
    """It knows its disk by what it was called once, and connects again and again."""
    with Session.open(store) as session:
        old = session.registry.find("empty")
    called = (uuid_text(old.uuid), str(old.id), old.name, f"{uuid_text(old.uuid)}@s")
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        client.go(called[0]).write(0, b"mine")
    with Session.open(store) as session:
        session.delete(old)
        session.collect()
        session.create("new", old.size)
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        for name in called:
            with pytest.raises(NbdError, match=f"there is no VDI '?{name.partition('@')[0]}"):
                client.go(name)
    assert not any(contents_of(store, "new"))


def test_a_snapshot_is_served_under_the_uuid_of_its_vdi(store: str) -> None:
    with Session.open(store) as session:
        uuid = uuid_text(session.registry.find("golden").uuid)
        where = session.find_snapshot("golden@base").id
    with tap_in_thread(store) as (_, unix):
        for name in (f"{uuid}@base", f"{uuid}@{where}", f"{uuid.upper()}@base"):
            with RawClient(unix) as client:
                assert client.go(name).read(0, len(CONTENTS)) == CONTENTS


@pytest.mark.parametrize("by_uuid", [True, False])
def test_who_connects_again_is_found_without_reading_the_whole_table(
    store: str, monkeypatch: pytest.MonkeyPatch, by_uuid: bool
) -> None:
    with Session.open(store) as session:
        name = uuid_text(session.registry.find("clone").uuid) if by_uuid else "clone"
    with tap_in_thread(store) as (_, unix):
        with RawClient(unix) as client:
            client.go(name)
        monkeypatch.setattr(Registry, "scan", lambda _: pytest.fail("reads the table"))
        with RawClient(unix) as client:
            client.go(name).read(0, 1)


@pytest.mark.parametrize(
    ("kind", "data"),
    [(p.CMD_WRITE, b"data"), (p.CMD_TRIM, b""), (p.CMD_WRITE_ZEROES, b"")],
    ids=["write", "trim", "zero"],
)
def test_fua_is_durable_before_the_reply(store: str, kind: int, data: bytes) -> None:
    with tap_in_thread(store, commit_interval=3600.0) as (_, unix), RawClient(unix) as client:
        client.go("clone")
        assert client.call(kind, 8192, 4, p.FLAG_FUA, data) == 0
        assert contents_of(store, "clone")[8192:8196] == (data or bytes(4))


def test_a_flush_covers_the_writes_of_other_connections(store: str) -> None:
    with (
        tap_in_thread(store, commit_interval=3600.0) as (_, unix),
        RawClient(unix) as writer,
        RawClient(unix) as flusher,
    ):
        writer.go("clone").write(0, b"one")
        assert flusher.go("clone").call(p.CMD_FLUSH) == 0
        assert contents_of(store, "clone")[:3] == b"one"


def test_the_timer_commits_without_being_asked(store: str) -> None:
    with tap_in_thread(store, commit_interval=0.05) as (_, unix), RawClient(unix) as client:
        client.go("clone").write(0, b"tick")
        while contents_of(store, "clone")[:4] != b"tick":
            pass


def test_the_last_disconnect_commits_and_gives_the_vdi_up(store: str) -> None:
    with tap_in_thread(store, commit_interval=3600.0) as (_, unix):
        with RawClient(unix) as client:
            client.go("clone").write(0, b"bye")
        while query_status(unix)["exports"]:
            pass
        assert contents_of(store, "clone")[:3] == b"bye"


def test_a_snapshot_that_no_client_reads_any_more_can_be_collected_at_once(store: str) -> None:
    gc.disable()  # what is in a cycle of references would stay for a while
    try:
        with tap_in_thread(store) as (tap, unix):
            session = tap._shared.session
            with RawClient(unix) as client:
                client.go("golden@base").read(0, 4096)
                assert session.reading_now()
            wait_for(lambda: not session.reading_now())
    finally:
        gc.enable()


def test_many_flushes_at_once_are_all_answered(unix: str) -> None:
    with RawClient(unix) as client:
        client.go("clone")
        cookies = set()
        for n in range(50):
            cookies.add(client.send(p.CMD_WRITE, n * 4096, data=b"x"))
            cookies.add(client.send(p.CMD_FLUSH))
        replies = [client.reply() for _ in range(100)]
        assert {r.cookie for r in replies} == cookies
        assert {r.flags for r in replies} == {0}


class Broken:
    """Stands in for a device method: works until `fail` is set."""

    def __init__(self, real: object, error: Exception) -> None:
        self.real = real
        self.error = error
        self.fail = False

    def __call__(self, *args: object) -> object:
        if self.fail:
            raise self.error
        return self.real(*args)  # type: ignore[operator]


def test_after_a_failed_flush_nothing_is_acknowledged(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as serving:
        tap, unix = serving.enter_context(tap_in_thread(store, commit_interval=3600.0))
        flush = Broken(tap._session.store.device.flush, IoFailed("the disk is gone"))
        monkeypatch.setattr(tap._session.store.device, "flush", flush)
        with RawClient(unix) as client:
            client.go("clone").write(0, b"lost")
            flush.fail = True
            assert client.call(p.CMD_FLUSH) == p.EIO
            flush.fail = False
            assert client.call(p.CMD_FLUSH) == p.EIO
            assert client.write(0, b"more") == p.EIO
            assert client.read(8192, 4) == CONTENTS[8192:8196]
        with pytest.raises(IoFailed, match="the disk is gone"):
            serving.close()
    assert contents_of(store, "clone") == CONTENTS


@pytest.mark.parametrize("change", ["truncated", "replaced"])
def test_a_store_that_is_not_what_it_was_takes_no_more_writes(store: str, change: str) -> None:
    with ExitStack() as serving:
        _, unix = serving.enter_context(tap_in_thread(store, commit_interval=3600.0))
        with RawClient(unix) as client, RawClient(unix) as other:
            client.go("clone").write(0, b"lost")
            other.go("golden")
            if change == "truncated":
                os.truncate(store, os.path.getsize(store) // 2)
            else:
                shutil.copy(store, f"{store}.new")
                os.replace(f"{store}.new", store)
            assert client.call(p.CMD_FLUSH) == p.EIO
            assert other.write(0, b"none") == p.EIO
            assert change in query_status(unix)["failed"]
        with pytest.raises(IoFailed, match=f"was {change} while it was open"):
            serving.close()


def unthought(*_: object) -> None:
    raise KeyError("forged")


def bugs(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if getattr(r, "event", "") == "bug"]


def test_what_nobody_thought_of_fails_one_vdi_only(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as serving:
        tap, unix = serving.enter_context(tap_in_thread(store, commit_interval=3600.0))
        with RawClient(unix) as one, RawClient(unix) as two, RawClient(unix) as other:
            one.go("clone").write(0, b"lost")
            two.go("clone").write(4096, b"lost")
            other.go("golden").write(0, b"kept")
            for export in tap._shared.exports.writable():
                if export.name == "clone":
                    monkeypatch.setattr(export.vdi.map, "_freeze", unthought)
            one.send(p.CMD_FLUSH)
            other.send(p.CMD_FLUSH)
            assert (one.reply().flags, other.reply().flags) == (p.EIO, 0)
            assert two.call(p.CMD_FLUSH) == p.EIO
            assert one.write(8192, b"more") == p.EIO
            assert two.write(0, b"more", p.FLAG_FUA) == p.EIO
            assert other.write(4096, b"kept", p.FLAG_FUA) == 0
        wait_for(lambda: not query_status(unix)["exports"])
        with RawClient(unix) as again:
            assert again.go("clone").read(0, 8192) == CONTENTS[:8192]
            assert again.write(0, b"new", p.FLAG_FUA) == 0
    assert contents_of(store, "golden")[:4] == b"kept"
    assert contents_of(store, "clone")[:3] == b"new"
    [record] = bugs(caplog)
    assert record.exc_info
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("request_", ["write", "trim"])
def test_a_change_that_went_wrong_half_way_is_not_committed(
    store: str, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client, RawClient(unix) as other:
        client.go("clone")
        other.go("golden")
        with monkeypatch.context() as patch:
            patch.setattr("core.vdi.WriteBatch.run", unthought)
            patch.setattr("core.radix.RadixMap.trim", unthought)
            kind = p.CMD_WRITE if request_ == "write" else p.CMD_TRIM
            data = b"x" * 4096 if request_ == "write" else b""
            assert client.call(kind, 4096, len(data) or 8192, data=data) == p.EIO
        assert client.call(p.CMD_FLUSH) == p.EIO
        assert other.write(0, b"kept", p.FLAG_FUA) == 0
    assert contents_of(store, "clone") == CONTENTS


@pytest.mark.parametrize(
    "place",
    [
        "core.tap.reads.Reads._try_read",
        "core.tap.handshake.Handshake.step",
        "core.tap.exports.Exports.acquire",
        "core.tap.server.Tap.status",
        "core.tap.http._Visitor._decide",
    ],
)
def test_what_nobody_thought_of_ends_one_connection_only(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    with (
        tap_in_thread(store, metrics=("127.0.0.1", 0)) as (tap, unix),
        RawClient(unix) as other,
        RawClient(unix) as client,
    ):
        other.go("golden")
        with monkeypatch.context() as patch, ExitStack() as stack:
            if "reads" in place:
                client.go("clone")
            patch.setattr(place, unthought)
            if "status" in place or "http" in place:
                sock = stack.enter_context(
                    socket.socket(socket.AF_UNIX if "status" in place else socket.AF_INET)
                )
                sock.settimeout(90)
                sock.connect(f"{unix}.status" if "status" in place else tap.metrics_addresses[0])
                if "http" in place:
                    sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert sock.recv(1) == b""
            elif "reads" in place:
                client.send(p.CMD_READ, 0, 1 << 16)
                assert client.hung_up()
            else:
                client.send_option(p.OPT_GO, info_for("clone"))
                assert client.hung_up()
        assert other.read(0, 4) == CONTENTS[:4]
        with RawClient(unix) as late:
            assert late.go("clone").read(0, 4) == CONTENTS[:4]
    assert bugs(caplog)


def test_a_flush_without_space_may_be_repeated(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tap_in_thread(store, commit_interval=3600.0) as (tap, unix), RawClient(unix) as client:
        client.go("clone").write(0, b"kept")
        write = Broken(tap._session.store.device.pwritev, NoSpace("the disk is full"))
        monkeypatch.setattr(tap._session.store.device, "pwritev", write)
        write.fail = True
        assert client.call(p.CMD_FLUSH) == p.ENOSPC
        write.fail = False
        assert client.call(p.CMD_FLUSH) == 0
    assert contents_of(store, "clone")[:4] == b"kept"


def test_a_full_store_answers_enospc_and_keeps_what_it_has(store: str) -> None:
    with Session.open(store) as session:
        session.create("large", 1 << 30)
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        client.go("large")
        written = 0
        while (error := client.write(written, noise(MIB, written))) == 0:
            written += MIB
        assert error == p.ENOSPC
        assert written > 32 * MIB
        assert client.read(written - MIB, MIB) == noise(MIB, written - MIB)
        assert client.call(p.CMD_TRIM, 0, 8 * MIB) == 0
        assert client.write(written, b"fits now") == 0


def test_a_read_that_misses_memory_is_answered_after_the_others(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here nothing is in memory before it was read with waiting."""
    from core.errors import WouldBlock

    seen: set[int] = set()
    allowed = threading.Event()
    with tap_in_thread(store) as (tap, unix), RawClient(unix) as client:
        device = tap._session.store.device
        real = device.preadv

        def preadv(offset: int, buffers: list[memoryview], wait: bool = True) -> None:
            if not wait and offset not in seen and len(buffers[0]) == 8192:
                raise WouldBlock((offset, 8192))
            if threading.current_thread().name.startswith("tap-read"):
                allowed.wait(60)
                seen.add(offset)
            real(offset, buffers, wait)

        monkeypatch.setattr(device, "preadv", preadv)
        client.go("golden")
        slow = client.send(p.CMD_READ, 0, 8192)
        quick = client.send(p.CMD_READ, 4096, 4096)
        assert client.reply(4096)[2:] == (quick, CONTENTS[4096:8192])
        allowed.set()
        assert client.reply(8192)[2:] == (slow, CONTENTS[:8192])


def test_the_socket_is_private(unix: str) -> None:
    assert stat.S_IMODE(os.stat(unix).st_mode) == 0o600


def test_the_sockets_are_removed_at_the_end(store: str) -> None:
    with tap_in_thread(store) as (_, unix):
        folder = os.path.dirname(unix)
        assert sorted(os.listdir(folder)) == ["nbd", "nbd.status"]
        seen = folder
    assert not os.path.exists(seen)


def test_a_socket_that_nobody_listens_on_is_replaced(store: str) -> None:
    with short_folder() as folder, Session.open(store) as session:
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(path)
        tap = Tap(session, path)
        tap.stop()
        tap.run()


def test_a_socket_that_somebody_listens_on_is_left_alone(unix: str, tmp_path: Path) -> None:
    from support.stores import small_store

    other = tmp_path / "other"
    other.mkdir()
    with Session.open(small_store(other)) as session, pytest.raises(InUse, match=unix):
        Tap(session, unix)


def test_a_file_that_is_no_socket_is_left_alone(store: str) -> None:
    with Session.open(store) as session, pytest.raises(BadRequest, match="is no socket"):
        Tap(session, store)


def test_a_path_that_is_too_long_is_refused(store: str, tmp_path: Path) -> None:
    with Session.open(store) as session, pytest.raises(BadRequest, match="at most 100 bytes"):
        Tap(session, str(tmp_path / ("x" * 120)))


def test_a_missing_folder_is_reported(store: str) -> None:
    with Session.open(store) as session, pytest.raises(NotFound):
        Tap(session, "/nowhere/at/all")


def test_tcp_that_others_can_reach_needs_tls(store: str) -> None:
    with Session.open(store) as session, pytest.raises(BadRequest, match="there is no TLS"):
        Tap(session, tcp=("0.0.0.0", 0))


def test_nowhere_to_listen_is_an_error(store: str) -> None:
    with Session.open(store) as session, pytest.raises(BadRequest, match="nowhere to listen"):
        Tap(session)


def test_a_taken_port_is_in_use(store: str) -> None:
    with (
        Session.open(store) as session,
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InUse),
    ):
        Tap(session, tcp=("127.0.0.1", taken.getsockname()[1]))


def test_missing_certificates_are_reported(store: str, tmp_path: Path) -> None:
    with Session.open(store) as session, pytest.raises(NotFound, match=r"server-cert\.pem"):
        Tap(session, tcp=("127.0.0.1", 0), tls=str(tmp_path))


def test_the_empty_name_is_the_only_vdi(tmp_path: Path) -> None:
    from support.stores import small_store

    store = small_store(tmp_path)
    with Session.open(store) as session:
        session.create("only", 4096)
    with tap_in_thread(store) as (_, unix), RawClient(unix) as client:
        assert client.go("").size == 4096


def test_the_status_tells_who_has_what_open(store: str) -> None:
    with tap_in_thread(store, commit_interval=3600.0) as (_, unix), RawClient(unix) as client:
        client.go("clone").write(0, b"12345")
        client.read(0, 100)
        told = query_status(unix)
        [export] = told["exports"]
        [connection] = export["connections"]
    assert (told["schema"], told["pid"], told["store"]) == (1, os.getpid(), store)
    assert (export["name"], export["id"], export["read_only"]) == ("clone", 1, False)
    assert export["size"] == len(CONTENTS)
    assert connection["peer"] == f"pid {os.getpid()}"
    done = {name: count for name, count in connection["counts"].items() if count}
    assert done == {"requests": 2, "reads": 1, "writes": 1, "bytes_read": 100, "bytes_written": 5}
    assert not any(connection["recent"]["counts"].values())
    assert connection["recent"]["since"] == connection["since"]
    json.dumps(told)


def test_the_status_of_no_tap_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tap listens"):
        query_status(str(tmp_path / "none"))


# -- as a process ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_commits_and_ends_with_status_0(store: str, number: signal.Signals) -> None:
    with tap_process(store) as tap, RawClient(tap.unix) as client:
        client.go("clone").write(0, b"kept")
        tap.process.send_signal(number)
        assert tap.wait() == 0
        assert client.hung_up()
        assert not os.path.exists(tap.unix)
    assert contents_of(store, "clone")[:4] == b"kept"


@pytest.mark.slow
def test_a_killed_server_keeps_what_was_flushed(store: str) -> None:
    with tap_process(store) as tap, RawClient(tap.unix) as client:
        client.go("clone").write(0, b"kept")
        client.call(p.CMD_FLUSH)
        client.write(4096, b"lost")
        tap.kill()
    assert contents_of(store, "clone")[:4096] == b"kept" + CONTENTS[4:4096]


@pytest.mark.slow
def test_a_server_starts_again_after_it_was_killed(store: str) -> None:
    with short_folder() as folder:
        TapProcess(store, str(folder / "nbd")).kill()
        tap = TapProcess(store, str(folder / "nbd"))
        with RawClient(tap.unix) as client:
            assert client.go("golden").read(0, 4) == CONTENTS[:4]
        assert tap.stop() == 0


@pytest.mark.slow
def test_a_store_that_is_served_can_be_read_and_not_written(server: TapProcess, store: str) -> None:
    with RawClient(server.unix) as client:
        client.go("clone")
        assert contents_of(store, "clone") == CONTENTS
        with pytest.raises(InUse, match=rf"pid {server.process.pid}"):
            Session.open(store)


@pytest.mark.slow
def test_a_vdi_that_vanished_is_an_unknown_export(server: TapProcess) -> None:
    with RawClient(server.unix) as client, pytest.raises(NbdError, match="there is no VDI"):
        client.go("gone")


@pytest.mark.slow
def test_systemd_is_told_and_its_sockets_are_taken(store: str) -> None:
    with short_folder() as folder:
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(folder / "notify"))
        told.settimeout(90)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(folder / "activated"))
        listening.listen()
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[2]), 3)\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "from core.session import Session\n"
            "from core.tap.server import serve\n"
            "with Session.open(sys.argv[1]) as session:\n"
            "    serve(session)\n"
        )
        fd = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", script, store, str(fd)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "LISTEN_FDS": "1"},
            pass_fds=[fd],
        )
        with told, listening:
            assert told.recv(100) == b"READY=1"
            with RawClient(str(folder / "activated")) as client:
                assert client.go("golden").read(0, 4) == CONTENTS[:4]
            process.terminate()
            assert told.recv(100) == b"STOPPING=1"
            assert process.wait(90) == 0


@pytest.mark.slow
def test_a_hundred_busy_clones_fit_into_80_mib(store: str) -> None:
    with Session.open(store) as session:
        base = session.find_snapshot("golden@base")
        for n in range(100):
            session.create(f"clone{n}", parent=base)
    with tap_process(store) as tap, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(tap.unix)) for _ in range(100)]
        for n, client in enumerate(clients):
            client.go(f"clone{n}", structured=True)
            assert client.read(0, MIB) == CONTENTS[:MIB]
            assert client.write(n * 4096, noise(64 << 10, n)) == 0
            assert client.call(p.CMD_FLUSH) == 0
        resident = resident_bytes(tap.process.pid)
    assert resident < 80 * MIB


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")
