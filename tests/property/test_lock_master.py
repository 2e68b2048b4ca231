"""The lock master and its clients through thousands of random histories, in simulated time.

Never two who may both write what one alone may write, nor a write that lands when another
may; whoever comes after one that fell silent is told so; tokens grow; calls are followed
once; and in calm times everything comes to an end. A history is its seed: `World(SEED).run()`
repeats it.

The rest plants mistakes and sees each of them found by the very same histories.
"""

from __future__ import annotations

import pytest
from support.lock_world import Epochs, Rules, Violation, WallClock, World

from core.lock_client import Held, LockClient
from core.lock_epoch import Start
from core.lock_master import LockMaster
from core.lock_messages import (
    Acquire,
    Break,
    Called,
    Granted,
    Reclaim,
    Release,
    Renew,
    Renewed,
    Reply,
    Request,
    Unknown,
    Welcome,
)

QUICK = 100
CHUNKS, CHUNK = 20, 250
ENOUGH = 1500
"""So many histories find the rarest of the planted mistakes several times over."""


def histories(seeds: range, rules: Rules) -> str:
    """Live through histories; return the first violation, or nothing."""
    for seed in seeds:
        try:
            World(seed, rules).run()
        except Violation as violation:
            return f"seed {seed}: {violation}"
    return ""


def test_a_hundred_histories() -> None:
    assert histories(range(QUICK), Rules()) == ""


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_five_thousand_histories(chunk: int) -> None:
    first = QUICK + chunk * CHUNK
    assert histories(range(first, first + CHUNK), Rules()) == ""


def test_the_histories_are_worth_living() -> None:
    """They do grant, lose and give back; a world that stands still would prove nothing."""
    worlds = [World(seed).run() for seed in range(60)]
    assert sum(len(world.tokens) for world in worlds) > 200
    assert sum(world.epochs.epoch > 1 for world in worlds) > 20
    assert sum(len(world.followed) for world in worlds) > 3
    assert sum(world.landed for world in worlds) > 300
    assert sum(world.kept for world in worlds) > 5
    assert sum(world.suspected for world in worlds) > 5
    assert sum(world.moved for world in worlds) > 20


def test_a_history_is_the_same_again() -> None:
    once, again = World(5).run(), World(5).run()
    assert (once.count, once.tokens) == (again.count, again.tokens)


# -- mistakes of the master ------------------------------------------------------------------


class ForgetfulEpochs(Epochs):
    """The epoch is raised in memory only."""

    def start(self, hold: float) -> Start:
        return Start(1, max(self.hold, hold))


class HurriedEpochs(Epochs):
    """A restart grants at once."""

    def start(self, hold: float) -> Start:
        return Start(super().start(hold).epoch, 0.0)


class ShortEpochs(Epochs):
    """A restart waits for the lease, without the margin."""

    def start(self, hold: float) -> Start:
        return Start(super().start(hold).epoch, 20.0)


class NoMargin(LockMaster):
    """Locks are given away as soon as the lease is over."""

    def _lease_end(self) -> float:
        return self._now + self.timing.lease


class RenewsTheUnknown(LockMaster):
    """Whoever renews is taken for alive."""

    def receive(self, now: float, request: Request) -> list[Reply]:
        replies = super().receive(now, request)
        return [
            Renewed(reply.session, reply.seq)
            if isinstance(reply, Unknown) and isinstance(request, Renew)
            else reply
            for reply in replies
        ]


class BreaksAtOnce(LockMaster):
    """A broken lock is free before its holder knows."""

    def receive(self, now: float, request: Request) -> list[Reply]:
        replies = super().receive(now, request)
        if isinstance(request, Break):
            for grant in list(self._table.revoked()):
                self._table.release(grant)
        return replies + self.tick(now)


class ForgetsTheBroken(LockMaster):
    """A holder whose lock was broken is not told when it renews."""

    def receive(self, now: float, request: Request) -> list[Reply]:
        replies = super().receive(now, request)
        return [
            Renewed(reply.session, reply.seq) if isinstance(reply, Renewed) else reply
            for reply in replies
        ]


