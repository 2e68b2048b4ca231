"""Interleavings of sessions that looked dangerous: each would lose data, or show another's."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.fleet import member_of
from support.stores import noise, small_store
from unit.test_collection import Pair, fill_table, made

from core.answering import Work
from core.blockstore import Blockstore
from core.check import check_beside
from core.collection import Sealing
from core.device import FileDevice
from core.errors import Corrupt, Fenced, InUse, NoSpace, NotFound
from core.format import BLOCK, INCOMPAT_SCHEDULES, LOG_RECORDS, VdiRecord
from core.registry import Registry
from core.remote import Argument, ask
from core.vdi import Vdi


@pytest.fixture
def pair() -> Pair:
    return Pair()


def is_whole(vdi: Vdi, name: str, blocks: int) -> bool:
    return vdi.read(0, blocks * BLOCK) == noise(blocks * BLOCK, name)


# -- what a commit of everything leaves out --------------------------------------------


def suspended(pair: Pair, method: str) -> None:
    """Session one was suspended when it is called: its lease is renewed a moment later."""
    client = member_of(pair.one).client
    handler = pair.one.answers.handlers[method]

    def handle(which: str, argument: Argument) -> Work:
        valid, client.valid_until = client.valid_until, pair.fleet.now - 1
        try:
            return handler(which, argument)
        finally:
            client.valid_until = valid

    pair.one.answers.handlers[method] = handle


def test_who_is_sealed_with_a_lapsed_lease_keeps_what_it_has_not_committed(pair: Pair) -> None:
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    vdi.write(0, noise(30 * BLOCK, "disk"))
    suspended(pair, "session seal")
    plan = pair.two.plan_collection()
    with closing(plan):
        pair.two.collect(plan)
    made(pair.one, "other", 60)
    assert is_whole(vdi, "disk", 30)
    pair.one.release(vdi)
    pair.unreachable()
    assert len(plan.unsealed) == 1


def test_an_extent_is_not_given_away_with_a_lapsed_lease() -> None:
    pair = Pair(extents=6)
    made(pair.one, "one", 70)
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    vdi.write(0, noise(30 * BLOCK, "disk"))
    suspended(pair, "extent yield")
    numbers = sorted(pair.one.store.allocator.claimed)
    assert len(numbers) > 1
    for number in numbers:
        with pytest.raises(Fenced):
            member_of(pair.two).call(f"extent/{number}", "yield", "{}")
    assert sorted(pair.one.store.allocator.claimed) == numbers
    pair.one.release(vdi)


def test_what_a_lost_vdi_had_is_not_freed_again_when_it_is_closed(pair: Pair) -> None:
    """Its blocks were collected, and are another VDI's, while it was open still."""
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    vdi.write(0, noise(30 * BLOCK, "disk"))
    pair.fleet.break_lock(f"vdi/{vdi.id}")
    pair.freed(pair.two)
    made(pair.one, "other", 60)
    pair.one.drop(vdi)
    made(pair.one, "third", 60)
    with pair.one.opened(pair.one.registry.find("other")) as other:
        assert is_whole(other, "other", 60)
    pair.unreachable()


@pytest.mark.parametrize("end", ["release", "close"])
def test_who_wrote_to_a_lost_vdi_hears_of_it_in_the_end(pair: Pair, end: str) -> None:
    first = pair.one.open_vdi(pair.one.create("first", 1 << 20))
    second = pair.one.open_vdi(pair.one.create("second", 1 << 20))
    for vdi in (first, second):
        vdi.write(0, noise(3 * BLOCK, vdi.name))
    pair.fleet.break_lock(f"vdi/{first.id}")
    with pytest.raises(Fenced):
        pair.one.release(first) if end == "release" else pair.one.close()
    if end == "release":
        pair.one.close()
    with pair.two.opened(pair.two.registry.find("second")) as vdi:
        assert is_whole(vdi, "second", 3)
    with pair.two.opened(pair.two.registry.find("first")) as vdi:
        assert vdi.read(0, BLOCK) == bytes(BLOCK)


# -- what was queued -------------------------------------------------------------------


def test_nodes_of_a_vdi_that_was_given_up_are_not_written_over_others() -> None:
    session = Pair(extents=6).one
    record = session.create("dropped", 1 << 21)
    with suppress(KeyError), session.opened(record) as vdi:
        for at in range(0, 1 << 21, 1 << 19):
            vdi.write(at, noise(BLOCK, at))
        vdi.snapshot("never")  # its nodes are queued
        raise KeyError
    session.collect()
    full = session.create("full", 400 * BLOCK)
    with session.opened(full) as vdi:
        written = 0
        with suppress(NoSpace):
            while True:
                vdi.write(written * BLOCK, noise(BLOCK, written))
                written += 1
    assert written > 200
    with session.opened(full) as vdi:
        for block in range(written):
            assert vdi.read(block * BLOCK, BLOCK) == noise(BLOCK, block), block


# -- what gets free while a collection is on -------------------------------------------


