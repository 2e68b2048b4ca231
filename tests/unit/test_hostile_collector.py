"""A collector that is wrong, or hostile: nothing that is needed is freed, whatever it says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
import pytest
from support.stores import noise
from unit.test_collection import EXTENT, Pair, made
from unit.test_interleavings import is_whole

from core import collection
from core.blockset import BlockSet
from core.blockstore import Blockstore
from core.collection import needed, pack_bits
from core.errors import Corrupt, InUse
from core.format import BLOCK, BLOCK_MASK, DELETED
from core.radix import RadixMap
from core.remote import Argument, ask


@pytest.fixture
def pair() -> Pair:
    return Pair()


class Hostile:
    """A session that takes `gc` and has others free what it likes."""

    def __init__(self, pair: Pair) -> None:
        self.locks = pair.fleet.member()
        self.gc = self.locks.acquire("gc")
        self.victim = pair.one.join_name

    def ask(self, method: str, **argument: object) -> Argument:
        return ask(self.locks, self.victim, method, {"collection": self.gc.token, **argument})

    def wipe(self, numbers: Iterable[int], garbage: bytes = b"\xff" * (EXTENT >> 3)) -> None:
        bits = pack_bits(np.frombuffer(garbage, np.uint8))
        for number in numbers:
            self.ask("sweep", extent=number, garbage=bits)


def test_what_is_needed_is_not_freed_whatever_a_collector_says(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    one = pair.one
    for name in ("open", "closed", "deleted", "snapshots"):
        made(one, name, 9)
    vdi = one.open_vdi(one.registry.find("open"))
    one.delete(one.registry.find("deleted"))
    kept = one.registry.find("snapshots")
    one.snapshot(kept, "kept")
    for label in ("read", "later"):
        with one.opened(one.registry.find("snapshots")) as other:
            other.write(0, noise(9 * BLOCK, label))
            other.snapshot(label)
    image = one.image(one.find_snapshot("snapshots@read"))
    one.delete_snapshot(one.find_snapshot("snapshots@read"))
    hostile = Hostile(pair)
    numbers = hostile.ask("seal")["extents"]
    free = one.store.allocator.free
    with pytest.raises(Corrupt, match="it is needed, so it is not freed"):
        hostile.wipe(numbers)
    [told] = [r for r in caplog.records if getattr(r, "event", "") == "sweep_refused"]
    assert told.blocks >= 45  # type: ignore[attr-defined]
    assert not one.member.token
    for number in numbers:
        with pytest.raises(InUse, match="not sealed for that collection"):
            hostile.wipe([number])
    with pytest.raises(InUse):
        hostile.ask("finish", give_back=True)
    assert one.store.allocator.free == free
    assert is_whole(vdi, "open", 9)
    assert image.read(0, 9 * BLOCK) == noise(9 * BLOCK, "read")
    one.restore(one.registry.vdis(DELETED)[0])
    for name in ("closed", "deleted"):
        with one.opened(one.registry.find(name)) as other:
            assert is_whole(other, name, 9)
    hostile.gc.release()
    one.done_with(image)
    one.release(vdi)
    assert pair.freed(one)  # what only the deleted snapshot had: a right collection goes on


@pytest.mark.parametrize("which", ["data of a VDI", "a node", "a log page"])
def test_one_block_that_is_needed_is_enough(pair: Pair, which: str) -> None:
    made(pair.one, "one", 9)
    pair.one.snapshot(pair.one.registry.find("one"), "kept")
    record = pair.one.registry.find("one")
    tree = RadixMap(pair.one.store, record.root, record.height)
    block = {
        "data of a VDI": tree.lookup(3) >> 1 & BLOCK_MASK,
        "a node": record.root >> 1 & BLOCK_MASK,
        "a log page": record.log_block,
    }[which]
    hostile = Hostile(pair)
    hostile.ask("seal")
    garbage = np.zeros(EXTENT, np.uint8)
    garbage[block % EXTENT] = 1
    with pytest.raises(Corrupt, match=f"block {block}: it is needed"):
        hostile.wipe([block // EXTENT], np.packbits(garbage, bitorder="little").tobytes())
    pair.unreachable()


def test_nobody_sweeps_without_the_lock(pair: Pair) -> None:
    """What is sealed, and for whom, anybody may know who can list locks."""
    made(pair.one, "one", 9)
    hostile = Hostile(pair)
    numbers = hostile.ask("seal")["extents"]
    hostile.gc.release()
    with pytest.raises(InUse, match="nobody collects under that token"):
        hostile.wipe(numbers, bytes(EXTENT >> 3))


def test_a_collector_whose_marks_are_wrong_is_told_and_stops(pair: Pair) -> None:
    made(pair.one, "one", 20)
    made(pair.two, "two", 20)
    plan = pair.two.plan_collection()
    garbage = plan._garbage.blocks
    first = pair.two.registry.find("one").root >> 1 & BLOCK_MASK
    garbage.add(first)
    with closing(plan), pytest.raises(Corrupt, match=f"block {first}: it is needed"):
        pair.two.collect(plan)
    assert not pair.one.member.token
    with pair.two.opened(pair.two.registry.find("one")) as vdi:
        assert is_whole(vdi, "one", 20)


def test_each_node_is_looked_at_once_and_only_before_the_first_sweep(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second opinion costs what the first did, however many extents are swept."""
    made(pair.one, "one", 70)  # more than an extent holds
    made(pair.one, "gone", 9)
    pair.one.delete(pair.one.registry.find("gone"))
    looks: list[int] = []

    def counted(store: Blockstore, images: Sequence[tuple[int, int]]) -> BlockSet:
        looks.append(len(images))
        return needed(store, images)

    monkeypatch.setattr(collection, "needed", counted)
    assert pair.freed(pair.two) == 10
    assert len(looks) == 1
    assert len(pair.one.store.allocator.claimed) > 1
    pair.one.delete(pair.one.registry.find("one"))
    assert pair.freed(pair.one) == 71
    assert len(looks) == 1  # those would be the same marks
