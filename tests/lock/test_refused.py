"""Everything that may not be: each is refused and logged, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lock.conftest import Join
from support.locks import KEY, SHORT, service, soon
from support.pki import certify
from support.tap import free_port
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

from core import lock_connection
from core.errors import BadRequest, IoFailed, NotFound
from core.lock_auth import client_tls, server_tls
from core.lock_connection import LockConnection
from core.lock_key import read_key
from core.lock_messages import Acquire, Hello, ListLocks, Release, Renew
from core.lock_service import LockService
from core.lock_timing import Timing
from core.lock_wire import encode


@pytest.fixture
def timing() -> Timing:
    """Leases that a busy machine does not let lapse."""
    return Timing()


class Other:
    """A client that goes on undisturbed, and the log of what was refused."""

    def __init__(self, master: LockService, log: pytest.LogCaptureFixture, unix: str) -> None:
        self.master = master
        self.log = log
        self.locks = LockConnection(f"unix:{unix}", "goes on")
        self.held = self.locks.acquire("vdi/1")
        self.session = self.locks._client.session

    def look(self, reason: str) -> None:
        soon(lambda: self.master.refused[reason])
        soon(lambda: any(r.reason == reason and r.client for r in self.told()))  # type: ignore[attr-defined]
        self.held.check()
        self.locks.acquire("vdi/2").release()
        assert self.locks.state == "up"

    def told(self) -> list[logging.LogRecord]:
        """What the log says of those who were refused."""
        return [r for r in self.log.records if getattr(r, "event", "") == "refused"]


@pytest.fixture
def other(master: LockService, unix: str, caplog: pytest.LogCaptureFixture) -> Iterator[Other]:
    caplog.set_level(logging.INFO)
    found = Other(master, caplog, unix)
    yield found
    found.locks.close()


def talk(unix: str, **options: object) -> ClientConnection:
    options.setdefault("subprotocols", ["parallax-lock-1"])
    options.setdefault("open_timeout", 60)
    return unix_connect(unix, "ws://localhost/", compression=None, **options)  # type: ignore[arg-type]


def hello(line: ClientConnection, nonce: str = "a nonce") -> None:
    line.recv(60)
    line.send(encode(Hello(nonce, "host", 1, "stranger")))
    assert b"Welcome" in bytes(line.recv(60))  # type: ignore[arg-type]


def refused(line: ClientConnection) -> str:
    """Wait until it is hung up on; return the reason that was given."""
    try:
        while True:
            line.recv(60)
    except ConnectionClosed as closed:
        return closed.rcvd.reason if closed.rcvd else ""


def hang_up(sock: socket.socket) -> None:
    """Wait until the other side does."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


