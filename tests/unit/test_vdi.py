"""Bytes in, bytes out: VDIs against a bytearray, zeros that take no space, full stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.memory import MemoryDevice
from support.stores import memory_store, noise

from core.batch import WriteBatch
from core.blockstore import Blockstore
from core.device import Buffer
from core.entries import blocks_of
from core.errors import BadRequest, Corrupt, Fenced, IoFailed, NoSpace, ParallaxError
from core.format import BLOCK, MAX_VDI_SIZE, WRITABLE, VdiRecord, height_for
from core.image import Extent, Image
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.registry import Registry
from core.session import Session
from core.snaplog import Snapshot, find
from core.vdi import Vdi, prepare_commit


def new_vdi(
    size: int, store: Blockstore | None = None, make_room: Callable[[], bool] = lambda: False
) -> Vdi:
    """A VDI of a store of its own, or one more of a store, as a creation leaves it."""
    store = store or memory_store(256)
    registry = Registry(store)
    number = next(registry.free_ids())
    record = VdiRecord(
        number, bytes([number]) * 16, f"d{number}", size=size, height=height_for(size)
    )
    registry.write(record)
    return Vdi(store, record, LockMaster().acquire(f"vdi/{number}"), make_room)


def commit(*vdis: Vdi) -> None:
    prepare_commit(vdis[0].store, vdis).run()


def reopened(vdi: Vdi) -> Image:
    """What is on disk."""
    record = Registry(vdi.store).get(vdi.id)
    assert record
    vdi.store.nodes.__init__()  # type: ignore[misc]
    return Image(vdi.store, record.root, record.height, record.size)


class VdiModel(RuleBasedStateMachine):
    """Byte-granular work on a VDI of odd size beside a bytearray."""

    def __init__(self) -> None:
        super().__init__()
        self.vdi = new_vdi(300_001)
        self.model = bytearray(300_001)
        self.snapshots: list[tuple[Snapshot, bytes]] = []

    def span(self, data: st.DataObject) -> tuple[int, int]:
        corner = data.draw(st.sampled_from([0, BLOCK, 5 * BLOCK, len(self.model)]))
        start = max(0, corner + data.draw(st.sampled_from([-BLOCK, -513, -1, 0, 1, 700])))
        start = min(start, len(self.model))
        length = data.draw(st.sampled_from([0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 5]))
        return start, min(length, len(self.model) - start)

    def bytes_for(self, data: st.DataObject, length: int) -> bytes:
        kind = data.draw(st.sampled_from(["noise", "zeros", "mixed"]))
        if kind == "zeros":
            return bytes(length)
        filled = noise(length, data.draw(st.integers(0, 9)))
        return filled if kind == "noise" else (filled[: length // 2] + bytes(length))[:length]

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        start, length = self.span(data)
        what = self.bytes_for(data, length)
        self.vdi.write(start, what)
        self.model[start : start + length] = what

    @rule(data=st.data(), count=st.integers(2, 5))
    def write_many(self, data: st.DataObject, count: int) -> None:
        requests = []
        for _ in range(count):
            start, length = self.span(data)
            requests.append((start, self.bytes_for(data, length)))
        errors = self.vdi.write_many([(at, memoryview(what)) for at, what in requests])
        assert errors == [None] * count
        for start, what in requests:
            self.model[start : start + len(what)] = what

    @rule(data=st.data(), keep=st.booleans())
    def zero(self, data: st.DataObject, keep: bool) -> None:
        start, length = self.span(data)
        (self.vdi.allocate_zeros if keep else self.vdi.trim)(start, length)
        self.model[start : start + length] = bytes(length)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        start, length = self.span(data)
        assert self.vdi.read(start, length) == self.model[start : start + length]

    @rule(size=st.sampled_from([0, 1, 4095, 100_000, 300_001, 3 << 20]))
    def resize(self, size: int) -> None:
        self.vdi.resize(size)
        self.model = self.model[:size].ljust(size, b"\0")

    @rule()
    def commit(self) -> None:
        commit(self.vdi)
        assert not self.vdi.changed
        assert reopened(self.vdi).read(0, len(self.model)) == self.model

    @precondition(lambda self: len(self.snapshots) < 6)
    @rule(label=st.sampled_from(["", "a"]))
    def snapshot(self, label: str) -> None:
        where = self.vdi.snapshot(label)
        commit(self.vdi)
        snapshot = find(self.vdi.store, self.vdi.record, where)
        assert snapshot
        assert (snapshot.label, snapshot.size) == (label, len(self.model))
        self.snapshots.append((snapshot, bytes(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        snapshot, contents = data.draw(st.sampled_from(self.snapshots))
        self.vdi.rollback(snapshot)
        self.model = bytearray(contents)

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        assert self.vdi.size == len(self.model)
        assert self.vdi.read(0, self.vdi.size) == self.model

    @invariant()
    def extents_cover_it_and_tell_zeros(self) -> None:
        position = 0
        for extent in self.vdi.extents(0, self.vdi.size):
            assert extent.offset == position
            position += extent.length
            if not extent.data:
                assert self.model.count(0, extent.offset, position) == extent.length
        assert position == self.vdi.size

    def teardown(self) -> None:
        for snapshot, contents in self.snapshots:
            image = Image(self.vdi.store, snapshot.root, snapshot.height, snapshot.size)
            assert image.read(0, image.size) == contents


TestVdiModel = VdiModel.TestCase


# -- zeros take no space ---------------------------------------------------------------


def test_zeros_are_not_stored() -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, bytes(1 << 20))
    vdi.write(5, bytes(100))
    assert (vdi.map.mapped, vdi.map.dirty, vdi.changed) == (0, 0, False)
    vdi.write(0, noise(4 * BLOCK))
    assert vdi.map.mapped == 4
    vdi.write(BLOCK, bytes(2 * BLOCK))
    assert vdi.map.mapped == 2
    vdi.write(0, noise(BLOCK) + bytes(BLOCK) + noise(BLOCK))
    assert vdi.map.mapped == 3
    vdi.write(7, bytes(BLOCK - 7))
    vdi.write(0, bytes(7))  # the block becomes zeros by parts
    assert vdi.map.mapped == 2


def test_zeros_can_be_made_to_take_space() -> None:
    vdi = new_vdi(1 << 20)
    vdi.allocate_zeros(100, 3 * BLOCK)
    assert vdi.map.mapped == 4
    assert vdi.read(0, 1 << 20) == bytes(1 << 20)
    assert list(vdi.extents(0, 1 << 20)) == [
        Extent(0, 4 * BLOCK, True),
        Extent(4 * BLOCK, (1 << 20) - 4 * BLOCK, False),
    ]


def test_trimming_whole_blocks_frees_them_after_the_commit() -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(10 * BLOCK))
    commit(vdi)
    free = vdi.store.allocator.free
    vdi.trim(100, 9 * BLOCK)
    assert vdi.map.mapped == 2
    commit(vdi)
    assert vdi.store.allocator.free <= free
    vdi.repeat()
    commit(vdi)
    assert vdi.store.allocator.free == free + 8
    assert vdi.read(0, 100) == noise(10 * BLOCK)[:100]


# -- writing in place or not -----------------------------------------------------------


def placed(vdi: Vdi, vblock: int) -> int:
    return vdi.map.lookup(vblock) >> 1


def test_what_a_vdi_owns_is_overwritten_in_place() -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK, 1))
    commit(vdi)
    block = placed(vdi, 0)
    vdi.write(0, noise(BLOCK, 2))
    assert placed(vdi, 0) == block
    assert not vdi.changed
    assert vdi.written
    vdi.snapshot()
    vdi.write(1, b"x")
    assert placed(vdi, 0) != block
    commit(vdi)
    assert not vdi.written


def test_a_snapshot_keeps_what_was_written_before_it_and_nothing_after() -> None:
    vdi = new_vdi(10 * BLOCK)
    vdi.write(0, b"before")
    where = vdi.snapshot("s")
    vdi.write(0, b"after!")
    commit(vdi)
    snapshot = find(vdi.store, vdi.record, where)
    assert snapshot
    image = Image(vdi.store, snapshot.root, snapshot.height, snapshot.size)
    assert image.read(0, 6) == b"before"
    assert vdi.read(0, 6) == b"after!"
    assert not snapshot.root & WRITABLE
    vdi.delete_snapshot(snapshot)
    commit(vdi)
    assert find(vdi.store, vdi.record, where) is None
    assert vdi.record.snapshots == 0


def test_neighbours_are_put_next_to_each_other_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vdi = new_vdi(1 << 20)
    writes: list[int] = []
    real = vdi.store.device.pwritev

    def counting(offset: int, buffers: list[Buffer]) -> None:
        writes.append(sum(map(len, buffers)))
        real(offset, buffers)

    monkeypatch.setattr(vdi.store.device, "pwritev", counting)
    vdi.write_many([(n * BLOCK, memoryview(noise(BLOCK, n))) for n in range(32)])
    assert writes == [32 * BLOCK]
    assert vdi.read(31 * BLOCK, BLOCK) == noise(BLOCK, 31)


@pytest.mark.parametrize("size", [1, 511, 4095, 4097, 3 * BLOCK - 1])
def test_odd_sizes_end_where_they_should(size: int) -> None:
    vdi = new_vdi(size)
    vdi.write(0, b"\xff" * size)
    assert vdi.read(0, size) == b"\xff" * size
    commit(vdi)
    vdi.resize(size + 5000)
    assert vdi.read(0, size + 5000) == b"\xff" * size + bytes(5000)


def test_what_was_cut_off_does_not_come_back() -> None:
    vdi = new_vdi(5 * BLOCK)
    vdi.write(0, b"\xff" * 5 * BLOCK)
    commit(vdi)
    vdi.resize(BLOCK + 10)
    vdi.resize(5 * BLOCK)
    assert vdi.read(0, 5 * BLOCK) == (b"\xff" * (BLOCK + 10)).ljust(5 * BLOCK, b"\0")


def test_growing_adds_levels_as_needed() -> None:
    vdi = new_vdi(BLOCK)
    vdi.write(0, noise(BLOCK))
    vdi.resize(MAX_VDI_SIZE)
    vdi.write(MAX_VDI_SIZE - 3, b"end")
    commit(vdi)
    image = reopened(vdi)
    assert image.map.height == 4
    assert image.read(0, BLOCK) == noise(BLOCK)
    assert image.read(MAX_VDI_SIZE - 3, 3) == b"end"


# -- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (-BLOCK, BLOCK), (0, 10_001), (10_000, 1), (10_001, 0), (0, -1)]
)
def test_ranges_outside_are_refused(offset: int, length: int) -> None:
    vdi = new_vdi(10_000)
    accesses: list[Callable[[], object]] = [
        lambda: list(vdi.extents(offset, length)),
        lambda: vdi.trim(offset, length),
        lambda: vdi.allocate_zeros(offset, length),
    ]
    if length >= 0:
        accesses += [lambda: vdi.read(offset, length), lambda: vdi.write(offset, b"x" * length)]
    for access in accesses:
        with pytest.raises(BadRequest, match="are not all within the 10000 bytes"):
            access()
    assert not vdi.changed


@pytest.mark.parametrize("size", [-1, MAX_VDI_SIZE + 1])
def test_sizes_that_are_not_possible(size: int) -> None:
    with pytest.raises(BadRequest) as caught:
        new_vdi(0).resize(size)
    assert caught.value.message == f"a VDI of {size} bytes is not possible"
    assert "256T" in caught.value.hint


def test_one_bad_write_of_many_does_not_spoil_the_others() -> None:
    vdi = new_vdi(10_000)
    errors = vdi.write_many(
        [(0, memoryview(b"one")), (9_999, memoryview(b"no")), (5_000, memoryview(b"two"))]
    )
    assert isinstance(errors[1], BadRequest)
    assert errors[0] is errors[2] is None
    assert vdi.read(0, 3) + vdi.read(5_000, 3) == b"onetwo"


def test_a_bad_label_is_refused() -> None:
    vdi = new_vdi(BLOCK)
    with pytest.raises(BadRequest, match="contains '@'"):
        vdi.snapshot("a@b")
    assert not vdi.changed


# -- full stores -----------------------------------------------------------------------


def fill(vdi: Vdi) -> int:
    """Write until the store is full; return how many blocks went in."""
    for count in range(vdi.size // BLOCK):
        [error] = vdi.write_many([(count * BLOCK, memoryview(noise(BLOCK, count)))])
        if error is not None:
            assert isinstance(error, NoSpace)
            assert error.message == "the blockstore is full"
            assert error.exit_status == 6
            return count
    raise AssertionError("the store never was full")


def test_a_full_store_keeps_everything_and_can_be_emptied() -> None:
    vdi = new_vdi(8 << 20, memory_store())
    count = fill(vdi)
    assert 280 <= count <= 300
    for number in range(count):
        assert vdi.read(number * BLOCK, BLOCK) == noise(BLOCK, number)
    commit(vdi)
    assert reopened(vdi).read((count - 1) * BLOCK, BLOCK) == noise(BLOCK, count - 1)
    with pytest.raises(NoSpace):
        vdi.write(7 << 20, b"x")
    vdi.write(0, noise(BLOCK, "new"))  # what it owns still can be overwritten
    vdi.trim(BLOCK, 100 * BLOCK)
    commit(vdi)
    vdi.repeat()
    commit(vdi)
    vdi.write(7 << 20, noise(90 * BLOCK, "more"))
    commit(vdi)
    image = reopened(vdi)
    assert image.read(0, BLOCK) == noise(BLOCK, "new")
    assert image.read(7 << 20, 90 * BLOCK) == noise(90 * BLOCK, "more")
    assert image.read(101 * BLOCK, BLOCK) == noise(BLOCK, 101)


def test_a_snapshot_fits_into_a_full_store_and_writing_after_it_does_not() -> None:
    vdi = new_vdi(8 << 20, memory_store())
    count = fill(vdi)
    commit(vdi)
    vdi.snapshot("full")
    commit(vdi)
    with pytest.raises(NoSpace):
        vdi.write(0, b"x")
    assert vdi.read(0, BLOCK) == noise(BLOCK, 0)
    assert vdi.map.mapped == count


def test_making_room_is_tried_once_for_those_that_did_not_fit() -> None:
    asked: list[Vdi] = []

    def make_room() -> bool:
        asked.append(vdi)
        for _ in range(2):
            vdi.repeat()
            commit(vdi)
        return True

    vdi = new_vdi(8 << 20, memory_store(), make_room)
    vdi.write(0, noise(200 * BLOCK))
    commit(vdi)
    vdi.trim(0, 200 * BLOCK)
    vdi.write(1 << 20, noise(250 * BLOCK))
    assert len(asked) == 1
    assert vdi.read(1 << 20, 250 * BLOCK) == noise(250 * BLOCK)
    [error] = vdi.write_many([(4 << 20, memoryview(noise(200 * BLOCK)))])
    assert isinstance(error, NoSpace)
    assert len(asked) == 2


@given(st.integers(1, 80), st.integers(0, 3))
def test_a_write_that_does_not_fit_leaves_what_was_there(blocks: int, more: int) -> None:
    vdi = new_vdi(8 << 20, memory_store())
    vdi.write(0, noise(230 * BLOCK))
    where = vdi.snapshot()
    commit(vdi)
    [error] = vdi.write_many([(0, memoryview(noise((blocks + 10 * more) * BLOCK, "new")))])
    commit(vdi)
    snapshot = find(vdi.store, vdi.record, where)
    assert snapshot
    image = Image(vdi.store, snapshot.root, snapshot.height, snapshot.size)
    assert image.read(0, 230 * BLOCK) == noise(230 * BLOCK)
    new = noise((blocks + 10 * more) * BLOCK, "new").ljust(230 * BLOCK, b"\0")
    old = noise(230 * BLOCK)
    for at in range(0, 230 * BLOCK, BLOCK):
        got = vdi.read(at, BLOCK)
        if error is None and at < (blocks + 10 * more) * BLOCK:
            assert got == new[at : at + BLOCK]
        else:
            assert got in (old[at : at + BLOCK], new[at : at + BLOCK])


# -- failures of the device ------------------------------------------------------------


def failing(vdi: Vdi, monkeypatch: pytest.MonkeyPatch, call: str, error: ParallaxError) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(vdi.store.device, call, fails)


def test_what_is_lost_in_the_middle_of_a_batch_is_not_overwritten() -> None:
    device = MemoryDevice(6 * 64 * BLOCK)
    format_device(device, 64 * BLOCK, 6)
    locks = LockMaster()
    with (
        Session(Blockstore(device, locks), locks) as session,
        session.opened(session.create("one", 1 << 20)) as vdi,
    ):
        vdi.write(0, b"o" * (9 * BLOCK))
        looks = iter([None, Fenced("it was broken")])

        def check() -> None:
            if (error := next(looks)) is not None:
                raise error

        batch = WriteBatch(vdi, vdi.take, check)
        batch.add(0, 0, memoryview(b"n" * BLOCK))
        batch.add(1, 4 * BLOCK, memoryview(b"n" * BLOCK))
        ((request, error),) = batch.run()
        assert request == 1
        assert isinstance(error, Fenced)
        assert vdi.read(0, 5 * BLOCK) == b"n" * BLOCK + b"o" * (4 * BLOCK)


def test_a_failed_write_does_not_reach_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK))
    commit(vdi)
    vdi.snapshot()
    commit(vdi)
    with monkeypatch.context() as patch:
        failing(vdi, patch, "pwritev", IoFailed("broken"))
        with pytest.raises(IoFailed, match="broken"):
            vdi.write(0, noise(3 * BLOCK, 2))
    assert vdi.read(0, 2 * BLOCK) == noise(BLOCK) + bytes(BLOCK)
    assert vdi.map.mapped == 1
    vdi.write(0, noise(3 * BLOCK, 2))
    commit(vdi)
    assert reopened(vdi).read(0, 3 * BLOCK) == noise(3 * BLOCK, 2)


def test_a_commit_for_which_the_file_system_has_no_room_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK))
    vdi.snapshot("kept")
    with monkeypatch.context() as patch:
        failing(vdi, patch, "pwritev", NoSpace("file system full"))
        with pytest.raises(NoSpace):
            commit(vdi)
    assert vdi.changed
    vdi.amend(name="renamed")
    vdi.write(BLOCK, noise(BLOCK, 2))
    commit(vdi)
    record = Registry(vdi.store).get(vdi.id)
    assert record
    assert (record.name, record.sequence, record.snapshots) == ("renamed", 2, 1)
    assert reopened(vdi).read(0, 2 * BLOCK) == noise(BLOCK) + noise(BLOCK, 2)


def test_after_a_failed_flush_nothing_is_written_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK))
    with monkeypatch.context() as patch:
        failing(vdi, patch, "flush", IoFailed("cannot flush"))
        with pytest.raises(IoFailed):
            commit(vdi)
    for access in (
        lambda: vdi.write(0, b"x"),
        lambda: vdi.trim(0, BLOCK),
        lambda: vdi.snapshot(),
        lambda: commit(vdi),
    ):
        with pytest.raises(IoFailed, match="nothing more is written after a failure"):
            access()
    assert vdi.read(0, BLOCK) == noise(BLOCK)


def test_several_vdis_share_one_commit() -> None:
    store = memory_store(256)
    one, two = new_vdi(BLOCK, store), new_vdi(BLOCK, store)
    flushes: list[int] = []
    store.device.flush = lambda: flushes.append(1)  # type: ignore[method-assign]
    one.write(0, b"one")
    two.write(0, b"two")
    commit(one, two)
    assert len(flushes) == 2
    assert reopened(one).read(0, 3) + reopened(two).read(0, 3) == b"onetwo"
    one.write(0, b"ONE")  # in place
    commit(one, two)
    assert len(flushes) == 3


def test_a_vdi_given_up_returns_what_it_took() -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK))
    commit(vdi)
    free = vdi.store.allocator.free
    vdi.write(BLOCK, noise(20 * BLOCK))
    vdi.close()
    assert vdi.store.allocator.free == free
    vdi.store.allocator.reserve(free, urgent=True)
    assert reopened(vdi).read(0, 2 * BLOCK) == noise(BLOCK) + bytes(BLOCK)


def test_a_damaged_node_is_an_error_and_not_wrong_data() -> None:
    vdi = new_vdi(1 << 20)
    vdi.write(0, noise(BLOCK))
    commit(vdi)
    root = vdi.map.root >> 1 & (1 << 40) - 1
    vdi.store.device.pwritev(root * BLOCK, [noise(BLOCK, "bad")])
    with pytest.raises(Corrupt, match=f"block {root}:"):
        reopened(vdi).read(0, 1)


def test_no_two_vdis_share_a_block_they_may_write() -> None:
    store = memory_store(256)
    vdis = [new_vdi(64 * BLOCK, store) for _ in range(3)]
    for number in range(60):
        vdis[number % 3].write(number // 3 * BLOCK, noise(BLOCK, number))
        if number % 7 == 0:
            commit(*vdis)
            vdis[number % 2].trim(0, 3 * BLOCK)
    commit(*vdis)
    blocks = [
        block
        for vdi in vdis
        for visit in vdi.map.walk()
        for block in [visit.entry >> 1 & (1 << 40) - 1]
        + (blocks_of(visit.entries[visit.entries != 0]).tolist() if not visit.level else [])
    ]
    assert len(blocks) == len(set(blocks))


def test_reading_a_session_while_it_changes() -> None:
    """`Session` gives every caller of one VDI the same object, so nothing is seen twice."""
    locks = LockMaster()
    session = Session(memory_store(256), locks)
    record = session.create("a", BLOCK)
    one, two = session.open_vdi(record), session.open_vdi(record)
    assert one is two
    one.write(0, b"x")
    assert two.read(0, 1) == b"x"
    session.release(one)
    two.write(0, b"y")
    session.release(two)
    assert session.live_image(session.registry.find("a")).read(0, 1) == b"y"