def test_what_gets_free_after_the_seal_is_neither_swept_nor_used(pair: Pair) -> None:
    """No root leads to it any more, and it may be another block's place by then."""
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    vdi.write(0, noise(20 * BLOCK, "before"))
    pair.one.commit([vdi])
    attend = pair.two.attend

    def change() -> None:
        attend()
        if pair.one.member.token:
            pair.two.attend = attend  # type: ignore[method-assign]
            vdi.trim(0, 20 * BLOCK)
            for _ in range(2):
                pair.one.repeat([vdi])
            vdi.write(0, noise(50 * BLOCK, "after"))
            pair.one.commit([vdi])

    pair.two.attend = change  # type: ignore[method-assign]
    plan = pair.two.plan_collection()
    assert pair.two.attend is attend
    with closing(plan):
        pair.two.collect(plan)
    made(pair.one, "other", 60)
    assert is_whole(vdi, "after", 50)
    pair.one.release(vdi)
    pair.one.close()
    assert pair.unreachable() == 0


def test_a_clone_rests_on_two_records_of_a_vdi_that_another_session_has_open(pair: Pair) -> None:
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    vdi.write(0, noise(5 * BLOCK, "disk"))
    vdi.snapshot("s")
    pair.one.commit([vdi])
    pair.two.create("clone", parent=pair.two.find_snapshot("disk@s"))
    found = pair.two.registry.pair(vdi.id).found
    assert [record.snapshots for record in found if record is not None] == [1, 1]
    pair.one.release(vdi)


# -- extents on their way --------------------------------------------------------------


def test_an_extent_that_was_taken_back_and_spared_again_waits_for_the_second_commit() -> None:
    pair = Pair(extents=6)
    made(pair.one, "one", 70)
    member = pair.one.member
    number = min(pair.one.store.allocator.claimed)
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 20))
    first = member.spare(number)
    pending = pair.one.begin_commit([vdi])
    member.expire()
    vdi.write(0, noise(20 * BLOCK, "disk"))
    second = member.spare(number)
    pending.sync()
    with pytest.raises(InUse):
        member.hand_over(number, first)
    pair.one.commit([vdi])
    member.hand_over(number, second)
    assert number not in pair.one.store.allocator.claimed
    pair.one.release(vdi)


def test_an_extent_that_is_sealed_on_its_way_stays() -> None:
    """A block that a commit dropped waits in it for the end of the seal."""
    pair = Pair(extents=6)
    made(pair.one, "one", 70)
    member = pair.one.member
    number = min(pair.one.store.allocator.claimed)
    time = member.spare(number)
    member.seal(99)
    with pytest.raises(InUse, match="part of a collection"):
        member.hand_over(number, time)
    member.expire()
    assert number in pair.one.store.allocator.claimed


# -- snapshots that are read without a lock --------------------------------------------


def ticked(vdi: Vdi, first: int, count: int) -> None:
    for number in range(first, first + count):
        vdi.write(0, number.to_bytes(8, "big"))
        vdi.snapshot(f"t{number}", scheduled=True)
        vdi.drop_scheduled()


def test_a_log_of_which_pages_are_collected_meanwhile_is_read_to_its_end(pair: Pair) -> None:
    record = pair.one.create("disk", 1 << 20)
    pair.one.schedule(record, 10**9, 3 * LOG_RECORDS)
    vdi = pair.one.open_vdi(record)
    ticked(vdi, 0, 3 * LOG_RECORDS)
    pair.one.commit([vdi])
    walk = pair.two.snapshots(pair.two.registry.find("disk"))
    assert next(walk).label == f"t{3 * LOG_RECORDS - 1}"
    ticked(vdi, 3 * LOG_RECORDS, 2 * LOG_RECORDS)
    pair.one.commit([vdi])
    assert pair.freed(pair.two)
    made(pair.one, "other", 50)
    made(pair.two, "another", 100)
    rest = [snapshot.label for snapshot in walk]
    end = 3 * LOG_RECORDS
    assert rest == [f"t{number}" for number in range(end - 2, 2 * LOG_RECORDS - 1, -1)]
    pair.one.release(vdi)


def test_damage_of_a_log_that_has_not_changed_is_told(pair: Pair) -> None:
    record = pair.one.create("disk", 1 << 20)
    with pair.one.opened(record) as vdi:
        for _ in range(LOG_RECORDS + 1):
            vdi.snapshot()
    record = pair.one.registry.find("disk")
    page = record.log_previous >> 1 & (1 << 40) - 1
    pair.device.pwritev(page * BLOCK, [bytes(BLOCK)])
    with pytest.raises(Corrupt):
        list(pair.two.snapshots(record))