WRONG = {
    "malformed": b"{}",
    "not JSON": b"\xff\x00\xfe" * 50,
    "unknown": b'["Shutdown",{}]',
    "a reply": b'["Granted",{"session":1,"seq":1,"name":"a","token":1}]',
    "wrong type": b'["Renew",{"session":"1","seq":1}]',
    "missing": b'["Renew",{"session":1}]',
    "negative": b'["Renew",{"session":-1,"seq":1}]',
    "too high": b'["Renew",{"session":1,"seq":99999999999999999999}]',
    "NaN": b'["Acquire",{"session":1,"seq":1,"name":"a","shared":false,"wait":NaN,"floor":0}]',
    "infinite": b'["Answered",{"session":1,"call":1e999,"done":true,"text":""}]',
    "too far": b'["Acquire",{"session":1,"seq":1,"name":"a","shared":false,"wait":1e99,"floor":0}]',
    "long name": b'["Release",{"session":1,"seq":1,"name":"' + b"x" * 201 + b'"}]',
    "no name": b'["Release",{"session":1,"seq":1,"name":""}]',
    "escapes": b'["Release",{"session":1,"seq":1,"name":"a\\u001b[2J"}]',
    "deep": b'["Renew",' + b"[" * 100_000 + b"]" * 100_000 + b"]",
    "empty": b"",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_message(other: Other, unix: str, data: bytes) -> None:
    with talk(unix) as line:
        line.recv()
        line.send(data)
        assert refused(line)
    other.look("malformed")


def test_text_and_pieces_are_no_messages(other: Other, unix: str) -> None:
    with talk(unix) as line:
        line.send('["Renew",{"session":1,"seq":1}]')
        assert "binary frame" in refused(line)
    other.look("malformed")
    with suppress(ConnectionClosed), talk(unix) as line:  # perhaps before the second piece
        line.send([b'["Renew",', b"{}]"])
        refused(line)
    soon(lambda: other.master.refused["malformed"] == 2)


def test_what_is_too_long(other: Other, unix: str) -> None:
    with suppress(ConnectionClosed), talk(unix) as line:  # perhaps before all of it
        line.send(b" " * ((1 << 20) + 1))
        refused(line)
    other.look("oversized")


def test_speaking_for_another(other: Other, unix: str) -> None:
    for request in (
        Release(other.session, 1 << 40, "vdi/1"),
        Renew(other.session, 1 << 40),
        Acquire(0, 1 << 40, "vdi/3", False, 0.0, 0),
        ListLocks(0, 1),
    ):
        with talk(unix) as line:
            hello(line)
            line.send(encode(request))
            assert "spoke for session" in refused(line)
    other.look("foreign_session")
    assert other.master.refused["foreign_session"] == 4
    soon(lambda: [h.name for h in other.master.locks.holdings()] == ["vdi/1"])


def test_a_session_that_is_unknown_is_told_so(other: Other, unix: str) -> None:
    with talk(unix) as line:
        line.recv()
        line.send(encode(Renew(1 << 50, 7)))
        assert b'["Unknown",{"session":1125899906842624,"seq":7' in bytes(line.recv(60))  # type: ignore[arg-type]
    other.held.check()


def test_too_many_sessions_on_one_connection(other: Other, unix: str) -> None:
    with talk(unix) as line:
        for number in range(65):
            line.send(encode(Hello(f"nonce {number}", "h", 1, "p")))
        refused(line)
    other.look("too_many")


def test_browsers(other: Other, unix: str) -> None:
    with pytest.raises(InvalidStatus), talk(unix, origin="http://127.0.0.1"):
        pass
    other.look("browser")


def test_other_programs(other: Other, port: int, unix: str) -> None:
    with pytest.raises(InvalidStatus), talk(unix, subprotocols=["chat"]):
        pass
    other.look("handshake")
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"x" * 500, b"A" * 70_000):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(said)
            hang_up(sock)
    with socket.create_connection(("127.0.0.1", port), 60):
        pass
    soon(lambda: other.master.refused["handshake"] >= 5)
    other.look("handshake")


@pytest.mark.slow
def test_one_byte_a_minute(
    other: Other, port: int, unix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("core.lock_service.HANDSHAKE", 0.3)
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(b"G")
            assert sock.recv(100) == b""
        other.look("handshake")
    usual, other.master.master.timing = other.master.master.timing, SHORT
    with talk(unix) as line:  # the opening is done, then a message that does not come to an end
        line.recv()
        line.send(encode(Renew(1 << 50, 1)))
        line.recv()  # so it has looked how long to be patient: the others need not suffer
        other.master.master.timing = usual
        line.socket.sendall(b"\x82\xfe\x7f")
        refused(line)
    other.look("silent")


@pytest.mark.slow
def test_two_hundred_at_once(other: Other, port: int) -> None:
    """The oldest have to go; whoever has shown who it is stays."""
    crowd = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(200)]
    try:
        other.look("too_many")
        late = LockConnection(f"127.0.0.1:{port}", "comes late", key=lambda: KEY)
        late.acquire("vdi/5").check()
        late.close()
    finally:
        for sock in crowd:
            sock.close()
    soon(lambda: other.master.refused["handshake"] + other.master.refused["too_many"] == 200)


