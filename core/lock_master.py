"""Who may write what: locks by name, each grant with a fencing token, under leases.

A pure state machine: it is given messages and the time, and returns messages. It opens no
socket, starts no thread and reads no clock, so the same class runs inside the one process
that has a store open, inside the tap and as a service, and its tests in simulated time.

Names: `vdi/3` to write a VDI, `extent/5` to allocate from an extent, `registry` to
create VDIs.

The process in which it runs takes locks without a message (`acquire`) and without a lease:
both live and die together. For a process that has a store for itself the master is all that
`core.locks.Locks` asks for. All others have a session with a lease. `docs/concurrency.md`
says what holds and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from itertools import islice
from typing import Final

from core.errors import InUse, NotFound, ParallaxError, TooEarly
from core.lock_calls import Calls
from core.lock_epoch import Epochs, VolatileEpochs
from core.lock_messages import (
    ORDERED,
    Acknowledge,
    Acquire,
    Answer,
    Break,
    Broken,
    Bye,
    Call,
    Called,
    Event,
    Granted,
    Hello,
    Holding,
    Listing,
    ListLocks,
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
    Unknown,
    Waiting,
    Watch,
    Watching,
    Welcome,
    Who,
)
from core.lock_table import Grant, LockTable, Waiter
from core.lock_timing import Timing
from core.lock_tokens import Tokens
from core.lock_unleased import Unleased

__all__ = ["HERE", "Grant", "LockMaster"]

HERE: Final = 0
"""The session of the process in which the master runs."""

MOST_SESSIONS: Final = 4096
MOST_NAMES: Final = 8192
"""That one session holds and waits for: as many as fit into one `Reclaim` of 1 MiB."""
_SHOWN: Final = 8
"""Holders of one name that are told to whoever waits for it."""


@dataclass(slots=True)
class _Session:
    """What the master knows of a session; `lost` are broken grants it has not let go of."""

    who: Who
    nonce: str
    ends: float
    followed: int = 0
    lost: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Figures:
    """What a master has to do, in numbers; `quiet` in seconds."""

    sessions: int
    exclusive: int
    shared: int
    breaking: int
    waiting: int
    calls: int
    epoch: int
    quiet: float


class _Answered:
    """A request that was decided when it was made."""

    def __init__(self, outcome: Grant | ParallaxError) -> None:
        self._outcome = outcome

    def poll(self) -> Grant:
        """Return the grant.

        Raises:
            InUse: it was refused.
        """
        if isinstance(self._outcome, ParallaxError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Want it no more."""
        if not isinstance(self._outcome, ParallaxError):
            self._outcome.release()


