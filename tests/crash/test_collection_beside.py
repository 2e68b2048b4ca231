"""The power goes at any write of a collection while two sessions are at work.

What was acknowledged must be there, every snapshot whole, and the check of the store must find
nothing but space that the next collection frees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.fleet import Fleet
from support.memory import MemoryDevice, Pages, RecordingDevice
from support.stores import noise

from core.blockstore import Blockstore
from core.check import check_store
from core.format import BLOCK, BLOCK_SHIFT
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.session import Session

EXTENT = 64
BLOCKS = 24
SIZE = BLOCKS * BLOCK


class Power:
    """A device that looks at what a power cut would leave, at each flush.

    Attributes:
        promised: what the snapshots of a VDI held when they were acknowledged, by name.
        states: how many were looked at.
    """

    def __init__(self, seed: int) -> None:
        pages = MemoryDevice(EXTENT * 8 << BLOCK_SHIFT)
        format_device(pages, EXTENT << BLOCK_SHIFT, 8)
        self.device = RecordingDevice(pages.size, pages.pages)
        self.device.on_flush = self.look
        self.promised: dict[tuple[str, str], bytes] = {}
        self.rng = random.Random(seed)
        self.states = 0

    def look(self) -> None:
        for state in self.cuts():
            self.states += 1
            self.judge(state)

    def cuts(self) -> Iterator[Pages]:
        """What may be left: prefixes, single losses, and any subset with torn writes."""
        writes = self.device.unflushed
        chosen = [writes[:count] for count in range(len(writes) + 1)]
        chosen += [writes[:at] + writes[at + 1 :] for at in range(len(writes))]
        for kept in self.rng.sample(chosen, min(len(chosen), 8)):
            yield self.state(kept, torn=False)
        for _ in range(4):
            yield self.state([write for write in writes if self.rng.random() < 0.5], torn=True)

    def state(self, kept: list[tuple[int, object]], torn: bool) -> Pages:
        pages = dict(self.device.durable)
        for first, run in kept:
            for block, data in enumerate(run, first):  # type: ignore[arg-type, var-annotated]
                cut = self.rng.choice([0, 512, 1024, BLOCK]) if torn else BLOCK
                pages[block] = data[:cut] + pages.get(block, bytes(BLOCK))[cut:]
        return pages

    def judge(self, pages: Pages) -> None:
        store = Blockstore(MemoryDevice(self.device.size, pages), LockMaster())
        report = check_store(store)
        assert not report.damaged, report.findings
        session = Session(store, LockMaster())
        for (name, label), contents in self.promised.items():
            found = session.find_snapshot(f"{name}@{label}")
            assert session.image(found).read(0, SIZE) == contents, (name, label)


def put(power: Power, session: Session, name: str, seed: int, label: str) -> None:
    """Write all of a VDI and keep that in a snapshot."""
    contents = noise(SIZE, seed)
    record = session.registry.find(name)
    with session.opened(record) as vdi:
        vdi.write(0, contents)
    session.snapshot(session.registry.find(name), label)
    power.promised[name, label] = contents


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_power_goes_during_a_collection_with_two_sessions(seed: int) -> None:
    power = Power(seed)
    fleet = Fleet()
    one, two = fleet.session(power.device), fleet.session(power.device)
    for session, name in ((one, "a"), (two, "b")):
        session.create(name, SIZE)
        put(power, session, name, 1, "first")
        put(power, session, name, 2, "second")
    one.create("copy", parent=one.find_snapshot("a@first"))
    for session, name in ((one, "a"), (two, "b")):
        del power.promised[name, "first"]
        session.delete_snapshot(session.find_snapshot(f"{name}@first"))
    two.delete(two.registry.find("copy"))
    plan = two.plan_collection()
    open_vdi = one.open_vdi(one.registry.find("a"))
    open_vdi.write(0, noise(5 * BLOCK, 3))
    one.commit([open_vdi])
    assert two.collect(plan) > BLOCKS
    open_vdi.write(8 * BLOCK, noise(5 * BLOCK, 4))
    plan.give_back()
    one.commit([open_vdi])
    put(power, two, "b", 5, "third")
    one.release(open_vdi)
    one.close()
    two.close()
    power.look()
    assert power.states > 200
