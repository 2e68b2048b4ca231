"""Whatever a power cut leaves is a store: no repair, nothing flushed lost, no garbage.

`support.crash` says which states are tried and what is right; every so many-th one is also
opened, checked, read and written by the engine itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
from support.bench import Op
from support.hunt import Hunt
from support.workload import (
    ALPHABET,
    LOG_OPERATIONS,
    SCHEDULE_OPERATIONS,
    World,
    kept_by_schedule,
    long_log,
    nearly_full,
    random_operations,
    small_world,
)

pytestmark = pytest.mark.timeout(1200)  # thousands of states: minutes on a busy machine
Record = Callable[[str, object], None]


def report(hunt: Hunt, record_property: Record) -> None:
    for name in ("runs", "states", "opened", "refused"):
        record_property(name, getattr(hunt, name))
    print(f"{hunt.states} crash states of {hunt.runs} runs, {hunt.opened} opened by the engine")


def test_one_operation(record_property: Record) -> None:
    hunt = Hunt(small_world(), engine_every=11)
    hunt.all_of((operation,) for operation in ALPHABET)
    report(hunt, record_property)
    assert hunt.states > 1_000


def test_a_sample_of_three_operations(record_property: Record) -> None:
    hunt = Hunt(small_world(), limit=40)
    hunt.all_of(list(product(ALPHABET, repeat=3))[::97], last_only=True)
    report(hunt, record_property)


@pytest.mark.slow
def test_two_operations(record_property: Record) -> None:
    hunt = Hunt(small_world())
    hunt.all_of(product(ALPHABET, repeat=2), last_only=True)
    report(hunt, record_property)
    assert hunt.states > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("first", ALPHABET, ids=lambda op: "-".join(map(str, op)))
def test_three_operations(first: Op, record_property: Record) -> None:
    hunt = Hunt(small_world(), limit=25, engine_every=997)
    hunt.all_of(((first, *rest) for rest in product(ALPHABET, repeat=2)), last_only=True)
    report(hunt, record_property)
    assert hunt.states > 10_000


@pytest.mark.slow
def test_a_snapshot_log_that_fills_its_page(record_property: Record) -> None:
    def lists() -> Iterator[tuple[Op, ...]]:
        for count in (1, 2, 3):
            yield from product(LOG_OPERATIONS, repeat=count)

    hunt = Hunt(long_log(), limit=40, engine_every=499)
    hunt.all_of(lists(), last_only=True)
    report(hunt, record_property)


def test_a_log_that_a_schedule_fills(record_property: Record) -> None:
    hunt = Hunt(kept_by_schedule(), limit=30, engine_every=97)
    hunt.all_of((operation,) for operation in SCHEDULE_OPERATIONS)
    report(hunt, record_property)


@pytest.mark.slow
def test_a_log_that_a_schedule_fills_and_more(record_property: Record) -> None:
    """Pages that only retention has dropped are collected, and their blocks used again."""
    lists = [ops for count in (2, 3) for ops in product(SCHEDULE_OPERATIONS, repeat=count)]
    hunt = Hunt(kept_by_schedule(), limit=25, engine_every=499)
    hunt.all_of(lists[::5], last_only=True)
    report(hunt, record_property)


def test_a_few_random_lists(record_property: Record) -> None:
    hunt = Hunt(small_world(), limit=50)
    hunt.all_of(random_operations(seed, 30) for seed in range(8))
    report(hunt, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("world", [small_world, long_log, kept_by_schedule])
def test_random_lists(world: Callable[[], World], record_property: Record) -> None:
    """Long lists of operations that crash, recover and crash again."""
    hunt = Hunt(world(), limit=60, engine_every=199)
    hunt.all_of(random_operations(seed, 50) for seed in range(80))
    report(hunt, record_property)
    assert hunt.states > 20_000


@pytest.mark.slow
def test_random_lists_in_a_full_store(record_property: Record) -> None:
    """The same with writes so long that they do not fit, and space that is reclaimed."""
    hunt = Hunt(nearly_full(), limit=60, engine_every=199)
    hunt.all_of(random_operations(seed, 40, 4) for seed in range(75))
    report(hunt, record_property)
    assert hunt.refused > 50


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("world", [small_world, long_log, kept_by_schedule, nearly_full])
def test_very_many_random_lists(world: Callable[[], World], record_property: Record) -> None:
    hunt = Hunt(world(), limit=300, engine_every=499)
    scale = 4 if world is nearly_full else 1
    hunt.all_of(random_operations(seed, 80, scale) for seed in range(1_000, 5_000))
    report(hunt, record_property)
