"""The client of the lock master: until when it may write, and what it does when not answered."""

from __future__ import annotations

from itertools import count

import pytest

from core.errors import Fenced, IoFailed
from core.lock_client import Held, LockClient
from core.lock_epoch import Start
from core.lock_master import LockMaster
from core.lock_messages import (
    Break,
    Broken,
    Call,
    Called,
    Claim,
    Hello,
    Reclaim,
    Renew,
    Reply,
    Request,
    Watch,
    Watching,
)
from core.remote import raise_error


class Epochs:
    uuid = ""

    def __init__(self) -> None:
        self.epoch = 0

    def start(self, hold: float) -> Start:
        self.epoch += 1
        return Start(self.epoch, hold if self.epoch > 1 else 0.0)

    def raise_to(self, epoch: int) -> None:
        self.epoch = epoch

    def settle(self) -> None:
        pass


class Pair:
    """Clients and a master that hear each other at once, unless the line is cut."""

    def __init__(self, clients: int = 1) -> None:
        self.at = 1000.0
        self.epochs = Epochs()
        self.master = LockMaster(epochs=self.epochs, now=self.at)
        nonces = count()
        self.clients = [
            LockClient(f"host{number}", number, "test", lambda: str(next(nonces)))
            for number in range(clients)
        ]
        self.cut = False
        self.sent: list[Request] = []
        self.settle()

    @property
    def client(self) -> LockClient:
        return self.clients[0]

    def settle(self) -> None:
        """Let everybody do what is due until nobody has anything to say."""
        replies: list[Reply] = [] if self.cut else self.master.tick(self.at)
        for client in self.clients:
            client.tick(self.at)
        while True:
            for client in self.clients:
                for reply in replies:
                    client.receive(self.at, reply)
            requests = [request for client in self.clients for request in client.outgoing]
            for client in self.clients:
                client.outgoing.clear()
            self.sent += requests
            if not requests:
                return
            replies = []
            if not self.cut:
                for request in requests:
                    replies += self.master.receive(self.at, request)

    def wait(self, seconds: float) -> None:
        end = self.at + seconds
        while self.at < end:
            self.at = min(self.at + 0.5, end)
            self.settle()

    def hold(self, name: str = "vdi/1", client: int = 0) -> Held:
        wanted = self.clients[client].acquire(self.at, name)
        self.settle()
        assert wanted.grant is not None, wanted.refused
        return wanted.grant

    def restart(self) -> None:
        self.master = LockMaster(epochs=self.epochs, now=self.at)


def test_it_joins_locks_and_renews_at_a_quarter_of_the_lease() -> None:
    pair = Pair()
    held = pair.hold()
    pair.sent.clear()
    pair.wait(60.0)
    assert pair.client.may_submit(pair.at, held)
    assert sum(isinstance(request, Renew) for request in pair.sent) == 12
    assert len(pair.sent) == 12


def test_it_stops_by_itself_even_if_it_was_suspended() -> None:
    pair = Pair()
    held = pair.hold()
    assert pair.client.may_submit(pair.at + 13.99, held)
    assert not pair.client.may_submit(pair.at + 14.0, held)
    with pytest.raises(Fenced, match="has not renewed the lease for too long"):
        pair.client.check(pair.at + 14.0, held)


def test_the_lease_counts_from_when_the_renewal_was_sent() -> None:
    pair = Pair()
    held = pair.hold()
    client, start = pair.client, pair.at
    client.tick(start + 5.0)
    (renew,) = client.outgoing
    replies = pair.master.receive(start + 9.0, renew)
    client.receive(start + 13.0, replies[0])
    assert client.may_submit(start + 18.9, held)
    assert not client.may_submit(start + 19.0, held)


def test_a_master_that_does_not_answer_stops_nothing_until_the_lease_ends() -> None:
    pair = Pair()
    held = pair.hold()
    pair.cut = True
    pair.wait(13.5)
    assert pair.client.may_submit(pair.at, held)
    pair.wait(6.5)
    assert not pair.client.may_submit(pair.at, held)
    pair.cut = False
    pair.wait(2.0)
    assert pair.client.may_submit(pair.at, held)
    assert held.lost == ""


