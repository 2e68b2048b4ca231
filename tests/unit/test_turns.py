"""Turns and crowds: who has chosen nothing yet gets little of the loop, and not for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from core.tap.crowd import Crowd
from core.tap.doors import Doors
from core.tap.turns import Turns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_what_a_piece_adds_waits_for_the_next_turn() -> None:
    turns, done = Turns(Clock()), []

    def again(name: str) -> None:
        done.append(name)
        turns.add(partial(again, name))

    for name in "ab":
        turns.add(partial(again, name))
    turns.run()
    assert done == ["a", "b"]
    turns.run()
    assert done == ["a", "b"] * 2


def test_long_work_gets_a_fifth_of_the_time() -> None:
    clock, runs = Clock(), count(1)
    turns = Turns(clock)

    def work() -> None:
        next(runs)
        clock.work(0.04)
        turns.add(work)

    turns.add(work)
    start = clock.now
    while clock.now < start + 10.0:
        turns.run()
        if clock.now < turns.due():
            clock.now = turns.due()  # others are served meanwhile
    assert abs(next(runs) - 1 - 10.0 / 0.04 / 5) <= 1


def test_a_burst_is_not_held_up() -> None:
    clock, done = Clock(), []
    turns = Turns(clock)
    for number in range(20):
        turns.add(lambda n=number: (done.append(n), clock.work(1e-4)))
    turns.run()
    assert len(done) == 20
    assert turns.due() == math.inf


@dataclass(eq=False)
class Someone:
    crowd: Crowd
    since: float
    whys: list[str] = field(default_factory=list)

    def close(self, why: str) -> None:
        self.whys.append(why)
        self.crowd.discard(self)


def test_one_too_many_and_the_oldest_has_to_go() -> None:
    crowd = Crowd(3, 10.0)
    people = [Someone(crowd, float(n)) for n in range(5)]
    for one in people:
        crowd.add(one)
    assert [bool(one.whys) for one in people] == [True, True, False, False, False]
    crowd.discard(people[2])
    assert crowd.evict()
    assert people[3].whys
    assert not people[2].whys


def test_those_who_take_too_long_have_to_go() -> None:
    crowd = Crowd(3, 10.0)
    people = [Someone(crowd, since) for since in (0.0, 5.0)]
    for one in people:
        crowd.add(one)
    crowd.expire(10.5)
    assert [one.whys for one in people] == [["it took too long"], []]
    assert len(crowd) == 1
    assert crowd.evict()
    assert not crowd.evict()


def test_room_is_made_where_most_are() -> None:
    """A flood at one door turns nobody away at another."""
    few, many = Crowd(9, 10.0), Crowd(9, 10.0)
    for crowd, count_of in ((few, 2), (many, 5)):
        for number in range(count_of):
            crowd.add(Someone(crowd, float(number)))
    doors = Doors([few, many])
    for _ in range(3):
        assert doors._make_room()
    assert (len(few), len(many)) == (2, 2)
