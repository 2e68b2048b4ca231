"""One fault in one metadata block harms one thing at most, and a check never overlooks it.

A store with several VDIs, snapshots, clones, a schedule and deletions, closed cleanly. Each of
its metadata blocks in turn gets a fault: bits flip, its last write was lost, it is what it was
earlier, it holds what belongs to its twin or to another of its kind. Then somebody goes on
working: reads everything, fills a new VDI, collects, reads everything again. What can be read is
right, all else is an error that names a block; nobody's data changes; `check` calls the store
damaged before, and sound after a repair, which has nothing to do when it runs again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.memory import MemoryDevice, Pages, RecordingDevice
from support.stores import noise

from core import repair as repairing
from core.blockstore import Blockstore
from core.check import check_store
from core.errors import Corrupt, IoFailed, NoSpace, NotAStore, NotFound, ParallaxError
from core.format import BLOCK, BLOCK_MASK, LIVE, ZERO_BLOCK, Superblock, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.repair import repair_store
from core.schedule import MIN_INTERVAL_NS
from core.session import Session
from core.snaplog import pages

EXTENT, EXTENTS = 64, 10
_READ = 1 << 19
Contents = dict[str, dict[int, bytes]]


@dataclass
class World:
    """A sound store.

    Attributes:
        pages: all that is on it.
        history: for each block all that was ever flushed to it, oldest first.
        kinds: its metadata blocks, by what they are for.
        contents: of VDIs and snapshots, by name: blocks that are not zeros, by their place.
    """

    pages: Pages
    sb: Superblock
    history: dict[int, list[bytes]] = field(default_factory=dict)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    contents: Contents = field(default_factory=dict)

    def device(self, pages: Pages) -> MemoryDevice:
        return MemoryDevice(self.sb.size, pages)


def opened(device: MemoryDevice) -> Session:
    locks = LockMaster()
    return Session(Blockstore(device, locks), locks)


def fill(device: MemoryDevice) -> None:
    """Do a bit of everything, in several sessions."""
    rng = random.Random(1)
    with opened(device) as session:
        gold = session.create("gold", 3 << 20)
        for number in range(20):  # with tombstones more than a page of the log
            with session.opened(gold) as vdi:
                vdi.write(rng.randrange(3 << 20) & ~4095, rng.randbytes(BLOCK * (1 + number % 2)))
            where = session.snapshot(gold, f"s{number}")
            if number % 9 == 3:
                clone = session.create(f"clone{number}", 0, session.find_snapshot(str(where)))
                with session.opened(clone) as vdi:
                    vdi.write(BLOCK * number, rng.randbytes(5 * BLOCK))
            if number % 5:
                session.delete_snapshot(session.find_snapshot(str(where)))
    with opened(device) as session:
        often = session.create("often", 1 << 20)
        session.schedule(often, MIN_INTERVAL_NS, 3)
        with session.opened(often) as vdi:
            for number in range(30):
                vdi.write(number % 4 * BLOCK, rng.randbytes(BLOCK))
                vdi.snapshot(scheduled=True)
                vdi.drop_scheduled()
        gone = session.create("gone", 1 << 20)
        with session.opened(gone) as vdi:
            vdi.write(0, rng.randbytes(6 * BLOCK))
        session.delete(gone)
    with opened(device) as session:
        session.collect()
        late = session.create("late", 1 << 20)
        with session.opened(late) as vdi:
            vdi.write(0, rng.randbytes(9 * BLOCK))
        kept = session.create("kept", 1 << 20)  # deleted, and not collected
        with session.opened(kept) as vdi:
            vdi.write(0, rng.randbytes(2 * BLOCK))
        session.delete(kept)
    with opened(device) as session, session.opened(session.registry.find("late")) as vdi:
        vdi.write(3 * BLOCK, rng.randbytes(2 * BLOCK))


def contents(image: Image) -> dict[int, bytes]:
    """What an image holds; holes are not read."""
    found = {}
    stored = [extent.offset for extent in image.extents(0, image.size) if extent.data]
    for start in dict.fromkeys(offset // _READ * _READ for offset in stored):
        data = image.read(start, min(_READ, image.size - start))
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            if block != ZERO_BLOCK:
                found[(start + at) // BLOCK] = block
    return found


def read_all(session: Session, found: Contents) -> Iterator[ParallaxError]:
    """Read VDIs and snapshots into `found`, and yield what went wrong with the others."""
    for _, record in session.registry.scan():
        if isinstance(record, Corrupt):
            yield record
            continue
        if record.state != LIVE:
            continue
        try:
            found[record.name] = contents(session.live_image(record))
        except ParallaxError as error:
            yield error
        try:
            for snapshot in session.snapshots(record):
                try:
                    found[f"{record.name}@{snapshot.line}"] = contents(session.image(snapshot))
                except ParallaxError as error:
                    yield error
        except ParallaxError as error:
            yield error


def metadata(session: Session) -> dict[str, list[int]]:
    """The metadata blocks in use, by kind."""
    sb = session.store.sb
    numbers = [number for number, _ in session.registry.scan()]
    extents = range(1, sb.extents)
    nodes, logs = set(), set()
    for record in session.registry.vdis():
        logs |= {block for block, _ in pages(session.store, record)}
        trees = [session.live_image(record), *map(session.image, session.snapshots(record))]
        for tree in trees:
            nodes |= {visit.entry >> 1 & BLOCK_MASK for visit in tree.map.walk()}
    return {
        "superblock": [0, sb.copy_block],
        "sessions": [sb.sessions_slot(slot) for slot in (0, 1)],
        "record": [sb.vdi_slot(number, slot) for number in numbers for slot in (0, 1)],
        "header": [sb.extent_start(extent) + slot for extent in extents for slot in (0, 1)],
        "bitmap": [sb.bitmap_slot(extent, 0, slot) for extent in extents for slot in (0, 1)],
        "node": sorted(nodes),
        "log": sorted(logs),
    }


@pytest.fixture(scope="module")
def world() -> World:
    device = RecordingDevice(EXTENT * EXTENTS * BLOCK)
    sb = format_device(device, EXTENT * BLOCK, EXTENTS)
    history: dict[int, list[bytes]] = {}

    def note(first: int, run: Any) -> None:
        for block, page in enumerate(run, first):
            history.setdefault(block, [ZERO_BLOCK]).append(page)

    for block, page in device.pages.items():
        history[block] = [ZERO_BLOCK, page]
    device.on_write = note
    fill(device)
    made = World(dict(device.pages), sb, history)
    with opened(made.device(made.pages)) as session:
        made.kinds = metadata(session)
        assert not list(read_all(session, made.contents))
        assert not check_store(session.store).findings[1:], "but for a note on what is restorable"
        made.sb = session.store.sb
    return made


# -- faults ----------------------------------------------------------------------------

Fault = tuple[int, str, Pages]
"""Which block, what became of it, and what is on the device now where it differs."""


def flips(world: World, block: int, bits: range | list[int]) -> Iterator[Fault]:
    page = world.pages.get(block, ZERO_BLOCK)
    for bit in bits:
        flipped = bytearray(page)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        yield block, f"bit {bit} flipped", {block: bytes(flipped)}


def others(world: World, kind: str, block: int, rng: random.Random) -> Iterator[Fault]:
    """What a lost, stale or misplaced write leaves of a block."""
    page = world.pages.get(block, ZERO_BLOCK)
    versions = world.history.get(block, [ZERO_BLOCK])
    blocks = world.kinds[kind]
    twin = blocks[blocks.index(block) ^ 1] if kind not in ("node", "log") else block
    if len(versions) > 1:
        yield block, "last write lost", {block: versions[-2]}
        yield block, "stale", {block: rng.choice(versions[:-1])}
        for place, other in ("its twin", twin), ("another one", rng.choice(blocks)):
            if other != block:
                yield block, f"written to {place} by mistake", {block: versions[-2], other: page}
    for place, other in (
        ("its twin", twin),
        ("another of its kind", rng.choice(blocks)),
        ("of another kind", world.kinds["node"][0]),
    ):
        yield block, f"is {place}", {block: world.pages.get(other, ZERO_BLOCK)}


def faults(world: World, rng: random.Random, sampled: int) -> Iterator[tuple[str, Fault]]:
    """Yield (kind of block, fault), each of which changes something."""
    for kind, blocks in world.kinds.items():
        for block in blocks:
            few = kind in ("superblock", "sessions", "header") and sampled >= 64
            every = range(8 * 128)
            bits = [*every] if few else [rng.randrange(8 * BLOCK) for _ in range(sampled)]
            for fault in (*flips(world, block, bits), *others(world, kind, block, rng)):
                if any(page != world.pages.get(at, ZERO_BLOCK) for at, page in fault[2].items()):
                    yield kind, fault


# -- judging ---------------------------------------------------------------------------


def is_right(world: World, found: Contents, before: Contents | None = None) -> None:
    """What was read is what was written, and what could be read before still can."""
    for name, data in found.items():
        if name != "new":
            assert data == world.contents[name], f"{name} differs"
    for name in before or ():
        assert name in found, f"{name} is lost"


def names_a_block(error: ParallaxError) -> bool:
    return isinstance(error, Corrupt) and f"block {error.block}" in error.message


def go_on(world: World, device: MemoryDevice) -> None:
    """Work with a store that has a fault: whatever can be read is right, before and after."""
    before: Contents = {}
    after: Contents = {}
    with opened(device) as session:
        assert all(map(names_a_block, read_all(session, before)))
        is_right(world, before)
        with suppress(NoSpace, Corrupt):
            new = session.create("new", 1 << 20)
            with session.opened(new) as vdi:
                vdi.write(0, noise(200 * BLOCK))
        is_right(world, _read(session), before)
        for name in ("late", "clone3"):  # somebody goes on working with what was there
            with suppress(NoSpace, IoFailed, NotFound):
                record = session.registry.find(name)
                with session.opened(record) as vdi:
                    vdi.write(125 * BLOCK, b"x" * BLOCK)
                    vdi.write(125 * BLOCK, world.contents[name].get(125, ZERO_BLOCK))
    with opened(device) as session:
        with suppress(NoSpace, IoFailed):
            session.collect()
        if "new" in {record.name for record in session.registry.vdis()}:
            session.delete(session.registry.find("new"))
            with suppress(NoSpace, IoFailed):
                session.collect()
        for error in read_all(session, after):
            assert names_a_block(error)
        is_right(world, after, {n: b for n, b in before.items() if n != "new"})


def _read(session: Session) -> Contents:
    found: Contents = {}
    list(read_all(session, found))
    return found


def judge(world: World, kind: str, fault: Fault) -> None:
    pages = {**world.pages, **fault[2]}
    try:
        store = Blockstore(world.device(pages))
    except NotAStore:
        raise AssertionError("one superblock is enough") from None
    report = check_store(store)
    # The list's last version says that a session has ended: without it, it may have died.
    lost_ending = kind == "sessions" and not any("rotted" in f.message for f in report.findings)
    noticed = report.damaged or (lost_ending and any(f.message for f in report.findings))
    assert noticed, "called sound"
    go_on(world, world.device(pages))
    repaired(world, world.device(pages))


def repaired(world: World, device: MemoryDevice) -> None:
    """A repair leaves a sound store, in which it has nothing more to do."""
    report, steps = repair_store(Blockstore(device, LockMaster()))
    assert bool(steps) == report.damaged
    again, more = repair_store(Blockstore(device, LockMaster()))
    assert not again.damaged, again.findings
    assert not more
    with opened(device) as session:
        found: Contents = {}
        assert not list(read_all(session, found))
        lost = any(step.loses for step in steps)
        for name, data in world.contents.items():
            assert lost or found.get(name) == data, f"{name} is lost without a word"


def tried(world: World, seed: int, sampled: int, part: Callable[[int], bool]) -> int:
    count = 0
    for number, (kind, fault) in enumerate(faults(world, random.Random(seed), sampled)):
        if not part(number):
            continue
        count += 1
        try:
            judge(world, kind, fault)
        except (AssertionError, ParallaxError, KeyError, ValueError) as error:
            error.add_note(f"{kind} in block {fault[0]}: {fault[1]}")
            raise
    return count


@pytest.mark.parametrize("part", range(4))
def test_no_single_fault_harms_another_thing(world: World, part: int) -> None:
    assert tried(world, seed=1, sampled=1, part=lambda number: number % 4 == part) > 50


@pytest.mark.long
@pytest.mark.timeout(0)
def test_no_single_fault_of_all_harms_another_thing(world: World) -> None:
    assert tried(world, seed=2, sampled=64, part=lambda _: True) > 5000


def test_a_repair_that_forgets_to_tidy_up_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge can say no: a planted mistake."""
    monkeypatch.setattr(repairing, "_extents", lambda *_: iter(()))
    block = world.kinds["bitmap"][0]
    with pytest.raises(AssertionError):
        judge(world, "bitmap", (block, "gone", {block: noise(BLOCK)}))


def test_records_are_what_they_were(world: World) -> None:
    """The world has all kinds of blocks, and several of each."""
    assert all(len(blocks) > 1 for kind, blocks in world.kinds.items() if kind != "log")
    assert world.kinds["log"]
    record = VdiRecord.unpack(world.pages[world.kinds["record"][0]], world.sb.uuid, 0)
    assert record is not None
    assert len(world.contents) > 10
