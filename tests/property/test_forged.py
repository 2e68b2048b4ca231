"""A store in which somebody has written what he liked, with the right checksums.

Whatever a field of a record, a line of a snapshot log or an entry of a node says: commands
see the right contents or an error that names the block, never an exception that nobody
meant. Other VDIs keep what they have, the file keeps its size, `store check` calls it
damaged, and a repair makes it sound.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from support.forge import Forger

from core import mkfs
from core.blockstore import Blockstore
from core.check import check
from core.errors import Corrupt, ParallaxError
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    FANOUT,
    MAX_VDI_SIZE,
    LogRecord,
    VdiRecord,
    entry_block,
    pack_entry,
)
from core.image import Image
from core.repair import repair
from core.session import Session
from core.soundness import MAX_SEQUENCE

EXTENT = 1 << 20
EXTENTS = 8
SIZE = 5 << 20
OTHER, FORGED = 0, 1

BEHIND = EXTENT * EXTENTS >> BLOCK_SHIFT
BLOCKS = (0, 1, 2, 4, 255, 256, 257, 259, BEHIND - 256, BEHIND, 1 << 25, 1 << 39, (1 << 40) - 1)
"""Places of superblocks, records, headers, bitmaps; behind the end; of nodes not yet written."""
POINTERS = [pack_entry(block, check, bool(check & 1)) or 1 for block in BLOCKS for check in (0, 7)]
HUGE = (1 << 64) - 1
TIMES = [-1, -(1 << 63)]

RECORD = {
    "state": [0, 4, 200],
    "sequence": [MAX_SEQUENCE + 1, HUGE],
    "size": [MAX_VDI_SIZE + 1, HUGE, 3 << 30],
    "root": POINTERS,
    "height": [0, 1, 5, 255],
    "token": [(1 << 63) - 1, HUGE],
    "mapped": [HUGE, 1 << 62],
    "own": [HUGE, 1 << 62],
    "created_ns": TIMES,
    "modified_ns": TIMES,
    "deleted_ns": TIMES,
    "log_previous": [pointer & ~1 for pointer in POINTERS if pointer > 1],
    "log_block": [0, *BLOCKS],
    "log_number": [0, 1, 3, HUGE],
    "log_first": [7, HUGE],
    "log_retired": [10_000, HUGE],
    "log_kept_number": [7, HUGE],
    "snapshots": [10_000, (1 << 32) - 1],
    "schedule_ns": [1, 1 << 63, HUGE],
    "schedule_keep": [1, (1 << 32) - 1],
}
LINE = {
    "time_ns": TIMES,
    "root": POINTERS,
    "size": [MAX_VDI_SIZE + 1, HUGE, 3 << 30],
    "height": [0, 1, 5, 255],
    "mapped": [HUGE, 1 << 62],
    "own": [HUGE, 1 << 62],
}


@dataclass(frozen=True)
class Forgery:
    """What is changed: `where` is "record", "line", "old line", or the level of a node."""

    where: str | int
    what: str | int
    value: int

    def carry_out(self, forger: Forger) -> None:
        if self.where == "record":
            forger.set_record(FORGED, **{str(self.what): self.value})
        elif self.where == "line":
            forger.set_line(FORGED, 1, **{str(self.what): self.value})
        elif self.where == "old line":
            forger.set_old_line(FORGED, 5, **{str(self.what): self.value})
        else:
            assert isinstance(self.where, int)
            assert isinstance(self.what, int)
            forger.set_entries(FORGED, self.where, 0, {self.what: self.value})


def of_fields(where: str, values: dict[str, list[int]]) -> list[Forgery]:
    return [Forgery(where, name, value) for name, some in values.items() for value in some]


def of_entries(path: list[int]) -> list[Forgery]:
    """What is written into the root and a leaf: no pointers, and pointers to known nodes."""
    root, leaf = path
    twice = [pack_entry(block, 0, True) for block in (root, leaf)]
    inner = [*[p for p in POINTERS if entry_block(p) or p == 1], *twice]
    no_data = [*inner, *[pack_entry(300, check, True) for check in (1, (1 << 23) - 1)]]
    return [
        Forgery(level, slot, value)
        for level, values in ((1, inner), (0, no_data))
        for value in values
        for slot in (0, 1, 2, FANOUT - 1)
        if level or value not in twice  # a node as data is the guest's own affair
    ]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two VDIs, the second with two pages of snapshots and a clone."""
    path = tmp_path_factory.mktemp("forged") / "store"
    mkfs.create(str(path), EXTENT, EXTENTS)
    rng = random.Random(2)
    with Session.open(str(path)) as session:
        for name in ("other", "forged"):
            record = session.create(name, SIZE)
            with session.opened(record) as vdi:
                vdi.write(0, rng.randbytes(1 << 18))
                vdi.write(3 << 20, rng.randbytes(1 << 16))
        for number in range(30):
            with session.opened(record) as vdi:
                vdi.write(rng.randrange(SIZE) & ~4095, rng.randbytes(4096))
                vdi.snapshot(f"s{number}")
        session.create("clone", parent=session.find_snapshot("forged@s3"))
        with session.opened(record) as vdi:
            vdi.write(0, rng.randbytes(8192))
    assert not check(str(path)).damaged
    return path


