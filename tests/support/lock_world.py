"""Lock master and clients in simulated time, with everything that can go wrong, by seed.

A world has hosts with clocks of their own speed, a network that loses, repeats and
reorders, clients that are suspended and restarted, and a master that is suspended, killed
and started again. What must hold is looked at after every step; a step that breaks it
raises `Violation`. After the bad times come calm ones, in which everything that waits has to
come to an end.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from core.errors import Fenced, InUse
from core.lock_client import Calling, Held, LockClient, Wanted
from core.lock_epoch import Start
from core.lock_master import Grant, LockMaster
from core.lock_messages import (
    Break,
    Called,
    Granted,
    Hello,
    Reclaimed,
    Reply,
    Request,
    Welcome,
)
from core.lock_timing import Timing

NAMES = ("vdi/1", "vdi/2", "gc")
BAD_TIMES = 130.0
CALM = 170.0


class Violation(AssertionError):
    """Something that must never be."""


class Epochs:
    """An epoch file in memory that loses nothing."""

    uuid = ""

    def __init__(self) -> None:
        self.epoch = 0
        self.hold = 0.0
        self.own = 0.0

    def start(self, hold: float) -> Start:
        self.epoch += 1
        self.own, self.hold = hold, max(self.hold, hold)
        return Start(self.epoch, self.hold)

    def raise_to(self, epoch: int) -> None:
        self.epoch = epoch

    def settle(self) -> None:
        self.hold = self.own


class Clock:
    """A clock that runs a little fast or slow and may be read only in seconds of its own."""

    def __init__(self, random: Random, drift: float) -> None:
        self.rate = random.choice((1 - drift, 1 + drift, random.uniform(1 - drift, 1 + drift)))
        self.offset = random.uniform(0.0, 1e6)

    def at(self, t: float) -> float:
        return self.offset + t * self.rate

    def real(self, reading: float) -> float:
        return (reading - self.offset) / self.rate


class WallClock(Clock):
    """What somebody sets now and then; a mistake to use."""

    def at(self, t: float) -> float:
        return super().at(t) + 40.0 * (int(t / 17 + self.offset) % 3 - 1)


@dataclass(eq=False)
class Write:
    """What was submitted under a grant and has not landed yet."""

    who: str
    name: str
    token: int
    shared: bool


@dataclass(eq=False)
class Host:
    """A host with one client on it."""

    number: int
    clock: Clock
    client: LockClient
    suspended: bool = False
    unread: list[Reply] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    calls: list[Calling] = field(default_factory=list)
    giving_back: set[str] = field(default_factory=set)
    broken: list[Held] = field(default_factory=list)
    due: float = 0.0

    @property
    def who(self) -> str:
        return f"client {self.number}"


@dataclass(frozen=True)
class Rules:
    """What the world is made of; a planted mistake replaces one of these."""

    master: type[LockMaster] = LockMaster
    client: type[LockClient] = LockClient
    epochs: Callable[[], Epochs] = Epochs
    clock: type[Clock] = Clock


class World:
    """One history, the same for the same seed."""

    def __init__(self, seed: int, rules: Rules = Rules()) -> None:
        self.random = Random(seed)
        self.rules = rules
        self.t = 0.0
        self.calm = False
        self.timing = Timing()
        self.steps: list[tuple[float, int, Callable[[], object]]] = []
        self.count = 0
        self.nonces: dict[str, Host] = {}
        self.sessions: dict[int, Host] = {}
        self.tokens: dict[int, tuple[str, int]] = {}
        self.highest = 0
        self.followed: dict[str, int] = {}
        self.unended: dict[str, set[int]] = {}
        self.suspected = self.moved = 0
        self.lossy = self.random.choice((0.0, 0.05, 0.3))
        self.slow = self.random.choice((0.01, 0.5, 3.0, 8.0))
        self.pace = self.random.choice((0.5, 1.0, 2.0))
        self.trouble = self.random.choice((0.2, 0.5, 1.0))
        self.epochs = rules.epochs()
        self.alone = self.random.random() < 0.5
        self.master: LockMaster | None = None
        self.master_suspended = False
        self.master_unread: list[Request] = []
        self.master_clock = self.new_clock()
        self.master_due = 0.0
        self.local: list[Grant] = []
        self.local_writes: list[Write] = []
        self.cut: set[int] = set()
        self.hosts = [
            Host(number, self.new_clock(), self.new_client(number))
            for number in range(self.random.randint(2, 4))
        ]
        self.landed = 0
        self.kept = 0

    # -- the machinery -----------------------------------------------------------------

    def run(self) -> World:
        self.start_master()
        for host in self.hosts:
            self.tick_host(host)
        self.after(0.1, self.something)
        self.until(BAD_TIMES)
        self.calm_down()
        self.until(BAD_TIMES + CALM)
        self.look_for_rest()
        return self

    def until(self, end: float) -> None:
        while self.steps and self.steps[0][0] <= end:
            self.t, _, step = heapq.heappop(self.steps)
            step()
            self.look()
        self.t = end

    def after(self, seconds: float, step: Callable[[], object]) -> None:
        self.count += 1
        heapq.heappush(self.steps, (self.t + max(seconds, 0.0), self.count, step))

    def new_clock(self) -> Clock:
        return self.rules.clock(self.random, self.timing.drift)

    def new_client(self, number: int) -> LockClient:
        return self.rules.client(
            f"host{number}", number, "model", lambda: f"{self.random.getrandbits(64):x}"
        )

    def delays(self) -> list[float]:
        """When the copies of a message arrive: none, one or two of them."""
        random = self.random
        if self.calm:
            return [random.uniform(0.001, 0.01)]
        copies = 0 if random.random() < self.lossy else 1 + (random.random() < self.lossy)
        return [random.uniform(0.001, self.slow) for _ in range(copies)]

    # -- clients -----------------------------------------------------------------------

    def tick_host(self, host: Host) -> None:
        if not host.suspended:
            host.client.tick(host.clock.at(self.t))
            self.after_turn(host)

    def after_turn(self, host: Host) -> None:
        """Do what a process does after it has heard something: look around and send."""
        client = host.client
        for message in client.inbox:
            if isinstance(message, Called):
                seen = self.followed[message.argument] = 1 + self.followed.get(message.argument, 0)
                if seen > 1:
                    raise Violation(f"call {message.argument} was followed twice")
                client.answer(message, True)
        client.inbox.clear()
        for wanted in [wanted for wanted in host.wanted if wanted.grant or wanted.refused]:
            host.wanted.remove(wanted)
            if wanted.grant:
                if not wanted.shared:
                    self.unended.setdefault(wanted.name, set()).add(wanted.grant.token)
                keep = self.random.choice((5.0, 25.0, 25.0, 70.0))
                self.after(self.random.uniform(0.0, keep), self.giver(host, wanted.grant))
                host.broken.append(wanted.grant)
        busy = {write.token for write in host.writes}
        for held in host.broken:
            if held.lost and held.token not in busy:
                client.give_back(host.clock.at(self.t), held)
                if held.lost == "it was broken":
                    self.ended_well(held)
        host.broken = [held for held in host.broken if not held.lost or held.token in busy]
        for name in [*host.giving_back]:
            if not any(write.name == name for write in host.writes):
                host.giving_back.discard(name)
                if name in client.held:
                    self.ended_well(client.held[name])
                client.release(host.clock.at(self.t), name)
        if client.lost and not host.writes:
            client.begin_again(host.clock.at(self.t))
        for request in client.outgoing:
            if isinstance(request, Hello):
                self.nonces[request.nonce] = host
            if host.number not in self.cut:
                for delay in self.delays():
                    self.after(delay, lambda request=request: self.to_master(request))
        client.outgoing.clear()
        due = host.clock.real(client.next_due())
        if due != host.due:
            host.due = due
            late = 0.001 if self.calm else self.random.choice((0.001, 0.001, 2.0))
            self.after(due - self.t + late, lambda: due == host.due and self.tick_host(host))

    def ended_well(self, held: Held) -> None:
        """A holder has said that it writes no more."""
        self.unended.get(held.name, set()).discard(held.token)

    def reconnect(self, host: Host) -> None:
        if not host.suspended:
            self.moved += bool(host.client.session)
            host.client.reconnected(host.clock.at(self.t))
            self.after_turn(host)

    def giver(self, host: Host, held: Held) -> Callable[[], object]:
        def give() -> None:
            if not held.lost and host.client.held.get(held.name) is held:
                host.giving_back.add(held.name)
                self.tick_host(host)

        return give

    def to_host(self, reply: Reply) -> None:
        if isinstance(reply, Welcome):
            host = self.sessions[reply.session] = self.nonces[reply.nonce]
        elif reply.session in self.sessions:
            host = self.sessions[reply.session]
        else:
            return
        if host.number in self.cut:
            return
        if host.suspended:
            host.unread.append(reply)
        else:
            host.client.receive(host.clock.at(self.t), reply)
            self.kept += isinstance(reply, Reclaimed) and bool(host.client.held)
            self.after_turn(host)

    def suspend(self, host: Host) -> None:
        if host.suspended:
            return
        host.suspended = True
        self.after(self.random.choice((3.0, 12.0, 30.0, 60.0)), lambda: self.resume(host))

    def resume(self, host: Host) -> None:
        """Go on: what arrived meanwhile is read, before or after anything else is done."""
        if not host.suspended:
            return
        host.suspended = False
        unread, host.unread = host.unread, []
        if self.random.random() < 0.5:
            self.tick_host(host)
        for reply in unread:
            host.client.receive(host.clock.at(self.t), reply)
        host.due = -1.0
        self.tick_host(host)

    def restart_client(self, host: Host) -> None:
        """Kill the process; what it submitted lands all the same."""
        host.client = self.new_client(host.number)
        host.wanted, host.calls, host.giving_back, host.broken = [], [], set(), []
        host.unread, host.suspended, host.due = [], False, -1.0
        self.tick_host(host)

    def want(self, host: Host) -> None:
        client, name = host.client, self.random.choice(NAMES)
        if host.suspended or name in client.held or any(w.name == name for w in host.wanted):
            return
        shared = self.random.random() < 0.3
        wait = self.random.choice((0.0, 5.0, 30.0, 90.0))
        host.wanted.append(client.acquire(host.clock.at(self.t), name, shared, wait))
        self.after_turn(host)

    def write(self, host: Host) -> None:
        """Submit a write under each grant that may; it lands in time, if only just."""
        if host.suspended:
            return
        now = host.clock.at(self.t)
        for held in host.client.held.values():
            if held.name not in host.giving_back and host.client.may_submit(now, held):
                write = Write(host.who, held.name, held.token, held.shared)
                host.writes.append(write)
                self.after(self.landing(), lambda write=write: self.land(host, write))

    def landing(self) -> float:
        limit = self.timing.landing
        return self.random.choice((0.01, self.random.uniform(0.0, limit), limit, limit))

    def land(self, host: Host, write: Write) -> None:
        self.no_one_else(write)
        self.landed += 1
        host.writes.remove(write)
        if not host.suspended:
            self.after_turn(host)

    def call(self, host: Host) -> None:
        if not host.suspended:
            calls = host.client
            text = f"{self.random.getrandbits(64):x}"
            now = host.clock.at(self.t)
            host.calls.append(calls.call(now, self.random.choice(NAMES), "snapshot", text, 15.0))
            self.after_turn(host)

    def break_one(self, host: Host) -> None:
        holdings = self.master.holdings() if self.master else ()
        client = host.client
        if holdings and client.phase == "joined" and not host.suspended:
            held = self.random.choice(holdings)
            seq = client.next_seq()
            client.outgoing.append(Break(client.session, seq, held.name, held.token))
            self.after_turn(host)

    # -- the master --------------------------------------------------------------------

    def start_master(self) -> None:
        if self.master is None:
            self.master_clock = self.new_clock()
            now = self.master_clock.at(self.t)
            alone = self.alone and not self.epochs.epoch
            self.master = self.rules.master(self.timing, self.epochs, now, alone=alone)
            self.master_suspended, self.master_unread = False, []
            self.tick_master()

    def kill_master(self) -> None:
        self.master = None
        self.local.clear()
        down = self.random.choice((0.1, 0.1, 2.0, 8.0, 25.0))
        self.after(down, self.start_master)

    def tick_master(self) -> None:
        if self.master is not None and not self.master_suspended:
            self.from_master(self.master.tick(self.master_clock.at(self.t)))

    def to_master(self, request: Request) -> None:
        if self.master is None:
            return
        if self.master_suspended:
            self.master_unread.append(request)
        else:
            self.from_master(self.master.receive(self.master_clock.at(self.t), request))

    def from_master(self, replies: list[Reply]) -> None:
        master = self.master
        assert master is not None
        for reply in replies:
            if isinstance(reply, Granted):
                self.look_for_suspects(reply.name, reply.token)
                self.note_token(reply.name, reply.token, reply.session)
            for delay in self.delays():
                self.after(delay, lambda reply=reply: self.to_host(reply))
        due = self.master_clock.real(master.next_due())
        if due != self.master_due:
            self.master_due = due
            late = 0.001 if self.calm else self.random.choice((0.001, 0.001, 1.0))
            self.after(due - self.t + late, lambda: due == self.master_due and self.tick_master())

    def suspend_master(self) -> None:
        self.master_suspended = self.master is not None
        self.after(self.random.choice((3.0, 20.0, 50.0)), self.resume_master)

    def resume_master(self) -> None:
        if self.master_suspended and self.master is not None:
            self.master_suspended = False
            self.master_due = -1.0
            self.tick_master()
            unread, self.master_unread = self.master_unread, []
            for request in unread:
                self.to_master(request)

    def look_for_suspects(self, name: str, token: int) -> None:
        """A new holder is warned of one before it who never said that it had stopped."""
        assert self.master is not None
        left = [old for old in self.unended.get(name, ()) if old < token]
        self.suspected += bool(left)
        if left and not self.master.suspect(name):
            raise Violation(f"{name} is not suspect, but the holders of {left} said nothing")

    def note_token(self, name: str, token: int, session: int) -> None:
        known = self.tokens.get(token)
        if known is None and token <= self.highest:
            raise Violation(f"{name} is granted under token {token} after {self.highest}")
        if known not in (None, (name, session)):
            raise Violation(f"token {token} was given twice: {known}, {(name, session)}")
        self.tokens[token] = (name, session)
        self.highest = max(self.highest, token)

    def lock_here(self) -> None:
        """The process of the master takes a lock itself, writes, and gives it back."""
        if self.master is None or self.master_suspended:
            return
        try:
            grant = self.master.acquire(self.random.choice(NAMES))
        except InUse:
            return
        self.note_token(grant.name, grant.token, 0)
        self.local.append(grant)
        self.after(self.random.uniform(0.0, 30.0), lambda: self.release_here(grant))
        write = Write("the master", grant.name, grant.token, False)
        self.local_writes.append(write)
        self.after(self.landing(), lambda: self.land_here(write))

    def land_here(self, write: Write) -> None:
        self.no_one_else(write)
        self.local_writes.remove(write)

    def release_here(self, grant: Grant) -> None:
        if grant in self.local:
            if any(write.token == grant.token for write in self.local_writes):
                self.after(1.0, lambda: self.release_here(grant))
                return
            self.local.remove(grant)
            grant.release()
            self.tick_master()

    # -- what happens ------------------------------------------------------------------

    def something(self) -> None:
        """Let one random thing happen, and another one soon."""
        if self.calm:
            return
        host = self.random.choice(self.hosts)
        what = self.random.random()
        if what < 0.40:
            self.want(host)
        elif what < 0.70:
            for each in self.hosts:
                self.write(each)
        elif what < 0.75:
            self.call(host)
        elif what < 0.80:
            self.lock_here()
        elif self.random.random() > self.trouble:
            self.want(host)
        elif what < 0.84:
            self.break_one(host)
        elif what < 0.89:
            self.suspend(host)
        elif what < 0.90:
            self.restart_client(host)
        elif what < 0.91:
            self.suspend_master()
        elif what < 0.925:
            self.reconnect(host)
        elif what < 0.95:
            if self.master is not None:
                self.kill_master()
        else:
            self.cut.symmetric_difference_update({host.number})
        self.after(self.random.expovariate(self.pace), self.something)

    def calm_down(self) -> None:
        self.calm = True
        self.cut.clear()
        self.start_master()
        if self.master_suspended:
            self.resume_master()
        self.master_due = -1.0
        self.tick_master()
        for host in self.hosts:
            host.due = -1.0
            self.resume(host)
            self.tick_host(host)

    # -- what must hold ----------------------------------------------------------------

    def believers(self) -> list[Write]:
        """All grants under which someone would submit a write now."""
        found = []
        for host in self.hosts:
            client, now = host.client, host.clock.at(self.t)
            found += [
                Write(host.who, held.name, held.token, held.shared)
                for held in client.held.values()
                if client.may_submit(now, held)
            ]
        for grant in self.local:
            try:
                grant.check()
            except Fenced:
                continue
            found.append(Write("the master", grant.name, grant.token, False))
        return found

    def look(self) -> None:
        seen: dict[str, Write] = {}
        for write in self.believers():
            other = seen.setdefault(write.name, write)
            if other is not write and not (write.shared and other.shared):
                raise Violation(f"t={self.t:.2f}: {other} and {write} may both write")

    def no_one_else(self, write: Write) -> None:
        for other in self.believers():
            if (
                other.name == write.name
                and other.token != write.token
                and not (other.shared and write.shared)
            ):
                raise Violation(f"t={self.t:.2f}: {write} lands when {other} may write")

    def look_for_rest(self) -> None:
        """After quiet time everything has come to an end."""
        for host in self.hosts:
            if host.client.phase != "joined":
                raise Violation(f"{host.who} is {host.client.phase} in calm times")
            for wanted in host.wanted:
                raise Violation(f"{host.who} still waits for {wanted}")
            for calling in host.calls:
                if calling.answer is None:
                    raise Violation(f"{host.who} still waits for {calling}")
                if calling.answer.done and self.followed.get(calling.argument) != 1:
                    raise Violation(f"{calling} was answered but not followed")
        assert self.master is not None
        if left := self.master.holdings():
            raise Violation(f"nobody gave back {left}")
