"""Calls: what one session asks the holder of a lock to do, on their way there and back.

A call that is repeated is the same call, and its holder is given it under one number, so it
can be done once. After its time it is forgotten, answered or not, and a repeat that comes so
late is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.errors import IoFailed, NotFound
from core.lock_messages import Answer, Answered, Call, Called, Reply
from core.remote import pack_error

_HINT: Final = "it may have been done; look before you try again"


@dataclass(slots=True)
class _Pending:
    number: int
    call: Call
    holder: int
    deadline: float
    answer: Answered | None = None


class Calls:
    """The calls whose time is not over.

    Args:
        first: the number of the first call; higher than any of an earlier run.
    """

    def __init__(self, first: int) -> None:
        """Begin with none."""
        self._next = first
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._forgotten: dict[int, int] = {}

    def call(self, now: float, call: Call, holder: int | None) -> list[Reply]:
        """Return what to send for a call: on to the holder, or an answer to the caller."""
        pending = self._pending.get((call.session, call.call))
        if pending is None:
            if call.call <= self._forgotten.get(call.session, 0):
                return []
            pending = _Pending(self._next, call, holder or 0, now + call.wait)
            self._next += 1
            self._pending[call.session, call.call] = pending
            if holder is None:
                nobody = NotFound(f"nobody holds {call.name}")
                return self._settle(pending, False, pack_error(nobody))
        if pending.answer is not None:
            return [pending.answer]
        wait = max(pending.deadline - now, 0.0)
        return [Called(pending.holder, pending.number, call.name, call.method, call.argument, wait)]

    def answer(self, answer: Answer) -> list[Reply]:
        """Take what a holder says; only the one that was asked can, and once."""
        for pending in self._pending.values():
            if (pending.number, pending.holder) == (answer.number, answer.session):
                return self._settle(pending, answer.done, answer.text)
        return []

    def session_ended(self, session: int) -> list[Reply]:
        """Answer what the session was asked, forget what it asked."""
        self._forgotten.pop(session, None)
        for key in [key for key in self._pending if key[0] == session]:
            del self._pending[key]
        gone = [pending for pending in self._pending.values() if pending.holder == session]
        text = pack_error(IoFailed("the holder went away before it answered", _HINT))
        return [reply for pending in gone for reply in self._settle(pending, False, text)]

    def expire(self, now: float) -> list[Reply]:
        """Forget calls whose time is over, and say so to whoever still waits."""
        late = [(key, item) for key, item in self._pending.items() if item.deadline <= now]
        replies: list[Reply] = []
        for key, pending in late:
            why = f"the holder did not answer within {pending.call.wait:g} s"
            replies += self._settle(pending, False, pack_error(IoFailed(why, _HINT)))
            del self._pending[key]
            self._forgotten[key[0]] = max(key[1], self._forgotten.get(key[0], 0))
        return replies

    def next_deadline(self) -> float:
        """Return when the next call's time is over."""
        return min((item.deadline for item in self._pending.values()), default=float("inf"))

    def count(self) -> int:
        """Return how many were not answered yet."""
        return sum(pending.answer is None for pending in self._pending.values())

    def _settle(self, pending: _Pending, done: bool, text: str) -> list[Reply]:
        if pending.answer is not None:
            return []
        pending.answer = Answered(pending.call.session, pending.call.call, done, text)
        return [pending.answer]
