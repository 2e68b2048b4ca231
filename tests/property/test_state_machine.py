"""Anything a user may do, in any order, against plain dictionaries of bytes.

Stores are so small that they fill up. The engine must agree with the model about the
contents of all VDIs and snapshots, and with its own check about the store, all the way.
"""

from __future__ import annotations

import struct

import pytest
from crash import bugs
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.bench import empty_store
from support.crash import CrashBench
from support.reader import Violation

from core.errors import ParallaxError
from core.format import BLOCK

K = 1024
CHECK_EVERY = 4

numbers = st.integers(0, 7)
seeds = st.integers(1, 1 << 30)
blocks = st.integers(0, 50).map(lambda block: block * BLOCK)
sectors = st.integers(0, 400).map(lambda sector: sector * 512)
far = st.sampled_from([(1 << 21) - BLOCK, (1 << 21) - 100, (3 << 20) + 5, 1 << 30, (1 << 30) - 600])
offsets = st.one_of(blocks, sectors, far, st.integers(0, 200 * K))
lengths = st.one_of(
    st.sampled_from([512, BLOCK, 2 * BLOCK, 8 * BLOCK]),
    st.integers(1, 3 * BLOCK),
    st.integers(1, 60 * BLOCK),
)
sizes = st.sampled_from(
    [0, 1, 512, 5000, 64 * K, 200 * K, 200 * K + 100, 1 << 21, (3 << 20) + 7, (1 << 30) + 5 * K]
)


