"""The budget of memory for long requests: nobody has it all, and nobody for nothing."""

from __future__ import annotations

from core.tap.budget import LEAST, LOOK_EVERY, Budget
from core.tap.timers import Timers


class World:
    """A budget of 10 bytes, 6 for each, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers = Timers()
        self.budget = Budget(self.timers, 10, 6, lambda: self.now)

    def wait(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.timers.run(self.now)


class Someone:
    def __init__(self, world: World) -> None:
        self.budget = world.budget
        self.moved: int | None = 0
        self.idle = 0
        self.got = 0
        self.wanted = 0
        self.gone = ""

    def take(self, length: int) -> bool:
        self.wanted = length
        taken = self.budget.take(self, length)
        self.got += length * taken
        return taken

    def give(self, length: int) -> None:
        self.budget.give(self, length)

    def shrink(self) -> None:
        idle, self.idle = self.idle, 0
        self.budget.give(self, idle)

    def resume(self) -> None:
        self.take(self.wanted)

    def disconnect(self, why: str) -> None:
        self.gone = why
        self.budget.forget(self)


def test_one_connection_gets_its_part_and_goes_on_when_it_gave_some_back() -> None:
    world = World()
    one, other = Someone(world), Someone(world)
    assert one.take(4)
    assert not one.take(4)
    assert other.take(6)  # it is not held up by who waits for itself
    other.give(6)
    world.wait()
    assert one.got == 4
    one.give(4)
    world.wait()
    assert one.got == 8
    assert world.budget.taken == 4


def test_all_together_get_what_there_is_first_come_first_served() -> None:
    world = World()
    first, second, third, late = (Someone(world) for _ in range(4))
    assert first.take(6)
    assert not second.take(6)
    assert not third.take(1)  # it would fit, but it came later
    first.give(6)
    assert not late.take(6)  # nor does it overtake
    world.wait()
    assert (second.got, third.got, late.got) == (6, 1, 0)
    assert world.budget.taken == 7


def test_what_is_idle_is_given_back_when_others_want_it() -> None:
    world = World()
    idle, busy = Someone(world), Someone(world)
    assert idle.take(6)
    idle.idle = 6
    assert not busy.take(6)
    world.wait()
    assert busy.got == 6


def test_who_stands_still_has_to_go_when_others_wait() -> None:
    world = World()
    still, slow, disk, waiting = (Someone(world) for _ in range(4))
    assert still.take(4)
    assert slow.take(4)
    assert disk.take(2)
    disk.moved = None  # it waits for the tap, not the tap for it
    world.wait(10 * LOOK_EVERY)
    assert not still.gone  # nobody wants it
    assert not waiting.take(5)
    for turn in range(3):
        slow.moved = (turn + 1) * LEAST
        world.wait(LOOK_EVERY)
    assert still.gone
    assert not slow.gone
    assert not disk.gone
    slow.give(4)
    world.wait()
    assert waiting.got == 5


def test_who_is_gone_has_nothing_and_wants_nothing() -> None:
    world = World()
    one, other = Someone(world), Someone(world)
    assert one.take(6)
    assert not other.take(6)
    world.budget.forget(other)
    world.budget.forget(one)
    world.wait()
    assert not other.got
    assert world.budget.taken == 0
