"""A power cut while a store is made leaves no store or a sound one; while it grows, a store."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.crash import Cutter, State
from support.memory import MemoryDevice, RecordingDevice
from support.model import read_disk
from support.workload import small_world

from core import blockstore, mkfs
from core.blockstore import Blockstore
from core.check import check_store
from core.errors import NotAStore
from core.format import BLOCK, Superblock
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.session import Session

EXTENT = 64
EXTENTS = 6
SIZE = EXTENT * EXTENTS * BLOCK


class Watched(RecordingDevice):
    """A device that collects the crash states of each stretch between two flushes."""

    def __init__(self, size: int, pages: dict[int, bytes]) -> None:
        super().__init__(size, pages)
        self.states: list[State] = []
        self.on_flush = self.cut

    def cut(self) -> None:
        sessions = frozenset({1, EXTENT - 2})  # in use, so a sector of them is old or new
        cutter = Cutter(self.durable, self.unflushed, sessions, random.Random(0), 1 << 30)
        self.states += map(cutter.state, cutter.choices())


def assert_sound(store: Blockstore) -> None:
    """Nothing but one of the two superblocks may be damaged."""
    superblocks = {0, EXTENT - 1}
    report = check_store(store)
    damage = [f for f in report.findings if f.severity == "damage" and f.block not in superblocks]
    assert not damage


def test_formatting() -> None:
    device = Watched(SIZE, {})
    format_device(device, EXTENT * BLOCK, EXTENTS)
    device.cut()
    found = set()
    for state in device.states:
        try:
            store = Blockstore(MemoryDevice(SIZE, state), LockMaster())
        except NotAStore:
            found.add(False)
            continue
        found.add(True)
        assert_sound(store)
        assert store.sb.extents == EXTENTS
    assert found == {False, True}


def test_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, vdis = small_world()
    device = Watched(SIZE, pages)

    def opened(*_: Any, **__: Any) -> Blockstore:
        return Blockstore(device, LockMaster())

    with monkeypatch.context() as patch:
        patch.setattr(blockstore.Blockstore, "open", opened)
        mkfs.grow("memory", EXTENTS + 3)
    device.cut()
    assert Superblock.unpack(device.durable[0]) == Superblock.unpack(device.durable[EXTENT - 1])
    sizes = set()
    for state in device.states:
        locks = LockMaster()
        store = Blockstore(MemoryDevice(device.size, state), locks)
        assert_sound(store)
        sizes.add(store.sb.extents)
        session = Session(store, locks)
        for vdi in vdis:
            record = session.registry.find(vdi.name)
            assert session.live_image(record).read(0, vdi.size) == read_disk(vdi.disk, 0, vdi.size)
    assert sizes == {EXTENTS, EXTENTS + 3}
