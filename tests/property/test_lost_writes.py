"""A session is killed, and of one slot the last write never came to the disk.

The slot says what it said before, which looks like the work of a session that was killed a
little earlier. So somebody goes on with what the other slot says: fills the store, changes what
is there, collects. The VDI whose record was lost may be what it was; no other thing may change,
neither now nor by what is done then, and nothing that could be read once is ever overwritten.
Each block of data begins with the name of the VDI that it was written to, but for those of
sessions that share a store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from support.flock import World
from support.memory import MemoryDevice, Pages, RecordingDevice

from core import commit, extent, tidying, vdi
from core.blockstore import Blockstore
from core.errors import Bug, Corrupt, InUse, IoFailed, NoSpace, NotFound, ParallaxError
from core.format import BLOCK, DELETED, LIVE, ZERO_BLOCK, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.registry import Registry
from core.session import Session

EXTENT, EXTENTS = 64, 8
BLOCKS = 40
"""Blocks of each VDI."""
Contents = dict[str, dict[int, bytes]]


class Killed(NamedTuple):
    """What a killed session has left.

    Attributes:
        pages: all that is on the device.
        before: what each block held before its last write.
        size: of the device, in bytes.
    """

    pages: Pages
    before: Pages
    size: int


def opened(device: MemoryDevice) -> Session:
    locks = LockMaster()
    return Session(Blockstore(device, locks), locks)


def stamped(name: str, rng: random.Random) -> bytes:
    return name.encode().ljust(16) + rng.randbytes(BLOCK - 16)


def history(seed: int, steps: int = 60) -> Killed:
    """Do all sorts of things."""
    rng = random.Random(seed)

    def work(session: Session) -> None:
        for number in range(steps):
            with suppress(NoSpace, InUse, NotFound):
                step(session, rng, number)

    return recorded(work)


def recorded(work: Callable[[Session], None]) -> Killed:
    """Work with a store in a session that is killed then."""
    rng = random.Random(3)
    device = RecordingDevice(EXTENT * EXTENTS * BLOCK)
    format_device(device, EXTENT * BLOCK, EXTENTS)
    before = remembered(device)
    with opened(device) as session:
        for name in ("a", "b", "c"):
            record = session.create(name, BLOCKS * BLOCK)
            with session.opened(record) as open_vdi:
                for block in rng.sample(range(BLOCKS), 12):
                    open_vdi.write(block * BLOCK, stamped(name, rng))
    work(opened(device))
    return Killed(dict(device.pages), dict(before), device.size)


def remembered(device: RecordingDevice) -> Pages:
    """Return what each block held before its last write, from now on."""
    before: Pages = {}
    seen: Pages = dict(device.pages)

    def note(first: int, run: Any) -> None:
        for block, page in enumerate(run, first):
            before[block] = seen.get(block, ZERO_BLOCK)
            seen[block] = page

    device.on_write = note
    return before


def of_several_sessions(seed: int) -> Killed:
    """Several sessions share a store, collect, and are killed all at once."""
    world = World(seed, recording=True)
    assert isinstance(world.device, RecordingDevice)
    before = remembered(world.device)
    for _ in range(70):
        world.act(world.rng.choice(world.runners))
    return Killed(dict(world.device.pages), dict(before), world.device.size)


def step(session: Session, rng: random.Random, number: int) -> None:
    """Do one thing or another."""
    records = session.registry.vdis()
    record = rng.choice(records)
    what = rng.choices(
        ("write", "trim", "flush", "snapshot", "unsnap", "clone", "delete", "restore", "collect"),
        (8, 3, 6, 3, 2, 2, 1, 1, 1),
    )[0]
    held = {vdi.id: vdi for vdi in session.open_vdis}
    if what in ("write", "trim", "snapshot"):
        open_vdi = held.get(record.id) or session.open_vdi(record)
        at = rng.randrange(BLOCKS - 4) * BLOCK
        if what == "write":
            open_vdi.write(at, stamped(record.name, rng) * rng.randrange(1, 4))
        elif what == "trim":
            open_vdi.trim(at, rng.randrange(1, 4) * BLOCK)
        else:
            open_vdi.snapshot(f"s{number}")
    elif what == "flush":
        session.commit(session.open_vdis)
    elif what == "collect":
        session.collect()
    elif what == "restore":
        for deleted in session.registry.vdis(DELETED)[:1]:
            session.restore(deleted)
    else:
        for open_vdi in session.open_vdis:
            session.release(open_vdi)
        snapshots = list(session.snapshots(session.registry.find(record.name)))
        if what == "delete" and len(records) > 2:
            session.delete(record, snapshots=True)
        elif what == "clone" and snapshots:
            session.create(f"{record.name}-{number}", parent=rng.choice(snapshots))
        elif what == "unsnap" and snapshots:
            session.delete_snapshot(rng.choice(snapshots))


def contents(image: Image) -> dict[int, bytes]:
    data = image.read(0, image.size)
    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return {number: block for number, block in enumerate(blocks) if block != ZERO_BLOCK}


def read_all(session: Session) -> Contents:
    """Read what can be read: VDIs by name, snapshots by name and line."""
    found: Contents = {}
    for _, record in session.registry.scan():
        if isinstance(record, VdiRecord) and record.state == LIVE:
            trees = {record.name: lambda r=record: session.live_image(r)}
            with suppress(ParallaxError):
                trees |= {
                    f"{record.name}@{snap.line}": lambda s=snap: session.image(s)  # type: ignore[misc]
                    for snap in session.snapshots(record)
                }
            for name, tree in trees.items():
                with suppress(Corrupt):
                    found[name] = contents(tree())
    return found


def go_on(device: MemoryDevice, lost: str) -> None:
    """Do all sorts of things: what could be read stays what it is."""
    rng = random.Random(5)
    with opened(device) as session:
        before = read_all(session)
        fill_up(session, rng)
        check(session, before, lost)
        for record in session.registry.vdis():
            with suppress(NoSpace, IoFailed, NotFound), session.opened(record) as open_vdi:
                for block in sorted(before.get(record.name, {}))[::3]:  # in place, or not
                    data = stamped(record.name, rng)
                    open_vdi.write(block * BLOCK, data)
                    before[record.name][block] = data
            check(session, before, lost)
    with opened(device) as session:
        with suppress(NoSpace, IoFailed):
            session.collect()
        fill_up(session, rng)
        check(session, before, lost)


def is_of_its_family(device: MemoryDevice, lost: str) -> None:
    """No VDI shows what was written to one that it does not descend from."""
    for name, blocks in read_all(opened(device)).items():
        family = name.partition("@")[0].split("-")[0]
        for block in blocks.values():
            assert block[:16].strip().decode().split("-")[0] == family, f"{lost}: {name}"


def fill_up(session: Session, rng: random.Random) -> None:
    """Fill a new VDI until the store is full, and delete it."""
    new = session.create(f"new-{rng.random()}", BLOCKS * EXTENTS * EXTENT * BLOCK)
    with suppress(NoSpace, Corrupt), session.opened(new) as open_vdi:
        for number in range(EXTENT * EXTENTS):
            open_vdi.write(number * BLOCK, stamped("new", rng))
    session.delete(new)


def check(session: Session, before: Contents, lost: str) -> None:
    now = read_all(session)
    for name, blocks in before.items():
        assert now.get(name) == blocks, f"{lost}: {name} is something else now"


def places(store: Blockstore) -> Iterator[tuple[str, int]]:
    """Yield (what, block) of every slot."""
    sb = store.sb
    for slot in (0, 1):
        yield "list", sb.sessions_slot(slot)
        for number, _ in Registry(store).pairs():
            yield f"record of VDI {number}", sb.vdi_slot(number, slot)
        for number in range(1, sb.extents):
            yield f"header of extent {number}", sb.extent_start(number) + slot
            yield f"bitmap of extent {number}", sb.bitmap_slot(number, 0, slot)


def each_lost(killed: Killed, told_apart: bool = True) -> int:
    """Lose nothing, then the last write of each slot in turn, and go on.

    Args:
        killed: what there was before.
        told_apart: whether blocks of data begin with the name of their VDI.

    Returns:
        How many there were.
    """
    store = Blockstore(MemoryDevice(killed.size, killed.pages))
    cases: list[tuple[str, Pages]] = [("nothing", {})]
    for what, block in places(store):
        was = killed.before.get(block)
        if was is not None and was != killed.pages[block]:
            cases.append((f"{what}, block {block}", {block: was}))
    for what, lost in cases:
        device = MemoryDevice(killed.size, {**killed.pages, **lost})
        if told_apart:
            is_of_its_family(device, what)
        go_on(device, what)
    return len(cases)


@pytest.mark.parametrize("seed", range(8))
def test_one_lost_write_of_a_killed_session(seed: int) -> None:
    assert each_lost(history(seed)) > 5


@pytest.mark.parametrize("seed", range(3))
def test_one_lost_write_of_sessions_that_share_a_store(seed: int) -> None:
    assert each_lost(of_several_sessions(seed), told_apart=False) > 10


def clone_at_once(session: Session) -> None:
    """Make a clone of a snapshot a moment after that was taken."""
    where = session.snapshot(session.registry.find("a"), "s")
    session.create("a-clone", parent=session.find_snapshot(str(where)))


def collect_at_once(session: Session) -> None:
    """Collect what a snapshot had a moment after that was deleted, and use it again."""
    record, rng = session.registry.find("a"), random.Random(1)
    where = session.snapshot(record, "s")
    with session.opened(record) as open_vdi:
        open_vdi.write(0, b"".join(stamped("a", rng) for _ in range(BLOCKS)))
    session.delete_snapshot(session.find_snapshot(str(where)))
    session.collect()
    session.store.leave()  # and then it is killed, and so is the next one
    after = opened(session.store.device)  # type: ignore[arg-type]
    after.open_vdi(after.create("b-late", BLOCKS * BLOCK)).write(0, stamped("b", rng) * 12)


@pytest.mark.parametrize("work", [clone_at_once, collect_at_once])
def test_one_lost_write_right_after(work: Callable[[Session], None]) -> None:
    assert each_lost(recorded(work)) > 5


@pytest.mark.long
@pytest.mark.timeout(0)
def test_very_many_lost_writes() -> None:
    for seed in range(100, 1_000):
        each_lost(history(seed))
        each_lost(of_several_sessions(seed), told_apart=False)


# -- mistakes that this has to find ----------------------------------------------------


def released_at_once(patch: pytest.MonkeyPatch) -> None:
    """What a commit supersedes is free with it, though the record before leads to it."""

    def change(real: Any) -> Any:
        def eager(self: vdi.Vdi, last: bool = False) -> commit.Change | None:
            made: commit.Change | None = real(self, last)
            if made is None:
                return None
            freed, self._superseded = [*made.freed, *self._superseded], []
            return commit.Change(made.old, made.new, made.grant, freed)

        return eager

    patch.setattr(vdi.Vdi, "change", change(vdi.Vdi.change))


def no_second_bitmap(patch: pytest.MonkeyPatch) -> None:
    """A bitmap is written to one slot only."""

    def write(self: commit.Commit) -> None:
        self._twins = []
        real(self)

    real = commit.Commit.sync
    patch.setattr(commit.Commit, "sync", write)
    patch.setattr(extent.Extent, "settled", lambda self, *_: self._unsettled.clear())


def newest_records_alone(patch: pytest.MonkeyPatch) -> None:
    """A collection frees what only the record before the last one leads to."""
    patch.setattr("core.collection.read_before", lambda _: [])
    patch.setattr(tidying.Tidying, "vdis", lambda _: None)


def clone_of_one_record(patch: pytest.MonkeyPatch) -> None:
    """A clone is made from a snapshot that one record alone knows."""
    patch.setattr(Session, "secure", lambda *_: None)


@pytest.mark.parametrize(
    ("plant", "work"),
    [
        (released_at_once, history),
        (no_second_bitmap, history),
        (newest_records_alone, lambda _: recorded(collect_at_once)),
        (clone_of_one_record, lambda _: recorded(clone_at_once)),
    ],
)
def test_a_planted_mistake_is_found(
    plant: Any, work: Callable[[int], Killed], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)  # the world is built with it in place
    assert any(is_found(work, seed) for seed in range(40))


def is_found(work: Callable[[int], Killed], seed: int) -> bool:
    try:
        each_lost(work(seed))
    except (AssertionError, Corrupt, Bug):
        print("found by seed", seed)
        return True
    return False
