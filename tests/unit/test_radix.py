"""The radix map against a dictionary, its accounting to the block, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.forge import own_pointer
from support.memory import MemoryDevice
from support.stores import memory_store

from core.blockstore import Blockstore
from core.device import Buffer
from core.entries import blocks_of
from core.errors import Corrupt, IoFailed, NoSpace, WouldBlock
from core.format import BLOCK, FANOUT, WRITABLE, entry_block, node_check, pack_entry
from core.radix import PENDING, RadixMap, Run

Model = dict[int, int]
"""Virtual block to block."""


def put(radix: RadixMap, store: Blockstore, first: int, count: int = 1) -> Model:
    """Map virtual blocks to new blocks; return what the map should say now."""
    radix.prepare(first, count)
    got: Model = {}
    for start, length in store.allocator.take(count):
        radix.update(first, start, length)
        got.update(zip(range(first, first + length), range(start, start + length), strict=True))
        first += length
    return got


def settle(radix: RadixMap, store: Blockstore) -> None:
    """What a commit does for a map."""
    radix.freeze()
    store.write_queued()
    store.allocator.settled()
    store.allocator.release(radix.freed)
    radix.freed.clear()


def contents(radix: RadixMap) -> Model:
    """What a map says, from a walk."""
    got: Model = {}
    for visit in radix.walk():
        if visit.level == 0:
            slots = np.flatnonzero(visit.entries)
            blocks = blocks_of(visit.entries[slots])
            got.update(zip((slots + visit.base).tolist(), blocks.tolist(), strict=True))
    return got


def reachable(radix: RadixMap) -> set[int]:
    """Blocks of data and nodes of a committed map."""
    nodes = {entry_block(visit.entry) for visit in radix.walk()}
    return nodes | set(contents(radix).values())


def node_count(radix: RadixMap) -> int:
    return sum(1 for _ in radix.walk())


CORNERS = (0, 500, 1022, FANOUT * 511, FANOUT**2 - 3, FANOUT**3 - 300, FANOUT**4 - 700)


class RadixModel(RuleBasedStateMachine):
    """Random changes to a map beside a dictionary, with snapshots that must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.store = memory_store(1024)
        total = 5 * (1024 - self.store.sb.overhead)
        self.store.allocator.reserve(total, urgent=True)  # claims every extent
        self.store.allocator.unreserve(total)
        self.total = total
        self.map = RadixMap(self.store, 0, 1)
        self.model: Model = {}
        self.owned: set[int] = set()
        self.freed: list[int] = []
        self.snapshots: list[tuple[RadixMap, Model]] = []

    def place(self, data: st.DataObject) -> int:
        corner = data.draw(st.sampled_from([c for c in CORNERS if c < self.map.capacity]))
        return min(corner + data.draw(st.integers(0, 40)), self.map.capacity - 1)

    def forget(self, vblock: int) -> None:
        if vblock in self.owned:
            self.freed.append(self.model[vblock])

    @rule(data=st.data(), count=st.sampled_from([1, 1, 1, 2, 7, 40, 600]))
    def update(self, data: st.DataObject, count: int) -> None:
        first = self.place(data)
        count = min(count, self.map.capacity - first)
        try:
            new = put(self.map, self.store, first, count)
        except NoSpace:
            return
        for vblock in new:
            self.forget(vblock)
        self.model |= new
        self.owned |= set(new)

    @rule(data=st.data(), length=st.sampled_from([1, 2, 9, 513, 2000, FANOUT**3, FANOUT**4]))
    def trim(self, data: st.DataObject, length: int) -> None:
        first = 0 if length == FANOUT**4 else self.place(data)
        end = first + length
        self.map.trim(first, end)
        for vblock in [v for v in self.model if first <= v < end]:
            self.forget(vblock)
            self.owned.discard(vblock)
            del self.model[vblock]

    @precondition(lambda self: self.map.height < 4)
    @rule()
    def raise_to(self) -> None:
        self.map.raise_to(self.map.height + 1)

    @rule()
    def commit(self) -> None:
        self.map.freeze()
        assert self.map.dirty == 0
        assert len(set(self.map.freed)) == len(self.map.freed)
        assert set(self.freed) <= set(self.map.freed)
        assert set(self.map.freed).isdisjoint(self.model.values())
        settle(self.map, self.store)
        self.freed.clear()
        self.check_accounts()

    def check_accounts(self) -> None:
        """Every block is free or reached; `own` counts exactly what is owned."""
        used = reachable(self.map).union(*(reachable(s) for s, _ in self.snapshots))
        used.discard(0)
        assert self.total - self.store.allocator.free == len(used)
        own = 0
        for visit in self.map.walk():
            own += visit.owned
            if visit.owned and visit.level == 0:
                own += int(np.count_nonzero(visit.entries & WRITABLE))
        assert self.map.own == own

    @rule()
    def snapshot(self) -> None:
        self.commit()
        frozen = RadixMap(self.store, self.map.root & ~WRITABLE, self.map.height, self.map.mapped)
        self.snapshots.append((frozen, dict(self.model)))
        self.map.disown()
        self.owned.clear()

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        snapshot, model = data.draw(st.sampled_from(self.snapshots))
        for vblock in self.owned:
            self.forget(vblock)
        self.map.clear()
        self.map.replace(snapshot.root, snapshot.height, snapshot.mapped)
        self.model, self.owned = dict(model), set()
        assert self.map.own == 0

    @rule()
    def reopen(self) -> None:
        self.commit()
        now = self.map
        self.store.nodes.__init__()  # type: ignore[misc]
        self.map = RadixMap(self.store, now.root, now.height, now.mapped, now.own)

    @rule(data=st.data(), length=st.sampled_from([1, 5, 600, 1200]))
    def look(self, data: st.DataObject, length: int) -> None:
        first = max(0, self.place(data) - 30)
        length = min(length, self.map.capacity - first)
        runs = self.map.lookup_range(first, length)
        position = first
        for run in runs:
            assert run.first == position
            assert run.length > 0
            for vblock in range(position, position + run.length):
                entry = self.map.lookup(vblock)
                assert entry_block(entry) == self.model.get(vblock, 0)
                assert bool(entry & WRITABLE) == (vblock in self.owned)
                assert (run.block + vblock - position if run.block else 0) == entry_block(entry)
                assert run.owned == (vblock in self.owned)
            position += run.length
        assert position == first + length
        for one, two in pairwise(runs):  # runs are as long as can be
            joined = (one.block + one.length, one.owned) == (two.block, two.owned)
            assert one.block or two.block
            assert not (joined and one.block)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        snapshot, model = data.draw(st.sampled_from(self.snapshots))
        keys = self.model.keys() | model.keys()
        differ = sorted(v for v in keys if self.model.get(v, 0) != model.get(v, 0))
        for one, two in ((self.map, snapshot), (snapshot, self.map)):
            ranges = list(one.diff(two))
            assert [v for first, n in ranges for v in range(first, first + n)] == differ
            ends = [first + n for first, n in ranges]
            assert all(end < first for end, (first, _) in zip(ends, ranges[1:], strict=False))

    @invariant()
    def it_maps_what_it_should(self) -> None:
        assert self.map.mapped == len(self.model)

    def teardown(self) -> None:
        assert contents(self.map) == self.model
        for snapshot, model in self.snapshots:
            assert contents(snapshot) == model
        self.store.close()