class StoreMachine(RuleBasedStateMachine):
    """Drives a `Bench`; see there what each operation does."""

    extent_blocks = 64

    def __init__(self) -> None:
        super().__init__()
        self.bench = CrashBench(empty_store(self.extent_blocks))
        self.bench.watching = False
        self.steps = 0
        self.bench.create(200 * K)

    @rule(size=sizes)
    def create(self, size: int) -> None:
        self.bench.create(size)

    @rule(size=st.sampled_from([60, 120, 200]), seed=seeds)
    def create_full(self, size: int, seed: int) -> None:
        """A few of these fill the store."""
        self.bench.create(size * BLOCK)
        self.bench.write(len(self.bench.live) - 1, 0, size * BLOCK, seed)

    @rule(vdi=numbers, offset=offsets, length=lengths, seed=seeds)
    def write(self, vdi: int, offset: int, length: int, seed: int) -> None:
        self.bench.write(vdi, offset, length, seed)

    @rule(vdi=numbers, offset=blocks, count=st.integers(1, 60), seed=seeds)
    def write_blocks(self, vdi: int, offset: int, count: int, seed: int) -> None:
        self.bench.write(vdi, offset, count * BLOCK, seed)

    @rule(vdi=numbers, offset=offsets, length=lengths)
    def write_zeros(self, vdi: int, offset: int, length: int) -> None:
        self.bench.write(vdi, offset, length, 0)

    @rule(vdi=numbers, offset=offsets, length=lengths)
    def trim(self, vdi: int, offset: int, length: int) -> None:
        self.bench.trim(vdi, offset, length)

    @rule(vdi=numbers)
    def trim_all(self, vdi: int) -> None:
        self.bench.trim(vdi, 0, 1 << 40)

    @rule(vdi=numbers, offset=offsets, length=lengths)
    def allocate_zeros(self, vdi: int, offset: int, length: int) -> None:
        self.bench.allocate_zeros(vdi, offset, length)

    @rule(vdis=st.lists(numbers, min_size=1, max_size=4))
    def flush(self, vdis: list[int]) -> None:
        self.bench.flush(*vdis)

    @rule(vdis=st.lists(numbers, min_size=1, max_size=4))
    def begin_commit(self, vdis: list[int]) -> None:
        self.bench.begin(*vdis)

    @rule(vdi=numbers, offset=offsets, length=lengths, seed=seeds)
    def write_during_commit(self, vdi: int, offset: int, length: int, seed: int) -> None:
        self.bench.commit_beside("write", vdi, offset, length, seed)

    @rule(vdi=numbers)
    def snapshot_during_commit(self, vdi: int) -> None:
        self.bench.commit_beside("snapshot", vdi)

    @rule(room=st.integers(0, 12), vdi=numbers)
    def flush_without_room(self, room: int, vdi: int) -> None:
        self.bench.without_room(room, "flush", vdi)

    @rule(room=st.integers(0, 12), vdi=numbers, offset=offsets, length=lengths, seed=seeds)
    def write_without_room(self, room: int, vdi: int, offset: int, length: int, seed: int) -> None:
        self.bench.without_room(room, "write", vdi, offset, length, seed)

    @rule(vdi=numbers, now=st.booleans())
    def snapshot(self, vdi: int, now: bool) -> None:
        (self.bench.snapshot_now if now else self.bench.snapshot)(vdi)

    @rule(vdi=numbers, keep=st.integers(1, 5), count=st.sampled_from([1, 2, 3, 30]))
    def scheduled_snapshots(self, vdi: int, keep: int, count: int) -> None:
        self.bench.ticks(vdi, keep, count)

    @precondition(lambda self: self.bench.snapshots())
    @rule(snapshot=numbers)
    def clone(self, snapshot: int) -> None:
        self.bench.clone(snapshot)

    @precondition(lambda self: self.bench.snapshots())
    @rule(snapshot=numbers)
    def delete_snapshot(self, snapshot: int) -> None:
        self.bench.delete_snapshot(snapshot)

    @precondition(lambda self: self.bench.snapshots())
    @rule(snapshot=numbers)
    def rollback(self, snapshot: int) -> None:
        self.bench.rollback(snapshot)

    @rule(vdi=numbers)
    def rename(self, vdi: int) -> None:
        self.bench.rename(vdi)

    @rule(vdi=numbers, size=sizes, now=st.booleans())
    def resize(self, vdi: int, size: int, now: bool) -> None:
        (self.bench.resize_now if now else self.bench.resize)(vdi, size)

    @precondition(lambda self: len(self.bench.live) > 1)
    @rule(vdi=numbers)
    def delete(self, vdi: int) -> None:
        self.bench.delete(vdi)

    @precondition(lambda self: self.bench.restorable)
    @rule(vdi=numbers)
    def restore(self, vdi: int) -> None:
        self.bench.restore(vdi)

    @rule()
    def collect(self) -> None:
        self.bench.collect()

    @rule()
    def reopen(self) -> None:
        self.bench.reopen()
        self.bench.check()

    @rule(seed=seeds)
    def crash(self, seed: int) -> None:
        self.bench.crash(seed)
        self.bench.check()

    @invariant()
    def agrees(self) -> None:
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            self.bench.check()

    def teardown(self) -> None:
        try:
            self.bench.flush_all()
            assert self.bench.session.store.allocator._reserved == 0, "blocks stay reserved"
            self.bench.reopen()
            self.bench.check()
            self.bench.close()
        finally:
            self.bench.abandon()


class WideMachine(StoreMachine):
    """Extents so wide that their bitmaps have three parts."""

    extent_blocks = 1 << 16


@pytest.mark.slow
@pytest.mark.timeout(0)  # the long profile takes hours
class TestStore(StoreMachine.TestCase):  # type: ignore[misc]
    """The machine, as often and as long as the profile of the run says."""


class TestStoreQuickly(StoreMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=25, stateful_step_count=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes on a busy machine
class TestWideStore(WideMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=20, stateful_step_count=30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        bugs.snapshot_overwritten_in_place,
        bugs.clone_overwrites_its_origin,
        bugs.partial_write_forgets_the_rest,
        bugs.rollback_frees_the_snapshot,
        bugs.block_reused_before_commit,
        bugs.second_flush_left_out,
    ],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_is_noticed(bug: bugs.Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, Violation, ParallaxError, struct.error)):
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=300,
                stateful_step_count=40,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
            ),
        )
