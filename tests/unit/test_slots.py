"""Two slots of one thing: which counts when one is where the other belongs."""

from __future__ import annotations

import pytest

from core.format import (
    BLOCK,
    EXTENT_SLOT,
    ZERO_BLOCK,
    Condition,
    ExtentHeader,
)
from core.slots import Pair, twin_of

STORE = bytes(range(16))


def header(sequence: int) -> bytes:
    return ExtentHeader(7, sequence).pack(STORE, True)


def pair(*slots: bytes) -> Pair[ExtentHeader]:
    def unpack(block: bytes) -> ExtentHeader | None:
        return ExtentHeader.unpack(block, STORE, 7)

    return Pair.read(EXTENT_SLOT, b"".join(slots), unpack)


def sequence(found: Pair[ExtentHeader]) -> int:
    assert found.current is not None
    return found.current.sequence


def test_the_newer_one_counts() -> None:
    found = pair(header(4), header(5))
    assert (found.slot, sequence(found)) == (1, 5)
    assert found.are_twins
    assert not found.doubtful
    assert not found.has_gap


def test_a_newer_one_that_went_to_the_wrong_slot_counts_all_the_same() -> None:
    found = pair(header(5), header(3))  # it should have replaced the one that is there still
    assert (found.slot, sequence(found)) == (0, 5)
    assert found.conditions == (Condition.DAMAGED, Condition.VALID)
    assert not found.doubtful
    assert not found.are_twins
    assert found.has_gap
    [first, second] = found.twins()
    assert (first.sequence, second.sequence) == (7, 8), "the copy that is right goes last"
    assert twin_of(first) == second


@pytest.mark.parametrize(
    ("slots", "counts"),
    [
        ((header(4), header(4)), 4),  # of the newer one nothing is left, perhaps
        ((header(3), header(5)), 5),  # a newer one may have been there
        ((header(5), header(4)), 5),
        ((header(5), b"\x01" * BLOCK), 5),
        ((header(5), ZERO_BLOCK), 5),
    ],
)
def test_it_is_not_known_whether_a_newer_one_was_lost(
    slots: tuple[bytes, bytes], counts: int
) -> None:
    found = pair(*slots)
    assert sequence(found) == counts
    assert found.doubtful
    assert not found.are_twins


def test_of_two_that_say_the_same_the_one_at_home_counts() -> None:
    assert pair(header(4), header(4)).slot == 0
    assert pair(header(5), header(5)).slot == 1
