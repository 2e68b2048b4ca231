"""The judge of the rounds with several hosts: what it lets pass, and what it must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hosts.truth import BAD, BLOCK, Image, Snapshot, contents, value_of, values_of, wrong
from hosts.world import inside

BLOCKS = 4


@pytest.fixture
def image() -> Image:
    return Image(7, "web", [0] * BLOCKS)


def write(image: Image, block: int) -> int:
    (value,) = image.sending([block])
    image.acknowledged([block])
    return value


def allowed(image: Image, block: int) -> tuple[int, ...]:
    return image.possible()[block]


def test_a_block_says_what_it_is(image: Image) -> None:
    (value,) = image.sending([2])
    block = contents(value, 2)
    assert len(block) == BLOCK
    assert value_of(block, 2) == value
    assert value_of(bytes(BLOCK), 2) == 0
    assert values_of(bytes(2 * BLOCK) + block) == [0, 0, value]


def test_a_block_of_another_place_or_another_write_in_half_is_bad(image: Image) -> None:
    old, new = (contents(value, 1) for value in image.sending([1, 1]))
    assert value_of(old, 0) == BAD
    assert value_of(new[:512] + old[512:], 1) == BAD
    assert value_of(new[:-512] + bytes(512), 1) == BAD


def test_what_was_flushed_has_to_be_there(image: Image) -> None:
    old = write(image, 0)
    image.flushed(image.flushing())
    assert allowed(image, 0) == (old,)
    new = write(image, 0)
    assert allowed(image, 0) == (old, new)
    assert wrong([0, 0, 0, 0], image.possible())
    assert not wrong([new, 0, 0, 0], image.possible())


def test_a_flush_covers_only_what_was_answered_before_it(image: Image) -> None:
    early = write(image, 0)
    (unanswered,) = image.sending([1])
    cover = image.flushing()
    late = write(image, 0)
    image.acknowledged([1])
    image.flushed(cover)
    assert allowed(image, 0) == (early, late)
    assert allowed(image, 1) == (0, unanswered)


def test_a_flush_after_a_crash_covers_nothing_from_before(image: Image) -> None:
    lost = write(image, 0)
    image.crashed()
    kept = write(image, 1)
    image.flushed(image.flushing())
    assert allowed(image, 0) == (0, lost)
    assert allowed(image, 1) == (kept,)


def test_a_write_that_is_durable_by_itself_ends_all_doubt(image: Image) -> None:
    write(image, 0)
    cover = image.flushing()
    (value,) = image.sending([0])
    image.acknowledged([0], durable=True)
    newer = write(image, 0)
    image.flushed(cover)  # of the first one, answered late
    assert allowed(image, 0) == (value, newer)


def test_what_was_seen_stays(image: Image) -> None:
    (maybe,) = image.sending([3])
    image.settle([0, 0, 0, 0])
    assert wrong([0, 0, 0, maybe], image.possible())


def test_a_snapshot_has_what_was_answered_before_and_nothing_from_after(image: Image) -> None:
    before = write(image, 0)
    snapshot = Snapshot(image, "s")
    during = write(image, 0)
    snapshot.taken()
    after = write(image, 0)
    assert snapshot.possible()[0] == (before, during)
    assert wrong([after, 0, 0, 0], snapshot.possible())
    assert wrong([0, 0, 0, 0], snapshot.possible())
    snapshot.values = [during, 0, 0, 0]
    assert wrong([before, 0, 0, 0], snapshot.possible())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["killed", "left alone"])
def test_a_world_vanishes_with_those_who_made_it(way: str) -> None:
    code = (
        "import os, sys; from hosts.rounds import end_with_parent; from hosts.world import World;"
        "world = World(); world.host('plxa'); print('up', flush=True); end_with_parent()"
    )
    command = inside([sys.executable, "-c", code])
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # all in there have this one
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": f"{tests}:{tests.parent}"},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "up\n"
        if way == "killed":
            process.kill()
        else:
            process.stdin.close()
        assert process.stdout.read() == ""  # only comes when nobody in there has it any more
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