class LockMaster(Unleased):
    """Grants each name to one holder at a time, or to several who share it.

    Args:
        timing: how long leases last.
        epochs: where the epoch is kept; without it the master may grant only to those who
            live and die with it.
        now: seconds of a monotonic clock; every later time comes from the same one.
        alone: no session of an earlier run is left, so there is nothing to wait for.
        store: the UUID, in hex, of the store that this process has locked, if any.
        here: this process, for people.

    Attributes:
        leased, shared, store: as a `Locks`, it is for a process that has its store for
            itself.
        run: the epoch in which it was started.

    Raises:
        IoFailed: the epoch could not be made durable.
    """

    shared = False
    store = ""

    def __init__(
        self,
        timing: Timing | None = None,
        epochs: Epochs | None = None,
        now: float = 0.0,
        *,
        alone: bool = False,
        store: str = "",
        here: Who | None = None,
    ) -> None:
        """Start a new run, with nothing granted."""
        self.timing = timing or Timing()
        self._epochs = epochs or VolatileEpochs()
        start = self._epochs.start(self.timing.give_away_after)
        self.run = start.epoch
        self._tokens = Tokens(self._epochs, self.run)
        self._next_session = self._tokens.last + 1
        quiet = 0.0 if alone else start.quiet
        self._quiet_until = now + quiet
        self._settled = quiet == 0
        if alone:
            self._epochs.settle()
        self._all_suspect = quiet > 0
        self._suspects: set[str] = set()
        self._told_store = store
        self._told_master = "" if store else self._epochs.uuid
        self._now = now
        self._table = LockTable()
        self._calls = Calls(self._tokens.last + 1)
        here = here or Who(HERE, "this host", 0, "the lock master's own process")
        self._sessions = {HERE: _Session(here, "", math.inf)}
        self._nonces: dict[str, int] = {}
        self._watching: dict[int, None] = {}
        self._due = now
        """When something is due at the earliest; nothing has to be looked for before."""
        self._out: list[Reply] = []

    # -- for the process it runs in ------------------------------------------------------

    def acquire(
        self,
        name: str,
        floor: int = 0,
        *,
        shared: bool = False,
        wait: float = 0.0,  # noqa: ARG002  # as its siblings
    ) -> Grant:
        """Grant `name` to this process, with a token higher than all before and than `floor`.

        Args:
            name: what to lock.
            floor: the highest token the store has on record for it.
            shared: others may share it.
            wait: not done: nothing comes free while this process stands still.

        Raises:
            InUse: it is granted already, or others wait for it.
            TooEarly: the master was started a moment ago and does not know yet who holds what.
            IoFailed: the epoch could not be made durable.
        """
        self._serve_released()
        if self._table.held(name, HERE):
            raise InUse(f"{name} is already open for writing in this process")
        if self._now < self._quiet_until:
            raise TooEarly(f"{name}: {self._quiet()}", "try again then")
        if not self._table.is_free(name, shared) or self._table.is_awaited(name):
            raise InUse(f"{name} is held by {self._holders(name) or 'one who waited for it'}")
        return self._table.add(name, self._tokens.new(floor), HERE, shared)

    def ask(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> _Answered:
        """Acquire a name for one who may not wait; it is decided at once."""
        try:
            return _Answered(self.acquire(name, floor, shared=shared, wait=wait))
        except ParallaxError as error:
            return _Answered(error)

    def held(self, name: str) -> Grant | None:
        """Return what this process holds under a name."""
        return self._table.held(name, HERE)

    def suspect(self, name: str) -> bool:
        """Return whether a holder of a name may still be writing under an old grant.

        That is so once one ended by its lease running out, or did not let go of a grant
        that was broken: it stays so for this run, because the next holder may leave what it
        found as it was. One that released, said goodbye or is known to be dead writes
        nothing more. Of what was before a run that began quiet nobody knows.
        """
        return self._all_suspect or name in self._suspects

    def call(
        self,
        name: str,
        method: str,  # noqa: ARG002  # as its siblings
        argument: str = "",  # noqa: ARG002
        wait: float = 10.0,  # noqa: ARG002
    ) -> str:
        """Raise NotFound: there is nobody else."""
        raise NotFound(f"nobody else holds {name}")

    def calls(self) -> Sequence[Called]:
        """Return nothing: nobody calls."""
        return ()

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        """Do nothing: nobody called."""

    def when_called(self, wake: Callable[[], None] | None) -> None:
        """Do nothing: nobody will call."""

    def close(self) -> None:
        """Give back all that this process holds."""
        for grant in self._table.of(HERE):
            self._table.release(grant)

    def holder(self, name: str) -> Grant | None:
        """Return the grant that holds `name` exclusively, or None."""
        return self._table.exclusive.get(name)

    def holdings(self) -> tuple[Holding, ...]:
        """Return who holds what, by name."""
        found = [self._holding(grant) for grant in self._table]
        return tuple(sorted(found, key=lambda holding: (holding.name, holding.token)))

    # -- for everyone else ---------------------------------------------------------------

    def has(self, session: int) -> bool:
        """Return whether a session exists."""
        return session in self._sessions

    def takes(self, nonce: str) -> bool:
        """Return whether a `Hello` may be followed: its session exists, or there is room."""
        return nonce in self._nonces or len(self._sessions) <= MOST_SESSIONS

    def session_died(self, now: float, session: int) -> list[Reply]:
        """End a session whose process is known to be dead, and with it all of its writes."""
        self._pass_time(now)
        if session in self._sessions and session != HERE:
            who = self._sessions[session].who
            self._end(session)
            self._tell(SessionDied(HERE, who))
            self._serve_released()
        return self._take_out()

    def figures(self) -> Figures:
        """Return what can be counted now."""
        grants = [*self._table]
        return Figures(
            sessions=len(self._sessions) - 1,
            exclusive=sum(not grant.shared for grant in grants),
            shared=sum(grant.shared for grant in grants),
            breaking=sum(grant.revoked is not None for grant in grants),
            waiting=sum(1 for _ in self._table.waiters()),
            calls=self._calls.count(),
            epoch=self._tokens.epoch,
            quiet=max(self._quiet_until - self._now, 0.0),
        )

    def receive(self, now: float, request: Request) -> list[Reply]:
        """Follow a request; return what to send, each to the session it names."""
        self._pass_time(now)
        if isinstance(request, Hello):
            self._welcome(request)
        elif (session := self._sessions.get(request.session)) is None:
            self._out.append(Unknown(request.session, request.seq, self.run))
        elif not isinstance(request, ORDERED):
            self._follow(request)
        elif request.seq > session.followed:
            session.followed = request.seq
            self._follow(request)
        self._serve_released()
        return self._take_out()

    def tick(self, now: float) -> list[Reply]:
        """Do what is due; call it at `next_due` at the latest. Return what to send."""
        self._pass_time(now)
        return self._take_out()

    def next_due(self) -> float:
        """Return when `tick` is to be called: soon enough to notice an own suspension."""
        if self._out or self._table.released:
            return self._now
        return min(self._due, self._calls.next_deadline(), self._now + self.timing.renew_every / 2)

    # -- requests ------------------------------------------------------------------------

    def _welcome(self, hello: Hello) -> None:
        """Begin a session; a `Hello` that was repeated on its way does not renew it."""
        number = self._nonces.get(hello.nonce)
        if number is None:
            number = self._nonces[hello.nonce] = self._next_session
            self._next_session += 1
            who = Who(number, hello.host, hello.pid, hello.purpose, hello.role)
            self._sessions[number] = _Session(who, hello.nonce, self._lease_end())
            self._due = min(self._due, self._lease_end())
        told = (self._told_store, self._told_master)
        self._out.append(Welcome(number, hello.nonce, self.run, self.timing, *told))

    @singledispatchmethod
    def _follow(self, request: object) -> None:
        raise TypeError(f"not a request of a session: {request!r}")

    @_follow.register(Renew)
    def _renew(self, request: Renew) -> None:
        session = self._sessions[request.session]
        session.ends = max(session.ends, self._lease_end())
        self._out.append(Renewed(request.session, request.seq, tuple(sorted(session.lost))))

    @_follow.register(Reclaim)
    def _reclaim(self, request: Reclaim) -> None:
        """Let a session keep what it held in an earlier run, while nothing new is granted.

        Its lease was valid when it asked, so no earlier run had given its locks away; and
        this run gives nothing away before it is no longer quiet.
        """
        refused = []
        for claim in request.claims:
            held = self._table.held(claim.name, request.session)
            free = self._table.is_free(claim.name, claim.shared)
            quiet = self._now < self._quiet_until
            room = self._has_room(request.session)
            if held is None and free and quiet and room and self._tokens.goes_above(claim.token):
                self._table.add(claim.name, claim.token, request.session, claim.shared)
            elif held is None or held.token != claim.token:
                refused.append(claim.name)
        self._out.append(Reclaimed(request.session, request.seq, tuple(refused)))

    @_follow.register(Acquire)
    def _acquire(self, request: Acquire) -> None:
        name, session, seq = request.name, request.session, request.seq
        held = self._table.held(name, session)
        if held is None:
            if not (self._table.is_awaited(name, session) or self._has_room(session)):
                full = f"{name}: this session holds or wants {MOST_NAMES} locks already"
                self._out.append(Refused(session, seq, name, full))
                return
            deadline = self._now + request.wait
            self._table.wait(Waiter(session, seq, name, request.shared, deadline, request.floor))
            self._serve(name)
            if self._table.is_awaited(name, session):
                if request.wait > 0:
                    self._due = min(self._due, deadline)
                    first = islice(self._table.on(name), _SHOWN)
                    holders = tuple(self._holding(grant) for grant in first)
                    self._out.append(Waiting(session, seq, name, holders))
                else:
                    self._refuse(session, seq, name)
        elif held.shared == request.shared:
            self._out.append(Granted(session, seq, name, held.token))
        else:
            reason = f"{name} is held by this session in another way: release it first"
            self._out.append(Refused(session, seq, name, reason))

    @_follow.register(Release)
    def _release(self, request: Release) -> None:
        held = self._table.held(request.name, request.session)
        if held is not None:
            self._table.release(held)
        self._leave(request.name, request.session)
        self._out.append(Released(request.session, request.seq, request.name))

    @_follow.register(Acknowledge)
    def _acknowledge(self, request: Acknowledge) -> None:
        self._sessions[request.session].lost.discard(request.token)
        for grant in list(self._table.revoked()):
            if (grant.session, grant.token) == (request.session, request.token):
                self._table.release(grant)

    @_follow.register(Bye)
    def _bye(self, request: Bye) -> None:
        self._end(request.session)

    @_follow.register(Call)
    def _call(self, request: Call) -> None:
        grant = self._table.exclusive.get(request.name)
        holder = None if grant is None else grant.session
        self._out += self._calls.call(self._now, request, holder)

    @_follow.register(Answer)
    def _answer(self, request: Answer) -> None:
        self._out += self._calls.answer(request)

    @_follow.register(Break)
    def _break(self, request: Break) -> None:
        """Take a grant away: as soon as its holder has let go, or cannot write any more.

        A renewal answered before now lets the holder write for as long as a lease.
        """
        seconds = 0.0
        for grant in list(self._table.on(request.name)):
            if grant.token == request.token:
                self._table.revoke(grant, self._lease_end())
                self._due = min(self._due, self._lease_end())
                self._sessions[grant.session].lost.add(grant.token)
                seconds = (grant.revoked or self._now) - self._now
        self._out.append(Broken(request.session, request.seq, seconds))

    @_follow.register(ListLocks)
    def _list(self, request: ListLocks) -> None:
        sessions = tuple(session.who for session in self._sessions.values())
        self._out.append(Listing(request.session, request.seq, self.holdings(), sessions))

    @_follow.register(Watch)
    def _watch(self, request: Watch) -> None:
        self._watching[request.session] = None
        self._out.append(Watching(request.session, request.seq))

    # -- time ----------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        """End what is over.

        A master that was suspended could not hear renewals; they wait to be read. So the
        time it was away lengthens every lease, which can only make others wait.
        """
        away = now - self._now
        self._now = max(self._now, now)
        if away > self.timing.renew_every:
            for session in self._sessions.values():
                session.ends += away
        if self._now >= self._due:
            self._end_what_is_over()
        self._serve_released()
        self._out += self._calls.expire(self._now)

    def _end_what_is_over(self) -> None:
        """Look through everything that has a time, and when there is something next.

        What was renewed or is over since then makes the next look too early, never too late.
        """
        for number, session in list(self._sessions.items()):
            if session.ends <= self._now:
                self._suspect(self._table.of(number))
                self._end(number)
                self._tell(SessionDied(HERE, session.who))
        for grant in list(self._table.revoked()):
            if grant.revoked is not None and grant.revoked <= self._now:
                self._suspect((grant,))
                self._table.release(grant)
        if not self._settled and self._now >= self._quiet_until:
            self._settled = True
            self._epochs.settle()
            for name in {waiter.name for waiter in self._table.waiters()}:
                self._serve(name)
        self._serve_released()
        for waiter in list(self._table.waiters()):
            if waiter.deadline <= self._now:
                self._refuse(waiter.session, waiter.seq, waiter.name)
        times = [session.ends for session in self._sessions.values()]
        times += [waiter.deadline for waiter in self._table.waiters()]
        times += [grant.revoked or 0.0 for grant in self._table.revoked()]
        if not self._settled:
            times.append(self._quiet_until)
        self._due = min(times)

    def _suspect(self, grants: Iterable[Grant]) -> None:
        """Remember names whose holder ended without a word; who shares a name does not write."""
        self._suspects.update(grant.name for grant in grants if not grant.shared)

    def _lease_end(self) -> float:
        """Return until when a session renewed now may have what it holds."""
        return self._now + self.timing.give_away_after

    def _end(self, number: int) -> None:
        """Forget a session and free all it holds."""
        del self._nonces[self._sessions.pop(number).nonce]
        self._watching.pop(number, None)
        for grant in self._table.of(number):
            self._table.release(grant)
        for name in self._table.wanted(number):
            self._leave(name, number)
        self._out += self._calls.session_ended(number)

    # -- granting ------------------------------------------------------------------------

    def _serve(self, name: str) -> None:
        """Grant a name to those whose turn it is."""
        while self._now >= self._quiet_until and (waiter := self._table.next_turn(name)):
            self._table.leave(name, waiter.session)
            try:
                token = self._tokens.new(waiter.floor)
            except ParallaxError as error:
                self._out.append(Refused(waiter.session, waiter.seq, name, error.message))
                continue
            self._table.add(name, token, waiter.session, waiter.shared)
            self._out.append(Granted(waiter.session, waiter.seq, name, token))

    def _serve_released(self) -> None:
        """Tell of grants that ended, and grant their names to the next."""
        while self._table.released:
            grant = self._table.released.pop()
            self._tell(LockReleased(HERE, grant.name, grant.token))
            self._serve(grant.name)

    def _leave(self, name: str, session: int) -> None:
        """Let a session wait no longer; those behind it may have their turn."""
        self._table.leave(name, session)
        self._serve(name)

    def _refuse(self, session: int, seq: int, name: str) -> None:
        """Say no to one who waited long enough."""
        quiet = self._now < self._quiet_until
        reason = self._quiet() if quiet else f"held by {self._holders(name)}"
        self._leave(name, session)
        self._out.append(Refused(session, seq, name, f"{name}: {reason}", quiet))

    def _has_room(self, session: int) -> bool:
        """Return whether a session may have another name; the own process does not ask."""
        return session == HERE or self._table.count(session) < MOST_NAMES

    # -- telling -------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        for number in self._watching:
            self._out.append(replace(event, session=number))

    def _holding(self, grant: Grant) -> Holding:
        who = self._sessions[grant.session].who
        return Holding(grant.name, grant.token, grant.shared, who, grant.revoked is not None)

    def _holders(self, name: str) -> str:
        grants = [*islice(self._table.on(name), _SHOWN + 1)]
        shown = [str(self._sessions[grant.session].who) for grant in grants[:_SHOWN]]
        return ", ".join(shown if len(grants) <= _SHOWN else [*shown, "others"])

    def _quiet(self) -> str:
        seconds = math.ceil(self._quiet_until - self._now)
        return f"the lock master was started a moment ago and grants nothing for {seconds} s"

    def _take_out(self) -> list[Reply]:
        out, self._out = self._out, []
        return out