@contextmanager
def whatever_happens() -> Iterator[None]:
    """Nothing goes wrong but what is meant to; what is corrupt is named."""
    try:
        yield
    except ParallaxError as error:
        if isinstance(error, Corrupt) and not error.message.startswith(f"block {error.block}: "):
            raise AssertionError(error.message) from error


def use(path: str) -> None:
    """Read, change and collect all that there is."""
    with whatever_happens(), Session.open(path, "read") as session:
        for _, found in session.registry.scan():
            if isinstance(found, VdiRecord):
                with whatever_happens():
                    read_all(session, found)
    with whatever_happens(), Session.open(path) as session:
        for record in session.registry.vdis():
            for change in CHANGES:
                with whatever_happens():
                    change(session, record)
        with whatever_happens():
            session.collect()
    with whatever_happens(), Session.open(path) as session:
        session.create("new", 1 << 20)
        with whatever_happens(), session.opened(session.registry.find("new")) as vdi:
            vdi.write(0, b"n" * (1 << 20))


def read_all(session: Session, record: VdiRecord) -> None:
    image = session.live_image(record)
    for offset in range(0, min(image.size, SIZE), 1 << 20):
        with whatever_happens():
            image.read(offset, min(1 << 20, image.size - offset))
        with whatever_happens():
            list(image.extents(offset, min(1 << 20, image.size - offset)))
    for snapshot in session.snapshots(record):
        with whatever_happens(), session.reading(snapshot) as there:
            list(there.differences(image))
            list(image.map.diff(there.map))


def write_some(session: Session, record: VdiRecord) -> None:
    with session.opened(record) as vdi:
        for offset in (0, 4096, (2 << 20) - 4096, SIZE - 4096):
            with whatever_happens():
                vdi.write(offset, b"w" * 4096)
            session.commit([vdi])


def trim_all(session: Session, record: VdiRecord) -> None:
    with session.opened(record) as vdi:
        vdi.trim(0, vdi.size)


CHANGES: tuple[Callable[[Session, VdiRecord], object], ...] = (
    lambda session, record: session.snapshot(record, "more"),
    write_some,
    lambda session, record: session.resize(record, 6 << 20),
    lambda session, record: [*map(session.delete_snapshot, [*session.snapshots(record)][:1])],
    lambda session, record: [
        session.rollback(record, s) for s in [*session.snapshots(record)][-1:]
    ],
    trim_all,
)