TestRadixModel = RadixModel.TestCase


# -- single facts ----------------------------------------------------------------------


@pytest.fixture
def store() -> Blockstore:
    return memory_store(1024)


def test_an_empty_map_is_one_hole(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 4)
    assert radix.lookup(123_456_789) == 0
    assert radix.lookup_range(5, 1 << 35) == [Run(5, 1 << 35, 0, False)]
    assert list(radix.walk()) == []
    assert list(radix.diff(RadixMap(store, 0, 1))) == []
    radix.trim(0, radix.capacity)
    radix.freeze()
    assert (radix.root, radix.mapped, radix.own, radix.freed) == (0, 0, 0, [])


def test_runs_walk_no_further_than_is_asked_for(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 4)
    for leaf in (0, 1, 5, 1000):
        put(radix, store, leaf * FANOUT)
    count = FANOUT * 2000
    runs = radix.lookup_range(0, count)
    assert sum(run.length for run in runs) == count
    tail = Run(1000 * FANOUT + 1, FANOUT - 1, 0, False)
    assert list(radix.runs(0, count, leaves=4)) == [*runs[:-1], tail]
    assert sum(run.length for run in radix.runs(3, count, leaves=2)) == 2 * FANOUT - 3
    first = next(radix.runs(0, count))
    assert (first.first, first.length, bool(first.block)) == (0, 1, True)


