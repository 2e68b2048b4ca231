"""Sets of blocks as bits, against plain sets; pages are small, so that there are many."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import blockset
from core.blockset import BlockSet

BLOCKS = 1024

members = st.sets(st.integers(0, BLOCKS - 1), max_size=60)


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockset, "_PAGE_SHIFT", 7)
        patch.setattr(blockset, "_PAGE", 1 << 7)
        yield


def filled(blocks: set[int]) -> BlockSet:
    """Some added one by one, the others together and twice."""
    made = BlockSet(BLOCKS)
    for block in sorted(blocks)[::2]:
        made.add(block)
    rest = sorted(blocks)[1::2]
    made.add_all(np.array(rest + rest[::-1], np.int64))
    return made


def contents(blocks: BlockSet) -> set[int]:
    return {block for block in range(BLOCKS + 64) if block in blocks}


@given(members)
def test_it_holds_what_was_added(blocks: set[int]) -> None:
    made = filled(blocks)
    assert contents(made) == blocks
    assert len(made) == len(blocks)
    assert bool(made) == bool(blocks)


@given(members, members, members)
def test_it_joins_and_takes_out(one: set[int], other: set[int], third: set[int]) -> None:
    made = filled(one)
    made |= filled(other)
    assert contents(made) == one | other
    assert made.count_in(filled(third)) == len((one | other) & third)
    made -= filled(third)
    assert contents(made) == (one | other) - third
    assert len(made) == len((one | other) - third)


@given(members, members, members)
def test_it_takes_what_others_have_in_common(
    one: set[int], other: set[int], third: set[int]
) -> None:
    made = filled(third)
    made.add_common(filled(one), filled(other))
    assert contents(made) == third | (one & other)
    assert len(made) == len(third | (one & other))


@given(members, st.integers(0, BLOCKS // 8), st.integers(0, BLOCKS // 8))
def test_gaps_are_whole_and_apart(blocks: set[int], low: int, high: int) -> None:
    start, end = sorted((8 * low, 8 * high))
    gaps = list(filled(blocks).gaps(start, end))
    free = [block for first, count in gaps for block in range(first, first + count)]
    assert free == [block for block in range(start, end) if block not in blocks]
    assert all(one + count < other for (one, count), (other, _) in pairwise(gaps))


def test_bits_are_put_in_as_they_are() -> None:
    made = BlockSet(BLOCKS)
    made.put(64, np.array([0b101, 0, 1 << 7], np.uint8))
    assert contents(made) == {64, 66, 87}
    assert len(made) == 3


@given(members, members, st.sampled_from([8, 100, 500]))
def test_a_set_grows_with_the_store(one: set[int], other: set[int], size: int) -> None:
    small, large = BlockSet(size), filled(other)
    for block in one:
        small.add(block)
    assert contents(small) == one
    assert small.count_in(large) == len(one & other)
    first = BlockSet(size)
    first.add_all(np.array(sorted(one)[:1], np.int64))
    first |= large
    assert contents(first) == {*sorted(one)[:1]} | other
    common = BlockSet(size)
    common.add_common(small, large)
    assert contents(common) == one & other
    large -= small
    assert contents(large) == other - one
