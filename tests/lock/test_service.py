"""Sessions over sockets: locks, turns, calls, breaking, events, lists, scopes."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from lock.conftest import Join
from support.locks import SHORT, FreshEpochs, service, soon

from core import lock_connection
from core.errors import BadRequest, Fenced, InUse, IoFailed, NoSpace, NotFound
from core.lock_client import Held, LockClient
from core.lock_connection import LockConnection
from core.lock_messages import LockReleased, SessionDied
from core.lock_service import LockService
from core.lock_timing import Timing
from core.locks import Locks
from core.remote import pack_error

pytestmark = pytest.mark.usefixtures("master")
ending = pytest.mark.parametrize("timing", [SHORT], ids=["short"])
"""For a test that waits until a lease ends."""


@pytest.fixture
def timing() -> Timing:
    """So long that nothing ends by itself."""
    return Timing.of(600)


def test_a_lock_is_held_by_one(join: Join) -> None:
    a, b = join(purpose="one"), join(purpose="two")
    grant = a.acquire("vdi/1")
    grant.check()
    with pytest.raises(InUse, match=r"vdi/1: held by .*, process \d+ \(one\)"):
        b.acquire("vdi/1")
    grant.release()
    grant.release()
    b.acquire("vdi/1", wait=60.0)
    with pytest.raises(InUse, match="already held by this process"):
        b.acquire("vdi/1")
    a.acquire("vdi/2")


def test_over_tcp_and_over_the_unix_socket_it_is_the_same_master(join: Join, port: int) -> None:
    tcp, unix = join(f"127.0.0.1:{port}"), join()
    held = tcp.acquire("vdi/1", floor=77)
    assert held.token > 77
    with pytest.raises(InUse):
        unix.acquire("vdi/1")


def test_who_waits_has_its_turn(join: Join) -> None:
    a, b = join(), join()
    first = a.acquire("vdi/1")
    asked = b.ask("vdi/1", wait=60.0)
    b.holdings()  # by the time this is answered, so is the request before it
    assert asked.poll() is None
    first.release()
    soon(asked.poll)
    second = asked.poll()
    assert second is not None
    assert second.token > first.token
    second.check()
    with pytest.raises(Fenced, match="no longer held"):
        first.check()


def test_waiting_ends_in_time_and_leaves_nothing(join: Join) -> None:
    a, b = join(), join()
    a.acquire("vdi/1").check()
    with pytest.raises(InUse, match="vdi/1: held by"):
        b.acquire("vdi/1", wait=0.2)
    b.acquire("vdi/2", wait=0.2)


def test_cancelled_it_waits_no_more(join: Join, master: LockService) -> None:
    a, b = join(), join()
    first = a.acquire("vdi/1")
    b.ask("vdi/1", wait=60.0).cancel()
    first.release()
    soon(lambda: not master.locks.holdings())
    asked = b.ask("vdi/1")
    soon(asked.poll)
    asked.cancel()
    soon(lambda: not master.locks.holdings())


def test_many_share(join: Join) -> None:
    a, b, c = join(), join(), join()
    one, two = a.acquire("vdi/1", shared=True), b.acquire("vdi/1", shared=True)
    with pytest.raises(InUse):
        c.acquire("vdi/1")
    one.release()
    two.release()
    c.acquire("vdi/1", wait=60.0)


def test_the_holder_is_asked(join: Join) -> None:
    a, b = join(), join()
    called = threading.Event()
    a.when_called(called.set)
    a.acquire("vdi/1")

    def serve() -> None:
        for _ in range(2):
            called.wait(60)
            called.clear()
            for call in a.calls():
                assert (call.name, call.method) == ("vdi/1", "snapshot")
                if call.argument == "full":
                    a.answer(call, False, pack_error(NoSpace("the store is full", "grow it")))
                else:
                    a.answer(call, True, call.argument[::-1])

    called.clear()
    server = threading.Thread(target=serve)
    server.start()
    assert b.call("vdi/1", "snapshot", "abc", wait=60.0) == "cba"
    with pytest.raises(NoSpace, match="the store is full"):
        b.call("vdi/1", "snapshot", "full", wait=60.0)
    server.join()


def test_nobody_to_ask_and_no_answer(join: Join) -> None:
    a, b = join(), join()
    with pytest.raises(NotFound, match="nobody holds vdi/1"):
        b.call("vdi/1", "snapshot")
    a.acquire("vdi/1")
    with pytest.raises(IoFailed, match="did not answer within"):
        b.call("vdi/1", "snapshot", wait=0.3)
    with pytest.raises(BadRequest, match="too long"):
        b.call("vdi/1", "snapshot", "x" * (1 << 20))
    a.acquire("vdi/2")


def test_the_process_of_the_master_locks_and_is_asked(join: Join, master: LockService) -> None:
    here, there = master.locks, join()
    both: tuple[Locks, Locks] = (here, there)
    assert [locks.leased for locks in both] == [False, True]
    grant = here.acquire("vdi/1")
    grant.check()
    with pytest.raises(InUse, match="already held by this process"):
        here.acquire("vdi/1")
    with pytest.raises(InUse, match=r"vdi/1: held by .*process \d+ \(tap\)"):
        there.acquire("vdi/1")
    woken = threading.Event()
    here.when_called(woken.set)
    answers: list[str] = []
    caller = threading.Thread(
        target=lambda: answers.append(there.call("vdi/1", "m", "text", wait=60.0))
    )
    caller.start()
    assert woken.wait(60)
    (called,) = here.calls()
    assert here.calls() == ()
    here.answer(called, True, called.argument.upper())
    caller.join()
    assert answers == ["TEXT"]
    asked = there.ask("vdi/1", wait=60.0)
    grant.release()
    soon(asked.poll)
    with pytest.raises(Fenced):
        grant.check()


def test_the_process_of_the_master_waits_and_asks(join: Join, master: LockService) -> None:
    here, there = master.locks, join()
    theirs = there.acquire("vdi/1")
    with pytest.raises(InUse):
        here.acquire("vdi/1", wait=0.1)
    asked = here.ask("vdi/1", wait=60.0)
    assert asked.poll() is None
    woken = threading.Event()
    there.when_called(woken.set)

    def serve() -> None:
        assert woken.wait(60)
        for called in there.calls():
            there.answer(called, True, "given up")
        theirs.release()

    server = threading.Thread(target=serve)
    server.start()
    assert here.call("vdi/1", "give_up", wait=60.0) == "given up"
    server.join()
    soon(asked.poll)
    grant = asked.poll()
    assert grant is not None
    assert not here.suspect("vdi/1")
    with pytest.raises(NotFound, match="itself"):
        here.call("vdi/1", "give_up")
    with pytest.raises(NotFound, match="nobody holds"):
        here.call("vdi/9", "give_up")
    here.close()
    with pytest.raises(Fenced):
        grant.check()


@ending
def test_a_break_takes_it_at_once(join: Join, master: LockService) -> None:
    a, b, c = join(), join(), join()
    grant = a.acquire("vdi/1")
    with pytest.raises(NotFound, match="nobody holds vdi/7"):
        b.break_lock("vdi/7")
    with pytest.raises(NotFound):
        b.break_lock("vdi/1", token=grant.token + 1)
    assert 0 < b.break_lock("vdi/1") <= SHORT.give_away_after
    asked = c.ask("vdi/1", wait=60.0)
    soon(lambda: _is_fenced(grant))
    assert asked.poll() is None  # its writes may still be on their way
    a.check()  # the session goes on
    grant.release()
    soon(asked.poll)
    assert not master.locks.suspect("vdi/1")


def _is_fenced(grant: object) -> bool:
    try:
        grant.check()  # type: ignore[attr-defined]
    except Fenced as error:
        return "it was broken" in error.message
    return False


@ending
def test_a_break_that_runs_out_leaves_a_suspect(join: Join, master: LockService) -> None:
    a, b = join(), join()
    a.acquire("vdi/1")
    b.break_lock("vdi/1")
    b.acquire("vdi/1", wait=60.0)
    assert master.locks.suspect("vdi/1")
    assert not master.locks.suspect("vdi/2")
    assert a.suspect("vdi/2")


@ending
def test_events_and_lists(join: Join) -> None:
    a, b = join(purpose="one"), join()
    b.watch()
    grant = a.acquire("vdi/1")
    names = [(holding.name, holding.who.purpose) for holding in b.holdings()]
    assert names == [("vdi/1", "one")]
    assert {who.purpose for who in b.sessions()} == {"tap", "one", "test"}
    grant.release()
    seen: list[object] = []
    soon(lambda: seen.extend(b.events()) or seen)
    assert isinstance(seen[0], LockReleased)
    assert (seen[0].name, seen[0].token) == ("vdi/1", grant.token)
    a._client.phase = "left"  # from now on it is silent
    soon(lambda: seen.extend(b.events()) or any(isinstance(e, SessionDied) for e in seen))
    assert b.store == "5e" * 16
    assert b.state == "up"


def test_two_stores_at_one_master(join: Join) -> None:
    a, b = join(scope="aa" * 16), join(scope="bb" * 16)
    a.acquire("vdi/1")
    grant = b.acquire("vdi/1")
    assert grant.name == "vdi/1"
    assert [holding.name for holding in a.holdings()] == ["vdi/1"]
    assert len(a.holdings(everything=True)) == 2
    other = join(scope="aa" * 16)
    with pytest.raises(InUse) as caught:
        other.acquire("vdi/1")
    assert caught.value.message.startswith("vdi/1: held by")
    other.acquire("vdi/2")
    woken = threading.Event()
    other.when_called(woken.set)
    caller = threading.Thread(target=lambda: a.call("vdi/2", "m", wait=60.0))
    caller.start()
    assert woken.wait(60)
    (called,) = other.calls()
    assert called.name == "vdi/2"
    other.answer(called, True)
    caller.join()


def test_a_goodbye_gives_everything_back(join: Join, master: LockService) -> None:
    a, b = join(), join()
    a.acquire("vdi/1")
    a.close()
    a.close()
    b.acquire("vdi/1", wait=60.0)
    assert not master.locks.suspect("vdi/1")


def test_names_that_are_none(join: Join) -> None:
    a = join()
    for name in ("", "x" * 201, "a\nb"):
        with pytest.raises(BadRequest, match="no name of a lock"):
            a.acquire(name)
    a.acquire("x" * 200)


@pytest.mark.parametrize("address", ["", "unix:", "host", "host:", ":1", "h:0", "h:65536", "h:x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadRequest, match="is no address"):
        LockConnection(address, "test")


def test_nobody_is_there(folder: Path) -> None:
    with pytest.raises(IoFailed, match="cannot be used: No such file"):
        LockConnection(f"unix:{folder}/none", "test")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(IoFailed, match="cannot be used: Connect") as caught:
            LockConnection(f"127.0.0.1:{sock.getsockname()[1]}", "test")
    assert "plxsh lock master" in caught.value.hint


def test_one_that_says_nothing_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_connection, "FIRST", 0.5)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(IoFailed, match="it does not answer"):
            LockConnection(f"127.0.0.1:{sock.getsockname()[1]}", "test")


def test_who_may_write_is_decided_by_the_client_that_the_histories_prove(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection has no second opinion: what it asks is all that is asked before a write."""
    locks = join(scope="store")
    grant = locks.acquire("vdi/1")
    grant.check()
    locks.check()
    asked: list[str] = []

    def never(_client: LockClient, _now: float, held: Held | None = None) -> bool:
        asked.append(held.name if held else "anything")
        return False

    monkeypatch.setattr(LockClient, "may_submit", never)
    for check in (grant.check, locks.check):
        with pytest.raises(Fenced, match="has not renewed the lease"):
            check()
    assert asked == ["store/vdi/1", "anything"]
    monkeypatch.undo()
    grant.release()
    with pytest.raises(Fenced, match=r"^vdi/1 is no longer held: it was given back$"):
        grant.check()


def test_a_left_socket_file_is_replaced_and_a_live_one_not(unix: str, folder: Path) -> None:
    with pytest.raises(InUse, match="a server listens on"):
        LockService(unix, epochs=FreshEpochs())
    old = str(folder / "old")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(old)
    with service(old):
        assert os.stat(old).st_mode & 0o777 == 0o600
        LockConnection(f"unix:{old}", "test").close()
    assert not os.path.exists(old)


def test_a_path_longer_than_a_socket_takes(folder: Path, timing: Timing) -> None:
    deep = folder / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    with service(str(deep / "locks"), timing=timing):
        locks = LockConnection(f"unix:{deep}/locks", "test")
        locks.acquire("vdi/1")
        locks.close()


def test_it_is_quick_enough_to_open_thousands(join: Join) -> None:
    """A guard against a pause in each request: 300 of them would take minutes."""
    a = join()
    start = time.monotonic()
    for number in range(300):
        a.acquire(f"vdi/{number}")
    assert time.monotonic() - start < 60
    assert len(a.holdings()) == 300