def test_256_tib_are_mapped_by_four_nodes_a_path(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 4)
    model: Model = {}
    for vblock in (0, FANOUT**3 * 77, FANOUT**4 - 1):
        model |= put(radix, store, vblock)
    assert node_count(radix) == 1 + 3 * 3
    settle(radix, store)
    assert contents(radix) == model
    assert radix.own == 3 + 10
    runs = radix.lookup_range(0, FANOUT**4)
    assert [(run.first, run.length, run.block) for run in runs if run.block] == [
        (vblock, 1, block) for vblock, block in model.items()
    ]


def test_a_change_copies_only_its_path(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 3)
    for vblock in range(0, FANOUT**2, FANOUT * 8):
        put(radix, store, vblock)
    settle(radix, store)
    before = {visit.entry for visit in radix.walk()}
    put(radix, store, FANOUT * 16)
    assert radix.dirty == 3
    radix.freeze()
    assert len({visit.entry for visit in radix.walk()} - before) == 3


def test_a_node_that_became_empty_is_dropped(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 2)
    put(radix, store, 0, 2)
    put(radix, store, 600)
    settle(radix, store)
    radix.trim(600, 601)
    radix.freeze()
    assert node_count(radix) == 2
    radix.trim(0, 1)
    radix.trim(1, 2)
    settle(radix, store)
    assert (radix.root, radix.mapped, radix.own) == (0, 0, 0)


