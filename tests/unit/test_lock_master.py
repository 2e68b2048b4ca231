"""Grants: one holder at a time, tokens that never go back, leases, turns, calls, breaking."""

from __future__ import annotations

import json
import math

import pytest

from core.errors import BadRequest, Fenced, InUse, IoFailed, NotFound
from core.lock_epoch import Start
from core.lock_master import HERE, LockMaster
from core.lock_messages import (
    Acknowledge,
    Acquire,
    Answer,
    Answered,
    Break,
    Broken,
    Bye,
    Call,
    Called,
    Claim,
    Granted,
    Hello,
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
    SessionDied,
    Unknown,
    Waiting,
    Watch,
    Watching,
    Welcome,
)
from core.lock_timing import Timing, now
from core.locks import Locks

EPOCH = 1 << 32


class Epochs:
    """Epochs in memory, with a note of when each was made durable."""

    uuid = ""

    def __init__(self, epoch: int = 0, quiet: float = 0.0) -> None:
        self.epoch = epoch
        self.quiet = quiet
        self.settled = 0
        self.broken = False

    def start(self, hold: float) -> Start:
        assert hold == Timing().give_away_after
        self.epoch += 1
        return Start(self.epoch, self.quiet)

    def raise_to(self, epoch: int) -> None:
        if self.broken:
            raise IoFailed("the epoch could not be written")
        self.epoch = epoch

    def settle(self) -> None:
        self.settled += 1


class Talk:
    """A master and short words to say to it; sequence numbers count by themselves."""

    def __init__(self, epochs: Epochs | None = None, at: float = 0.0) -> None:
        self.epochs = epochs or Epochs()
        self.master = LockMaster(Timing(), self.epochs, at)
        self.at = at
        self.seq = 0

    def say(self, kind: type, session: int, *rest: object) -> list[Reply]:
        self.seq += 1
        return self.master.receive(self.at, kind(session, self.seq, *rest))

    def hello(self, host: str = "alpha", nonce: str = "") -> int:
        nonce = nonce or f"nonce of {host} {self.seq}"
        (welcome,) = self.master.receive(self.at, Hello(nonce, host, 7, "tap"))
        assert isinstance(welcome, Welcome)
        assert welcome.nonce == nonce
        self.seq += 1
        return welcome.session

    def acquire(
        self, session: int, name: str = "vdi/1", shared: bool = False, wait: float = 0.0
    ) -> Reply:
        (reply,) = self.say(Acquire, session, name, shared, wait, 0)
        return reply

    def renew(self, session: int) -> Reply:
        (reply,) = self.say(Renew, session)
        return reply

    def tick(self, seconds: float) -> list[Reply]:
        """Let time pass, in steps that no master takes for its own suspension."""
        found = []
        end = self.at + seconds
        while self.at < end:
            self.at = min(self.at + 1.0, end)
            found += self.master.tick(self.at)
        return found


def said_no(code: str, message: str) -> str:
    hint = "it may have been done; look before you try again" if code == "io" else ""
    return json.dumps({"error": code, "message": message, "hint": hint})


@pytest.fixture
def talk() -> Talk:
    return Talk()


# -- inside one process ----------------------------------------------------------------------


def test_a_name_is_granted_once_at_a_time() -> None:
    locks = LockMaster()
    grant = locks.acquire("vdi/3")
    with pytest.raises(InUse, match="vdi/3 is already open for writing in this process"):
        locks.acquire("vdi/3")
    locks.acquire("vdi/4")
    grant.release()
    locks.acquire("vdi/3")


def test_tokens_never_go_back() -> None:
    locks = LockMaster()
    first = locks.acquire("vdi/1", floor=41)
    assert first.token == 42
    first.release()
    second = locks.acquire("vdi/1", floor=7)
    assert second.token == 43
    assert locks.acquire("vdi/2").token == 44


def test_a_grant_that_was_given_back_is_fenced() -> None:
    locks = LockMaster()
    grant = locks.acquire("vdi/1")
    grant.check()
    assert locks.holder("vdi/1") is grant
    grant.release()
    assert locks.holder("vdi/1") is None
    with pytest.raises(Fenced) as caught:
        grant.check()
    assert caught.value.message == "vdi/1 is no longer held by this session"
    assert caught.value.hint == "open it again"