def test_tcp_wants_certificates_or_a_key_on_loopback_too() -> None:
    for address in ("0.0.0.0", "127.0.0.1"):
        with (
            pytest.raises(BadRequest, match="wants a key or certificates"),
            service("", (address, 0), key=None),
        ):
            pass
    with service("", ("0.0.0.0", 0), key=KEY):
        pass
    with pytest.raises(BadRequest, match="nowhere to listen"), service():
        pass


# -- a shared key ----------------------------------------------------------------------------


def test_a_key(folder: Path) -> None:
    path = folder / "key"
    path.write_bytes(b"\n " + KEY + b"\n")
    path.chmod(0o600)
    assert read_key(str(path)) == KEY
    path.chmod(0o640)
    with pytest.raises(BadRequest, match="others may read") as caught:
        read_key(str(path))
    assert caught.value.hint == f"run 'chmod 600 {path}'"
    path.chmod(0o600)
    path.write_bytes(b"fifteen bytes..   \n")
    with pytest.raises(BadRequest, match="has 15 bytes"):
        read_key(str(path))
    with pytest.raises(NotFound):
        read_key(str(folder / "none"))


@pytest.fixture
def locked(unix: str, caplog: pytest.LogCaptureFixture) -> Iterator[LockService]:
    caplog.set_level(logging.INFO)
    with service(unix, ("127.0.0.1", 0), key=KEY, timing=Timing()) as master:
        yield master


def test_who_has_the_key_is_let_in(locked: LockService, join: Join) -> None:
    address = f"127.0.0.1:{locked.addresses[0][1]}"
    a, b = join(address, key=lambda: KEY), join()
    a.acquire("vdi/1")
    assert [h.name for h in b.holdings()] == ["vdi/1"]
    with pytest.raises(IoFailed, match="does not have the key"):
        LockConnection(address, "test", key=lambda: KEY[::-1])
    with pytest.raises(IoFailed, match="wants a shared key"):
        LockConnection(address, "test")
    soon(lambda: locked.refused["key"] == 2)
    a.acquire("vdi/2")


def test_a_new_key_takes_effect_with_the_next_connection(unix: str, join: Join) -> None:
    """Nobody has to end what holds locks when the key is changed."""
    key, port = KEY, free_port()
    with service(unix, ("127.0.0.1", port), key=key, timing=Timing()):
        locks = join(f"127.0.0.1:{port}", key=lambda: key)
        held = locks.acquire("vdi/1")
    soon(lambda: locks.state != "up")
    key = KEY[::-1]
    with service(unix, ("127.0.0.1", port), key=key, timing=Timing()) as master:
        soon(lambda: locks.state == "up")
        held.check()
        assert not master.refused["key"]


