"""The client's half of the lock master: what it may do, and until when.

As pure as the master: it is given replies and the time, and leaves what is to be sent in
`outgoing`. It counts its lease from the moment it *sent* the renewal that was answered, and
`may_submit` compares that with the clock, so a process that was suspended finds out before
it submits anything, whatever it was told in the meantime.

A lease that has lapsed is no loss yet: the master gives locks away later, and a renewal
that it still answers makes the lease valid again. A session that the master does not know
any more has lost all it held, unless the master was restarted: then the session begins a
new one and claims what it holds, as long as its old lease is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Final, Literal, TypeVar

from core.errors import Fenced, IoFailed
from core.lock_messages import (
    TOOL,
    Acknowledge,
    Acquire,
    Answer,
    Answered,
    Broken,
    Bye,
    Call,
    Called,
    Claim,
    Event,
    Granted,
    Hello,
    Listing,
    LockReleased,
    Reclaim,
    Reclaimed,
    Refused,
    Release,
    Released,
    Renew,
    Renewed,
    Reply,
    Request,
    SessionDied,
    Told,
    Unknown,
    Waiting,
    Watching,
    Welcome,
)
from core.lock_timing import Timing
from core.remote import pack_error

_FIRST_RETRY: Final = 1.0
"""Seconds until `Hello` is repeated; the master says its own times in the answer."""

_HINT: Final = "it may have been done; look before you try again"

_Key = TypeVar("_Key", int, str)
Phase = Literal["joining", "reclaiming", "joined", "left"]


@dataclass(eq=False, slots=True)
class Held:
    """A grant, on the side of its holder; `lost` says why it is none any more."""

    name: str
    token: int
    shared: bool
    lost: str = ""


@dataclass(eq=False, slots=True)
class Wanted:
    """A lock that was asked for: in the end it has a `grant`, or `refused` says why not.

    `unanswered` if the master has said nothing at all, `early` if it grants nothing yet.
    """

    name: str
    shared: bool
    floor: int
    deadline: float
    first: float = math.inf
    grant: Held | None = None
    refused: str = ""
    behind: str = ""
    unanswered: bool = False
    early: bool = False

    @property
    def is_decided(self) -> bool:
        """Whether there is an answer."""
        return self.grant is not None or bool(self.refused)


@dataclass(eq=False, slots=True)
class Calling:
    """A call that was made: in the end `answer` is there."""

    number: int
    name: str
    method: str
    argument: str
    deadline: float
    answer: Answered | None = None


@dataclass(slots=True)
class _Served:
    """A call this session was asked to follow, kept so that it is followed once."""

    deadline: float
    answer: tuple[bool, str] | None = None


class LockClient:
    """One session with a lock master.

    Args:
        host: the name of this host.
        pid: the id of this process.
        purpose: what it does, for people.
        nonce: makes a text that never repeats, anywhere.
        role: what it is to other sessions.

    Attributes:
        valid_until: until when it may write, on the clock of `tick`.
        lost: why all that was held is lost, until `begin_again`.
        store: the store that the process of the master has locked, as it was told.
        master: the UUID of the master, likewise.
        outgoing: what the transport is to send; it empties the list.
        inbox: calls to follow (`answer` them) and events; the owner empties the list.
    """

    def __init__(
        self, host: str, pid: int, purpose: str, nonce: Callable[[], str], role: str = TOOL
    ) -> None:
        """Say hello at the first `tick`."""
        self.outgoing: list[Request] = []
        self.inbox: list[Called | Event | Told] = []
        self.phase: Phase = "joining"
        self.session = 0
        self.held: dict[str, Held] = {}
        self.timing = Timing()
        self.valid_until = -math.inf
        self.lost = ""
        self.store = ""
        self.master = ""
        self._greeting = (host, pid, purpose, role)
        self._nonce = nonce
        self._run = 0
        self._seq = 0
        self._lease_from = -math.inf
        self._hellos: dict[str, float] = {}
        self._welcomed_by = ""
        self._moving = False
        self._renewals: dict[int, float] = {}
        self._renew_at = -math.inf
        self._retry_at = -math.inf
        self._wanted: dict[str, Wanted] = {}
        self._releasing: dict[str, int] = {}
        self._kept: set[str] = set()
        self._broken: set[int] = set()
        self._stopping: set[int] = set()
        self._calling: dict[int, Calling] = {}
        self._served: dict[int, _Served] = {}
        self._served_all = 0

    # -- what the owner asks -------------------------------------------------------------

    def may_submit(self, now: float, held: Held | None = None) -> bool:
        """Return whether a write may be submitted now; ask right before it, on any thread.

        Args:
            now: the time.
            held: the grant under which it is written; without it, of any write at all.
        """
        if held is not None and held.lost:
            return False
        return not self.lost and now < self.valid_until

    def check(self, now: float, held: Held | None = None) -> None:
        """Raise Fenced, with the reason, if `may_submit` says no."""
        if self.may_submit(now, held):
            return
        if held is not None and held.lost:
            raise Fenced(f"{held.name} is no longer held: {held.lost}", "open it again")
        if self.lost:
            raise Fenced(f"the locks were lost: {self.lost}", "open the store again")
        raise Fenced(
            "the lock master has not renewed the lease for too long",
            "look whether it can be reached, then try again",
        )

    def lease_left(self, now: float) -> float:
        """Return for how many seconds it may write without another renewal."""
        return 0.0 if self.lost else self.valid_until - now

    def lease_over(self, now: float) -> bool:
        """Return whether the whole lease is over, not only the part in which one may write.

        Counted from when the renewal was sent; the master counts longer, from when it came.
        """
        rest = self.timing.lease - self.timing.stop_after
        return bool(self.lost) or now >= self.valid_until + rest

    def acquire(
        self, now: float, name: str, shared: bool = False, wait: float = 0.0, floor: int = 0
    ) -> Wanted:
        """Ask for a lock; `wait` seconds for its turn, beside the time until it is answered.

        A name is asked for once at a time and not while it is held.
        """
        if name in self._wanted or name in self.held:
            raise ValueError(f"{name} is held or asked for already")
        self._retry_later(now)
        wanted = self._wanted[name] = Wanted(name, shared, floor, now + wait)
        self._send_acquire(now, wanted)
        return wanted

    def release(self, now: float, name: str) -> None:
        """Give a lock back, or stop asking for it.

        Nothing submitted under it may still be on its way.
        """
        held, wanted = self.held.pop(name, None), self._wanted.pop(name, None)
        if held is not None:
            held.lost = "it was given back"
        if wanted is not None:
            wanted.refused = "no longer asked for"
        if held is not None or wanted is not None:
            self._retry_later(now)
            self._send_release(name)

    def cancel(self, now: float, wanted: Wanted) -> None:
        """Want a lock no more: stop asking for it, or give back what came of that."""
        if wanted.grant is not None:
            self.give_back(now, wanted.grant)
        elif not wanted.refused:
            self.release(now, wanted.name)

    def give_back(self, now: float, held: Held) -> None:
        """Give a grant back, also one that was lost; a second time does nothing.

        Nothing submitted under it may still be on its way. If it was broken, others can have
        it at once; without this they wait for as long as a lease can last.
        """
        if self.held.get(held.name) is held:
            self.release(now, held.name)
        elif held.token in self._stopping:
            self._stopping.remove(held.token)
            self.outgoing.append(Acknowledge(self.session, self._next_seq(), held.token))

    def call(
        self, now: float, name: str, method: str, argument: str = "", wait: float = 10.0
    ) -> Calling:
        """Ask the holder of a name to do something; it is done once or not at all."""
        self._retry_later(now)
        calling = Calling(self._next_seq(), name, method, argument, now + wait)
        self._calling[calling.number] = calling
        self._send_call(now, calling)
        return calling

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        """Say what came of a call that was in the inbox."""
        served = self._served.get(called.number)
        if served is not None:
            served.answer = (done, text)
            self._send_answer(called.number, done, text)

    def begin_again(self, now: float) -> None:
        """Go on after everything was lost; what the master still has is given back.

        Nothing submitted under any of it may still be on its way.
        """
        self.lost = ""
        for name in [*self.held]:
            self.release(now, name)
        for name in self._kept:
            self._send_release(name)
        self._kept.clear()
        self._retry_later(now)

    def next_seq(self) -> int:
        """Return a number for a request that the owner makes itself: list, break, watch.

        Its answer comes to the inbox with the same number.
        """
        return self._next_seq()

    def reconnected(self, now: float) -> None:
        """Go on over a new connection; what was on its way on the old one is lost.

        The master is told the old nonce, so the session moves to the new connection.
        """
        self.outgoing.clear()
        if self.session:
            self._moving = True
            self._send_hello(self._welcomed_by)
        self._retry_at = -math.inf
        self.tick(now)

    def leave(self) -> None:
        """End the session; nothing is submitted any more."""
        self._lose(self.held.values(), "the session ended")
        for wanted in self._wanted.values():
            wanted.refused = "the session ended"
        self._wanted.clear()
        self._end_calls()
        if self.session:
            self.outgoing.append(Bye(self.session, self._next_seq()))
        self.phase, self.session, self.valid_until = "left", 0, -math.inf

    # -- time ----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due; call it at `next_due` at the latest."""
        if self.phase == "left":
            return
        self._give_up(now)
        if self.phase == "reclaiming" and now >= self.valid_until:
            self._begin_again("its lease ended before the new lock master had answered")
        if self._is_unanswered() and now >= self._retry_at:
            self._retry_later(now)
            self._repeat(now)
        elif self.phase != "joining" and now >= self._renew_at:
            self._retry_later(now)
            self._renew(now)

    def next_due(self) -> float:
        """Return when `tick` is to be called next."""
        times = [self._retry_at] if self._is_unanswered() else []
        if self.phase != "joining":
            times.append(self._renew_at)
        deadlines = [wanted.deadline for wanted in self._wanted.values()]
        deadlines += [calling.deadline for calling in self._calling.values()]
        return min(times + [deadline + self.timing.renew_every for deadline in deadlines])

    def _give_up(self, now: float) -> None:
        """End what has waited long enough, as far as the master would not say it."""
        for wanted in [*self._wanted.values()]:
            if now >= wanted.deadline + self.timing.renew_every:
                del self._wanted[wanted.name]
                wanted.unanswered = not wanted.behind
                wanted.refused = wanted.behind or "the lock master does not answer"
                self._send_release(wanted.name)
        for calling in [*self._calling.values()]:
            if now >= calling.deadline + self.timing.renew_every:
                del self._calling[calling.number]
                text = pack_error(IoFailed("no answer came to a call", _HINT))
                calling.answer = Answered(self.session, calling.number, False, text)
        for number, served in [*self._served.items()]:
            if now >= served.deadline + self.timing.give_away_after:
                del self._served[number]
                self._served_all = max(self._served_all, number)

    def _is_unanswered(self) -> bool:
        """Return whether there is something to repeat soon."""
        asked = any(not wanted.behind for wanted in self._wanted.values())
        waiting = asked or self._renewals or self._releasing or self._calling
        return self.phase != "joined" or bool(waiting)

    def _retry_later(self, now: float) -> None:
        """Give what is sent now time to be answered."""
        if now >= self._retry_at:
            self._retry_at = now + self.timing.retry_every

    def _repeat(self, now: float) -> None:
        """Say again all that was not answered."""
        if self.phase == "joining":
            self._say_hello(now)
        elif self.phase == "reclaiming":
            self._send_reclaim()
        else:
            for wanted in self._wanted.values():
                if not wanted.behind:
                    self._send_acquire(now, wanted)
            for name in [*self._releasing]:
                self._send_release(name)
            for calling in self._calling.values():
                self._send_call(now, calling)
        if self.phase != "joining" and (self._renewals or now >= self._renew_at):
            self._renew(now)

    # -- replies -------------------------------------------------------------------------

    def receive(self, now: float, reply: Reply) -> None:
        """Take what the master says; what it says of an earlier session is old."""
        if isinstance(reply, Welcome):
            self._welcomed(now, reply)
        elif reply.session == self.session != 0:
            self._take(reply, now)

    def _welcomed(self, now: float, welcome: Welcome) -> None:
        sent = self._hellos.get(welcome.nonce)
        if self._moving and welcome.nonce == self._welcomed_by:
            self._moving = False
            if welcome.session <= self.session:
                return
            # The session is gone, and this one was begun by the old nonce. Nobody knows by
            # which copy of it and when, so no lease counts from there.
            self._begin_again(self._why_gone(welcome.run, now))
            sent = -math.inf
        if self.phase != "joining" or sent is None:
            return
        stranger = self.master not in ("", welcome.master)
        self.master = welcome.master
        self.session, self._run, self.timing = welcome.session, welcome.run, welcome.timing
        self.store, self._welcomed_by = welcome.store, welcome.nonce
        self._hellos.clear()
        for wanted in self._wanted.values():
            wanted.behind = ""
        self._lease_from = sent
        self._renew_at = sent + self.timing.renew_every
        if self.held and now < self.valid_until and not stranger:
            self.phase = "reclaiming"
        else:
            ended = "its lease ended while the lock master was away"
            self._lose_all("another lock master is there now" if stranger else ended)
            self._join()
        self._retry_at = now + self.timing.retry_every
        self._repeat(now)

    def _join(self) -> None:
        """Have a session that knows of all that is held.

        An earlier lease goes on if it is longer: the run that it was promised by, and the
        quiet time of the one after it, grant nothing to others before that is over.
        """
        self.phase = "joined"
        self.valid_until = max(self.valid_until, self._lease_from + self.timing.stop_after)

    @singledispatchmethod
    def _take(self, reply: object, now: float) -> None:  # noqa: ARG002  # called like the others
        raise TypeError(f"not a reply: {reply!r}")

    @_take.register(Unknown)
    def _unknown(self, reply: Unknown, now: float) -> None:
        self._begin_again(self._why_gone(reply.run, now))
        self.tick(now)

    def _why_gone(self, run: int, now: float) -> str:
        """Return why nothing can be kept of a session that the master does not know."""
        if run <= self._run or now >= self.valid_until:
            return "the lock master has ended this session"
        return ""

    @_take.register(Renewed)
    def _renewed(self, reply: Renewed, now: float) -> None:  # noqa: ARG002  # called like the others
        sent = self._renewals.get(reply.seq)
        if sent is None:
            return
        self._renewals = {seq: at for seq, at in self._renewals.items() if seq > reply.seq}
        for token in reply.lost:
            self._broken_off(token)
        self._lease_from = max(self._lease_from, sent)
        self._renew_at = self._lease_from + self.timing.renew_every
        if self.phase == "joined":
            self._join()

    @_take.register(Reclaimed)
    def _reclaimed(self, reply: Reclaimed, now: float) -> None:
        if self.phase == "reclaiming":
            refused = [self.held[name] for name in reply.refused if name in self.held]
            if refused:
                self._kept.update(name for name in self.held if name not in reply.refused)
                self._lose_all("the new lock master did not give everything back")
            self._join()
            self._repeat(now)

    @_take.register(Granted)
    def _granted(self, reply: Granted, now: float) -> None:  # noqa: ARG002  # called like the others
        wanted = self._wanted.get(reply.name)
        if wanted and reply.seq >= wanted.first and reply.token not in self._broken:
            del self._wanted[reply.name]
            wanted.grant = Held(reply.name, reply.token, wanted.shared)
            self.held[reply.name] = wanted.grant

    @_take.register(Waiting)
    def _waiting(self, reply: Waiting, now: float) -> None:  # noqa: ARG002  # called like the others
        wanted = self._wanted.get(reply.name)
        if wanted and reply.seq >= wanted.first:
            who = ", ".join(str(holding.who) for holding in reply.holders)
            wanted.behind = f"held by {who}" if who else "not granted yet"

    @_take.register(Refused)
    def _refused(self, reply: Refused, now: float) -> None:  # noqa: ARG002  # called like the others
        wanted = self._wanted.get(reply.name)
        if wanted and reply.seq >= wanted.first:
            del self._wanted[reply.name]
            wanted.refused = reply.reason
            wanted.early = reply.early
            self._send_release(reply.name)

    @_take.register(Released)
    def _released(self, reply: Released, now: float) -> None:
        if reply.seq >= (self._releasing.get(reply.name) or math.inf):
            del self._releasing[reply.name]
            if reply.name in self._wanted:
                self._send_acquire(now, self._wanted[reply.name])

    @_take.register(Called)
    def _called(self, reply: Called, now: float) -> None:
        served = self._served.get(reply.number)
        if served is None and reply.number > self._served_all:
            self._served[reply.number] = _Served(now + reply.wait)
            self.inbox.append(reply)
        elif served is not None and served.answer is not None:
            self._send_answer(reply.number, *served.answer)

    @_take.register(Answered)
    def _answered(self, reply: Answered, now: float) -> None:  # noqa: ARG002  # called like the others
        calling = self._calling.pop(reply.call, None)
        if calling is not None:
            calling.answer = reply

    @_take.register(Broken | Listing | Watching | SessionDied | LockReleased)
    def _told(self, reply: Told | Event, now: float) -> None:  # noqa: ARG002  # called like the others
        self.inbox.append(reply)

    def _broken_off(self, token: int) -> None:
        """Lose a grant, even one whose `Granted` is still on its way.

        The last repeat of the request for it may have come after it was broken, and waits.
        """
        self._broken.add(token)
        broken = [held for held in self.held.values() if held.token == token]
        if broken:
            self._lose(broken, "it was broken")
            self._stopping.add(token)
            self._send_release(broken[0].name)
        elif token not in self._stopping:
            self.outgoing.append(Acknowledge(self.session, self._next_seq(), token))

    # -- steps ---------------------------------------------------------------------------

    def _lose(self, held: Iterable[Held], why: str) -> None:
        for grant in [*held]:
            grant.lost = why
            del self.held[grant.name]

    def _lose_all(self, why: str) -> None:
        """Lose what is held; who had nothing has lost nothing."""
        if self.held:
            self.lost = why
            self._lose(self.held.values(), why)

    def _end_calls(self) -> None:
        for calling in self._calling.values():
            text = pack_error(IoFailed("the session ended before the answer came", _HINT))
            calling.answer = Answered(self.session, calling.number, False, text)
        self._calling.clear()

    def _begin_again(self, lost: str) -> None:
        """Ask for a new session; `lost` says why nothing can be kept, if so."""
        if lost:
            self._lose_all(lost)
        if not self.held:
            self.valid_until = -math.inf
        self._end_calls()
        for records in (self._renewals, self._releasing, self._served):
            records.clear()
        self._stopping.clear()
        self._kept.clear()
        self._moving = False
        if self.phase == "reclaiming":
            self.outgoing.append(Bye(self.session, self._next_seq()))
        self.phase, self.session, self._retry_at = "joining", 0, -math.inf

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _say_hello(self, now: float) -> None:
        self._retry_at = now + min(self.timing.retry_every, _FIRST_RETRY)
        nonce = self._nonce()
        self._hellos = self._useful(now, self._hellos)
        self._hellos[nonce] = now
        self._send_hello(nonce)

    def _send_hello(self, nonce: str) -> None:
        self.outgoing.append(Hello(nonce, *self._greeting))

    def _renew(self, now: float) -> None:
        """Renew the lease; ask again for what is waited for, in case `Granted` was lost."""
        seq = self._next_seq()
        self._renewals = self._useful(now, self._renewals)
        self._renewals[seq] = now
        self._renew_at = now + self.timing.renew_every
        self.outgoing.append(Renew(self.session, seq))
        for wanted in self._wanted.values():
            if wanted.behind:
                self._send_acquire(now, wanted)

    def _useful(self, now: float, sent: dict[_Key, float]) -> dict[_Key, float]:
        """Forget what was sent so long ago that a lease counted from then is over."""
        return {key: at for key, at in sent.items() if now - at < self.timing.stop_after}

    def _send_reclaim(self) -> None:
        claims = tuple(Claim(h.name, h.token, h.shared) for h in self.held.values())
        self.outgoing.append(Reclaim(self.session, self._next_seq(), claims))

    def _send_acquire(self, now: float, wanted: Wanted) -> None:
        """Ask, unless the name is still being given back: that would be the same grant."""
        if self.phase == "joined" and wanted.name not in self._releasing:
            seq = self._next_seq()
            wanted.first = min(wanted.first, seq)
            wait = max(wanted.deadline - now, 0.0)
            self.outgoing.append(
                Acquire(self.session, seq, wanted.name, wanted.shared, wait, wanted.floor)
            )

    def _send_release(self, name: str) -> None:
        """Give back; the master may just be giving it, so also while it is not known."""
        self._releasing.setdefault(name, 0)
        if self.phase == "joined":
            seq = self._next_seq()
            self._releasing[name] = self._releasing[name] or seq
            self.outgoing.append(Release(self.session, seq, name))

    def _send_call(self, now: float, calling: Calling) -> None:
        if self.phase == "joined":
            wait = max(calling.deadline - now, 0.0)
            self.outgoing.append(
                Call(
                    self.session,
                    self._next_seq(),
                    calling.number,
                    calling.name,
                    calling.method,
                    calling.argument,
                    wait,
                )
            )

    def _send_answer(self, number: int, done: bool, text: str) -> None:
        if self.phase == "joined":
            self.outgoing.append(Answer(self.session, self._next_seq(), number, done, text))