class CountingDevice(MemoryDevice):
    """Counts the blocks that are read, and can pretend that none is in memory."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.reads = 0
        self.cold = False

    def preadv(self, offset: int, buffers: Sequence[Buffer], wait: bool = True) -> None:
        if self.cold and not wait:
            raise WouldBlock((offset, sum(map(len, buffers))))
        self.reads += 1
        super().preadv(offset, buffers)


@pytest.fixture
def counted() -> tuple[Blockstore, CountingDevice]:
    device = CountingDevice(1024 * 6 * BLOCK)
    store = memory_store(1024, device=device)
    device.reads = 0
    return store, device


def forget_nodes(store: Blockstore) -> None:
    store.nodes = type(store.nodes)()


def test_trimming_a_huge_range_touches_few_nodes(
    counted: tuple[Blockstore, CountingDevice],
) -> None:
    store, device = counted
    radix = RadixMap(store, 0, 4)
    for vblock in (5, FANOUT**3, FANOUT**4 - 1):
        put(radix, store, vblock)
    settle(radix, store)
    forget_nodes(store)
    radix = RadixMap(store, radix.root, 4, radix.mapped, radix.own)
    radix.trim(6, FANOUT**4 - 1)
    assert radix.mapped == 2
    assert device.reads <= 10
    assert radix.dirty <= 7
    settle(radix, store)
    assert set(contents(radix)) == {5, FANOUT**4 - 1}


def test_a_difference_is_found_without_reading_what_is_shared(
    counted: tuple[Blockstore, CountingDevice],
) -> None:
    store, device = counted
    radix = RadixMap(store, 0, 3)
    for vblock in range(0, FANOUT**2, FANOUT * 4):
        put(radix, store, vblock)
    settle(radix, store)
    old = radix.root & ~WRITABLE
    radix.disown()
    put(radix, store, FANOUT * 100, 3)
    settle(radix, store)
    forget_nodes(store)
    device.reads = 0
    new = RadixMap(store, radix.root, 3)
    assert list(new.diff(RadixMap(store, old, 3))) == [(FANOUT * 100, 3)]
    assert device.reads == 6


def test_maps_of_different_heights_are_compared(store: Blockstore) -> None:
    low, high = RadixMap(store, 0, 1), RadixMap(store, 0, 4)
    put(low, store, 3, 2)
    settle(low, store)
    put(high, store, FANOUT**3 + 9)
    settle(high, store)
    for one, two in ((low, high), (high, low)):
        assert list(one.diff(two)) == [(3, 2), (FANOUT**3 + 9, 1)]
    raised = RadixMap(store, low.root, 1, low.mapped)
    raised.raise_to(4)
    settle(raised, store)
    assert raised.height == 4
    assert list(raised.diff(low)) == list(low.diff(raised)) == []
    assert contents(raised) == contents(low)


def test_a_shared_tree_loses_its_flags_node_by_node(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 2)
    put(radix, store, 0, 3)
    put(radix, store, 600)
    settle(radix, store)
    assert radix.lookup(0) & WRITABLE
    radix.disown()
    assert not radix.lookup(0) & WRITABLE
    assert radix.own == 0
    put(radix, store, 1)
    settle(radix, store)
    assert [bool(radix.lookup(v) & WRITABLE) for v in (0, 1, 2, 600)] == [0, 1, 0, 0]
    assert radix.own == 3  # root, leaf, block


def test_reservations_are_exactly_the_dirty_nodes(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 4)
    put(radix, store, 0)
    put(radix, store, 1)
    put(radix, store, FANOUT)
    free = store.allocator.free
    assert radix.dirty == 5
    radix.freeze()
    assert free - store.allocator.free == 5
    put(radix, store, 5)
    radix.abandon()
    total = store.allocator.free
    store.allocator.reserve(total, urgent=True)
    store.allocator.unreserve(total)


def test_no_room_for_nodes_changes_nothing(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 3)
    put(radix, store, 0)
    settle(radix, store)
    hog = store.allocator
    while True:
        try:
            hog.take(1)
        except NoSpace:
            break
    with pytest.raises(NoSpace):
        radix.prepare(FANOUT**2, 1)
    with pytest.raises(NoSpace):
        radix.raise_to(4)
    assert (radix.dirty, radix.height, radix.mapped) == (0, 3, 1)
    radix.trim(0, 1)  # what frees space may use what is kept back
    settle(radix, store)
    assert radix.root == 0


# -- walks -----------------------------------------------------------------------------


def grown_map(store: Blockstore) -> RadixMap:
    radix = RadixMap(store, 0, 3)
    for vblock in (1, FANOUT, 2 * FANOUT, FANOUT**2):
        put(radix, store, vblock)
    settle(radix, store)
    return radix


def test_a_walk_goes_from_parents_to_children(store: Blockstore) -> None:
    radix = grown_map(store)
    visits = [(visit.level, visit.base) for visit in radix.walk()]
    assert visits == [
        (2, 0), (1, 0), (0, 0), (0, FANOUT), (0, 2 * FANOUT), (1, FANOUT**2), (0, FANOUT**2)
    ]  # fmt: skip
    assert all(visit.owned for visit in radix.walk())


def test_a_walk_of_a_range_stays_there(store: Blockstore) -> None:
    radix = grown_map(store)
    visits = [(v.level, v.base) for v in radix.walk(FANOUT, 2 * FANOUT)]
    assert visits == [(2, 0), (1, 0), (0, FANOUT)]
    assert [v.base for v in radix.walk(2 * FANOUT) if not v.level] == [2 * FANOUT, FANOUT**2]


def test_a_walk_can_leave_out_what_it_knows(store: Blockstore) -> None:
    radix = grown_map(store)
    asked: list[tuple[int, int, int]] = []

    def enter(level: int, base: int, entry: int) -> bool:
        asked.append((level, base, entry))
        return level > 0

    assert [v.level for v in radix.walk(enter=enter)] == [2, 1, 1]
    assert [(level, base) for level, base, _ in asked] == [
        (2, 0), (1, 0), (0, 0), (0, FANOUT), (0, 2 * FANOUT), (1, FANOUT**2), (0, FANOUT**2)
    ]  # fmt: skip
    assert asked[0][2] == radix.root


def test_damage_is_told_or_raised(store: Blockstore) -> None:
    radix = grown_map(store)
    visits = list(radix.walk())
    bad = entry_block(visits[1].entry)
    store.device.pwritev(bad * BLOCK, [b"\xff" * BLOCK])
    forget_nodes(store)
    radix = RadixMap(store, radix.root, 3)
    with pytest.raises(Corrupt, match=f"block {bad}: is not what the pointer"):
        list(radix.walk())
    for access in (lambda: radix.lookup(1), lambda: radix.lookup_range(0, 10)):
        with pytest.raises(Corrupt):
            access()
    told: list[tuple[int, int, IoFailed]] = []
    rest = list(radix.walk(damaged=lambda *what: told.append(what)))
    assert [(v.level, v.base) for v in rest] == [(2, 0), (1, FANOUT**2), (0, FANOUT**2)]
    [(level, base, error)] = told
    assert (level, base) == (1, 0)
    assert isinstance(error, Corrupt)
    assert error.block == bad
    assert radix.lookup(FANOUT**2)


def test_not_waiting_raises_until_the_nodes_are_there(
    counted: tuple[Blockstore, CountingDevice],
) -> None:
    store, device = counted
    radix = RadixMap(store, 0, 2)
    put(radix, store, 700)
    settle(radix, store)
    forget_nodes(store)
    radix = RadixMap(store, radix.root, 2)
    device.cold = True
    with pytest.raises(WouldBlock) as caught:
        radix.lookup(700, wait=False)
    assert caught.value.ranges == ((entry_block(radix.root) * BLOCK, BLOCK),)
    with pytest.raises(WouldBlock):
        radix.lookup_range(700, 1, wait=False)
    assert radix.lookup(700)
    assert radix.lookup(700, wait=False)
    assert radix.lookup_range(700, 1, wait=False)


# -- the node cache --------------------------------------------------------------------


def test_a_thousand_clones_hold_one_copy_of_their_nodes(
    counted: tuple[Blockstore, CountingDevice],
) -> None:
    store, device = counted
    image = grown_map(store)
    forget_nodes(store)
    device.reads = 0
    clones = [RadixMap(store, image.root & ~WRITABLE, 3, image.mapped) for _ in range(1000)]
    for clone in clones:
        assert clone.lookup(1)
        assert clone.lookup(FANOUT**2)
    assert device.reads == 5
    assert len(store.nodes.young) == 5


def test_the_cache_stays_within_its_bound() -> None:
    store = memory_store(1024)
    store.nodes = type(store.nodes)(64 * 4608)
    radix = RadixMap(store, 0, 3)
    for leaf in range(300):
        put(radix, store, leaf * FANOUT)
    settle(radix, store)
    assert contents(RadixMap(store, radix.root, 3)).keys() == {n * FANOUT for n in range(300)}
    assert len(store.nodes.young) <= 32


def test_dirty_nodes_have_numbers_no_block_has(store: Blockstore) -> None:
    radix = RadixMap(store, 0, 1)
    put(radix, store, 0)
    assert radix.root >= PENDING
    assert not store.sb.holds_payload(entry_block(radix.root))
    radix.freeze()
    assert radix.root < PENDING
    assert store.sb.holds_payload(entry_block(radix.root))


# -- forged trees --------------------------------------------------------------------------


def forge(store: Blockstore, block: int, entries: Sequence[int]) -> int:
    """Write a node; return a pointer to it that is right."""
    data = np.zeros(FANOUT, np.uint64)
    data[: len(entries)] = entries
    store.write(block, [data.tobytes()])
    return pack_entry(block, node_check(data.tobytes()), True)


def four_nodes(store: Blockstore) -> int:
    """Forge a tree of four nodes that maps one block 2 ** 36 times; return its root."""
    entry = pack_entry(2000, 0, True)
    for block in (2001, 2002, 2003, 2004):
        entry = forge(store, block, [entry] * FANOUT)
    return entry


def test_a_walk_meets_each_node_once(counted: tuple[Blockstore, CountingDevice]) -> None:
    store, device = counted
    tree = RadixMap(store, four_nodes(store), 4)
    device.reads = 0
    with pytest.raises(Corrupt, match="block 2001: is a node in two places of one tree"):
        list(tree.walk())
    with pytest.raises(Corrupt, match="block 2001: is a node in two places"):
        list(tree.diff(RadixMap(store, 0, 1)))
    with pytest.raises(Corrupt, match="block 2001: is a node in two places"):
        list(RadixMap(store, 0, 1).diff(tree))
    with pytest.raises(Corrupt, match="block 2001: is a node in two places"):
        tree.lookup_range(0, 2 * FANOUT)
    told: list[tuple[int, int]] = []
    visits = [visit.level for visit in tree.walk(damaged=lambda *at: told.append(at[:2]))]
    assert visits == [3, 2, 1, 0]
    assert sorted(told) == sorted(
        (level, slot << 9 * (level + 1)) for level in (0, 1, 2) for slot in range(1, FANOUT)
    )
    assert device.reads == 4


def test_a_node_may_lead_to_itself(store: Blockstore) -> None:
    """Its check is its own: 23 bits of a linear checksum can be solved for."""
    pointer = own_pointer(2001)
    data = np.array([pointer] * FANOUT, np.uint64).tobytes()
    store.write(2001, [data])
    assert pack_entry(2001, node_check(data), True) == pointer
    tree = RadixMap(store, pointer, 4)
    with pytest.raises(Corrupt, match="block 2001: is a node in two places"):
        list(tree.walk())
    with pytest.raises(Corrupt, match="block 2001: its entry 0 cannot be a pointer"):
        tree.lookup(0)


def test_what_is_cut_off_is_met_once(counted: tuple[Blockstore, CountingDevice]) -> None:
    store, device = counted
    tree = RadixMap(store, four_nodes(store), 4, mapped=1 << 36, own=5)
    device.reads = 0
    tree.clear()
    assert device.reads == 4  # and not 2 ** 27
    assert sorted(set(tree.freed)) == [2000, 2001, 2002, 2003, 2004]


@pytest.mark.parametrize("height", [0, 5, 255])
def test_no_tree_has_so_many_levels(store: Blockstore, height: int) -> None:
    with pytest.raises(Corrupt, match=f"block 0: cannot be the root of a tree of {height} levels"):
        RadixMap(store, 0, height)


@pytest.mark.parametrize("root", [WRITABLE, pack_entry(4, 1, True), PENDING, PENDING | WRITABLE])
def test_a_root_is_where_nodes_can_be(store: Blockstore, root: int) -> None:
    block = entry_block(root)
    with pytest.raises(Corrupt, match=f"block {block}: cannot be the root"):
        RadixMap(store, root, 2)
    live = RadixMap(store, 0, 1)
    with pytest.raises(Corrupt, match=f"block {block}: cannot be the root"):
        live.replace(root, 2, 0)
    assert (live.root, live.height) == (0, 1)


def test_a_pending_number_on_disk_is_no_dirty_node(store: Blockstore) -> None:
    """What a commit would have looked for among the dirty nodes is refused when it is read."""
    root = forge(store, 2001, [PENDING | WRITABLE, PENDING + 2 * 5])
    live = RadixMap(store, root, 2)
    with pytest.raises(Corrupt, match="block 2001: its entry 0 cannot be a pointer"):
        live.prepare(2 * FANOUT, 1)
    live.freeze()
    assert live.root == root
