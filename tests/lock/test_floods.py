"""Clients that want too much, say too much or lie: bounded, told apart, and alone with it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import websockets.http11
from lock.conftest import Join
from support.locks import process, soon
from support.raw_lock import RawLockClient
from websockets.server import ServerProtocol

from core import lock_calls, lock_connection, lock_master, lock_peer, lock_service
from core.errors import BadRequest, InUse, IoFailed
from core.lock_connection import LockConnection
from core.lock_epoch import Start
from core.lock_master import HERE, LockMaster
from core.lock_messages import (
    UNKNOWN,
    Acquire,
    Answer,
    Answered,
    Call,
    Called,
    Claim,
    Granted,
    Hello,
    Listing,
    ListLocks,
    Reclaim,
    Refused,
    Renew,
    Reply,
    Request,
    Waiting,
    Who,
)
from core.lock_service import LockService
from core.lock_timing import Timing, now
from core.lock_wire import MOST_BYTES, decode_reply, decode_request, encode


@pytest.fixture
def timing() -> Timing:
    """Leases that a busy machine does not let lapse."""
    return Timing()


@pytest.fixture
def raw(unix: str, master: LockService) -> Iterator[RawLockClient]:  # noqa: ARG001
    client = RawLockClient(unix)
    yield client
    client.close()


def test_one_that_does_not_read_is_cut_off(
    master: LockService, unix: str, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    good = join()
    held = good.acquire("vdi/1")
    for number in range(1000):
        master.locks.acquire(f"extent/{number}")
    deaf = RawLockClient(unix)
    session = deaf.hello("deaf")
    asked = 0
    with suppress(OSError):
        while not master.refused["slow_reader"]:
            asked += 1
            deaf.put(ListLocks(session, asked)).flush()
    deaf.close()
    soon(lambda: master.refused["slow_reader"])
    assert asked > 100  # what a kernel takes is not the end yet
    held.check()
    assert len(good.holdings()) == 1001
    assert any(getattr(r, "reason", "") == "slow_reader" for r in caplog.records)


def test_a_list_that_is_too_long_ends_no_session(
    master: LockService, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_service, "MOST_BYTES_BACK", 2000)
    locks = join()
    monkeypatch.setattr(lock_connection, "FIRST", 0.5)  # not for the joining
    for number in range(100):
        master.locks.acquire(f"extent/{number}")
    with pytest.raises(IoFailed, match="does not answer"):
        locks.holdings()
    locks.acquire("vdi/1").check()
    assert locks.state == "up"
    assert not master.refused


def test_whoever_says_much_lets_others_speak(
    master: LockService, unix: str, raw: RawLockClient
) -> None:
    other = RawLockClient(unix)
    loud, quiet = raw.hello("loud"), other.hello("quiet")
    order: list[int] = []
    receive = master.master.receive

    def noted(now: float, request: Request) -> list[Reply]:
        order.append(getattr(request, "session", 0))
        return receive(now, request)

    master.master.receive = noted  # type: ignore[method-assign]
    go = threading.Event()
    assert master._loop is not None
    master._loop.call_soon_threadsafe(go.wait)
    raw.put(*(Renew(loud, seq) for seq in range(1, 1001)))
    raw.flush()
    other.put(Renew(quiet, 1)).flush()
    go.set()
    other.reply()
    soon(lambda: len(order) == 1001)
    assert order.index(quiet) < 900
    other.close()


def test_names_of_one_session(
    master: LockService, raw: RawLockClient, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_master, "MOST_NAMES", 10)
    master.locks.acquire("taken")
    session = raw.hello("greedy")
    raw.put(Acquire(session, 1, "taken", False, 60.0, 0))
    raw.put(*(Acquire(session, seq, f"vdi/{seq}", False, 0.0, 0) for seq in range(2, 15)))
    raw.put(
        Acquire(session, 15, "taken", False, 60.0, 0), Acquire(session, 16, "vdi/2", False, 0.0, 0)
    )
    raw.flush()
    raw.reply()
    said = [raw.reply() for _ in range(13)]
    assert [type(reply) for reply in said] == [Granted] * 9 + [Refused] * 4
    assert isinstance(said[-1], Refused)
    assert "holds or wants 10 locks" in said[-1].reason
    raw.reply()  # it goes on waiting for the taken one
    assert isinstance(raw.reply(), Granted)
    join().acquire("vdi/14")
    for number in range(20):
        master.locks.acquire(f"extent/{number}")  # the own process is not bounded


def test_what_one_session_may_hold_can_be_claimed_in_one_message() -> None:
    scope = "5e" * 16
    most = (1 << 63) - 1
    names = (f"{scope}/extent/{number}" for number in range(lock_master.MOST_NAMES))
    claims = tuple(Claim(name, most, False) for name in names)
    assert len(encode(Reclaim(most, most, claims))) <= MOST_BYTES


def test_sessions(
    master: LockService, unix: str, raw: RawLockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_master, "MOST_SESSIONS", 3)
    for number in range(3):
        raw.hello(f"nonce {number}")
    again = RawLockClient(unix)
    assert again.hello("nonce 1")  # is there already
    more = RawLockClient(unix)
    more.put(Hello("one more", "h", 1, "p")).flush()
    soon(lambda: master.refused["too_many"])
    raw.put(Renew(1 << 60, 1)).flush()
    raw.reply()
    for client in (again, more):
        client.close()


def test_floors_that_no_master_came_to(raw: RawLockClient, join: Join) -> None:
    """One session must not use up the tokens of all."""
    session = raw.hello("liar")
    for seq, floor in enumerate(((1 << 63) - 2, 1 << 62, (1 << 53) + (1 << 34)), 1):
        raw.put(Acquire(session, seq, "vdi/1", False, 0.0, floor)).flush()
        said = raw.reply()
        assert isinstance(said, Refused)
        assert "no token above" in said.reason
    assert join().acquire("vdi/1").token < 1 << 40


class CountedEpochs:
    uuid = ""

    def __init__(self) -> None:
        self.raised = 0

    def start(self, hold: float) -> Start:  # noqa: ARG002
        return Start(1, 0.0)

    def raise_to(self, epoch: int) -> None:  # noqa: ARG002
        self.raised += 1

    def settle(self) -> None:
        pass


def test_floors_that_rise_and_rise() -> None:
    """Each new epoch takes a flush of the disk, for which everybody waits."""
    epochs = CountedEpochs()
    master = LockMaster(epochs=epochs)
    grants = 0
    for epoch in range(2, 1002):
        with suppress(BadRequest):
            master.acquire(f"vdi/{epoch}", epoch << 32)
            grants += 1
    assert grants == epochs.raised == 256
    master.acquire("vdi/1")


def test_calls_of_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_calls, "MOST_CALLS", 5)
    calls = lock_calls.Calls(1)
    long = "x" * 1000

    def call(number: int, holder: int | None = 2) -> list[Reply]:
        asked = Call(1, number, number, "vdi/1", "m", long, 1e6)
        return calls.call(0.0, asked, holder)

    for number in range(1, 6):
        [called] = call(number)
        assert isinstance(called, Called)
    [said] = call(6)
    assert isinstance(said, Answered)
    assert "5 answers" in said.text
    assert not said.done
    calls.answer(Answer(2, 1, 3, True, "done"))
    [said] = call(3)
    assert said == Answered(1, 3, True, "done")
    assert isinstance(call(7)[0], Called)
    assert call(3) == []  # its answer was forgotten for the newer one
    for number in range(8, 2000):  # nobody holds these
        call(number, None)
    assert calls.count() == 5
    assert sum(map(len, calls._by_caller.values())) == 5
    calls.session_ended(1)
    assert calls.count() == 0
    assert not calls._by_caller


def test_many_who_wait_are_told_of_few(master: LockService, raw: RawLockClient) -> None:
    sessions = [raw.hello(f"nonce {number}") for number in range(30)]
    for session in sessions[:20]:
        raw.put(Acquire(session, 1, "registry", True, 0.0, 0)).flush()
        assert isinstance(raw.reply(), Granted)
    raw.put(Acquire(sessions[20], 1, "registry", False, 9.0, 0)).flush()
    said = raw.reply()
    assert isinstance(said, Waiting)
    assert len(said.holders) == 8
    with pytest.raises(InUse, match=", others") as caught:
        master.locks.acquire("registry")
    assert len(str(caught.value)) < 500


LIES = {
    "host": Hello("n", "a\x1b[2Jhost", 1, "p"),
    "purpose": Hello("n", "h", 1, "tap\nWARNING forged"),
    "nonce": Hello("n\x00", "h", 1, "p"),
    "right to left": Hello("n", "h", 1, "\u202epat"),
    "name": Acquire(1, 1, "vdi/1\r", False, 0.0, 0),
}


@pytest.mark.parametrize("request_", LIES.values(), ids=LIES.keys())
def test_what_cannot_be_shown(request_: Request) -> None:
    with pytest.raises(BadRequest, match="cannot be shown"):
        decode_request(encode(request_))


def test_a_master_cannot_move_the_cursor_either() -> None:
    who = Who(1, "host\x1b[2J", 1, "p")
    for reply in (Listing(1, 1, (), (who,)), Refused(1, 1, "vdi/1", "held by \x1b]0;x\x07")):
        with pytest.raises(BadRequest, match="cannot be shown"):
            decode_reply(encode(reply))


def test_a_session_of_an_earlier_version_does_not_say_its_role(master: LockService) -> None:
    hello = decode_request(
        b'["Hello",{"nonce":"n","host":"old","pid":7,"purpose":"plxsh tap serve"}]'
    )
    with master.desk:
        master.master.receive(now(), hello)
        [listing] = master.master.receive(now(), ListLocks(HERE, 1))
    assert isinstance(listing, Listing)
    assert {who.host: who.role for who in listing.sessions}["old"] == UNKNOWN
    assert decode_request(b'["Renew",{"session":1,"seq":1,"of a later version":[]}]') == Renew(1, 1)


def test_nothing_in_the_log_is_in_a_strangers_words(
    master: LockService, port: int, unix: str, caplog: pytest.LogCaptureFixture
) -> None:
    for said in (
        b"GET /\x1b[31m HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \x1b[31m\r\nUpgrade: websocket\x1b[0m\r\n\r\n",
        b"GET / HTTP/1.1\r\n\x1b[31m: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), 60) as sock, suppress(OSError):
            sock.sendall(said)
            while sock.recv(1 << 16):
                pass
    for message in (b'["\x1b[31mX",{}]', b'["Renew",{"\x1b":1}]'):
        client = RawLockClient(unix)
        client.protocol.send_binary(message)
        client.protocol.send_close(1000, "\x1b[31m")
        client.flush()
        client.close()

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if getattr(r, "event", "") == "refused"]

    soon(lambda: len(told()) >= 5)
    assert sum(master.refused.values()) == len(told()) == 5
    assert all(line.isprintable() for line in told()), told()


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_a_process_that_ended_is_found_out(
    unix: str,
    master: LockService,
    join: Join,
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With and without a kernel that gives a descriptor for the process itself."""
    if not known:
        monkeypatch.setattr(lock_peer, "_SO_PEERPIDFD", 1 << 20)
    with process(f"unix:{unix}") as other:
        other.say("acquire", "vdi/1", 60.0)
        other.send(signal.SIGKILL)
        join().acquire("vdi/1", wait=60.0)
    assert not master.locks.suspect("vdi/1")


