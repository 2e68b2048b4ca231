"""The locks of the process in which the lock master runs, for any of its threads.

The same requests as everyone's, without a socket and without a lease: master and process
live and die together. One mutex is around the master; it is held for the time of a request
and never while anybody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from core.errors import InUse, NotFound, TooEarly
from core.lock_master import HERE, Grant, LockMaster
from core.lock_messages import (
    Acknowledge,
    Acquire,
    Answer,
    Answered,
    Call,
    Called,
    Granted,
    Holding,
    Refused,
    Release,
    Reply,
    Request,
)
from core.lock_timing import now
from core.lock_unleased import Unleased
from core.remote import raise_error

_GRACE = 1.0
"""Seconds after its time in which a request is still decided by the master."""


class HereGrant:
    """A grant of the master's own process."""

    def __init__(self, locks: LocksHere, grant: Grant) -> None:
        """Wrap what the master granted."""
        self._locks = locks
        self._grant = grant
        self.name = grant.name
        self.token = grant.token

    def check(self) -> None:
        """Make sure that the grant still holds.

        Raises:
            Fenced: it was broken or given back.
        """
        self._grant.check()  # two look-ups in dictionaries: no need of the mutex

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        self._locks.release(self._grant)


class HereAsked:
    """A lock that was asked for by a thread that may not wait."""

    def __init__(self, locks: LocksHere, name: str, deadline: float) -> None:
        """Wait for the answer."""
        self._locks = locks
        self.name = name
        self.deadline = deadline
        self.grant: HereGrant | None = None
        self.refused = ""
        self.early = False

    def poll(self) -> HereGrant | None:
        """Return the grant, or None as long as it is not decided.

        Raises:
            InUse: it was refused; TooEarly, because nothing is granted yet.
        """
        if self.grant is None and not self.refused and now() > self.deadline + _GRACE:
            self.cancel()
            self.refused = f"{self.name} was not granted in time"
        if self.early:
            raise TooEarly(self.refused, "try again then")
        if self.refused:
            raise InUse(self.refused)
        return self.grant

    def cancel(self) -> None:
        """Want it no more; what was granted already is given back."""
        self._locks.cancel(self)


class LocksHere(Unleased):
    """Session `HERE` of a master, as `core.locks.Locks`.

    Args:
        master: the master.
        desk: the mutex around it; whoever waits for an answer waits here.
        post: takes replies and brings each to its session; called with the mutex.
    """

    shared = True
    store = ""

    def __init__(
        self,
        master: LockMaster,
        desk: threading.Condition,
        post: Callable[[list[Reply]], None],
    ) -> None:
        """Hold nothing yet."""
        self._master = master
        self._desk = desk
        self._post = post
        self._seq = 0
        self._asked: dict[str, HereAsked] = {}
        self._answers: dict[int, Answered | None] = {}
        self._inbox: list[Called] = []
        self._newest_call = 0
        self._wake: Callable[[], None] | None = None

    # -- asking ------------------------------------------------------------------------

    def ask(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> HereAsked:
        """Acquire a name without waiting here."""
        with self._desk:
            asked = HereAsked(self, name, now() + wait)
            if self._master.held(name) is not None or name in self._asked:
                asked.refused = f"{name} is already held by this process"
                return asked
            self._asked[name] = asked
            self._say(Acquire(HERE, self._next(), name, shared, wait, floor))
        return asked

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> HereGrant:
        """Lock a name, waiting up to `wait` seconds for its turn.

        Raises:
            InUse: someone has it, or the master is still quiet.
        """
        asked = self.ask(name, floor, shared=shared, wait=wait)
        try:
            with self._desk:
                while (grant := asked.poll()) is None:
                    self._desk.wait(max(asked.deadline + _GRACE - now(), 0.0) + 0.01)
        except BaseException:  # a Ctrl-C too: nobody would give back what is granted later
            self.cancel(asked)
            raise
        return grant

    def cancel(self, asked: HereAsked) -> None:
        """Stop waiting, or give back what came of it."""
        with self._desk:
            if self._asked.get(asked.name) is asked:
                del self._asked[asked.name]
                self._say(Release(HERE, self._next(), asked.name))
            elif asked.grant is not None:
                asked.grant.release()

    def release(self, grant: Grant) -> None:
        """Give a grant back, also one that was broken."""
        with self._desk:
            if self._master.held(grant.name) is grant:
                self._say(Release(HERE, self._next(), grant.name))
            elif grant.revoked is not None:
                self._say(Acknowledge(HERE, self._next(), grant.token))

    def suspect(self, name: str) -> bool:
        """Return whether whoever held a name before may still be writing under it."""
        with self._desk:
            return self._master.suspect(name)

    def holdings(self) -> Sequence[Holding]:
        """Return who holds what."""
        with self._desk:
            return self._master.holdings()

    # -- calls -------------------------------------------------------------------------

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        """Have the exclusive holder of a name do something, and return its answer.

        It is repeated like everyone's, in case the connection to the holder breaks.

        Raises:
            NotFound: nobody else holds the name.
            IoFailed: no answer came; nobody knows whether it was done.
        """
        deadline = now() + wait
        with self._desk:
            grant = self._master.held(name)
            if grant is not None and not grant.shared:
                raise NotFound(f"{name} is held by this process itself")
            number = self._next()
            self._answers[number] = None
            try:
                while (answer := self._answers[number]) is None:
                    left = max(deadline - now(), 0.0)
                    self._say(Call(HERE, self._next(), number, name, method, argument, left))
                    if self._answers[number] is None:
                        self._desk.wait(min(left + 0.01, self._master.timing.retry_every))
                        self._tick()
            finally:
                del self._answers[number]
        if not answer.done:
            raise_error(answer.text)
        return answer.text

    def calls(self) -> Sequence[Called]:
        """Take the calls that came since the last time."""
        if not self._inbox:  # without the mutex: asked often
            return ()
        with self._desk:
            inbox, self._inbox = self._inbox, []
        return inbox

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        """Say what came of a call."""
        with self._desk:
            self._say(Answer(HERE, self._next(), called.number, done, text))

    def when_called(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called, on any thread, when there is something to look at.

        It is called with the mutex, so it must not ask for locks itself.
        """
        self._wake = wake

    def close(self) -> None:
        """Give back all that this process holds."""
        with self._desk:
            self._master.close()
            self._tick()

    # -- the master's side -------------------------------------------------------------

    def take(self, reply: Reply) -> None:
        """Take a reply to this session; called with the mutex."""
        if isinstance(reply, Granted) and reply.name in self._asked:
            grant = self._master.held(reply.name)
            if grant is not None:
                self._asked.pop(reply.name).grant = HereGrant(self, grant)
        elif isinstance(reply, Refused) and reply.name in self._asked:
            asked = self._asked.pop(reply.name)
            asked.refused, asked.early = reply.reason, reply.early
        elif isinstance(reply, Answered) and reply.call in self._answers:
            self._answers[reply.call] = reply
        elif isinstance(reply, Called) and reply.number > self._newest_call:
            # Numbers only grow, and nothing overtakes on the way here: all else is a repeat.
            self._newest_call = reply.number
            self._inbox.append(reply)
        else:
            return
        self._desk.notify_all()
        if self._wake is not None:
            self._wake()

    def _say(self, request: Request) -> None:
        self._post(self._master.receive(now(), request))

    def _tick(self) -> None:
        self._post(self._master.tick(now()))

    def _next(self) -> int:
        self._seq += 1
        return self._seq