def test_releasing_twice_does_not_take_it_from_the_next_holder() -> None:
    locks = LockMaster()
    first = locks.acquire("vdi/1")
    first.release()
    second = locks.acquire("vdi/1")
    first.release()
    second.check()
    with pytest.raises(Fenced):
        first.check()


def test_a_store_with_tokens_of_another_master_goes_on_above_them() -> None:
    locks = LockMaster()
    assert locks.acquire("vdi/1", floor=9 * EPOCH + 5).token == 9 * EPOCH + 6
    assert locks.acquire("vdi/2").token == 9 * EPOCH + 7
    with pytest.raises(BadRequest, match="no token above"):
        locks.acquire("vdi/3", floor=(1 << 63) - 1)


def test_the_process_of_the_master_and_its_clients_keep_each_other_out(talk: Talk) -> None:
    here = talk.master.acquire("vdi/1")
    session = talk.hello()
    refused = talk.acquire(session)
    assert isinstance(refused, Refused)
    assert "held by this host" in refused.reason
    assert isinstance(talk.acquire(session, "vdi/1", wait=9.0), Waiting)
    here.release()
    assert talk.master.next_due() <= talk.at
    (granted,) = talk.master.tick(talk.at)
    assert granted == Granted(session, talk.seq, "vdi/1", here.token + 1)
    with pytest.raises(InUse, match=r"vdi/1 is held by alpha, process 7 \(tap\)"):
        talk.master.acquire("vdi/1")


