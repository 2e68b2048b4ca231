"""Random damage to a store: the check never fails to report, the repair makes it sound.

Whole blocks are overwritten with zeros or noise, and single bits are flipped, wherever
something is stored.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import mkfs
from core.check import check
from core.errors import IoFailed, NotAStore
from core.format import BLOCK, VdiRecord, entry_block
from core.repair import repair
from core.session import Session

EXTENT = 1 << 20
EXTENTS = 8


class Sound:
    """A store that is sound, and what its VDIs hold."""

    def __init__(self, path: Path, contents: dict[str, bytes]) -> None:
        self.path = path
        self.contents = contents


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A store with VDIs, clones and a long snapshot log, and the contents of its VDIs."""
    path = tmp_path_factory.mktemp("damage") / "store"
    mkfs.create(str(path), EXTENT, EXTENTS)
    rng = random.Random(1)
    with Session.open(str(path)) as session:
        gold = session.create("gold", 5 << 20)
        for number in range(60):
            with session.opened(gold) as vdi:
                vdi.write(rng.randrange(5 << 20) & ~511, rng.randbytes(9000))
            where = session.snapshot(gold, f"s{number}")
            if number % 20 == 3:
                clone = session.create(f"clone {number}", parent=session.find_snapshot(str(where)))
                with session.opened(clone) as vdi:
                    vdi.write(4096 * number, rng.randbytes(20_000))
            if number % 7 == 5:
                session.delete_snapshot(session.find_snapshot(str(where)))
        session.delete(session.create("gone", 1 << 20))
        contents = {
            record.name: session.live_image(record).read(0, record.size)
            for record in session.registry.vdis()
        }
    assert not check(str(path)).damaged
    return Sound(path, contents)


def used_blocks(path: Path) -> list[int]:
    """Return the blocks of a store that hold anything."""
    raw = path.read_bytes()
    return [at // BLOCK for at in range(0, len(raw), BLOCK) if any(raw[at : at + BLOCK])]


def compare(session: Session, record: VdiRecord, expected: bytes, hit: set[int]) -> None:
    """Every block is as it was, or lost (zeros), or one of the data blocks that were hit."""
    image = session.live_image(record)
    found = image.read(0, record.size)
    assert len(found) == len(expected)
    for at in range(0, len(found), BLOCK):
        block = found[at : at + BLOCK]
        if block != expected[at : at + BLOCK] and any(block):
            assert entry_block(image.map.lookup(at // BLOCK)) in hit


@pytest.mark.timeout(1200)  # a minute on a busy machine
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(count=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_any_damage_is_reported_and_repaired(
    sound: Sound,
    tmp_path: Path,
    count: int,
    seed: int,
) -> None:
    path = tmp_path / "store"
    shutil.copy(sound.path, path)
    rng = random.Random(seed)
    used = used_blocks(path)
    hit = set()
    with path.open("r+b") as file:
        for _ in range(count):
            block = rng.choice(used)
            hit.add(block)
            kind = rng.choice(["zeros", "noise", "bit"])
            file.seek(block * BLOCK)
            old = file.read(BLOCK)
            new = {"zeros": bytes(BLOCK), "noise": rng.randbytes(BLOCK)}.get(kind)
            if new is None:
                flipped = bytearray(old)
                flipped[rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
                new = bytes(flipped)
            file.seek(block * BLOCK)
            file.write(new)
    try:
        before = check(str(path))
        report, done = repair(str(path))
    except (NotAStore, IoFailed):
        assert {0, EXTENT // BLOCK - 1} <= hit  # the superblock and its copy are lost
        return
    assert report.damaged == before.damaged
    assert bool(done) <= report.damaged
    after = check(str(path))
    assert not after.damaged, (before.findings, done, after.findings)
    with Session.open(str(path)) as session:
        for record in session.registry.vdis():
            slots = {session.store.sb.vdi_slot(record.id, slot) for slot in (0, 1)}
            if record.name in sound.contents and not slots & hit:
                compare(session, record, sound.contents[record.name], hit)
        for record in session.registry.vdis():
            with session.opened(record) as vdi:
                if vdi.size:
                    vdi.write(0, b"still writable")
    assert not check(str(path)).damaged
