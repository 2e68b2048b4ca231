"""Finding extents while the lock master is away, quiet, or says no."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from itertools import count

import pytest
from support.fake_locks import FakeLocks
from support.memory import MemoryDevice

from core.claiming import Finder, Found
from core.errors import Fenced, IoFailed, NoSpace, NoSpaceYet, ParallaxError, TooEarly
from core.extent import AHEAD_MAX, Allocator
from core.format import BLOCK, Superblock
from core.lock_messages import Holding, Who
from core.mkfs import format_device

SESSION = b"one" * 4 + bytes(4)


def formatted(extent_blocks: int = 64, extents: int = 6) -> tuple[MemoryDevice, Superblock]:
    device = MemoryDevice(extent_blocks * extents * BLOCK)
    return device, format_device(device, extent_blocks * BLOCK, extents)


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks()


def finder(locks: FakeLocks) -> Finder:
    device, sb = formatted()
    return Finder(device, sb, locks, SESSION, ())


def failing(times: float, error: ParallaxError) -> Callable[[str], None]:
    """Raises an error the first few times."""
    asked = count(1)

    def trouble(_name: str) -> None:
        if next(asked) <= times:
            raise error

    return trouble


@pytest.mark.parametrize("error", [IoFailed("no answer"), TooEarly("quiet")])
def test_a_lock_master_that_cannot_grant_now_is_waited_for(
    locks: FakeLocks, error: ParallaxError
) -> None:
    locks.trouble = failing(3, error)
    found = finder(locks).find()
    assert found is not None
    assert locks.held == {"extent/1": found.grant}


def test_no_answer_is_an_error_where_there_is_no_lease_to_end_the_waiting() -> None:
    locks = FakeLocks(leased=False)
    locks.trouble = failing(1, IoFailed("broken"))
    with pytest.raises(IoFailed, match="broken"):
        finder(locks).find()


def test_a_lapse_is_waited_out_but_not_the_end_of_the_lease(locks: FakeLocks) -> None:
    locks.left = -locks.grace / 2
    locks.trouble = failing(2, IoFailed("no answer"))
    assert finder(locks).find() is not None
    locks.trouble = failing(math.inf, IoFailed("no answer"))
    locks.left = -locks.grace
    with pytest.raises(Fenced, match="the lease is over"):
        finder(locks).find()


def test_who_waits_can_be_stopped(locks: FakeLocks) -> None:
    locks.trouble = failing(math.inf, IoFailed("no answer"))
    waiting = finder(locks)
    caught: list[ParallaxError] = []

    def find() -> None:
        try:
            waiting.find()
        except ParallaxError as error:
            caught.append(error)

    thread = threading.Thread(target=find)
    thread.start()
    time.sleep(0.05)
    waiting.stop()
    thread.join(60)
    assert isinstance(caught[0], Fenced)


def test_what_others_have_is_passed_over(locks: FakeLocks) -> None:
    locks.others = {"extent/1", "extent/2"}
    found = finder(locks).find()
    assert found is not None
    assert found.number == 3


def test_who_does_not_need_it_yet_asks_nobody_to_spare_one(locks: FakeLocks) -> None:
    """`FakeLocks.call` fails: nobody is there to be called."""
    locks.others = {f"extent/{number}" for number in range(6)}
    other = Who(9, "otherhost", 9, "plxsh tap serve")
    locks.holding = [Holding(f"extent/{number}", 7, False, other) for number in range(1, 6)]
    assert finder(locks).find_free() is None
    with pytest.raises(AssertionError, match="nobody to call"):
        finder(locks).find()


def test_an_extent_that_may_still_be_written_to_is_only_taken_in_need(locks: FakeLocks) -> None:
    device, sb = formatted()
    dead = Allocator(device, sb, locks, b"two" * 5 + bytes(1))
    while dead.claim():
        pass
    locks.held.clear()
    locks.suspect = lambda _name: True  # type: ignore[method-assign]
    looking = Finder(device, sb, locks, SESSION, ())
    assert looking.find_free() is None
    assert looking.find() is not None


def test_the_message_names_who_has_room_without_asking_again(locks: FakeLocks) -> None:
    device, sb = formatted()
    locks.others = {f"extent/{number}" for number in range(6)}
    other = Who(9, "otherhost", 9, "plxsh tap serve")
    locks.holding = [Holding("extent/2", 7, False, other)]
    looking = Finder(device, sb, locks, SESSION, ())
    assert looking.find_free() is None
    locks.trouble = failing(math.inf, IoFailed("no answer"))
    assert "otherhost" in looking.no_space().message


def test_an_allocator_says_whether_room_is_on_its_way(locks: FakeLocks) -> None:
    device, sb = formatted()
    allocator = Allocator(device, sb, locks, SESSION)

    def later() -> bool:
        raise NoSpaceYet("asked for", "try again")

    allocator.claim = later
    with pytest.raises(NoSpaceYet):
        allocator.take(1)
    with pytest.raises(NoSpaceYet):
        allocator.reserve(1)
    assert allocator.taken == allocator.free == 0
    found = allocator.finder.find()
    assert isinstance(found, Found)
    allocator.take_in(found)
    assert allocator.take(1)
    allocator.claim = lambda: False
    with pytest.raises(NoSpace) as caught:
        allocator.take(allocator.free)
    assert not isinstance(caught.value, NoSpaceYet)


def test_an_allocator_says_when_little_is_left(locks: FakeLocks) -> None:
    device, sb = formatted()
    allocator = Allocator(device, sb, locks, SESSION)
    told: list[int] = []
    allocator.low = 20
    allocator.when_low = lambda: told.append(allocator.free)
    allocator.take(1)
    while allocator.free > 20:
        allocator.take(1)
    assert told == []
    allocator.take(1)
    assert told == [19]


@pytest.mark.parametrize("blocks", [64, 4096, 1 << 18])
def test_the_reserve_is_in_proportion_and_has_an_end(blocks: int, locks: FakeLocks) -> None:
    sb = Superblock(bytes(16), blocks, 100)
    allocator = Allocator(MemoryDevice(BLOCK), sb, locks, SESSION)
    payload = blocks - sb.overhead
    assert allocator.reserve_ahead - allocator._slop == min(payload // 2, AHEAD_MAX)
