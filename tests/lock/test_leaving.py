"""How sessions end: the last words are heard, and whoever is interrupted leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from lock.conftest import Join
from support.locks import KEY, ROOT, service, soon

from core import lock_link
from core.lock_connection import LockConnection
from core.lock_link import Link
from core.lock_messages import ListLocks, Request
from core.lock_service import LockService
from core.lock_timing import Timing
from core.locks import Locks

ROUNDS = 25


@pytest.fixture
def timing() -> Timing:
    """So long that nothing ends by itself."""
    return Timing.of(600)


@pytest.fixture(autouse=True)
def _last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock master that is only slow is waited for, also at the end."""
    monkeypatch.setattr(lock_link, "_LAST_WORDS", 60.0)


def sessions(master: LockService) -> int:
    with master.desk:
        return master.master.figures().sessions


def waiting(master: LockService) -> int:
    with master.desk:
        return master.master.figures().waiting


@pytest.mark.parametrize("how", ["unix", "tcp"])
def test_goodbyes_arrive(how: str, unix: str, timing: Timing) -> None:
    with service(unix, ("127.0.0.1", 0), timing=timing) as master:
        address = f"unix:{unix}" if how == "unix" else f"127.0.0.1:{master.addresses[0][1]}"
        for number in range(ROUNDS):
            locks = LockConnection(address, "in and out", key=lambda: KEY)
            locks.acquire(f"vdi/{number}")
            if number % 2:
                locks.acquire("registry").release()
            if number % 3 == 0:
                locks.ask("gc", wait=60.0)
            locks.close()
            assert sessions(master) == 0
            assert not master.locks.holdings()


def test_a_goodbye_that_is_said_while_others_are_sent(
    port: int, master: LockService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in after what is to be sent was taken, and before the end is looked for."""
    locks = LockConnection(f"127.0.0.1:{port}", "in a hurry", key=lambda: KEY)
    send = Link._send
    said = threading.Event()

    def leave(link: Link, channel: Any, requests: list[Request]) -> None:
        send(link, channel, requests)
        if not said.is_set():
            said.set()
            with link._desk:
                locks._client.leave()
            link._leaving.set()

    monkeypatch.setattr(Link, "_send", leave)
    locks.ask("vdi/1", wait=60.0)
    assert said.wait(60)
    locks._link._thread.join()
    soon(lambda: sessions(master) == 0)


def test_a_goodbye_before_much_that_nobody_reads(port: int, master: LockService) -> None:
    """A connection that is closed before all was read takes back what was said on it."""
    for number in range(2000):
        master.locks.acquire(f"extent/{number}")
    for _ in range(5):
        locks = LockConnection(f"127.0.0.1:{port}", "asks and goes", key=lambda: KEY)
        with locks._link.turn():
            for _ in range(5):
                seq = locks._client.next_seq()
                locks._client.outgoing.append(ListLocks(locks._client.session, seq))
        locks.close()
        assert sessions(master) == 0


def is_waiting(thread: int) -> bool:
    """Whether a thread waits on a condition; not for an event, as when it starts another one."""
    frame = sys._current_frames()[thread]
    caller = frame.f_back
    assert caller is not None
    return frame.f_code.co_name == "wait" and caller.f_code.co_name != "wait"


def interrupted(waits: Callable[[], object], when: Callable[[], object]) -> None:
    """Interrupt the main thread, as by Ctrl-C, while it waits in what it is to call."""
    main, over = threading.get_ident(), threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def interrupt() -> None:
        while not over.wait(0.01):
            if when() and is_waiting(main):
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    before = signal.signal(signal.SIGUSR1, stop)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):  # which would end all tests
            waits()
    finally:
        over.set()
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("here", [True, False])
def test_a_wait_that_is_interrupted_leaves_nothing(
    here: bool, master: LockService, join: Join
) -> None:
    waits: Locks = master.locks if here else join()
    holds = join()
    held = holds.acquire("vdi/1")
    interrupted(lambda: waits.acquire("vdi/1", wait=300.0), when=lambda: waiting(master))
    held.release()
    soon(lambda: not master.locks.holdings())
    holds.acquire("vdi/1").release()
    waits.acquire("vdi/1", wait=60.0).check()


@contextmanager
def silence() -> Iterator[int]:
    """A port where nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "lock session"}


def test_a_join_that_is_interrupted_leaves_no_thread() -> None:
    before = threads()  # some of an earlier test may be about to end
    with silence() as port:
        interrupted(
            lambda: LockConnection(f"127.0.0.1:{port}", "waits"), when=lambda: threads() - before
        )
    soon(lambda: not threads() - before)


def test_closing_while_it_connects_again(
    unix: str, timing: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a connection that is made only to be closed."""
    with service(unix, timing=timing):
        locks = LockConnection(f"unix:{unix}", "left alone")
        locks.acquire("vdi/1")
        connecting = threading.Event()

        async def never(_link: Link) -> Any:
            connecting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Link, "_connect", never)
    assert connecting.wait(60)
    locks.close()
    assert not locks._link._thread.is_alive()
    locks.close()


def test_closing_without_a_master(unix: str, timing: Timing) -> None:
    with service(unix, timing=timing):
        locks = LockConnection(f"unix:{unix}", "left alone")
        held = locks.acquire("vdi/1")
    soon(lambda: locks.state != "up")
    held.check()
    locks.close()
    with pytest.raises(Exception, match="vdi/1"):
        held.check()


def test_answers_that_come_late_are_not_kept(master: LockService, join: Join) -> None:
    locks = join()
    with locks._link.turn():
        for _ in range(10):
            seq = locks._client.next_seq()
            locks._client.outgoing.append(ListLocks(locks._client.session, seq))
    soon(lambda: master.messages["ListLocks"] == 10)
    locks.holdings()
    assert not locks._told


END = """
import sys
from core.lock_connection import LockConnection
locks = LockConnection(sys.argv[1], "ends")
locks.acquire("vdi/1")
locks.ask("vdi/2", wait=60.0)
"""


def test_a_program_that_ends_without_a_word(unix: str, master: LockService) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END, f"unix:{unix}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    soon(lambda: sessions(master) == 0)


FORK = """
import os, sys
from core.lock_connection import LockConnection
locks = LockConnection(sys.argv[1], "has a child")
grant = locks.acquire("vdi/1")
child = os.fork()
if not child:
    locks.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [held.name for held in locks.holdings()] == ["vdi/1"]
grant.check()
locks.close()
"""


def test_a_child_ends_nothing_of_its_parent(unix: str, master: LockService) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, f"unix:{unix}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    soon(lambda: sessions(master) == 0)
