"""Which grants exist and who waits for the next one: names, tokens, turns. No time, no I/O.

A name has one exclusive holder or any number of shared ones. Whoever waits is served in the
order of asking, so a stream of shared holders cannot keep an exclusive one waiting for ever.
A grant that was taken back (`Grant.revoked`) is no longer held but still blocks its name,
because its holder may not know yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from core.errors import Fenced

_Item = TypeVar("_Item")


class Grant:
    """The right to use what `name` stands for, under a token that never repeats.

    Attributes:
        session: the number of the session that has it.
        shared: whether others may have it at the same time.
        revoked: when others may have it at the latest, if it was taken back; else None.
    """

    __slots__ = ("_table", "name", "revoked", "session", "shared", "token")

    def __init__(
        self, table: LockTable, name: str, token: int, session: int = 0, shared: bool = False
    ) -> None:
        """Only a lock table makes these."""
        self._table = table
        self.name = name
        self.token = token
        self.session = session
        self.shared = shared
        self.revoked: float | None = None

    def check(self) -> None:
        """Make sure that the grant still holds; called right before each commit.

        Raises:
            Fenced: it was lost; nothing more may be written under it.
        """
        if self._table.held(self.name, self.session) is not self:
            raise Fenced(f"{self.name} is no longer held by this session", "open it again")

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        self._table.release(self)


@dataclass(slots=True)
class Waiter:
    """A session that waits for a name until `deadline`; `seq` is its latest request."""

    session: int
    seq: int
    name: str
    shared: bool
    deadline: float
    floor: int


class LockTable:
    """All grants and all waiters.

    Attributes:
        exclusive: the exclusive grant of each name that has one.
        released: grants that ended since whoever looks at them last emptied the list.
    """

    def __init__(self) -> None:
        """Start with nothing granted."""
        self.exclusive: dict[str, Grant] = {}
        self.released: list[Grant] = []
        self._shared: dict[str, dict[int, Grant]] = {}
        self._revoked: dict[str, list[Grant]] = {}
        self._waiting: dict[str, list[Waiter]] = {}
        self._of: dict[int, dict[Grant, None]] = {}
        self._wanted: dict[int, dict[str, None]] = {}

    # -- grants ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Grant]:
        """Go through all grants, with those that were taken back but still block."""
        yield from self.exclusive.values()
        for grants in self._shared.values():
            yield from grants.values()
        yield from self.revoked()

    def on(self, name: str) -> Iterator[Grant]:
        """Go through the grants of one name, with those taken back."""
        if name in self.exclusive:
            yield self.exclusive[name]
        yield from self._shared.get(name, {}).values()
        yield from self._revoked.get(name, ())

    def revoked(self) -> Iterator[Grant]:
        """Go through the grants that were taken back but still block."""
        for grants in self._revoked.values():
            yield from grants

    def of(self, session: int) -> list[Grant]:
        """Return the grants of a session, with those taken back."""
        return [*self._of.get(session, ())]

    def count(self, session: int) -> int:
        """Return how many grants a session has, and how many it waits for."""
        return len(self._of.get(session, ())) + len(self._wanted.get(session, ()))

    def held(self, name: str, session: int) -> Grant | None:
        """Return what a session holds under a name."""
        grant = self.exclusive.get(name)
        if grant is not None and grant.session == session:
            return grant
        return self._shared.get(name, {}).get(session)

    def is_free(self, name: str, shared: bool) -> bool:
        """Return whether nothing granted is in the way."""
        blocked = name in self.exclusive or name in self._revoked
        return not blocked and (shared or name not in self._shared)

    def add(self, name: str, token: int, session: int, shared: bool) -> Grant:
        """Grant a name that is free."""
        grant = Grant(self, name, token, session, shared)
        if shared:
            self._shared.setdefault(name, {})[session] = grant
        else:
            self.exclusive[name] = grant
        self._of.setdefault(session, {})[grant] = None
        return grant

    def revoke(self, grant: Grant, until: float) -> None:
        """Take a grant from its holder; it blocks the name until it is released."""
        if grant.revoked is None:
            self._take_out(grant)
            grant.revoked = until
            self._revoked.setdefault(grant.name, []).append(grant)

    def release(self, grant: Grant) -> None:
        """End a grant if it still exists."""
        if self._take_out(grant):
            _forget(self._of, grant.session, grant)
            self.released.append(grant)

    def _take_out(self, grant: Grant) -> bool:
        name = grant.name
        if grant.revoked is not None:
            grants = self._revoked.get(name, [])
            if grant not in grants:
                return False
            grants.remove(grant)
            if not grants:
                del self._revoked[name]
        elif self.exclusive.get(name) is grant:
            del self.exclusive[name]
        elif self._shared.get(name, {}).get(grant.session) is grant:
            del self._shared[name][grant.session]
            if not self._shared[name]:
                del self._shared[name]
        else:
            return False
        return True

    # -- turns -------------------------------------------------------------------------

    def wait(self, waiter: Waiter) -> None:
        """Queue a waiter, or keep its place if it repeats itself."""
        queue = self._waiting.setdefault(waiter.name, [])
        if self.is_awaited(waiter.name, waiter.session):
            place = [other.session for other in queue].index(waiter.session)
            queue[place] = waiter
        else:
            queue.append(waiter)
            self._wanted.setdefault(waiter.session, {})[waiter.name] = None

    def waiters(self) -> Iterator[Waiter]:
        """Go through all that wait."""
        for queue in self._waiting.values():
            yield from queue

    def wanted(self, session: int) -> list[str]:
        """Return the names that a session waits for."""
        return [*self._wanted.get(session, ())]

    def is_awaited(self, name: str, session: int | None = None) -> bool:
        """Return whether anyone, or this session, waits for a name."""
        return name in (self._waiting if session is None else self._wanted.get(session, ()))

    def next_turn(self, name: str) -> Waiter | None:
        """Return whose turn it is, if what they want is free."""
        queue = self._waiting.get(name)
        return queue[0] if queue and self.is_free(name, queue[0].shared) else None

    def leave(self, name: str, session: int) -> None:
        """Let a session wait no longer."""
        if not self.is_awaited(name, session):
            return
        _forget(self._wanted, session, name)
        queue = [waiter for waiter in self._waiting[name] if waiter.session != session]
        if queue:
            self._waiting[name] = queue
        else:
            del self._waiting[name]


def _forget(records: dict[int, dict[_Item, None]], session: int, item: _Item) -> None:
    """Take an item from the records of a session, and the records with the last one."""
    del records[session][item]
    if not records[session]:
        del records[session]