class FollowsTheOld(LockMaster):
    """Requests are followed in the order in which they come, repeats and all."""

    def receive(self, now: float, request: Request) -> list[Reply]:
        session = self._sessions.get(getattr(request, "session", -1))
        if session is not None and isinstance(request, Acquire | Release | Reclaim):
            session.followed = 0
        return super().receive(now, request)


class SuspectsNobody(LockMaster):
    """Whoever lapsed is taken for gone."""

    def suspect(self, name: str) -> bool:  # noqa: ARG002
        return False


# -- mistakes of the client ------------------------------------------------------------------


class CountsFromTheReply(LockClient):
    """The lease is counted from when the answer came."""

    def receive(self, now: float, reply: Reply) -> None:
        if isinstance(reply, Renewed) and reply.seq in self._renewals:
            self._renewals[reply.seq] = now
        super().receive(now, reply)


class LooksAtTheClockNowAndThen(LockClient):
    """Whether the lease is valid is found out on a timer, not right before a write."""

    _seen = 0.0

    def tick(self, now: float) -> None:
        self._seen = now
        super().tick(now)

    def may_submit(self, now: float, held: Held | None = None) -> bool:  # noqa: ARG002
        return super().may_submit(self._seen, held)


class WritesToTheEnd(LockClient):
    """Writes are submitted until the lease is over, with no time left for them to land."""

    def may_submit(self, now: float, held: Held | None = None) -> bool:
        return super().may_submit(now - self.timing.worst_io - self.timing.skew, held)


class ClaimsTheLapsed(LockClient):
    """After a restart everything is claimed, valid or not."""

    def receive(self, now: float, reply: Reply) -> None:
        if self.held and isinstance(reply, Unknown | Welcome):
            self.valid_until = max(self.valid_until, now + 1.0)
        super().receive(now, reply)


class LetsGoTooEarly(LockClient):
    """A broken lock is let go while writes are on their way."""

    def receive(self, now: float, reply: Reply) -> None:
        before = [*self.held.values()]
        super().receive(now, reply)
        for held in before:
            if held.lost:
                self.give_back(now, held)


class TrustsOldAnswers(LockClient):
    """Any `Granted` is taken for the answer to the latest request."""

    def receive(self, now: float, reply: Reply) -> None:
        if isinstance(reply, Granted) and reply.name in self._wanted:
            self._wanted[reply.name].first = 0
        super().receive(now, reply)


class FollowsRepeats(LockClient):
    """A call that comes again is done again."""

    def receive(self, now: float, reply: Reply) -> None:
        if isinstance(reply, Called):
            self._served.pop(reply.number, None)
        super().receive(now, reply)


BUGS = {
    "wall clock": Rules(clock=WallClock),
    "epoch not durable": Rules(epochs=ForgetfulEpochs),
    "restart grants at once": Rules(epochs=HurriedEpochs),
    "restart waits without margin": Rules(epochs=ShortEpochs),
    "expiry without margin": Rules(master=NoMargin),
    "unknown leases renewed": Rules(master=RenewsTheUnknown),
    "break frees at once": Rules(master=BreaksAtOnce),
    "broken and not told": Rules(master=ForgetsTheBroken),
    "old requests followed": Rules(master=FollowsTheOld),
    "lease counted from the reply": Rules(client=CountsFromTheReply),
    "clock looked at now and then": Rules(client=LooksAtTheClockNowAndThen),
    "no time for writes to land": Rules(client=WritesToTheEnd),
    "lapsed grants claimed": Rules(client=ClaimsTheLapsed),
    "let go too early": Rules(client=LetsGoTooEarly),
    "nobody suspected": Rules(master=SuspectsNobody),
    "old answers trusted": Rules(client=TrustsOldAnswers),
    "calls followed twice": Rules(client=FollowsRepeats),
}


@pytest.mark.slow
@pytest.mark.parametrize("rules", BUGS.values(), ids=BUGS.keys())
def test_a_planted_mistake_is_found(rules: Rules) -> None:
    found = histories(range(ENOUGH), rules)
    print(found)
    assert found