def test_a_process_that_has_hung_up_is_not_taken_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock_peer, "_SO_PEERPIDFD", 1 << 20)
    ours, theirs = socket.socketpair()
    pidfd = lock_peer.peer_pidfd(ours)
    assert pidfd >= 0
    os.close(pidfd)
    theirs.close()
    before = len(os.listdir("/proc/self/fd"))
    assert lock_peer.peer_pidfd(ours) == -1
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()


def test_a_stranger_for_a_master_cannot_move_the_cursor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            sock, _ = server.accept()
            protocol = ServerProtocol(subprotocols=["parallax-lock-1"])  # type: ignore[list-item]
            protocol.receive_data(sock.recv(1 << 16))
            [request] = protocol.events_received()
            assert isinstance(request, websockets.http11.Request)
            protocol.send_response(protocol.accept(request))
            protocol.send_close(1008, "\x1b[2J")
            sock.sendall(b"".join(protocol.data_to_send()))
            while sock.recv(1 << 16):
                pass
            sock.close()

        stranger = threading.Thread(target=answer)
        stranger.start()
        with pytest.raises(IoFailed) as caught:
            LockConnection(f"127.0.0.1:{server.getsockname()[1]}", "test")
        stranger.join()
    assert "\\x1b[2J" in caught.value.message
    assert caught.value.message.isprintable()


class CountsLooks(LockMaster):
    """Counts how often it looks through all sessions and all that wait."""

    looks = 0

    def _end_what_is_over(self) -> None:
        self.looks += 1
        super()._end_what_is_over()


def test_a_message_does_not_cost_more_the_more_sessions_there_are() -> None:
    master = CountsLooks(epochs=CountedEpochs())
    sessions = []
    for number in range(200):
        [welcome] = master.receive(0.0, Hello(f"{number}", "h", number, "p"))
        sessions.append(welcome.session)
    for seq, session in enumerate(sessions * 5, 1):
        master.receive(seq / 1000, Acquire(session, seq, f"vdi/{seq % 100}", False, 50.0, 0))
        master.receive(seq / 1000, Renew(session, seq))
        master.receive(seq / 1000, Acquire(session, 2000 + seq, f"vdi/{seq}", False, 0.0, 0))
        master.next_due()
    assert master.looks == 1
    assert master.figures().waiting
    for second in range(2, 60):  # and what is due is done
        assert master.figures().sessions == (200 if second < 37 else 0)
        master.tick(float(second))
    assert master.figures().sessions == master.figures().waiting == 0