@settings(
    max_examples=max(15, settings().max_examples // 10),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(data=st.data())
def test_what_is_forged_harms_nothing_else(
    honest: Path, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "store"
    shutil.copy(honest, path)
    forger = Forger(path)
    kinds = [
        of_fields("record", RECORD),
        of_fields("line", LINE),
        of_fields("old line", LINE),
        of_entries(forger.path(FORGED)),
    ]
    forgery = data.draw(st.sampled_from(data.draw(st.sampled_from(kinds))))
    note(str(forgery))
    harms_nothing_else(path, forger, forgery)


def harms_nothing_else(path: Path, forger: Forger, forgery: Forgery) -> None:
    other = forger.record(OTHER)
    with Session.open(str(path), "read") as session:
        expected = session.live_image(other).read(0, SIZE)
    forgery.carry_out(forger)
    forger.save()
    report = check(str(path))
    assert report.damaged
    repaired = path.with_name("repaired")
    shutil.copy(path, repaired)
    repair(str(repaired))
    after = check(str(repaired))
    assert not after.damaged, after.findings
    use(str(path))
    assert os.path.getsize(path) == EXTENT * EXTENTS
    now = Forger(path)
    assert now.sb == forger.sb
    assert now.record(OTHER).uuid == other.uuid
    for name in (path, repaired):
        with Session.open(str(name), "read") as session:
            record = session.registry.get(OTHER)
            assert record
            assert record.size in (SIZE, 6 << 20)
            if name == repaired:
                assert session.live_image(record).read(0, SIZE) == expected


def test_four_nodes_that_claim_256_tib(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    shutil.copy(honest, path)
    forger = Forger(path)
    leaf = [pack_entry(1900, 0, True), *[0] * (FANOUT - 1)]
    entry = pack_entry(1901, forger.put_node(1901, leaf), True)
    for block in (1902, 1903, 1904):
        entry = pack_entry(block, forger.put_node(block, [entry] * FANOUT), True)
    forger.set_record(FORGED, root=entry, height=4, size=MAX_VDI_SIZE, mapped=1 << 27)
    forger.save()
    read: list[int] = []
    node = Blockstore.node

    def counted(store: Blockstore, entry: int, level: int, wait: bool = True) -> memoryview:
        read.append(entry)
        return node(store, entry, level, wait)

    monkeypatch.setattr(Blockstore, "node", counted)
    with Session.open(str(path), "read") as session:
        record = session.registry.get(FORGED)
        assert record
        image = session.live_image(record)
        with pytest.raises(Corrupt, match="block 1901: is a node in two places"):
            list(image.extents(0, 1 << 30))
        newest = next(session.snapshots(record))
        snapshot = Image(session.store, newest.root, newest.height, newest.size)
        for one, two in ((snapshot, image), (image, snapshot)):
            with pytest.raises(Corrupt, match="block 1901: is a node in two places"):
                list(one.differences(two))
    assert check(str(path)).damaged
    repair(str(path))
    assert not check(str(path)).damaged
    assert len(read) < 4 * BEHIND
    assert os.path.getsize(path) == EXTENT * EXTENTS


def test_every_number_of_a_record_is_forged() -> None:
    """A field that is new wants a rule, and values that break it."""
    free = {"id", "uuid", "name", "session", "page", "parent_block", "parent_offset", "label"}
    free |= {"parent_vdi", "parent_uuid", "log_kept", "kind", "scheduled"}
    assert {field.name for field in fields(VdiRecord)} - free == RECORD.keys()
    assert {field.name for field in fields(LogRecord)} - free == LINE.keys()
    assert BLOCK == 1 << BLOCK_SHIFT


def test_what_lies_behind_the_end_never_shows(tmp_path: Path) -> None:
    path = tmp_path / "store"
    mkfs.create(str(path), EXTENT, EXTENTS)
    with Session.open(str(path)) as session:
        for name in ("other", "forged"):
            with session.opened(session.create(name, 64 << 10)) as vdi:
                vdi.write(0, b"d" * (64 << 10))
                vdi.snapshot("now")
    forger = Forger(path)
    forger.set_record(FORGED, size=8192)
    forger.set_line(FORGED, 0, size=8192)
    forger.save()
    with Session.open(str(path)) as session:
        record = session.registry.find("forged")
        snapshot = session.find_snapshot("forged@now")
        other = session.live_image(session.registry.find("other"))
        image = session.live_image(record)
        assert [*image.extents(0, 8192)] == [(0, 8192, True)]
        assert [*image.differences(other)] == [*other.differences(image)] == [(2, 14)]
        with session.opened(record) as vdi:
            vdi.write(0, b"n" * 4096)
        with session.reading(snapshot) as there:
            assert [*session.live_image(session.registry.find("forged")).differences(there)] == [
                (0, 1)
            ]
        session.resize(session.registry.find("forged"), 1 << 20)
        grown = session.live_image(session.registry.find("forged"))
        assert grown.read(4096, (1 << 20) - 4096).rstrip(b"\0") == (b"d" * 4096)
        session.create("clone", 1 << 20, session.find_snapshot("forged@now"))
        clone = session.registry.find("clone")
        assert session.live_image(clone).read(0, 1 << 20).rstrip(b"\0") == b"d" * 8192


@pytest.mark.parametrize("token", [1 << 57, (1 << 63) - 1, HUGE])
def test_an_absurd_token_harms_one_vdi(honest: Path, tmp_path: Path, token: int) -> None:
    """And not the lock master, whose later tokens go on where they were."""
    path = tmp_path / "store"
    shutil.copy(honest, path)
    forger = Forger(path)
    block = forger.sb.vdi_slot(FORGED, forger.set_record(FORGED, token=token).sequence % 2)
    forger.save()
    with Session.open(str(path)) as session:
        with pytest.raises(Corrupt, match=f"block {block}: "):
            session.snapshot(session.registry.find(str(FORGED)), "no")
        with session.opened(session.registry.find("other")) as vdi:
            vdi.write(0, b"fine")
        assert session.locks.acquire("registry").token < 1 << 40
