"""Locks as the engine sees them: one of its two seams (the other is `BlockDevice`).

A session asks for names and is given grants; it asks the holder of a name to do something,
and is asked. Where the lock master runs is behind this: in the same object (`LockMaster`,
one process alone), in another thread of this process (the tap), or across a socket.

Names: `vdi/3` to write a VDI, `extent/5` to allocate from an extent, `registry` to give and
take names and ids, `gc` to collect, `session/HEX` for being there and having the store open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from core.lock_messages import Called, Holding


class Grant(Protocol):
    """The right to use what `name` stands for, under a token that never repeats."""

    @property
    def name(self) -> str:
        """What was locked."""

    @property
    def token(self) -> int:
        """The fencing token: higher than any before."""

    def check(self) -> None:
        """Make sure that the grant still holds; called right before each use.

        Raises:
            Fenced: it was lost, or its lease has lapsed; nothing may be written under it.
        """

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""


class Asked(Protocol):
    """A lock that was asked for by one who may not wait."""

    def poll(self) -> Grant | None:
        """Return the grant, or None as long as it is not decided.

        Raises:
            InUse: someone else has it; the message says who and where.
            IoFailed: the lock master cannot be reached.
        """

    def cancel(self) -> None:
        """Want it no more; what was granted already is given back."""


class Locks(Protocol):
    """A session with a lock master.

    Attributes:
        leased: others may be given what this session holds while its process lives.
        shared: other sessions may have the store open for writing at the same time.
    """

    leased: bool
    shared: bool

    @property
    def store(self) -> str:
        """UUID, in hex, of the store that the lock master's own process keeps locked, or none."""

    @property
    def master(self) -> str:
        """UUID, in hex, of a lock master that stores are shared under; empty for all others."""

    @property
    def settling(self) -> float:
        """Seconds after which a claim that somebody decided on has landed, or never will."""

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> Grant:
        """Lock a name, waiting up to `wait` seconds for its turn.

        Args:
            name: what to lock.
            floor: the highest token the store has on record for it.
            shared: others may share it.
            wait: seconds.

        Raises:
            InUse: someone else has it; the message says who and where.
            TooEarly: nothing is granted at all yet; it is an `InUse`.
            IoFailed: the lock master cannot be reached.
        """

    def ask(self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0) -> Asked:
        """Acquire a name without waiting for it here; `when_called` tells when to look."""

    def suspect(self, name: str) -> bool:
        """Return whether whoever held a name before may still be writing under it."""

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        """Have the exclusive holder of a name do something, and return its answer.

        Raises:
            NotFound: nobody holds the name.
            IoFailed: no answer came; nobody knows whether it was done.
            Others: the holder's own, see `core.remote`.
        """

    def holdings(self) -> Sequence[Holding]:
        """Return who holds what.

        Raises:
            IoFailed: the lock master cannot be reached.
        """

    def check(self) -> None:
        """Make sure that this session may write now; called right before each submission.

        Raises:
            Fenced: its lease has lapsed, or it was lost.
        """

    def lease_left(self) -> float:
        """Return for how many seconds this session may write without another renewal.

        Infinite when there is no lease; zero or less when it has lapsed.
        """

    def lease_over(self) -> bool:
        """Return whether others may be told by now that this session is gone.

        A lease that has merely lapsed is not over: the lock master still takes the session
        for alive, and so does everyone who asks it.
        """

    def is_lost(self) -> bool:
        """Return whether all that was held is lost, so that one has to begin again."""

    def begin_again(self) -> None:
        """Forget all that was lost; from now on this is a session like any new one."""

    def calls(self) -> Sequence[Called]:
        """Take the calls that came since the last time; each wants one `answer`."""

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        """Say what came of a call."""

    def when_called(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called, on any thread, whenever there is something in `calls`.

        Also when something that was asked for is decided, and when all is lost.
        """

    def close(self) -> None:
        """End the session; what it holds is given back."""