def test_a_session_that_the_master_ended_has_lost_all() -> None:
    pair = Pair(2)
    held = pair.hold()
    pair.master.tick(pair.at)
    lost, pair.clients = pair.clients[0], pair.clients[1:]
    pair.wait(36.0)
    taken = pair.hold()
    pair.clients = [lost, *pair.clients]
    pair.wait(2.0)
    assert held.lost == "the lock master has ended this session"
    assert taken.token > held.token
    with pytest.raises(
        Fenced, match="vdi/1 is no longer held: the lock master has ended this session"
    ):
        lost.check(pair.at, held)
    assert lost.phase == "joined"


def test_a_restart_of_the_master_is_survived() -> None:
    pair = Pair(2)
    held = pair.hold()
    pair.restart()
    pair.wait(6.0)
    assert pair.client.may_submit(pair.at, held)
    assert (held.lost, pair.client.held["vdi/1"]) == ("", held)
    wanted = pair.clients[1].acquire(pair.at, "vdi/1", wait=60.0)
    pair.wait(40.0)
    assert wanted.grant is None
    assert pair.client.may_submit(pair.at, held)
    pair.client.release(pair.at, "vdi/1")
    pair.wait(2.0)
    assert wanted.grant is not None
    assert wanted.grant.token > held.token


def test_a_restart_that_takes_longer_than_the_lease_is_not() -> None:
    pair = Pair()
    held = pair.hold()
    pair.cut = True
    pair.wait(15.0)
    pair.restart()
    pair.cut = False
    pair.sent.clear()
    pair.wait(2.0)
    assert held.lost
    assert not any(isinstance(request, Reclaim) for request in pair.sent)
    assert pair.client.phase == "joined"


def test_who_waits_gets_its_turn_or_hears_who_holds_it() -> None:
    pair = Pair(2)
    pair.hold()
    wanted = pair.clients[1].acquire(pair.at, "vdi/1")
    pair.settle()
    assert wanted.refused == "vdi/1: held by host0, process 0 (test)"
    patient = pair.clients[1].acquire(pair.at, "vdi/1", wait=20.0)
    pair.wait(9.0)
    pair.client.release(pair.at, "vdi/1")
    pair.settle()
    assert patient.grant is not None


def test_waiting_ends_although_the_master_is_silent() -> None:
    pair = Pair()
    pair.cut = True
    wanted = pair.client.acquire(pair.at, "vdi/1", wait=3.0)
    calling = pair.client.call(pair.at, "vdi/1", "snapshot", wait=3.0)
    pair.wait(8.0)
    assert wanted.refused == "the lock master does not answer"
    assert calling.answer is not None
    with pytest.raises(IoFailed, match="no answer came to a call"):
        raise_error(calling.answer.text)


def test_a_lock_taken_again_is_a_new_grant_even_if_the_release_was_lost() -> None:
    pair = Pair()
    first = pair.hold()
    pair.cut = True
    pair.client.release(pair.at, "vdi/1")
    pair.settle()
    wanted = pair.client.acquire(pair.at, "vdi/1", wait=20.0)
    pair.settle()
    pair.cut = False
    pair.wait(2.0)
    assert wanted.grant is not None
    assert wanted.grant.token > first.token
    assert not pair.client.may_submit(pair.at, first)


def test_a_name_is_asked_for_once() -> None:
    pair = Pair()
    pair.hold()
    with pytest.raises(ValueError, match="vdi/1 is held or asked for already"):
        pair.client.acquire(pair.at, "vdi/1")


def test_a_broken_lock_is_lost_and_free_when_the_holder_has_stopped() -> None:
    pair = Pair(2)
    held = pair.hold()
    other = pair.clients[1]
    wanted = other.acquire(pair.at, "vdi/1", wait=60.0)
    seq = other.next_seq()
    other.outgoing.append(Break(other.session, seq, "vdi/1", held.token))
    pair.wait(5.0)
    assert other.inbox == [Broken(other.session, seq, 35.0)]
    assert held.lost == "it was broken"
    assert wanted.grant is None
    pair.client.give_back(pair.at, held)
    pair.settle()
    assert wanted.grant is not None


def test_a_call_is_followed_once_and_answered() -> None:
    pair = Pair(2)
    pair.hold()
    caller = pair.clients[1]
    calling = caller.call(pair.at, "vdi/1", "snapshot", "label")
    pair.wait(5.0)
    (called,) = pair.client.inbox
    assert isinstance(called, Called)
    assert (called.method, called.argument) == ("snapshot", "label")
    assert sum(isinstance(request, Call) for request in pair.sent) > 2
    pair.client.answer(called, True, "9.24")
    pair.settle()
    assert calling.answer is not None
    assert (calling.answer.done, calling.answer.text) == (True, "9.24")
    pair.wait(60.0)
    assert pair.client.inbox == [called]


