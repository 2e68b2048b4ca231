"""A session with a lock master that is reached over a socket.

    locks = LockConnection("unix:/run/parallax/UUID.locks", "fill vm1")
    grant = locks.acquire("vdi/3", wait=30.0)

A `LockClient` says what to send, what holds and who may write; this gives it a clock, a
connection and a thread that renews and connects again, and decides nothing itself. Whoever
asks waits on a condition, never longer than they said. `check` reads fields and the clock: it
takes no mutex, so no thread that writes ever waits for one that talks to the master.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from core.errors import BadRequest, Fenced, InUse, IoFailed, NotFound, TooEarly
from core.lock_auth import new_nonce
from core.lock_client import Held, LockClient, Wanted
from core.lock_link import Link
from core.lock_messages import (
    TOOL,
    Answer,
    Break,
    Broken,
    Call,
    Called,
    Event,
    Holding,
    Listing,
    ListLocks,
    LockReleased,
    Request,
    SessionDied,
    Watch,
    Watching,
    Who,
)
from core.lock_timing import DECIDED_WITHIN, now
from core.lock_wire import MOST_NAME, encode
from core.remote import pack_error, raise_error
from core.text import printable

FIRST: Final = 5.0
"""Seconds in which the master has to answer at the first connection, and for lists."""
_HINT: Final = "look whether the lock master runs: 'plxsh lock master'"
_MOST_EVENTS: Final = 10_000
_Told = TypeVar("_Told", Listing, Broken, Watching)


class RemoteGrant:
    """A grant of a lock master elsewhere."""

    def __init__(self, locks: LockConnection, name: str, held: Held) -> None:
        """Wrap what the client was granted, under the name it was asked for by."""
        self._locks = locks
        self._held = held
        self.name = name
        self.token = held.token

    def check(self) -> None:
        """Make sure that the grant still holds.

        Raises:
            Fenced: it was lost or given back, or the lease has lapsed.
        """
        self._locks.check(self._held)

    def release(self) -> None:
        """Give the lock back, without waiting for the master; a second call does nothing."""
        self._locks.release(self._held)


class RemoteAsked:
    """A lock that was asked for by a thread that may not wait."""

    def __init__(self, locks: LockConnection, name: str, wanted: Wanted) -> None:
        """Wait for the answer."""
        self._locks = locks
        self._name = name
        self._wanted = wanted

    @property
    def is_decided(self) -> bool:
        """Whether there is an answer."""
        return self._wanted.is_decided

    def poll(self) -> RemoteGrant | None:
        """Return the grant, or None as long as it is not decided.

        Raises:
            InUse: it was refused; TooEarly, because nothing is granted yet.
            IoFailed: the lock master did not answer.
        """
        wanted = self._wanted
        if wanted.grant is not None:
            return RemoteGrant(self._locks, self._name, wanted.grant)
        if not wanted.refused:
            return None
        why = self._locks.unscoped(wanted.refused)
        if wanted.unanswered:
            raise IoFailed(why, _HINT)
        if wanted.early:
            raise TooEarly(why, "try again then")
        raise InUse(why if why.startswith(self._name) else f"{self._name}: {why}")

    def cancel(self) -> None:
        """Want it no more; what was granted already is given back."""
        self._locks.cancel(self._wanted)


class LockConnection:
    """A session with a lock master, as `core.locks.Locks`.

    Args:
        address: "HOST:PORT", "[V6]:PORT" or "unix:PATH".
        purpose: what this process does, for people.
        scope: put before every name and taken off what comes back, for a master of several
            stores; a slash is added.
        key: returns the shared key, for each connection anew, so that it may be changed while
            this session goes on; not used on a Unix socket, which the kernel guards.
        tls: what TCP connections are made private with; likewise.
        on_state: called on another thread with `state` whenever it changes.
        role: what this process is to other sessions.

    Attributes:
        leased, shared: others may be given what this session holds, and work beside it.

    Raises:
        BadRequest: the address is none.
        IoFailed: the master cannot be reached, or does not want this client.
    """

    leased = True
    shared = True

    def __init__(
        self,
        address: str,
        purpose: str,
        *,
        scope: str = "",
        key: Callable[[], bytes] | None = None,
        tls: ssl.SSLContext | None = None,
        on_state: Callable[[str], None] | None = None,
        role: str = TOOL,
    ) -> None:
        """Join the master; that takes a few seconds at most."""
        self._scope = f"{scope}/" if scope else ""
        host = printable(socket.gethostname())[:MOST_NAME]
        what = printable(purpose).encode()[:MOST_NAME].decode(errors="ignore")
        self._client = LockClient(host, os.getpid(), what, new_nonce, role)
        self._desk = threading.Condition()
        self._inbox: list[Called] = []
        self._told: dict[int, Listing | Broken | Watching | None] = {}
        self._events: list[Event] = []
        self._asked: set[Wanted] = set()
        self._stopping: list[Held] = []
        self._wake: Callable[[], None] | None = None
        self._lost_told = False
        self._link = Link(self._client, self._desk, self._after, address, key, tls, on_state)
        self._link.start(FIRST)

    # -- until when ----------------------------------------------------------------------

    def check(self, held: Held | None = None) -> None:
        """Make sure that this session may write now; called right before each submission.

        Args:
            held: the grant under which it writes; without it, of any write at all.

        Raises:
            Fenced: its lease has lapsed, or it was lost.
        """
        try:
            self._client.check(now(), held)
        except Fenced as fenced:
            raise Fenced(self.unscoped(fenced.message), fenced.hint) from None

    def lease_left(self) -> float:
        """Return for how many seconds this session may write without another renewal."""
        return self._client.lease_left(now())

    def lease_over(self) -> bool:
        """Return whether the whole lease is over, not only the part in which one may write."""
        return self._client.lease_over(now())

    def is_lost(self) -> bool:
        """Return whether all that was held is lost, so that one has to begin again."""
        return bool(self._client.lost)

    def begin_again(self) -> None:
        """Forget all that was lost; nothing submitted before may still be on its way."""
        with self._turn():
            self._client.begin_again(now())
            self._lost_told = False

    # -- locks ---------------------------------------------------------------------------

    def ask(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> RemoteAsked:
        """Acquire a name without waiting here.

        Raises:
            InUse: this session has it, or has asked for it, already.
        """
        with self._turn():
            try:
                wanted = self._client.acquire(now(), self._full(name), shared, wait, floor)
            except ValueError:
                raise InUse(f"{name} is already held by this process") from None
            self._asked.add(wanted)
        return RemoteAsked(self, name, wanted)

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> RemoteGrant:
        """Lock a name, waiting up to `wait` seconds for its turn.

        Raises:
            InUse: someone else has it; the message says who and where.
            IoFailed: the lock master cannot be reached.
        """
        asked = self.ask(name, floor, shared=shared, wait=wait)
        patience = wait + 2 * self._client.timing.renew_every
        try:
            self._wait(lambda: asked.is_decided, patience)
            grant = asked.poll()
            if grant is None:
                raise IoFailed(f"{name}: the lock master does not answer", _HINT)
        except BaseException:  # a Ctrl-C too: nobody would give back what is granted later
            asked.cancel()
            raise
        return grant

    def cancel(self, wanted: Wanted) -> None:
        """Stop waiting, or give back what came of it."""
        with self._turn():
            self._asked.discard(wanted)
            self._client.cancel(now(), wanted)

    def release(self, held: Held) -> None:
        """Give a grant back; nothing submitted under it may still be on its way."""
        with self._turn():
            self._client.give_back(now(), held)

    def suspect(self, name: str) -> bool:  # noqa: ARG002  # as its siblings
        """Return True: only the master could know, and after a restart it does not."""
        return True

    # -- who is there --------------------------------------------------------------------

    def holdings(self, everything: bool = False) -> Sequence[Holding]:
        """Return who holds what, of this scope or of all.

        Raises:
            IoFailed: the lock master cannot be reached.
        """
        listing = self._list()
        if everything:
            return listing.holdings
        return [
            replace(holding, name=self.unscoped(holding.name))
            for holding in listing.holdings
            if holding.name.startswith(self._scope)
        ]

    def sessions(self) -> Sequence[Who]:
        """Return who is there, the master's own process among them.

        Raises:
            IoFailed: the lock master cannot be reached.
        """
        return self._list().sessions

    def break_lock(self, name: str, token: int = 0) -> float:
        """Take a name from all who hold it.

        Args:
            name: which.
            token: take only the grant of this token; 0 is any.

        Returns:
            In how many seconds others can have it at the latest.

        Raises:
            NotFound: nobody holds it.
            IoFailed: the lock master cannot be reached.
        """
        found = [
            holding
            for holding in self.holdings()
            if holding.name == name and token in (0, holding.token)
        ]
        if not found:
            raise NotFound(f"nobody holds {name}", "'plxsh lock list' shows who holds what")
        full = self._full(name)
        seconds = 0.0
        for holding in found:
            broken = self._tell(partial(_break, full, holding.token), Broken)
            seconds = max(seconds, broken.seconds)
        return seconds

    def watch(self) -> None:
        """Ask to be told of events; they are in `events` from then on.

        Raises:
            IoFailed: the lock master cannot be reached.
        """
        self._tell(Watch, Watching)

    def events(self) -> Sequence[Event]:
        """Take the events that came since the last time: ended sessions, released locks."""
        with self._desk:
            events, self._events = self._events, []
        return [
            replace(event, name=self.unscoped(event.name))
            if isinstance(event, LockReleased)
            else event
            for event in events
            if isinstance(event, SessionDied) or event.name.startswith(self._scope)
        ]

    @property
    def state(self) -> str:
        """Whether the master answers: "up", or "down since 12:30:05"."""
        return self._link.state

    @property
    def store(self) -> str:
        """UUID in hex of the store that the master's own process has locked, or nothing."""
        return self._client.store

    @property
    def master(self) -> str:
        """UUID in hex of the master, or nothing for that of a tap."""
        return self._client.master

    @property
    def settling(self) -> float:
        """Seconds after which a claim that somebody decided on has landed, with a margin."""
        return self._client.timing.worst_io + 2 * DECIDED_WITHIN

    @property
    def longest_break(self) -> float:
        """Seconds after which a lock that is broken is free, whatever its holder does."""
        return self._client.timing.give_away_after

    @property
    def address(self) -> str:
        """Where the master is."""
        return self._link.address

    def _list(self) -> Listing:
        return self._tell(ListLocks, Listing)

    def _tell(self, request: Callable[[int, int], Request], kind: type[_Told]) -> _Told:
        """Make a request that may be repeated, until it is answered."""
        end = now() + FIRST
        mine: list[int] = []
        try:
            while (left := end - now()) > 0:
                with self._turn():
                    if self._client.phase == "joined":
                        mine.append(self._client.next_seq())
                        self._told[mine[-1]] = None
                        self._client.outgoing.append(request(self._client.session, mine[-1]))
                retry = min(left, self._client.timing.retry_every)
                self._wait(lambda: any(self._told[seq] for seq in mine), retry)
                for seq in mine:
                    told = self._told.get(seq)
                    if isinstance(told, kind):
                        return told
        finally:
            for seq in mine:
                self._told.pop(seq, None)
        raise IoFailed(f"the lock master at {self.address} does not answer", _HINT)

    def _full(self, name: str) -> str:
        """Return a name as the master knows it."""
        full = self._scope + name
        if not name or not full.isprintable() or len(full.encode()) > MOST_NAME:
            raise BadRequest(f"{name!r} is no name of a lock")
        return full

    def unscoped(self, text: str) -> str:
        """Return a text of the master with the names in it as they are here."""
        return text.replace(self._scope, "") if self._scope else text

    # -- calls ---------------------------------------------------------------------------

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        """Have the exclusive holder of a name do something, and return its answer.

        Raises:
            BadRequest: the argument is too long.
            NotFound: nobody holds the name.
            IoFailed: no answer came; nobody knows whether it was done.
        """
        full = self._full(name)
        encode(Call(0, 0, 0, full, method, argument, wait))
        with self._turn():
            calling = self._client.call(now(), full, method, argument, wait)
        patience = wait + 2 * self._client.timing.renew_every
        self._wait(lambda: calling.answer is not None, patience)
        answer = calling.answer
        if answer is None:
            raise IoFailed("no answer came to a call", "it may have been done; look first")
        if not answer.done:
            raise_error(self.unscoped(answer.text))
        return answer.text

    def calls(self) -> Sequence[Called]:
        """Take the calls that came since the last time."""
        if not self._inbox:  # without the mutex: asked often
            return ()
        with self._desk:
            inbox, self._inbox = self._inbox, []
        return [replace(called, name=self.unscoped(called.name)) for called in inbox]

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        """Say what came of a call."""
        try:
            encode(Answer(0, 0, called.number, done, text))
        except BadRequest as error:
            done, text = False, pack_error(error)
        with self._turn():
            self._client.answer(called, done, text)

    def when_called(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called, on any thread, when there is something to look at.

        It is called with the mutex, so it must not ask for locks itself.
        """
        self._wake = wake

    def close(self) -> None:
        """Say goodbye, which gives back what is held; a second call does nothing."""
        with self._turn():
            if self._client.phase != "left":
                self._client.leave()
        self._link.close()

    # -- between the threads -------------------------------------------------------------

    def _turn(self) -> Any:
        """Hold the mutex for something that may leave messages to send."""
        return self._link.turn()

    def _wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        with self._desk:
            return self._desk.wait_for(is_done, seconds)

    def _after(self) -> None:
        """Look what the client has for us; called with the mutex after everything it is told."""
        news = False
        for message in self._client.inbox:
            if isinstance(message, Called):
                self._inbox.append(message)
                news = True
            elif isinstance(message, (SessionDied, LockReleased)):
                if len(self._events) < _MOST_EVENTS:
                    self._events.append(message)
            elif message.seq in self._told:  # else it is late, and nobody would take it out
                self._told[message.seq] = message
        self._client.inbox.clear()
        for wanted in [wanted for wanted in self._asked if wanted.is_decided]:
            self._asked.discard(wanted)
            news = True
        if self._client.lost and not self._lost_told:
            self._lost_told = news = True
        self._desk.notify_all()
        if news and self._wake is not None:
            self._wake()


def _break(name: str, token: int, session: int, seq: int) -> Request:
    return Break(session, seq, name, token)
