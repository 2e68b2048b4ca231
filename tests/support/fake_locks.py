"""Locks whose lease a test ends and renews as it likes, and a tap under them."""

# ruff: noqa: ARG002  # all of these have the signatures of `core.locks.Locks`

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import count
from threading import RLock
from typing import Any

from support.tap import running, short_folder

from core.blockstore import Blockstore
from core.direct import open_device
from core.errors import Fenced, InUse, ParallaxError
from core.lock_master import LockMaster
from core.lock_messages import Called, Holding
from core.remote import raise_error
from core.session import Session
from core.tap.server import Tap


class FakeGrant:
    """A grant that a test can take away."""

    def __init__(self, locks: FakeLocks, name: str, token: int) -> None:
        self.locks, self.name, self.token = locks, name, token
        self.lost = False

    def check(self) -> None:
        if self.lost:
            raise Fenced(f"{self.name} was lost: an operator broke it", "open it again")
        self.locks.check()

    def release(self) -> None:
        with self.locks.lock:
            if self.locks.held.get(self.name) is self:
                del self.locks.held[self.name]
        self.locks.ring()


class FakeAsked:
    """A wish for a lock, granted as soon as nobody else has it and `answering` is set."""

    def __init__(self, locks: FakeLocks, name: str, floor: int, wait: float) -> None:
        self.locks, self.name, self.floor, self.wait = locks, name, floor, wait
        self.over = False

    def poll(self) -> FakeGrant | None:
        with self.locks.lock:
            if not self.locks.answering:
                return None
            if self.name in self.locks.held or self.name in self.locks.others:
                if self.wait:
                    return None
                raise InUse(f"{self.name}: held by otherhost, process 7 (plxsh tap serve)")
            return self.locks.acquire(self.name, self.floor)

    def cancel(self) -> None:
        self.over = True


class FakeLocks:
    """One session's locks; `others` are names that somebody else holds.

    `trouble` is called with each name before it is granted, on the thread that asks, and with
    "" before it is told who holds what: it may wait, and raise.
    """

    def __init__(self, leased: bool = True) -> None:
        self.leased = leased
        self.master = ""
        self.settling = 0.0
        self.shared = True
        self.store = ""
        self.lock = RLock()
        self.held: dict[str, FakeGrant] = {}
        self.others: set[str] = set()
        self.left = math.inf
        self.grace = 1.0
        self.lost = False
        self.answering = True
        self.holding: list[Holding] = []
        self.trouble: Callable[[str], None] = lambda _name: None
        self.began_again = 0
        self.session: Session | None = None
        self._tokens = LockMaster()
        self._numbers = count(1)
        self._wake: Callable[[], None] | None = None
        self._calls: list[Called] = []
        self._answers: dict[int, Future[str]] = {}

    # -- what the engine and the tap use -------------------------------------------------

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> FakeGrant:
        self.trouble(name)
        with self.lock:
            if shared:
                return FakeGrant(self, name, 0)
            if name in self.held or name in self.others:
                raise InUse(f"{name}: held by otherhost, process 7 (plxsh tap serve)")
            grant = self._tokens.acquire(name, floor)
            token = grant.token
            grant.release()
            self.held[name] = FakeGrant(self, name, token)
            return self.held[name]

    def ask(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> FakeAsked:
        return FakeAsked(self, name, floor, wait)

    def suspect(self, name: str) -> bool:
        return False

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        raise AssertionError("nobody to call")

    def holdings(self) -> Sequence[Holding]:
        self.trouble("")
        return self.holding

    def check(self) -> None:
        if self.lost:
            raise Fenced("the session was lost", "open it again")
        if self.left <= 0:
            raise Fenced("the lock master has not renewed the lease for too long", "look at it")

    def lease_left(self) -> float:
        return self.left

    def lease_over(self) -> bool:
        return self.lost or self.left <= -self.grace

    def is_lost(self) -> bool:
        return self.lost

    def begin_again(self) -> None:
        with self.lock:
            self.lost = False
            self.left = math.inf
            self.began_again += 1

    def calls(self) -> Sequence[Called]:
        with self.lock:
            calls, self._calls = self._calls, []
        return calls

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        future = self._answers.pop(called.number)
        if done:
            future.set_result(text)
            return
        try:
            raise_error(text)
        except ParallaxError as error:
            future.set_exception(error)

    def when_called(self, wake: Callable[[], None] | None) -> None:
        self._wake = wake

    def close(self) -> None:
        pass

    # -- what a test does ----------------------------------------------------------------

    def ring(self) -> None:
        """Wake the tap."""
        wake = self._wake
        if wake is not None:
            with suppress(OSError):
                wake()

    def request(self, name: str, method: str, /, **argument: Any) -> Future[str]:
        """Ask the tap for something, as another session, which knows the VDI by its UUID."""
        kind, _, number = name.partition("/")
        record = self.session.registry.get(int(number)) if kind == "vdi" and self.session else None
        if record is not None:
            argument.setdefault("uuid", record.uuid.hex())
        future: Future[str] = Future()
        with self.lock:
            called = Called(0, next(self._numbers), name, method, json.dumps(argument), 10.0)
            self._answers[called.number] = future
            self._calls.append(called)
        self.ring()
        return future

    def ask_for(self, name: str, method: str, /, **argument: Any) -> dict[str, Any]:
        """Ask the tap for something and wait for what comes of it."""
        answer: dict[str, Any] = json.loads(self.request(name, method, **argument).result(60))
        return answer

    def lapse(self) -> None:
        """Let the lease end, as if the lock master did not answer."""
        self.left = 0.0
        self.ring()

    def renew(self) -> None:
        """Have it again."""
        self.left = math.inf
        self.ring()

    def lose(self) -> None:
        """Let another session have all that this one held."""
        with self.lock:
            self.lost = True
            for grant in self.held.values():
                grant.lost = True
            self.held.clear()
        self.ring()


@contextmanager
def tap_under(
    locks: FakeLocks, store: str, **options: object
) -> Iterator[tuple[Tap, str, Session]]:
    """A tap in a thread whose locks are in the hands of the test."""
    with (
        short_folder() as folder,
        Session(Blockstore(open_device(store, True, "exclusive", "host"), locks), locks) as session,
    ):
        locks.session = session
        path = str(folder / "nbd")
        tap = Tap(session, path, **options)
        with running(tap):
            yield tap, path, session


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