def test_a_snapshot_whose_place_another_has_now_was_deleted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = pair.one.create("disk", 1 << 20)
    where = pair.one.snapshot(record, "old")
    old = pair.two.find_snapshot("disk@old")
    reading = pair.two.reading(old)
    reading.__enter__()
    monkeypatch.setattr(time, "time_ns", lambda: old.time_ns + 1)
    again = pair.one.registry.find("disk")
    pages = [line.__class__(*as_row(line, old.time_ns + 1)) for line in again.page]
    with pair.one.opened(again) as vdi:
        vdi.amend(page=tuple(pages))  # as if it were collected and its id given again
    assert pair.two.find_snapshot("disk@old").id == where
    with pytest.raises(NotFound, match="while it was read"):
        reading.__exit__(None, None, None)
    with pytest.raises(NotFound):
        pair.two.create("clone", parent=old)


def as_row(line: Any, time_ns: int) -> list[Any]:
    """The fields of a line of the log, at another time."""
    row = [getattr(line, name) for name in line.__dataclass_fields__]
    row[1] = time_ns
    return row


def test_damage_that_a_reader_finds_in_a_deleted_snapshot_is_its_deletion(pair: Pair) -> None:
    record = pair.one.create("disk", 1 << 20)
    pair.one.snapshot(record, "s")
    snapshot = pair.two.find_snapshot("disk@s")
    with pytest.raises(Corrupt), pair.two.reading(snapshot):
        raise Corrupt("is damaged", 1)
    pair.one.delete_snapshot(snapshot)
    with pytest.raises(NotFound, match="while it was read"), pair.two.reading(snapshot):
        raise Corrupt("is not what the pointer to it promises", 1)


# -- who is asked ----------------------------------------------------------------------


def test_a_call_for_another_vdi_of_that_number_is_refused(pair: Pair) -> None:
    old = pair.one.create("old", 1 << 20)
    pair.one.delete(old)
    pair.freed(pair.one)
    fill_table(pair.one)
    new = pair.one.create("new", 1 << 20)
    assert new.id == old.id
    vdi = pair.one.open_vdi(new)
    argument: Argument = {"uuid": old.uuid.hex(), "name": "renamed"}
    with pytest.raises(NotFound):
        ask(pair.two.locks, f"vdi/{old.id}", "rename", argument)
    assert pair.two.registry.find("new").id == new.id
    pair.one.release(vdi)


def test_an_id_is_not_given_by_who_lost_the_right_to(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk hangs between looking for a free one and writing the record; its lease does not."""
    really = Registry.get

    def get(registry: Registry, number: int) -> VdiRecord | None:
        found = really(registry, number)
        if member_of(pair.one).client.held.get("registry"):
            monkeypatch.setattr(Registry, "get", really)
            pair.fleet.break_lock("registry")
            pair.fleet.pass_time(pair.fleet.master.timing.give_away_after)
            made(pair.two, "two", 20)
        return found

    monkeypatch.setattr(Registry, "get", get)
    with pytest.raises(Fenced):
        pair.one.create("one", 1 << 20)
    with pair.two.opened(pair.two.registry.find("two")) as vdi:
        assert is_whole(vdi, "two", 20)


# -- the superblock ---------------------------------------------------------------------


@pytest.mark.parametrize("grows_first", [True, False])
def test_a_feature_and_new_extents_do_not_take_each_other_away(
    pair: Pair, grows_first: bool
) -> None:
    """Neither session was told what the other wrote."""
    for session in (pair.one, pair.two):
        member_of(session).attend = None
    record = pair.one.create("disk", 1 << 20)
    pair.device.size *= 2

    def schedule() -> None:
        pair.one.schedule(record, 10**9, 3)

    def grow() -> None:
        pair.two.grow(2 * pair.sb.extents)

    for step in (grow, schedule) if grows_first else (schedule, grow):
        step()
    sb = Blockstore(pair.device).sb
    assert sb.extents == 2 * pair.sb.extents
    assert sb.incompat & INCOMPAT_SCHEDULES


# -- growing ---------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["check", "collect"])
def test_a_store_grows_while_it_is_looked_at(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """What is in the new extents belongs to records that are read after it was sealed."""
    vdi = pair.one.open_vdi(pair.one.create("disk", 1 << 22))
    vdi.write(0, noise(30 * BLOCK, "disk"))
    really = Sealing.registry

    @contextmanager
    def registry(sealing: Sealing) -> Iterator[None]:
        if pair.one.store.sb.extents == pair.sb.extents:
            pair.device.size *= 2
            pair.one.grow(2 * pair.sb.extents)
            vdi.write(0, noise(800 * BLOCK, "more"))
            pair.one.commit([vdi])
        with really(sealing):
            yield

    monkeypatch.setattr(Sealing, "registry", registry)
    if work == "check":
        assert not check_beside(pair.two).damaged
    else:
        pair.freed(pair.two)
    assert is_whole(vdi, "more", 800)
    pair.one.release(vdi)
    pair.unreachable()


# -- locks of the kernel ---------------------------------------------------------------


def test_a_program_that_was_started_keeps_no_lock(tmp_path: Path) -> None:
    path = small_store(tmp_path)
    device = FileDevice(path, True, "session")
    child = subprocess.Popen(["sleep", "60"])
    try:
        device.close()
        FileDevice(path, True, "exclusive").close()
    finally:
        child.kill()
        child.wait()
