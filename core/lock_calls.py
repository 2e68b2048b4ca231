"""Calls: what one session asks the holder of a lock to do, on their way there and back.

A call that is repeated is the same call, and its holder is given it under one number, so it
can be done once. After its time it is forgotten, answered or not, and a repeat that comes so
late is dropped. Each session has room for so many; the oldest that are answered make room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from core.errors import InUse, IoFailed, NotFound
from core.lock_messages import Answer, Answered, Call, Called, Reply
from core.remote import pack_error

MOST_CALLS: Final = 64
"""Of one session that are remembered; each may be a message long."""
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
        self._by_caller: dict[int, dict[int, _Pending]] = {}
        self._unanswered: dict[int, _Pending] = {}
        self._forgotten: dict[int, int] = {}
        self._due = math.inf

    def call(self, now: float, call: Call, holder: int | None) -> list[Reply]:
        """Return what to send for a call: on to the holder, or an answer to the caller."""
        own = self._by_caller.setdefault(call.session, {})
        pending = own.get(call.call)
        if pending is None:
            if call.call <= self._forgotten.get(call.session, 0):
                return []
            if len(own) >= MOST_CALLS and not self._forget_answered(own):
                full = InUse(f"this session waits for {MOST_CALLS} answers already")
                return [Answered(call.session, call.call, False, pack_error(full))]
            pending = own[call.call] = _Pending(self._next, call, holder or 0, now + call.wait)
            self._unanswered[pending.number] = pending
            self._next += 1
            self._due = min(self._due, pending.deadline)
            if holder is None:
                nobody = NotFound(f"nobody holds {call.name}")
                return self._settle(pending, False, pack_error(nobody))
        if pending.answer is not None:
            return [pending.answer]
        wait = max(pending.deadline - now, 0.0)
        return [Called(pending.holder, pending.number, call.name, call.method, call.argument, wait)]

    def answer(self, answer: Answer) -> list[Reply]:
        """Take what a holder says; only the one that was asked can, and once."""
        pending = self._unanswered.get(answer.number)
        if pending is None or pending.holder != answer.session:
            return []
        return self._settle(pending, answer.done, answer.text)

    def session_ended(self, session: int) -> list[Reply]:
        """Answer what the session was asked, forget what it asked."""
        for pending in self._by_caller.pop(session, {}).values():
            self._unanswered.pop(pending.number, None)
        self._forgotten.pop(session, None)
        gone = [pending for pending in self._unanswered.values() if pending.holder == session]
        text = pack_error(IoFailed("the holder went away before it answered", _HINT))
        return [reply for pending in gone for reply in self._settle(pending, False, text)]

    def expire(self, now: float) -> list[Reply]:
        """Forget calls whose time is over, and say so to whoever still waits."""
        if now < self._due:
            return []
        replies: list[Reply] = []
        for own in self._by_caller.values():
            for pending in [pending for pending in own.values() if pending.deadline <= now]:
                why = f"the holder did not answer within {pending.call.wait:g} s"
                replies += self._settle(pending, False, pack_error(IoFailed(why, _HINT)))
                self._forget(own, pending)
        left = (pending for own in self._by_caller.values() for pending in own.values())
        self._due = min((pending.deadline for pending in left), default=math.inf)
        return replies

    def next_deadline(self) -> float:
        """Return when the next call's time is over, or sooner."""
        return self._due

    def count(self) -> int:
        """Return how many were not answered yet."""
        return len(self._unanswered)

    def _forget_answered(self, own: dict[int, _Pending]) -> bool:
        """Forget the oldest call of a session that was answered; return whether one was."""
        for pending in own.values():
            if pending.answer is not None:
                self._forget(own, pending)
                return True
        return False

    def _forget(self, own: dict[int, _Pending], pending: _Pending) -> None:
        session, number = pending.call.session, pending.call.call
        del own[number]
        self._forgotten[session] = max(number, self._forgotten.get(session, 0))

    def _settle(self, pending: _Pending, done: bool, text: str) -> list[Reply]:
        """Answer a call that was not answered yet; what was asked may be long and is not kept."""
        if self._unanswered.pop(pending.number, None) is None:
            return []
        call = pending.call = replace(pending.call, argument="")
        pending.answer = Answered(call.session, call.call, done, text)
        return [pending.answer]