def test_a_master_that_shows_nothing_is_not_trusted(
    master: LockService, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may listen where a lock master should, or a version that let in everybody."""
    monkeypatch.setattr(master, "_key", None)
    for key in (lambda: KEY, None):
        with pytest.raises(IoFailed, match="shows no key") as caught:
            LockConnection(f"127.0.0.1:{port}", "test", key=key)
        assert caught.value.hint.startswith("start it anew")
    assert not master.locks.holdings()


class Recorder:
    """Between a client and the master: it passes everything on, and keeps or changes it."""

    def __init__(self, port: int) -> None:
        self.said = b""
        self.heard = b""
        self.change = False
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._pass_on)
        self._thread.start()

    def _pass_on(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._server.setblocking(False)
        here, _ = await loop.sock_accept(self._server)
        there = socket.create_connection(("127.0.0.1", self._to))
        there.setblocking(False)

        async def up() -> None:
            while data := await loop.sock_recv(here, 1 << 16):
                self.said += data
                if self.change:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                await loop.sock_sendall(there, data)
            there.shutdown(socket.SHUT_WR)

        async def down() -> None:
            while data := await loop.sock_recv(there, 1 << 16):
                self.heard += data
                await loop.sock_sendall(here, data)
            here.shutdown(socket.SHUT_RDWR)

        await asyncio.gather(up(), down(), return_exceptions=True)
        there.close()
        here.close()

    def end(self) -> None:
        self._thread.join()
        self._server.close()


def test_a_recorded_connection_cannot_be_played_again(locked: LockService) -> None:
    port = locked.addresses[0][1]
    recorder = Recorder(port)
    locks = LockConnection(f"127.0.0.1:{recorder.port}", "recorded", key=lambda: KEY)
    locks.acquire("vdi/1")
    locks.close()
    recorder.end()
    assert len(recorder.said) > 500
    locked.refused.clear()
    messages = locked.messages.copy()
    request, end, rest = recorder.said.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(request + end)
        assert b"101" in sock.recv(1 << 16)
        sock.sendall(rest)
        hang_up(sock)
    soon(lambda: locked.refused["key"])
    with socket.create_connection(("127.0.0.1", port), 60) as sock:  # and all of it at once
        sock.sendall(recorder.said)
        hang_up(sock)
    soon(lambda: locked.refused["handshake"] + locked.refused["key"] == 2)
    assert locked.messages == messages
    assert not locked.locks.holdings()


def test_a_changed_message_is_refused(
    locked: LockService, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(locked.addresses[0][1])
    locks = LockConnection(f"127.0.0.1:{recorder.port}", "changed", key=lambda: KEY)
    locks.acquire("vdi/1")
    recorder.change = True
    soon(lambda: locked.refused["malformed"])
    soon(lambda: "changed, repeated or left out" in caplog.text)
    locks.close()
    recorder.end()


# -- certificates ----------------------------------------------------------------------------


@pytest.fixture
def secure(unix: str, folder: Path) -> Iterator[LockService]:
    for name, authority in (("ca", None), ("server", folder / "pki"), ("client", folder / "pki")):
        certify(folder / "pki", name, authority)
    with service(unix, ("127.0.0.1", 0), tls=str(folder / "pki"), timing=Timing()) as master:
        yield master


def trouble(master: LockService, context: ssl.SSLContext | None, seconds: float = 5.0) -> str:
    """What a client says that has been turned away for so long, or knows that it is hopeless."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_connection, "FIRST", seconds)
        with pytest.raises(IoFailed) as caught:
            LockConnection(f"127.0.0.1:{master.addresses[0][1]}", "test", tls=context)
    return caught.value.message


@pytest.mark.slow
def test_certificates(
    secure: LockService, folder: Path, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    pki, address = folder / "pki", f"127.0.0.1:{secure.addresses[0][1]}"
    good, unix = join(address, tls=client_tls(str(pki))), join()
    held = good.acquire("vdi/1")
    assert [h.name for h in unix.holdings()] == ["vdi/1"]

    trouble(secure, None)
    none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    none.load_verify_locations(pki / "ca-cert.pem")
    trouble(secure, none)

    certify(folder / "strange", "ca", None)
    certify(folder / "strange", "client", folder / "strange")
    assert "not trusted" in trouble(secure, client_tls(str(folder / "strange")), 60.0)
    (folder / "strange" / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())
    trouble(secure, client_tls(str(folder / "strange")))

    certify(folder / "old", "client", pki, days="-1")
    trouble(secure, client_tls(str(folder / "old")))

    soon(lambda: secure.refused["tls"] >= 5)
    assert all(r.client for r in caplog.records if getattr(r, "event", "") == "refused")  # type: ignore[attr-defined]
    held.check()
    good.acquire("vdi/2")


@pytest.mark.slow
def test_a_master_with_another_name_is_not_trusted(secure: LockService, folder: Path) -> None:
    """A client's certificate is of the same authority: it must not do for a master."""
    port = secure.addresses[0][1]
    with pytest.raises(IoFailed, match="not trusted"):
        LockConnection(f"localhost:{port}", "test", tls=client_tls(str(folder / "pki")))


def test_folders_without_certificates(folder: Path) -> None:
    for load in (server_tls, client_tls):
        with pytest.raises(NotFound, match=r"there is no .*-cert\.pem"):
            load(str(folder))


def test_messages_are_short_enough_for_a_lease() -> None:
    assert SHORT.renew_every < SHORT.stop_after
    with pytest.raises(BadRequest, match="too long"):
        encode(Hello("n" * (1 << 20), "h", 1, "p"))