def test_the_process_of_the_master_does_not_push_in(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    talk.acquire(a, shared=True)
    talk.acquire(b, wait=9.0)
    talk.say(Release, a, "vdi/1")
    with pytest.raises(InUse, match="held by b"):
        talk.master.acquire("vdi/1")


# -- turns -----------------------------------------------------------------------------------


def test_shared_holders_stand_together_and_an_exclusive_one_is_not_overtaken(talk: Talk) -> None:
    a, b, c, d = (talk.hello(host) for host in "abcd")
    assert isinstance(talk.acquire(a, shared=True), Granted)
    assert isinstance(talk.acquire(b, shared=True), Granted)
    waits = talk.acquire(c, wait=60.0)
    assert isinstance(waits, Waiting)
    assert [holding.who.host for holding in waits.holders] == ["a", "b"]
    assert isinstance(talk.acquire(d, shared=True, wait=60.0), Waiting)
    assert talk.say(Release, a, "vdi/1") == [Released(a, talk.seq, "vdi/1")]
    granted, released = talk.say(Release, b, "vdi/1")
    assert isinstance(granted, Granted)
    assert granted.session == c
    granted, released = talk.say(Release, c, "vdi/1")
    assert isinstance(released, Released)
    assert isinstance(granted, Granted)
    assert granted.session == d


def test_who_stops_waiting_makes_room_for_those_behind(talk: Talk) -> None:
    a, b, c = (talk.hello(host) for host in "abc")
    talk.acquire(a, shared=True)
    talk.acquire(b, wait=60.0)
    talk.acquire(c, shared=True, wait=60.0)
    replies = talk.say(Release, b, "vdi/1")
    assert [type(reply) for reply in replies] == [Granted, Released]
    assert replies[0].session == c


def test_a_wait_ends_at_its_deadline_with_the_name_of_the_holder(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    talk.acquire(a)
    talk.acquire(b, wait=4.0)
    assert talk.tick(3.5) == []
    assert talk.master.next_due() <= 4.0
    (refused,) = talk.tick(0.5)
    assert isinstance(refused, Refused)
    assert refused.reason == "vdi/1: held by a, process 7 (tap)"
    assert talk.say(Release, a, "vdi/1") == [Released(a, talk.seq, "vdi/1")]


def test_a_request_that_is_repeated_is_the_same_request(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    first = talk.acquire(a)
    second = talk.acquire(a)
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert first.token == second.token
    talk.acquire(b, wait=9.0)
    talk.acquire(b, wait=9.0)
    granted, _ = talk.say(Release, a, "vdi/1")
    assert granted == Granted(b, talk.seq - 1, "vdi/1", first.token + 1)


def test_an_older_request_is_not_followed(talk: Talk) -> None:
    session = talk.hello()
    talk.master.receive(0.0, Release(session, 20, "vdi/1"))
    assert talk.master.receive(0.0, Acquire(session, 19, "vdi/1", False, 0.0, 0)) == []
    assert talk.master.receive(0.0, Acquire(session, 20, "vdi/1", False, 0.0, 0)) == []
    assert talk.master.holdings() == ()


def test_a_shared_lock_does_not_become_an_exclusive_one(talk: Talk) -> None:
    session = talk.hello()
    talk.acquire(session, shared=True)
    refused = talk.acquire(session, wait=9.0)
    assert isinstance(refused, Refused)
    assert "release it first" in refused.reason


# -- leases ----------------------------------------------------------------------------------


def test_a_silent_session_dies_after_lease_and_margin_and_not_before(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    assert talk.say(Watch, b) == [Watching(b, talk.seq)]
    granted = talk.acquire(a)
    assert isinstance(granted, Granted)
    talk.tick(20.0)
    talk.renew(b)
    talk.tick(14.5)
    assert isinstance(talk.acquire(b, wait=60.0), Waiting)
    died, released, mine = talk.tick(0.5)
    assert isinstance(died, SessionDied)
    assert died.who.host == "a"
    assert released == LockReleased(b, "vdi/1", granted.token)
    assert isinstance(mine, Granted)
    assert mine.token > granted.token
    assert talk.renew(a) == Unknown(a, talk.seq, 1)


def test_a_renewal_begins_the_lease_again(talk: Talk) -> None:
    session = talk.hello()
    talk.acquire(session)
    for _ in range(5):
        talk.tick(30.0)
        assert talk.renew(session) == Renewed(session, talk.seq)
    assert len(talk.master.holdings()) == 1


def test_hello_repeated_on_its_way_is_one_session_and_does_not_renew(talk: Talk) -> None:
    first = talk.hello(nonce="n")
    talk.tick(30.0)
    assert talk.hello(nonce="n") == first
    talk.tick(5.0)
    assert talk.hello(nonce="n") != first


def test_a_master_that_was_suspended_lengthens_the_leases(talk: Talk) -> None:
    session = talk.hello()
    talk.acquire(session)
    talk.at += 1000.0
    assert talk.renew(session) == Renewed(session, talk.seq)


def test_a_clock_that_goes_back_ends_nothing(talk: Talk) -> None:
    session = talk.hello()
    talk.tick(10.0)
    talk.at = 0.0
    assert talk.renew(session) == Renewed(session, talk.seq)


def test_bye_frees_all(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    talk.acquire(a)
    talk.acquire(a, "gc", shared=True)
    talk.acquire(b, wait=9.0)
    (granted,) = talk.say(Bye, a)
    assert isinstance(granted, Granted)
    assert [holding.who.host for holding in talk.master.holdings()] == ["b"]


# -- restarts --------------------------------------------------------------------------------


def test_tokens_and_sessions_of_a_later_run_are_higher() -> None:
    epochs = Epochs()
    talk = Talk(epochs)
    session = talk.hello()
    first = talk.acquire(session)
    again = Talk(epochs)
    other = again.hello()
    second = again.acquire(other)
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert (first.token, second.token) == (EPOCH + 1, 2 * EPOCH + 1)
    assert other > session
    assert again.renew(session) == Unknown(session, again.seq, 2)


def test_a_floor_above_the_epoch_raises_it_before_the_grant() -> None:
    talk = Talk()
    session = talk.hello()
    (granted,) = talk.say(Acquire, session, "vdi/1", False, 0.0, 5 * EPOCH)
    assert isinstance(granted, Granted)
    assert granted.token == 5 * EPOCH + 1
    assert talk.epochs.epoch == 5


def test_nothing_is_granted_when_the_epoch_cannot_be_written() -> None:
    talk = Talk()
    session = talk.hello()
    talk.epochs.broken = True
    (refused,) = talk.say(Acquire, session, "vdi/1", False, 9.0, 5 * EPOCH)
    assert refused == Refused(session, talk.seq, "vdi/1", "the epoch could not be written")
    assert talk.master.holdings() == ()
    assert isinstance(talk.acquire(session), Granted)


def test_a_new_run_grants_nothing_until_it_has_been_quiet_long_enough() -> None:
    talk = Talk(Epochs(4, quiet=35.0), at=100.0)
    a, b = talk.hello("a"), talk.hello("b")
    refused = talk.acquire(a)
    assert isinstance(refused, Refused)
    assert refused.reason.endswith("was started a moment ago and grants nothing for 35 s")
    with pytest.raises(InUse, match="grants nothing for 35 s"):
        talk.master.acquire("vdi/1")
    assert isinstance(talk.acquire(b, wait=90.0), Waiting)
    talk.tick(20.0)
    talk.renew(b)
    talk.tick(14.5)
    assert talk.master.holdings() == ()
    assert talk.epochs.settled == 0
    assert [type(reply) for reply in talk.tick(0.5)] == [Granted]
    assert talk.epochs.settled == 1


def test_what_was_held_can_be_kept_in_the_quiet_time_and_only_then() -> None:
    talk = Talk(Epochs(4, quiet=35.0))
    session, other = talk.hello("a"), talk.hello("b")
    claims = (Claim("vdi/1", 7, False), Claim("gc", 8, True))
    assert talk.say(Reclaim, session, claims) == [Reclaimed(session, talk.seq, ())]
    assert talk.say(Reclaim, session, claims) == [Reclaimed(session, talk.seq, ())]
    mine = (Claim("vdi/1", 6, False), Claim("gc", 9, True))
    assert talk.say(Reclaim, other, mine) == [Reclaimed(other, talk.seq, ("vdi/1",))]
    assert [holding.token for holding in talk.master.holdings()] == [8, 9, 7]
    talk.tick(20.0)
    talk.renew(session)
    talk.renew(other)
    talk.tick(15.0)
    late = (Claim("vdi/2", 5, False),)
    assert talk.say(Reclaim, session, late) == [Reclaimed(session, talk.seq, ("vdi/2",))]


def test_claims_from_before_the_epoch_file_was_lost_lift_all_later_tokens() -> None:
    talk = Talk(Epochs(0, quiet=35.0))
    session = talk.hello()
    claims = (Claim("vdi/1", 9 * EPOCH + 4, False), Claim("vdi/2", 1 << 63, False))
    assert talk.say(Reclaim, session, claims) == [Reclaimed(session, talk.seq, ("vdi/2",))]
    assert talk.epochs.epoch == 9
    talk.tick(20.0)
    talk.renew(session)
    talk.tick(15.0)
    granted = talk.acquire(session, "vdi/3")
    assert isinstance(granted, Granted)
    assert granted.token == 9 * EPOCH + 5


# -- breaking --------------------------------------------------------------------------------


def test_a_broken_lock_is_free_once_its_holder_has_let_go(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    granted = talk.acquire(a)
    assert isinstance(granted, Granted)
    assert talk.say(Break, b, "vdi/1", granted.token) == [Broken(b, talk.seq, 35.0)]
    assert isinstance(talk.acquire(b, wait=60.0), Waiting)
    assert talk.master.holdings()[0].breaking
    assert talk.renew(a) == Renewed(a, talk.seq, (granted.token,))
    (mine,) = talk.say(Acknowledge, a, granted.token)
    assert isinstance(mine, Granted)
    assert talk.renew(a) == Renewed(a, talk.seq)


def test_a_broken_lock_whose_holder_is_silent_is_free_after_lease_and_margin(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    granted = talk.acquire(a)
    assert isinstance(granted, Granted)
    talk.tick(20.0)
    talk.renew(a)
    talk.renew(b)
    talk.say(Break, b, "vdi/1", granted.token)
    assert isinstance(talk.acquire(b, wait=60.0), Waiting)
    talk.tick(20.0)
    talk.renew(b)
    talk.tick(14.5)
    assert [type(reply) for reply in talk.tick(0.5)] == [Granted]


def test_breaking_again_harms_nobody_else(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    granted = talk.acquire(a)
    assert isinstance(granted, Granted)
    talk.say(Release, a, "vdi/1")
    mine = talk.acquire(b)
    assert isinstance(mine, Granted)
    assert talk.say(Break, a, "vdi/1", granted.token) == [Broken(a, talk.seq, 0.0)]
    assert talk.renew(b) == Renewed(b, talk.seq)
    talk.say(Break, a, "vdi/1", mine.token)
    talk.tick(5.0)
    assert talk.say(Break, a, "vdi/1", mine.token) == [Broken(a, talk.seq, 30.0)]


def test_the_process_of_the_master_can_lose_a_lock_too(talk: Talk) -> None:
    grant = talk.master.acquire("vdi/1")
    session = talk.hello()
    talk.say(Break, session, "vdi/1", grant.token)
    with pytest.raises(Fenced):
        grant.check()
    assert isinstance(talk.acquire(session, wait=60.0), Waiting)
    grant.release()
    assert [type(reply) for reply in talk.master.tick(talk.at)] == [Granted]


# -- who is there, and calls -----------------------------------------------------------------


def test_the_list_says_who_holds_what(talk: Talk) -> None:
    session = talk.hello()
    talk.acquire(session)
    talk.master.acquire("gc")
    (listing,) = talk.say(ListLocks, session)
    assert isinstance(listing, Listing)
    assert [(h.name, h.who.session) for h in listing.holdings] == [("gc", HERE), ("vdi/1", session)]
    assert [who.host for who in listing.sessions] == ["this host", "alpha"]


def test_a_call_goes_to_the_holder_and_its_answer_comes_back(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    talk.acquire(a)
    (called,) = talk.say(Call, b, 77, "vdi/1", "snapshot", "label", 10.0)
    assert isinstance(called, Called)
    assert (called.session, called.method, called.argument) == (a, "snapshot", "label")
    talk.tick(1.0)
    (again,) = talk.say(Call, b, 77, "vdi/1", "snapshot", "label", 9.0)
    assert isinstance(again, Called)
    assert (again.number, again.wait) == (called.number, 9.0)
    assert talk.say(Answer, b, called.number, True, "forged") == []
    said = Answered(b, 77, True, "9.24")
    assert talk.say(Answer, a, called.number, True, "9.24") == [said]
    assert talk.say(Answer, a, called.number, False, "again") == []
    assert talk.say(Call, b, 77, "vdi/1", "snapshot", "label", 9.0) == [said]
    talk.tick(10.0)
    assert talk.say(Call, b, 77, "vdi/1", "snapshot", "label", 9.0) == []


def test_a_call_that_nobody_can_answer_is_answered(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    said = Answered(b, 1, False, said_no("not_found", "nobody holds vdi/1"))
    assert talk.say(Call, b, 1, "vdi/1", "snapshot", "", 10.0) == [said]
    talk.acquire(a)
    assert talk.say(Call, b, 1, "vdi/1", "snapshot", "", 10.0) == [said]
    talk.say(Call, b, 2, "vdi/1", "snapshot", "", 5.0)
    late = said_no("io", "the holder did not answer within 5 s")
    assert talk.tick(5.0) == [Answered(b, 2, False, late)]
    talk.say(Call, b, 3, "vdi/1", "snapshot", "", 50.0)
    gone = Answered(b, 3, False, said_no("io", "the holder went away before it answered"))
    assert talk.say(Bye, a) == [gone]


# -- times -----------------------------------------------------------------------------------


def test_the_times_leave_room_for_writes_to_land_whatever_the_clocks_do() -> None:
    timing = Timing()
    assert (timing.renew_every, timing.stop_after, timing.give_away_after) == (5.0, 14.0, 35.0)
    latest = timing.stop_after / (1 - timing.drift) + timing.landing
    assert latest <= timing.give_away_after / (1 + timing.drift)
    assert timing.drift > 0.02


@pytest.mark.parametrize("wrong", [{"lease": 10.0}, {"margin": 0.0}, {"skew": -1.0}])
def test_times_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest):
        Timing(**wrong)


def test_the_clock_goes_on() -> None:
    assert now() <= now()


# -- who may still be writing ----------------------------------------------------------------


def test_a_name_is_suspect_when_its_holder_fell_silent(talk: Talk) -> None:
    a = talk.hello()
    talk.acquire(a, "vdi/1")
    talk.acquire(a, "vdi/2")
    talk.say(Release, a, "vdi/2")
    talk.acquire(talk.hello("b"), "vdi/3", shared=True)
    talk.tick(36.0)
    assert talk.master.suspect("vdi/1")
    assert not talk.master.suspect("vdi/2")
    assert not talk.master.suspect("vdi/3")
    talk.acquire(talk.hello("c"), "vdi/1")
    assert talk.master.suspect("vdi/1")  # the new holder may commit nothing


def test_a_goodbye_and_a_known_death_leave_no_suspect(talk: Talk) -> None:
    a, b, watcher = talk.hello("a"), talk.hello("b"), talk.hello("c")
    talk.say(Watch, watcher)
    talk.acquire(a, "vdi/1")
    talk.acquire(b, "vdi/2")
    talk.say(Bye, a)
    told = talk.master.session_died(talk.at, b)
    assert {type(reply) for reply in told} == {SessionDied, LockReleased}
    assert not talk.master.has(b)
    assert not talk.master.suspect("vdi/1")
    assert not talk.master.suspect("vdi/2")
    assert talk.master.session_died(talk.at, b) == []
    talk.master.session_died(talk.at, HERE)
    assert talk.master.has(HERE)


def test_a_break_that_is_acknowledged_leaves_no_suspect(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    for name in ("vdi/1", "vdi/2"):
        granted = talk.acquire(a, name)
        assert isinstance(granted, Granted)
        talk.say(Break, b, name, granted.token)
        if name == "vdi/1":
            talk.say(Acknowledge, a, granted.token)
    for _ in range(4):
        talk.tick(9.0)
        talk.renew(a)
    assert not talk.master.suspect("vdi/1")
    assert talk.master.suspect("vdi/2")


def test_after_a_quiet_start_everything_is_suspect_and_alone_nothing() -> None:
    assert LockMaster(Timing(), Epochs(quiet=35.0)).suspect("vdi/1")
    epochs = Epochs(quiet=35.0)
    alone = LockMaster(Timing(), epochs, alone=True)
    assert not alone.suspect("vdi/1")
    alone.acquire("vdi/1")
    assert epochs.settled == 1


def test_it_is_a_session_for_a_process_that_is_alone() -> None:
    locks: Locks = LockMaster()
    grant = locks.acquire("vdi/1", shared=True)
    grant.check()
    locks.check()
    assert (locks.leased, locks.shared, locks.store) == (False, False, "")
    assert locks.lease_left() == math.inf
    assert not locks.is_lost()
    assert locks.calls() == ()
    with pytest.raises(NotFound):
        locks.call("vdi/1", "snapshot")
    assert locks.ask("vdi/2").poll() is not None
    with pytest.raises(InUse):
        locks.ask("vdi/2").poll()
    locks.close()
    assert locks.holdings() == ()
    with pytest.raises(Fenced):
        grant.check()


def test_the_figures(talk: Talk) -> None:
    a, b = talk.hello("a"), talk.hello("b")
    talk.acquire(a, "vdi/1")
    talk.acquire(a, "vdi/2", shared=True)
    talk.acquire(b, "vdi/1", wait=9.0)
    talk.say(Call, b, 1, "vdi/1", "m", "", 9.0)
    found = talk.master.figures()
    assert (found.sessions, found.exclusive, found.shared, found.breaking) == (2, 1, 1, 0)
    assert (found.waiting, found.calls, found.epoch, found.quiet) == (1, 1, 1, 0.0)