def test_events_and_answers_for_the_owner_come_to_the_inbox() -> None:
    pair = Pair()
    seq = pair.client.next_seq()
    pair.client.outgoing.append(Watch(pair.client.session, seq))
    pair.settle()
    assert pair.client.inbox == [Watching(pair.client.session, seq)]


def test_who_leaves_holds_nothing() -> None:
    pair = Pair(2)
    held = pair.hold()
    wanted = pair.clients[1].acquire(pair.at, "vdi/1", wait=60.0)
    pair.client.leave()
    pair.settle()
    assert held.lost == "the session ended"
    assert not pair.client.may_submit(pair.at, held)
    assert wanted.grant is not None
    pair.sent.clear()
    pair.client.tick(pair.at + 100.0)
    assert pair.client.outgoing == []


def test_hello_is_repeated_with_another_nonce_until_it_is_answered() -> None:
    pair = Pair()
    client = LockClient("late", 1, "test", iter("abcdefgh").__next__)
    for at in range(4):
        client.tick(float(at))
    nonces = [request.nonce for request in client.outgoing if isinstance(request, Hello)]
    assert nonces == ["a", "b", "c", "d"]
    (welcome,) = pair.master.receive(pair.at, client.outgoing[1])
    client.receive(4.0, welcome)
    assert client.phase == "joined"
    assert client.next_due() == 6.0


def test_a_new_connection_takes_the_session_along() -> None:
    pair = Pair()
    held = pair.hold()
    session = pair.client.session
    pair.cut = True
    pair.wait(3.0)
    pair.cut = False
    pair.client.reconnected(pair.at)
    pair.settle()
    assert pair.client.session == session
    assert pair.client.may_submit(pair.at, held)
    pair.wait(60.0)
    assert pair.client.may_submit(pair.at, held)
    assert len(pair.master.holdings()) == 1


def test_a_new_connection_to_a_new_master_keeps_what_is_held() -> None:
    pair = Pair()
    held = pair.hold()
    pair.restart()
    pair.client.reconnected(pair.at)
    pair.settle()
    assert pair.client.may_submit(pair.at, held)
    assert [holding.name for holding in pair.master.holdings()] == ["vdi/1"]


def test_no_lease_is_counted_from_a_nonce_that_is_said_again() -> None:
    """Nobody knows which copy of the old `Hello` began the session, and when."""
    pair = Pair()
    client = pair.client
    pair.restart()
    client.reconnected(pair.at)
    hello = client.outgoing[0]
    assert isinstance(hello, Hello)
    replies = pair.master.receive(pair.at - 30.0, hello)
    client.receive(pair.at, replies[0])
    assert client.valid_until <= pair.at


def test_a_session_that_the_master_ended_is_lost_over_a_new_connection_too() -> None:
    pair = Pair()
    held = pair.hold()
    pair.cut = True
    pair.master.session_died(pair.at, pair.client.session)
    pair.cut = False
    pair.client.reconnected(pair.at)
    pair.settle()
    assert held.lost == pair.client.lost == "the lock master has ended this session"
    assert not pair.client.may_submit(pair.at, held)
    pair.client.begin_again(pair.at)
    assert pair.client.lost == ""
    pair.hold()


def test_what_a_new_master_did_not_give_back_loses_all_and_leaves_nothing() -> None:
    pair = Pair(2)
    kept, other = pair.hold("vdi/1"), pair.hold("vdi/2")
    pair.restart()
    thief = Claim("vdi/2", other.token, False)
    session = pair.clients[1].session
    (welcome,) = pair.master.receive(pair.at, Hello("n", "h", 1, "p"))
    pair.master.receive(pair.at, Reclaim(welcome.session, 1, (thief,)))
    assert session != welcome.session
    pair.client.reconnected(pair.at)
    pair.settle()
    assert kept.lost
    assert other.lost
    assert "did not give everything back" in pair.client.lost
    assert {holding.name for holding in pair.master.holdings()} == {"vdi/1", "vdi/2"}
    pair.client.begin_again(pair.at)
    pair.settle()
    assert {holding.name for holding in pair.master.holdings()} == {"vdi/2"}
