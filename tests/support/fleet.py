"""Several sessions on one store, in one thread and on a clock that stands still.

Every `Member` is a `Locks` on a real `LockClient`, all of them at one real `LockMaster`; what
one sends arrives at once. A call is answered in the middle of the caller's wait: the callee's
`attend` is called. So a test says what happens in which order, and when time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from core.blockstore import Blockstore
from core.device import BlockDevice
from core.errors import InUse, IoFailed
from core.lock_client import Held, LockClient
from core.lock_master import LockMaster
from core.lock_messages import Break, Called, Holding, Reply
from core.lock_timing import Timing
from core.remote import raise_error
from core.session import Session

STEP = 1.0


class FleetGrant:
    """What a member holds."""

    def __init__(self, member: Member, held: Held) -> None:
        self._member = member
        self._held = held

    @property
    def name(self) -> str:
        return self._held.name

    @property
    def token(self) -> int:
        return self._held.token

    def check(self) -> None:
        self._member.client.check(self._member.fleet.now, self._held)

    def release(self) -> None:
        self._member.client.give_back(self._member.fleet.now, self._held)
        self._member.fleet.pump()


class FleetAsked:
    """A lock that a member asked for and may wait for."""

    def __init__(self, member: Member, name: str, floor: int, shared: bool, wait: float) -> None:
        self._member = member
        self._wanted = member.client.acquire(member.fleet.now, name, shared, wait, floor)
        member.fleet.pump()

    def poll(self) -> FleetGrant | None:
        if self._wanted.refused:
            raise InUse(self._wanted.refused)
        return FleetGrant(self._member, self._wanted.grant) if self._wanted.grant else None

    def cancel(self) -> None:
        self._member.client.cancel(self._member.fleet.now, self._wanted)
        self._member.fleet.pump()


class Member:
    """One session with the fleet's lock master.

    Attributes:
        alive: false while its process is suspended or cut off: it hears and says nothing.
        attend: what is called while others wait for its answers; None for one that does not.
        on_wait: called when it would have to wait for a lock, before it is told no.
        suspicious: what `suspect` says.
    """

    leased = True
    master = ""
    settling = 0.0
    shared = True

    def __init__(self, fleet: Fleet, number: int, store: str = "") -> None:
        self.fleet = fleet
        self.store = store
        self.alive = True
        self.attend: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] = lambda: None
        self._wake: Callable[[], None] | None = None
        nonces = iter(range(1 << 30))
        self.client = LockClient(
            f"host{number}", 1000 + number, f"tool {number}", lambda: f"{number}-{next(nonces)}"
        )
        self._called: list[Called] = []

    def acquire(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> FleetGrant:
        now = self.fleet.now
        if name in self.client.held:
            raise InUse(f"{name} is already held by this session")
        wanted = self.client.acquire(now, name, shared, wait, floor)
        self.fleet.pump()
        if wanted.grant is None and not wanted.refused and wait:
            self.on_wait()
            self.fleet.pump()
        if wanted.grant is None:
            self.client.release(now, name)
            self.fleet.pump()
            raise InUse(wanted.behind or wanted.refused or f"{name}: the lock master is silent")
        return FleetGrant(self, wanted.grant)

    def ask(
        self, name: str, floor: int = 0, *, shared: bool = False, wait: float = 0.0
    ) -> FleetAsked:
        return FleetAsked(self, name, floor, shared, wait)

    def suspect(self, name: str) -> bool:
        return self.fleet.master.suspect(name)

    def call(self, name: str, method: str, argument: str = "", wait: float = 10.0) -> str:
        calling = self.client.call(self.fleet.now, name, method, argument, wait)
        self.fleet.pump()
        for member in self.fleet.members:
            if calling.answer is None and member.alive and member.attend and member is not self:
                member.attend()
                self.fleet.pump()
        if calling.answer is None:
            raise IoFailed("no answer came", "look whether it was done")
        if not calling.answer.done:
            raise_error(calling.answer.text)
        return calling.answer.text

    def holdings(self) -> Sequence[Holding]:
        return self.fleet.master.holdings()

    def check(self) -> None:
        self.client.check(self.fleet.now)

    def lease_left(self) -> float:
        return self.client.lease_left(self.fleet.now)

    def lease_over(self) -> bool:
        return self.client.lease_over(self.fleet.now)

    def is_lost(self) -> bool:
        return bool(self.client.lost)

    def begin_again(self) -> None:
        self.client.begin_again(self.fleet.now)
        self.fleet.pump()

    def calls(self) -> Sequence[Called]:
        inbox = self._called
        self._called = []
        return inbox

    def answer(self, called: Called, done: bool, text: str = "") -> None:
        self.client.answer(called, done, text)
        self.fleet.pump()

    def when_called(self, wake: Callable[[], None] | None) -> None:
        self._wake = wake

    def hear(self) -> None:
        """Take what came out of the inbox."""
        came = [item for item in self.client.inbox if isinstance(item, Called)]
        self.client.inbox.clear()
        self._called += came
        if came and self._wake:
            self._wake()

    def close(self) -> None:
        if self.client.phase != "left":
            self.client.leave()
            self.fleet.pump()

    def freeze(self) -> None:
        """Suspend its process, or cut it off: time goes on without it."""
        self.alive = False

    def thaw(self) -> None:
        """Let it go on; it finds out what became of it."""
        self.alive = True
        self.fleet.pump()
        self.client.tick(self.fleet.now)
        self.fleet.pump()


class Fleet:
    """A lock master, its members, and the time.

    Attributes:
        now: seconds.
    """

    def __init__(self, timing: Timing | None = None) -> None:
        self.now = 100.0
        self.master = LockMaster(timing, now=self.now)
        self.members: list[Member] = []
        self._lost_replies: dict[int, list[Reply]] = {}

    def member(self, store: str = "") -> Member:
        """A new session with the lock master."""
        member = Member(self, len(self.members) + 1, store)
        self.members.append(member)
        member.client.tick(self.now)
        self.pump()
        assert member.client.phase == "joined"
        return member

    def pump(self) -> None:
        """Carry messages until nobody has anything to say."""
        while True:
            sent = [
                (member, request)
                for member in self.members
                if member.alive
                for request in self._take(member)
            ]
            if not sent:
                return
            for _, request in sent:
                self._deliver(self.master.receive(self.now, request))

    def _take(self, member: Member) -> Iterable[object]:
        requests, member.client.outgoing[:] = [*member.client.outgoing], []
        return requests

    def _deliver(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            for member in self.members:
                if member.alive:
                    member.client.receive(self.now, reply)
                    member.hear()

    def kill(self, member: Member) -> None:
        """End a member's process; the lock master is told, as by a kernel that closes sockets."""
        member.alive = False
        self._deliver(self.master.session_died(self.now, member.client.session))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in steps small enough that whoever lives renews."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + STEP, end)
            self._deliver(self.master.tick(self.now))
            for member in self.members:
                if member.alive:
                    member.client.tick(self.now)
            self.pump()

    def end_leases(self) -> None:
        """Let so much time pass that those who are frozen have lost everything."""
        timing = self.master.timing
        self.pass_time(timing.give_away_after + 2 * STEP)

    def break_lock(self, name: str) -> None:
        """Take a lock from its holder, as an operator does; the holder hears of it."""
        [grant] = [grant for grant in self.master.holdings() if grant.name == name]
        operator = self.member()
        operator.client.outgoing.append(
            Break(operator.client.session, operator.client.next_seq(), name, grant.token)
        )
        self.pump()
        self.pass_time(self.master.timing.renew_every + STEP)

    def session(self, where: BlockDevice | str | Path) -> Session:
        """Open a store with a new member: a device that all share, or a file."""
        member = self.member()
        if isinstance(where, str | Path):
            session = Session.open(str(where), "write", locks=member)
        else:
            session = Session(Blockstore(where, member), member)
        member.attend = session.attend
        return session


def member_of(session: Session) -> Member:
    """The member through which a session locks."""
    assert isinstance(session.locks, Member)
    return session.locks
