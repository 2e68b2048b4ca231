"""Collections with several sessions: seals, their ends, late sweeps, extents that change hands."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import numpy as np
import pytest
from support.fleet import Fleet, member_of
from support.memory import MemoryDevice
from support.stores import noise

from core.answering import Work
from core.blockstore import Blockstore
from core.check import check_beside, check_store
from core.collection import Collection, pack_bits, unpack_bits
from core.errors import InUse, NoSpace
from core.extent import read_header
from core.format import BLOCK, BLOCK_SHIFT
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.remote import Argument
from core.session import Session
from core.vdi import Vdi

EXTENT = 64


class Pair:
    """Two sessions on one store in memory."""

    def __init__(self, extents: int = 8) -> None:
        self.device = MemoryDevice(EXTENT * extents << BLOCK_SHIFT)
        self.sb = format_device(self.device, EXTENT << BLOCK_SHIFT, extents)
        self.fleet = Fleet()
        self.one = self.fleet.session(self.device)
        self.two = self.fleet.session(self.device)

    def unreachable(self) -> int:
        report = check_store(Session(Blockstore(self.device), LockMaster()).store)
        assert not report.damaged, report.findings
        return report.unreachable

    def freed(self, session: Session) -> int:
        plan = session.plan_collection()
        with closing(plan):
            return session.collect(plan)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def made(session: Session, name: str, blocks: int) -> None:
    with session.opened(session.create(name, 1 << 20)) as vdi:
        vdi.write(0, noise(blocks * BLOCK, name))


def fill_table(session: Session) -> None:
    """Give all ids that were never given; after that those that were freed are given again."""
    given = len(list(session.registry.scan()))
    for number in range(given, session.store.sb.max_vdis):
        session.create(f"other{number}")


def holder(pair: Pair, number: int) -> int | None:
    names = {h.name: h.who.pid for h in pair.fleet.master.holdings()}
    return names.get(f"extent/{number}")


def test_each_session_frees_what_is_garbage_in_its_extents(pair: Pair) -> None:
    made(pair.one, "one", 20)
    made(pair.two, "two", 20)
    pair.one.delete(pair.one.registry.find("one"))
    pair.two.delete(pair.two.registry.find("two"))
    free = pair.one.store.allocator.free, pair.two.store.allocator.free
    plan = pair.two.plan_collection()
    with closing(plan):
        account = plan.account()
        assert {record.name: blocks for record, blocks in account.own} == {"one": 21, "two": 21}
        assert pair.two.collect(plan) == 42
    assert pair.one.store.allocator.free >= free[0] + 21
    assert pair.two.store.allocator.free >= free[1] + 21
    pair.one.close()
    pair.two.close()
    assert pair.unreachable() == 0


def test_what_nobody_has_is_collected_and_left_to_others(pair: Pair) -> None:
    made(pair.one, "one", 20)
    pair.one.close()
    pair.two.delete(pair.two.registry.find("one"))
    third = pair.fleet.session(pair.device)
    assert pair.freed(pair.two) == 21
    assert holder(pair, 1) is None
    assert read_header(pair.device, pair.sb, 1).session == bytes(16)
    made(third, "three", 50)
    assert pair.unreachable() == 0


def test_nothing_that_is_freed_meanwhile_is_used_before_the_end(pair: Pair) -> None:
    made(pair.one, "one", 20)
    with closing(pair.two.seal()), pair.one.opened(pair.one.registry.find("one")) as vdi:
        free = pair.one.store.allocator.free
        vdi.trim(0, 1 << 20)
        pair.one.commit([vdi])
        assert pair.one.store.allocator.free <= free
    assert pair.one.store.allocator.free >= free + 20


def test_a_seal_ends_when_the_collector_is_gone(pair: Pair) -> None:
    made(pair.one, "one", 20)
    pair.two.seal()
    member_of(pair.two).freeze()
    pair.one.member.expire()
    assert pair.one.member.token
    pair.fleet.end_leases()
    pair.one.member.expire()
    assert not pair.one.member.token


def test_want_of_room_ends_a_seal_and_late_sweeps_are_refused(pair: Pair) -> None:
    made(pair.one, "one", 20)
    plan = pair.two.plan_collection()
    token = pair.one.member.token
    assert token
    pair.one.make_room()
    bits = np.full(EXTENT >> 3, 255, np.uint8)
    with pytest.raises(InUse, match="not sealed for that"):
        pair.one.member.sweep(token, 1, bits)
    assert pair.two.collect(plan) == 0
    plan.close()
    assert pair.unreachable() == 0


def test_a_sweep_of_another_collection_is_refused(pair: Pair) -> None:
    made(pair.one, "one", 20)
    pair.two.seal().close()
    sealing = pair.two.seal()
    bits = np.full(EXTENT >> 3, 255, np.uint8)
    with pytest.raises(InUse):
        pair.one.member.sweep(pair.one.member.token - 1, 1, bits)
    with pytest.raises(InUse, match="extent 5 is not sealed"):
        pair.one.member.sweep(pair.one.member.token, 5, bits)
    sealing.close()


def test_two_do_not_collect_at_once(pair: Pair) -> None:
    plan = pair.one.plan_collection()
    with pytest.raises(InUse):
        pair.two.plan_collection()
    plan.close()
    pair.two.plan_collection().close()


def test_who_does_not_answer_keeps_its_extents_and_does_not_say_what_it_reads(pair: Pair) -> None:
    made(pair.one, "one", 20)
    pair.one.delete(pair.one.registry.find("one"))
    member_of(pair.one).attend = None
    with pytest.raises(InUse, match="does not say which snapshots it reads"):
        pair.two.plan_collection()
    assert not pair.two.member.token
    with closing(pair.two.seal()) as sealing:
        assert len(sealing.unsealed) == 1


def test_a_vdi_restored_meanwhile_keeps_everything(pair: Pair) -> None:
    made(pair.one, "one", 20)
    pair.one.delete(pair.one.registry.find("one"))
    plan = pair.two.plan_collection()
    pair.one.restore(pair.one.registry.find_deleted("one"))
    with closing(plan), pytest.raises(InUse):
        pair.two.collect(plan)
    with pair.one.opened(pair.one.registry.find("one")) as vdi:
        assert vdi.read(0, 20 * BLOCK) == noise(20 * BLOCK, "one")


def test_a_session_with_two_extents_gives_one_to_who_has_no_room() -> None:
    pair = Pair(extents=6)
    made(pair.one, "big", 240)
    assert {holder(pair, n) for n in range(1, 6)} == {1001}
    with pair.one.opened(pair.one.registry.find("big")) as vdi:
        vdi.trim(0, 150 * BLOCK)
    made(pair.two, "small", 10)
    assert 1002 in {holder(pair, n) for n in range(1, 6)}
    assert pair.unreachable() == 0


def test_space_in_extents_of_others_is_told_truthfully() -> None:
    pair = Pair(extents=6)
    made(pair.one, "big", 240)
    with pytest.raises(NoSpace) as caught:
        made(pair.two, "small", 10)
    assert "free in extents of host1, process 1001" in caught.value.message
    assert "the blockstore is full" not in caught.value.message


def test_an_extent_is_given_away_only_when_all_of_it_is_committed() -> None:
    pair = Pair(extents=6)
    made(pair.one, "one", 70)
    vdi = pair.one.open_vdi(pair.one.registry.find("one"))
    vdi.trim(0, 40 * BLOCK)
    pair.one.commit([vdi])
    vdi.write(0, noise(30 * BLOCK, "more"))
    member_of(pair.two).call("extent/1", "yield", "{}")
    assert holder(pair, 1) is None
    pair.freed(pair.two)
    made(pair.two, "two", 50)
    assert vdi.read(0, 30 * BLOCK) == noise(30 * BLOCK, "more")
    pair.one.release(vdi)
    assert pair.unreachable() == 0


def test_the_bitmap_is_read_under_the_lock(pair: Pair) -> None:
    pair.two.store.allocator.allocated(1)
    made(pair.one, "one", 50)
    pair.one.close()
    made(pair.two, "two", 50)
    assert pair.unreachable() == 0


def test_an_extent_whose_holder_was_lost_is_the_last_resort(pair: Pair) -> None:
    made(pair.one, "one", 5)
    lost = next(iter(pair.one.store.allocator.claimed))
    member_of(pair.one).freeze()
    pair.fleet.end_leases()
    made(pair.two, "two", 40)
    made(pair.two, "three", 40)
    assert lost not in pair.two.store.allocator.claimed
    made(pair.two, "four", 130)
    made(pair.two, "five", 150)
    assert lost in pair.two.store.allocator.claimed
    session = pair.two.store.session
    assert read_header(pair.device, pair.sb, lost).session == session
    pair.two.close()
    assert read_header(pair.device, pair.sb, lost).session not in (bytes(16), session)


def test_a_claim_is_on_the_device_before_anything_is_written_there(pair: Pair) -> None:
    vdi = pair.one.open_vdi(pair.one.create("one", 1 << 20))
    vdi.write(0, noise(BLOCK, 1))
    assert read_header(pair.device, pair.sb, 1).session == pair.one.store.session
    pair.one.release(vdi)
    pair.one.close()
    assert read_header(pair.device, pair.sb, 1).session == bytes(16)


def test_a_check_beside_others_calls_nothing_unreachable_that_is_about_to_be_used(
    pair: Pair,
) -> None:
    made(pair.one, "one", 20)
    vdi = pair.one.open_vdi(pair.one.registry.find("one"))
    vdi.write(30 * BLOCK, noise(9 * BLOCK, "more"))
    report = check_beside(pair.two)
    assert (report.damaged, report.unreachable, report.vdis) == (False, 0, 1)
    pair.one.release(vdi)
    pair.one.delete(pair.one.registry.find("one"))
    assert check_beside(pair.two).restorable == 30
    member_of(pair.one).attend = None
    notes = [finding.message for finding in check_beside(pair.two).findings]
    assert any("was not checked exactly" in note for note in notes)


def test_damage_is_found_beside_others(pair: Pair) -> None:
    made(pair.one, "one", 20)
    record = pair.one.registry.find("one")
    pair.device.pages[record.root >> 1 & (1 << 40) - 1] = noise(BLOCK, "damage")
    assert check_beside(pair.two).damaged


def test_bits_survive_being_text() -> None:
    bits = np.frombuffer(noise(8192, "bits"), np.uint8)
    assert (unpack_bits(pack_bits(bits), 8192) == bits).all()
    assert len(pack_bits(np.zeros(1 << 16, np.uint8))) < 1000
    bomb = base64.b64encode(zlib.compress(bytes(1 << 20))).decode()
    for text in (pack_bits(bits[1:]), pack_bits(bits)[:40], bomb, "none", "\n", "eJw="):
        with pytest.raises(ValueError, match=r"bits|base64|data|character|padding"):
            unpack_bits(text, 8192)


def test_a_plan_is_over_when_it_is_closed(pair: Pair) -> None:
    plan = pair.one.plan_collection()
    assert isinstance(plan, Collection)
    plan.close()
    with pytest.raises(InUse):
        plan.run()
    with pytest.raises(InUse):
        plan.give_back()


class Moment:
    """What session one does at the so manieth time that session two follows calls."""

    def __init__(self, pair: Pair, at: int) -> None:
        self.pair = pair
        self.left = at

    def attend(self) -> None:
        self.pair.two.attend()
        self.left -= 1
        if self.left == -1:
            self.act()

    def act(self) -> None:
        one = self.pair.one
        snapshot = one.find_snapshot("base@s")
        assert one.create("clone", parent=snapshot).id == 0
        one.delete_snapshot(snapshot)
        with one.opened(one.registry.find("base")) as vdi:
            vdi.write(0, noise(20 * BLOCK, "other"))


def test_a_clone_is_whole_whenever_it_was_made() -> None:
    """Its snapshot is deleted at once, and what was cloned from is written over."""
    for at in range(10):
        pair = Pair()
        for name in ("first", "second"):
            made(pair.one, name, 1)
        made(pair.one, "base", 20)
        pair.one.snapshot(pair.one.registry.find("base"), "s")
        for name in ("first", "second"):
            pair.one.delete(pair.one.registry.find(name))
        pair.freed(pair.one)
        fill_table(pair.one)
        moment, two = Moment(pair, at), pair.two
        plan = Collection(two.member, two.store, two.locks, two.settle, moment.attend)
        with closing(plan):
            two.collect(plan)
        while moment.left >= 0:
            moment.attend()
        made(pair.one, "more", 60)
        with pair.one.opened(pair.one.registry.find("clone")) as vdi:
            assert vdi.read(0, 20 * BLOCK) == noise(20 * BLOCK, "base")
        assert pair.unreachable() <= 22


def busy(_which: str, _argument: Argument) -> Work:
    raise InUse("busy")


def collect_with(pair: Pair, attend: Callable[[], None]) -> None:
    two = pair.two
    plan = Collection(two.member, two.store, two.locks, two.settle, attend)
    with closing(plan):
        two.collect(plan)


def test_what_a_commit_under_way_dropped_is_freed_once() -> None:
    """It ends after the sweep, when what it dropped is another VDI's already."""
    for at in range(10):
        pair = Pair()
        made(pair.one, "one", 20)
        vdi = pair.one.open_vdi(pair.one.registry.find("one"))
        other = pair.one.open_vdi(pair.one.create("other", 1 << 20))
        times = iter(range(1 << 30))

        def attend(pair: Pair = pair, vdi: Vdi = vdi, times: Iterator[int] = times) -> None:
            pair.two.attend()
            if next(times) == at:  # noqa: B023  # called within this round only
                vdi.trim(0, 1 << 20)
                pair.one.begin_commit([vdi]).sync()

        two = pair.two
        plan = Collection(two.member, two.store, two.locks, two.settle, attend)
        with closing(plan):
            two.collect(plan)
            other.write(0, noise(70 * BLOCK, "other"))
        other.write(70 * BLOCK, noise(100 * BLOCK, "more"))
        assert other.read(0, 70 * BLOCK) == noise(70 * BLOCK, "other")
        pair.one.settle()
        pair.one.release(vdi)
        pair.one.release(other)
        pair.unreachable()


