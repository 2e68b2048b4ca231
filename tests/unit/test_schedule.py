"""When snapshots are due, which are kept, and intervals as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadRequest
from core.schedule import (
    MAX_KEEP,
    MIN_INTERVAL_NS,
    Retention,
    Schedule,
    check_schedule,
    interval_text,
    parse_interval,
)

MS = 1_000_000
SECOND = 1000 * MS


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10ms", 10 * MS),
        ("1500ms", 1500 * MS),
        ("1s", SECOND),
        ("5m", 300 * SECOND),
        ("1h", 3600 * SECOND),
        ("1d", 86_400 * SECOND),
        ("7D", 7 * 86_400 * SECOND),
        ("off", 0),
        ("OFF", 0),
    ],
)
def test_intervals_are_read(text: str, nanoseconds: int) -> None:
    assert parse_interval(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "10", "ms", "-1s", "1.5s", "1w", "1 s", "s1", "1ss", "\u0661s", "0x1s", "1e3s", "1s\n"],
)
def test_other_texts_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadRequest, match="is no interval") as caught:
        parse_interval(text)
    assert "10ms" in caught.value.hint


@pytest.mark.parametrize("text", ["9ms", "0s", "0d", "1ms"])
def test_intervals_that_are_too_short(text: str) -> None:
    with pytest.raises(BadRequest, match="too short"):
        parse_interval(text)


def test_the_longest_interval_that_the_hint_names_is_one() -> None:
    with pytest.raises(BadRequest, match="too long") as caught:
        parse_interval("106752d")
    longest = caught.value.hint.split()[-1]
    assert longest == "106751d"
    check_schedule(parse_interval(longest), 1)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "off"),
        (10 * MS, "10ms"),
        (1000 * MS, "1s"),
        (90 * SECOND, "90s"),
        (3600 * SECOND, "1h"),
        (48 * 3600 * SECOND, "2d"),
        (12 * MS + 500_000, "12.5ms"),
    ],
)
def test_intervals_are_printed_in_the_largest_unit(nanoseconds: int, text: str) -> None:
    assert interval_text(nanoseconds) == text


@given(st.integers(10, 10**8), st.sampled_from(["ms", "s", "m"]))
def test_what_is_printed_is_read_back(number: int, unit: str) -> None:
    nanoseconds = parse_interval(f"{number}{unit}")
    assert parse_interval(interval_text(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("every", "keep"),
    [(0, 1), (MIN_INTERVAL_NS - 1, 1), (SECOND, 0), (SECOND, MAX_KEEP + 1), (1 << 63, 1), (-1, 1)],
)
def test_schedules_that_cannot_be(every: int, keep: int) -> None:
    with pytest.raises(BadRequest):
        check_schedule(every, keep)


@pytest.mark.parametrize(("every", "keep"), [(0, 0), (MIN_INTERVAL_NS, 1), (SECOND, MAX_KEEP)])
def test_schedules_that_can_be(every: int, keep: int) -> None:
    check_schedule(every, keep)


def test_a_tick_comes_once_an_interval() -> None:
    schedule = Schedule(10, 100)
    assert [now for now in range(100, 141) if schedule.due(now)] == [110, 120, 130, 140]
    assert schedule.missed == 0


def test_missed_ticks_are_left_out_and_the_rhythm_stays() -> None:
    schedule = Schedule(10, 100)
    assert schedule.due(147)
    assert schedule.missed == 3
    assert schedule.left(147) == 3
    assert not schedule.due(149)
    assert schedule.left(155) == 0
    assert schedule.due(155)
    assert schedule.missed == 3


@given(st.integers(1, 50), st.lists(st.integers(0, 500), max_size=50))
def test_ticks_taken_and_missed_are_all_there_were(every: int, steps: list[int]) -> None:
    schedule, now, taken = Schedule(every, 0), 0, 0
    for step in steps:
        now += step
        taken += schedule.due(now)
        assert not schedule.due(now), "never two at one time"
        assert 0 < schedule.left(now) <= every
    assert taken + schedule.missed == now // every


def test_the_oldest_are_let_go() -> None:
    retention = Retention([30, 10, 20])
    retention.add(40)
    assert retention.retire(4) == (0, 0)
    assert retention.retire(3) == (1, 11)
    retention.remove(30)
    assert retention.retire(1) == (1, 21)
    assert len(retention) == 1
    assert retention.retire(0) == (1, 41)
    assert retention.retire(0) == (0, 0)