def test_an_extent_that_changed_hands_has_no_block_that_waits_for_a_commit() -> None:
    """Not even when its old session does not take part in the collection."""
    pair = Pair(extents=6)
    made(pair.one, "one", 70)
    vdi = pair.one.open_vdi(pair.one.registry.find("one"))
    vdi.trim(0, 40 * BLOCK)
    pair.one.commit([vdi])
    vdi.write(0, noise(30 * BLOCK, "more"))
    for number in sorted(pair.one.store.allocator.claimed):
        with suppress(InUse):
            member_of(pair.two).call(f"extent/{number}", "yield", "{}")
    pair.one.answers.handlers["session seal"] = busy
    pair.freed(pair.two)
    made(pair.two, "two", 100)
    assert vdi.read(0, 30 * BLOCK) == noise(30 * BLOCK, "more")


def test_a_tree_that_changes_under_the_marks_is_marked_again(pair: Pair) -> None:
    """Its session did not seal, and uses again what it frees: no two of its nodes are alike."""
    made(pair.one, "disk", 30)
    pair.one.close()
    made(pair.two, "there", 1)  # the extent that holds the disk is sealed
    pair.one = pair.fleet.session(pair.device)
    pair.one.answers.handlers["session seal"] = busy
    made(pair.one, "other", 1)
    vdi = pair.one.open_vdi(pair.one.registry.find("disk"))
    vdi.write(40 * BLOCK, noise(BLOCK, 0))
    pair.one.commit([vdi])
    times = iter(range(1 << 30))

    def attend() -> None:
        pair.two.attend()
        turn = next(times)
        if turn < 4:
            for block in range(40 + turn, 100):
                vdi.write(block * BLOCK, noise(BLOCK, turn))
                pair.one.commit([vdi])
                vdi.trim(block * BLOCK, BLOCK)
                vdi.write((101 + turn) * BLOCK, noise(BLOCK, block))
                pair.one.commit([vdi])
                vdi.trim((101 + turn) * BLOCK, BLOCK)

    with suppress(InUse, NoSpace):
        collect_with(pair, attend)
    pair.one.release(vdi)
    made(pair.two, "more", 60)
    with pair.one.opened(pair.one.registry.find("disk")) as again:
        assert again.read(0, 30 * BLOCK) == noise(30 * BLOCK, "disk")
