"""Sessions: making, finding, cloning, renaming, deleting VDIs, and who is kept out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import live, noise, peek, poke, small_store, write

from core import mkfs
from core.blockstore import Blockstore
from core.check import check, check_store
from core.errors import BadRequest, Fenced, InUse, IoFailed, NoSpace, NotFound, ReadOnly
from core.extent import read_bitmap
from core.format import BLOCK, BLOCK_MASK, DELETED, LIVE, MAX_VDI_SIZE, VdiRecord
from core.repair import repair
from core.session import Session, parse_snapshot_id
from core.snaplog import SnapshotId


@pytest.fixture
def path(tmp_path: Path) -> str:
    return small_store(tmp_path, 256)


@pytest.fixture
def session(path: str) -> Iterator[Session]:
    with Session.open(path) as session:
        yield session


# -- creating --------------------------------------------------------------------------


def test_a_new_vdi_is_zeros_of_its_size(session: Session) -> None:
    record = session.create("disk", 10_001)
    assert (record.id, record.name, record.size) == (0, "disk", 10_001)
    assert live(session, "disk") == bytes(10_001)
    assert session.create("other").id == 1
    assert [r.name for r in session.registry.vdis()] == ["disk", "other"]


def test_a_finished_creation_fills_both_slots(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("disk", BLOCK)
        sb = session.store.sb
    slots = [VdiRecord.unpack(peek(path, sb.vdi_slot(0, n)), sb.uuid, 0) for n in (0, 1)]
    assert slots == [record, replace(record, sequence=1)]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("", 0, "the name is empty"),
        ("12", 0, "would be taken for an id"),
        ("taken", 0, "the name 'taken' is taken by VDI 0"),
        ("big", MAX_VDI_SIZE + 1, "a VDI of 281474976710657 bytes is not possible"),
        ("small", -1, "a VDI of -1 bytes is not possible"),
    ],
)
def test_what_cannot_be_created(session: Session, name: str, size: int, message: str) -> None:
    session.create("taken")
    with pytest.raises(BadRequest) as caught:
        session.create(name, size)
    assert message in caught.value.message
    assert caught.value.hint
    assert len(session.registry.vdis()) == 1


def test_a_full_table(tmp_path: Path) -> None:
    with Session.open(small_store(tmp_path)) as session:
        for number in range(30):
            session.create(f"d{number}")
        with pytest.raises(BadRequest) as caught:
            session.create("one more")
        assert caught.value.message == "the store has room for 30 VDIs and all are taken"
        assert caught.value.hint == "delete some and run 'plxsh store gc'"


def test_reading_sessions_write_nothing(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("disk", BLOCK)
        write(session, record, 0, b"data")
        session.snapshot(record, "s")
        snapshot = session.find_snapshot("disk@s")
    before = Path(path).read_bytes()
    with Session.open(path, "read") as session:
        for refused in (
            lambda: session.create("new"),
            lambda: session.rename(record, "new"),
            lambda: session.resize(record, 0),
            lambda: session.delete(record, snapshots=True),
            lambda: session.snapshot(record),
            lambda: session.delete_snapshot(snapshot),
            lambda: session.rollback(record, snapshot),
            lambda: session.open_vdi(record),
        ):
            with pytest.raises(ReadOnly, match="is open for reading only"):
                refused()
        assert session.image(snapshot).read(0, 4) == b"data"
    assert Path(path).read_bytes() == before


# -- clones ----------------------------------------------------------------------------


def snapshot_of(session: Session, name: str = "base", label: str = "s") -> SnapshotId:
    record = session.create(name, 20 * BLOCK)
    write(session, record, 0, noise(20 * BLOCK, name))
    return session.snapshot(record, label)


def test_a_clone_starts_as_its_snapshot_and_goes_its_own_way(session: Session) -> None:
    where = snapshot_of(session)
    snapshot = session.find_snapshot("base@s")
    clone = session.create("clone", parent=snapshot)
    assert (clone.size, clone.mapped, clone.own) == (20 * BLOCK, 20, 0)
    assert (clone.parent_vdi, clone.parent_block, clone.parent_offset) == (0, *where)
    assert live(session, "clone") == live(session, "base")
    write(session, clone, 5, b"clone")
    write(session, session.registry.find("base"), 9, b"base")
    base = noise(20 * BLOCK, "base")
    assert live(session, "clone") == base[:5] + b"clone" + base[10:]
    assert live(session, "base") == base[:9] + b"base" + base[13:]
    assert session.image(snapshot).read(0, 20 * BLOCK) == base
    assert [c.name for c in session.clones(session.registry.find("base"))] == ["clone"]


def test_a_clone_may_be_larger_but_not_smaller(session: Session) -> None:
    snapshot_of(session)
    snapshot = session.find_snapshot("base@s")
    session.create("larger", 8 << 20, snapshot)
    assert live(session, "larger") == noise(20 * BLOCK, "base").ljust(8 << 20, b"\0")
    with pytest.raises(BadRequest, match="has 81920 bytes, the clone cannot have 81919") as caught:
        session.create("smaller", 20 * BLOCK - 1, snapshot)
    assert "--force" in caught.value.hint


def test_a_clone_costs_the_same_few_blocks_however_large(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_of(session, "small")
    huge = session.create("huge", MAX_VDI_SIZE)
    for offset in range(0, MAX_VDI_SIZE, MAX_VDI_SIZE // 16):
        write(session, huge, offset, b"x")
    session.snapshot(huge, "s")
    written: list[int] = []
    real = session.store.device.pwritev

    def counting(offset: int, buffers: list[bytes]) -> None:
        written.append(sum(map(len, buffers)))
        real(offset, buffers)

    monkeypatch.setattr(session.store.device, "pwritev", counting)
    costs = []
    for name in ("small", "huge"):
        written.clear()
        session.create(f"clone of {name}", parent=session.find_snapshot(f"{name}@s"))
        clone = list(written)
        written.clear()
        session.snapshot(session.registry.find(f"clone of {name}"), "again")
        costs.append((clone, list(written)))
    assert costs[0][0] == costs[1][0] == 3 * [BLOCK], "two records, and one that has the snapshot"
    assert sum(map(sum, costs[1])) <= sum(map(sum, costs[0])) + 2 * BLOCK


# -- finding snapshots -----------------------------------------------------------------


def test_snapshots_by_id_and_by_label(session: Session) -> None:
    where = snapshot_of(session)
    record = session.registry.find("base")
    by = [f"{where}", f"base@{where}", "base@s", "0@s"]
    assert {session.find_snapshot(reference).id for reference in by} == {where}
    newer = session.snapshot(record, "s")
    assert session.find_snapshot("base@s").id == newer
    session.delete_snapshot(session.find_snapshot("base@s"))
    assert session.find_snapshot("base@s").id == where


def test_snapshots_in_pages_that_moved_out_are_found(session: Session) -> None:
    record = session.create("disk", BLOCK)
    ids = [session.snapshot(record, f"#{n}") for n in range(30)]
    assert [session.find_snapshot(str(where)).label for where in ids] == [
        f"#{n}" for n in range(30)
    ]


@pytest.mark.parametrize(
    "reference", ["base@none", "base@1.2", "1.2", "999999999.0", "0.0", "none@s", "64.0"]
)
def test_snapshots_that_are_not_there(session: Session, reference: str) -> None:
    snapshot_of(session)
    with pytest.raises(NotFound):
        session.find_snapshot(reference)


@pytest.mark.parametrize(
    "reference", ["s", "", "12", "1.2.3", "a.b", "9" * 5000 + ".1", "@s", "base@", "@"]
)
def test_what_names_no_snapshot(session: Session, reference: str) -> None:
    with pytest.raises(BadRequest) as caught:
        session.find_snapshot(reference)
    assert "names no snapshot" in caught.value.message
    assert "BLOCK.OFFSET" in caught.value.hint


def test_a_guest_cannot_forge_a_snapshot(session: Session) -> None:
    """A block of data that looks like a log page leads nowhere."""
    victim = session.create("victim", BLOCK)
    for number in range(25):
        session.snapshot(victim, f"#{number}")
    page = session.find_snapshot("victim@#0").id.block
    forged = session.store.device.pread(page * BLOCK, BLOCK)
    guest = session.create("guest", BLOCK)
    write(session, guest, 0, forged)
    with session.opened(guest) as vdi:
        block = vdi.map.lookup(0) >> 1
    with pytest.raises(NotFound):
        session.find_snapshot(f"{block}.0")


def test_parsing_ids() -> None:
    assert parse_snapshot_id("190.5") == SnapshotId(190, 5)
    for text in ("190", "190.", ".5", "190.5.1", "-1.5", "1 .5", "²..5", "\u0663.\u0665", ""):
        assert parse_snapshot_id(text) is None


# -- renaming and resizing -------------------------------------------------------------


def test_renaming(session: Session) -> None:
    record = session.create("old", BLOCK)
    session.create("other")
    write(session, record, 0, b"data")
    session.rename(record, "neu")
    assert live(session, "neu")[:4] == b"data"
    with pytest.raises(NotFound):
        session.registry.find("old")
    session.rename(session.registry.find("neu"), "neu")
    with pytest.raises(BadRequest, match="'other' is taken by VDI 1"):
        session.rename(session.registry.find("neu"), "other")
    with pytest.raises(BadRequest, match="the name is empty"):
        session.rename(session.registry.find("neu"), "")
    session.create("old")


def test_two_vdis_never_have_one_name(session: Session) -> None:
    stale = session.create("a")
    session.rename(stale, "b")
    session.create("a")
    session.rename(stale, "c")  # the record still says "a", which is another's now
    with pytest.raises(BadRequest, match="is taken"):
        session.create("a")
    session.create("b")
    assert sorted(r.name for r in session.registry.vdis()) == ["a", "b", "c"]


def test_shrinking_loses_data_by_force_only(session: Session) -> None:
    record = session.create("disk", 100_000)
    write(session, record, 50_000, b"data")
    with pytest.raises(BadRequest) as caught:
        session.resize(record, 50_001)
    assert "bytes of data lie behind byte 50001 of VDI 'disk'" in caught.value.message
    assert "--force" in caught.value.hint
    assert session.registry.find("disk").size == 100_000
    session.resize(record, 70_000)  # nothing is there
    session.resize(record, 50_001, force=True)
    session.resize(record, 100_000)
    assert live(session, "disk") == (bytes(50_000) + b"d").ljust(100_000, b"\0")


def test_a_size_that_is_not_possible(session: Session) -> None:
    record = session.create("disk")
    with pytest.raises(BadRequest, match="is not possible"):
        session.resize(record, MAX_VDI_SIZE + 1)


# -- deleting --------------------------------------------------------------------------


def test_deleting(session: Session) -> None:
    snapshot_of(session)
    record = session.registry.find("base")
    with pytest.raises(InUse) as caught:
        session.delete(record)
    assert caught.value.message == "VDI 'base' has 1 snapshot"
    assert "--snapshots" in caught.value.hint
    clone = session.create("clone", parent=session.find_snapshot("base@s"))
    with pytest.raises(InUse) as caught:
        session.delete(record, snapshots=True)
    assert caught.value.message == "VDI 'base' has clones: 'clone'"
    assert caught.value.hint == "delete the clones first"
    session.delete(clone)
    session.delete(record, snapshots=True)
    assert session.registry.vdis() == []
    assert [r.name for r in session.registry.vdis(DELETED)] == ["base", "clone"]
    assert session.create("base").id == 2


def test_a_deleted_vdi_comes_back_with_its_snapshots(session: Session) -> None:
    where = snapshot_of(session)
    write(session, session.registry.find("base"), 0, b"later")
    before, record = live(session, "base"), session.registry.find("base")
    session.delete(record, snapshots=True)
    gone = session.registry.find_deleted("base")
    assert gone.deleted_ns > 0
    session.restore(gone)
    back = session.registry.find("base")
    assert (back.id, back.uuid, back.deleted_ns, back.snapshots) == (0, record.uuid, 0, 1)
    assert live(session, "base") == before
    assert session.find_snapshot("base@s").id == where
    session.create("clone", parent=session.find_snapshot("base@s"))
    assert [r.name for r in session.clones(back)] == ["clone"]
    write(session, session.registry.find("base"), 0, b"still writable")
    report = check_store(session.store)
    assert (report.damaged, report.deleted, report.restorable) == (False, 0, 0)
    with pytest.raises(NotFound, match="cannot be restored any more"):
        session.restore(gone)


def test_a_restored_vdi_needs_a_name_that_is_free(session: Session) -> None:
    session.delete(session.create("base", BLOCK))
    session.create("base")
    gone = session.registry.find_deleted("base")
    with pytest.raises(BadRequest) as caught:
        session.restore(gone)
    assert caught.value.message == "the name 'base' is taken by VDI 1"
    assert caught.value.hint == "give another one with --name"
    with pytest.raises(BadRequest, match="contains '@'"):
        session.restore(gone, "a@b")
    session.restore(gone, "old")
    assert {r.id: r.name for r in session.registry.vdis()} == {0: "old", 1: "base"}
    with pytest.raises(BadRequest, match="the name 'old' is taken by VDI 0"):
        session.create("old")


def test_a_restored_vdi_is_on_record_twice(session: Session) -> None:
    """Were one of the two lost, it would be deleted again, and collected."""
    session.delete(session.create("base", BLOCK))
    session.restore(session.registry.find_deleted("base"))
    assert {r.state for r in session.registry.pair(0).found if r is not None} == {LIVE}


def test_what_was_collected_cannot_be_restored(session: Session) -> None:
    snapshot_of(session)
    clone = session.create("clone", parent=session.find_snapshot("base@s"))
    session.delete(clone)
    session.delete(session.registry.find("base"), snapshots=True)
    gone = session.registry.vdis(DELETED)
    assert check_store(session.store).restorable > 0
    assert session.collect() > 0
    for record in gone:
        with pytest.raises(NotFound, match="cannot be restored any more"):
            session.restore(record)
        with pytest.raises(NotFound, match="or its space was collected"):
            session.registry.find_deleted(record.name)


def test_the_id_of_a_vdi_that_is_gone_is_given_again_when_none_else_is_left(path: str) -> None:
    """A guest that knows its disk by the id, and connects again, must not meet another there."""
    with Session.open(path) as session:
        for number in range(3):
            session.create(f"disk{number}", BLOCK)
        for number in (1, 0):
            session.delete(session.registry.find(str(number)))
            session.collect()
        assert session.create("new", BLOCK).id == 3
    with Session.open(path) as session:  # nor is it by the next process
        for number in range(4, session.store.sb.max_vdis):
            assert session.create(f"disk{number}").id == number
        assert session.create("one more").id == 1
        session.delete(session.registry.find("2"))
        assert session.create("and another").id == 0
        with pytest.raises(BadRequest, match="all are taken"):
            session.create("too many")
        session.collect()
        assert session.create("fits now").id == 2


def test_a_clone_outlives_the_collection_of_its_deleted_parent(session: Session) -> None:
    snapshot_of(session)
    clone = session.create("clone", parent=session.find_snapshot("base@s"))
    contents = live(session, "clone")
    session.delete(clone)
    session.delete(session.registry.find("base"), snapshots=True)
    session.restore(session.registry.find_deleted("clone"))
    session.collect()
    assert live(session, "clone") == contents
    assert not check_store(session.store).damaged


def test_damage_to_a_free_entry_does_not_bring_a_deleted_vdi_back(path: str) -> None:
    """Its blocks may be others' by then, so both its records say that it is gone."""
    with Session.open(path) as session:
        session.create("base", BLOCK)
        write(session, session.registry.find("base"), 0, b"contents")
        session.delete(session.registry.find("base"))
        session.collect()
        slots = [session.store.sb.vdi_slot(0, slot) for slot in (0, 1)]
    for slot in slots:
        whole = peek(path, slot)
        poke(path, slot, noise(BLOCK, 1))
        with Session.open(path, "read") as session:
            assert session.registry.vdis(DELETED) == []
        poke(path, slot, whole)


def test_a_reading_session_restores_nothing(path: str) -> None:
    with Session.open(path) as session:
        session.delete(session.create("base", BLOCK))
    with Session.open(path, "read") as session, pytest.raises(ReadOnly):
        session.restore(session.registry.find_deleted("base"))


def test_damage_of_a_deleted_vdi_is_found_and_repaired(path: str) -> None:
    with Session.open(path) as session:
        session.create("base", BLOCK)
        write(session, session.registry.find("base"), 0, b"contents")
        record = session.registry.find("base")
        session.delete(record)
    poke(path, record.root >> 1 & BLOCK_MASK, noise(BLOCK, 1))
    report = check(path)
    assert report.damaged
    assert any("deleted VDI 0 'base' is damaged" in f.message for f in report.findings)
    repair(path)
    report = check(path)
    assert (report.damaged, report.deleted) == (False, 0)


def test_a_collection_frees_what_a_repair_leaves_of_a_deleted_vdi(path: str) -> None:
    test_damage_of_a_deleted_vdi_is_found_and_repaired(path)
    with Session.open(path) as session:
        assert session.collect() > 0
    assert check(path).unreachable == 0


def test_labels_that_come_close_are_suggested(session: Session) -> None:
    snapshot_of(session, label="clean")
    with pytest.raises(NotFound) as caught:
        session.find_snapshot("base@claen")
    assert caught.value.message == "there is no snapshot base@claen"
    assert caught.value.hint == "did you mean 'base@clean'?"
    with pytest.raises(NotFound) as caught:
        session.find_snapshot("base@12.0")
    assert caught.value.hint == "'plxsh snap list VDI' shows those of a VDI"


def test_the_clones_of_one_snapshot(session: Session) -> None:
    snapshot_of(session)
    first = session.find_snapshot("base@s")
    session.create("clone", parent=first)
    session.snapshot(session.registry.find("base"), "second")
    assert [r.name for r in session.clones_of(first)] == ["clone"]
    assert session.clones_of(session.find_snapshot("base@second")) == []


def test_what_is_open_is_not_deleted_or_rolled_back(session: Session) -> None:
    snapshot_of(session)
    snapshot = session.find_snapshot("base@s")
    session.delete_snapshot(snapshot)
    record = session.registry.find("base")
    kept = session.snapshot(record, "kept")
    vdi = session.open_vdi(record)
    with pytest.raises(InUse, match="VDI 'base' is open"):
        session.delete(record, snapshots=True)
    with pytest.raises(InUse, match="VDI 'base' is open"):
        session.rollback(record, session.find_snapshot(str(kept)))
    assert session.open_vdis == [vdi]
    session.release(vdi)
    session.delete(record, snapshots=True)


def test_what_was_deleted_cannot_be_used_through_an_old_record(session: Session) -> None:
    snapshot_of(session)
    record = session.registry.find("base")
    snapshot = session.find_snapshot("base@s")
    session.delete(record, snapshots=True)
    for refused in (
        lambda: session.open_vdi(record),
        lambda: session.snapshot(record),
        lambda: session.rename(record, "new"),
        lambda: session.create("clone", parent=snapshot),
        lambda: session.delete_snapshot(snapshot),
        lambda: session.rollback(record, snapshot),
    ):
        with pytest.raises(NotFound):
            refused()
    with pytest.raises(NotFound):
        session.find_snapshot(str(snapshot.id))


def test_a_snapshot_is_deleted_once(session: Session) -> None:
    snapshot_of(session)
    snapshot = session.find_snapshot("base@s")
    record = session.registry.find("base")
    session.delete_snapshot(snapshot)
    assert session.registry.find("base").snapshots == 0
    for refused in (
        lambda: session.delete_snapshot(snapshot),
        lambda: session.create("clone", parent=snapshot),
        lambda: session.rollback(record, snapshot),
    ):
        with pytest.raises(NotFound, match="was deleted"):
            refused()
    assert session.registry.find("base").snapshots == 0


def test_deleting_makes_a_full_store_usable_again(tmp_path: Path) -> None:
    with Session.open(small_store(tmp_path)) as session:
        big = session.create("big", 8 << 20)
        write(session, big, 0, noise(250 * BLOCK))
        other = session.create("other", 8 << 20)
        with pytest.raises(NoSpace):
            write(session, other, 0, noise(100 * BLOCK))
        assert live(session, "big")[: 250 * BLOCK] == noise(250 * BLOCK)
        session.delete(big)
        write(session, other, 0, noise(200 * BLOCK, "new"))
        assert live(session, "other")[: 200 * BLOCK] == noise(200 * BLOCK, "new")


# -- rolling back ----------------------------------------------------------------------


def test_rolling_back(session: Session) -> None:
    snapshot_of(session)
    record = session.registry.find("base")
    write(session, record, 0, b"changed")
    session.snapshot(record, "later")
    session.resize(record, 10 << 20)
    write(session, record, 9 << 20, b"changed again")
    session.rollback(record, session.find_snapshot("base@s"))
    assert live(session, "base") == noise(20 * BLOCK, "base")
    assert [s.label for s in session.snapshots(session.registry.find("base"))] == ["later", "s"]
    session.rollback(record, session.find_snapshot("base@later"))
    assert live(session, "base")[:7] == b"changed"
    other = session.create("other")
    with pytest.raises(BadRequest, match="is no snapshot of VDI 'other'") as caught:
        session.rollback(other, session.find_snapshot("base@s"))
    assert "--from" in caught.value.hint


# -- opening and committing ------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_a_store_has_one_writer(path: str) -> None:
    for mode in ("write", "shared"):
        with pytest.raises(InUse, match=f"{path} is in use by"):
            Session.open(path, mode)  # type: ignore[arg-type]


def test_readers_see_what_is_committed(session: Session, path: str) -> None:
    snapshot_of(session)
    with Session.open(path, "read") as reader:
        assert live(reader, "base") == noise(20 * BLOCK, "base")
        vdi = session.open_vdi(session.registry.find("base"))
        vdi.amend(name="not yet")
        assert reader.registry.find("base")
        session.commit([vdi])
        assert reader.registry.find("not yet")
        session.release(vdi)


def test_an_error_inside_gives_up_what_was_not_committed(session: Session) -> None:
    record = session.create("disk", BLOCK * 100)
    write(session, record, 0, b"kept")
    free = session.store.allocator.free

    def interrupted() -> None:
        with session.opened(record) as vdi:
            vdi.write(BLOCK, noise(50 * BLOCK))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert session.open_vdis == []
    assert live(session, "disk") == b"kept".ljust(100 * BLOCK, b"\0")
    assert session.store.allocator.free == free


def test_an_error_inside_leaves_it_to_the_others_that_have_it_open(session: Session) -> None:
    record = session.create("disk", BLOCK)
    vdi = session.open_vdi(record)

    def interrupted() -> None:
        with session.opened(record) as same:
            same.write(0, b"data")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert session.open_vdis == [vdi]
    assert vdi.read(0, 4) == b"data"
    session.release(vdi)
    assert live(session, "disk")[:4] == b"data"


def test_closing_commits_what_is_open(path: str) -> None:
    session = Session.open(path)
    vdi = session.open_vdi(session.create("disk", BLOCK))
    vdi.write(0, b"data")
    session.close()
    session.close()
    with Session.open(path) as again:
        assert live(again, "disk")[:4] == b"data"


def test_nothing_is_leaked_by_a_clean_session(path: str) -> None:
    with Session.open(path) as session:
        used = {e: read_bitmap(session.store.device, session.store.sb, e)[0].used for e in (1, 2)}
        record = session.create("disk", 200 * BLOCK)
        write(session, record, 0, noise(200 * BLOCK))
        with session.opened(record) as vdi:
            vdi.trim(0, 200 * BLOCK)
    store = Blockstore.open(path)
    assert used == {e: read_bitmap(store.device, store.sb, e)[0].used for e in (1, 2)}
    store.close()


def test_a_commit_runs_on_another_thread_while_writing_goes_on(session: Session) -> None:
    vdi = session.open_vdi(session.create("disk", 200 * BLOCK))
    expected = bytearray(200 * BLOCK)
    for round_ in range(20):
        for number in range(0, 50, 3):
            data = noise(BLOCK, (round_, number))
            vdi.write((round_ * 7 + number) * BLOCK, data)
            at = (round_ * 7 + number) * BLOCK
            expected[at : at + BLOCK] = data
        pending = session.begin_commit([vdi])
        thread = threading.Thread(target=pending.sync)
        thread.start()
        vdi.trim(round_ * BLOCK, BLOCK)
        expected[round_ * BLOCK : (round_ + 1) * BLOCK] = bytes(BLOCK)
        thread.join()
        pending.finish()
        pending.finish()
    session.release(vdi)
    assert live(session, "disk") == expected


def test_two_commits_never_overlap(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """No slot is written while the other may still be on its way to the disk."""
    vdi = session.open_vdi(session.create("disk", 200 * BLOCK))
    vdi.write(0, noise(BLOCK))
    session.commit([vdi])
    window: set[int] = set()
    device = session.store.device
    real_write, real_flush = device.pwritev, device.flush

    def pwritev(offset: int, buffers: list[bytes]) -> None:
        first = offset // BLOCK
        for block in range(first, first + sum(map(len, buffers)) // BLOCK):
            inside = block % 256
            if 2 <= block < 255 or (block > 255 and inside < session.store.sb.overhead):
                assert block ^ 1 not in window, f"both slots of block {block} at risk"
                window.add(block)
        real_write(offset, buffers)

    def flush() -> None:
        real_flush()
        window.clear()

    monkeypatch.setattr(device, "pwritev", pwritev)
    monkeypatch.setattr(device, "flush", flush)
    for number in range(1, 6):
        vdi.write(number * BLOCK, noise(BLOCK))
        pending = session.begin_commit([vdi])
        pending.sync()
        vdi.write((100 + number) * BLOCK, noise(BLOCK))
        session.create(f"beside {number}", BLOCK)
        with monkeypatch.context() as patch:
            vdi.write((150 + number) * BLOCK, noise(BLOCK))
            calls = iter(range(100))

            def full_at_the_second(offset: int, buffers: list[bytes]) -> None:
                if next(calls) == 1:  # noqa: B023
                    raise NoSpace("file system full")
                pwritev(offset, buffers)

            patch.setattr(device, "pwritev", full_at_the_second)
            with pytest.raises(NoSpace):
                session.commit([vdi])
        vdi.write((160 + number) * BLOCK, noise(BLOCK))
        session.commit([vdi])


def test_a_failed_sync_is_told_by_finish(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    vdi = session.open_vdi(session.create("disk", BLOCK))
    vdi.write(0, b"data")
    pending = session.begin_commit([vdi])

    def fails() -> None:
        raise IoFailed("cannot flush")

    monkeypatch.setattr(session.store.device, "flush", fails)
    pending.sync()
    assert isinstance(pending.error, IoFailed)
    with pytest.raises(IoFailed, match="cannot flush"):
        pending.finish()
    with pytest.raises(IoFailed):
        vdi.write(0, b"more")


def test_a_vdi_that_another_session_took_over_is_fenced(path: str) -> None:
    session = Session.open(path)
    vdi = session.open_vdi(session.create("disk", BLOCK))
    vdi.write(0, b"late")
    record = session.registry.find("disk")
    other = replace(record, sequence=record.sequence + 1, token=record.token + 1)
    sb = session.store.sb
    poke(path, sb.vdi_slot(0, other.sequence % 2), other.pack(sb.uuid))
    with pytest.raises(Fenced) as caught:
        session.commit([vdi])
    assert caught.value.message == "VDI 0 was changed by another session"
    assert caught.value.hint == "open it again"
    with pytest.raises(IoFailed):
        vdi.write(0, b"later")
    session.close()
    with Session.open(path) as again:
        assert again.registry.find("disk") == other


def test_tokens_go_up_with_every_opening(path: str) -> None:
    tokens = []
    for _ in range(3):
        with Session.open(path) as session:
            if not tokens:
                session.create("disk", BLOCK)
            write(session, session.registry.find("disk"), 0, noise(10, len(tokens)) + bytes(50))
            session.snapshot(session.registry.find("disk"))
            tokens.append(session.registry.find("disk").token)
    assert tokens == sorted(set(tokens))


def test_an_id_given_again_after_collection_is_a_snapshot_like_any_other(tmp_path: Path) -> None:
    with Session.open(small_store(tmp_path)) as session:
        where = snapshot_of(session, "first")
        session.delete_snapshot(session.find_snapshot("first@s"))
        session.delete(session.registry.find("first"))
        for number in range(400):
            session.make_room()  # collects what was deleted
            record = session.create(f"disk{number}", BLOCK)
            if session.snapshot(record, "t") == where:
                break
            session.delete(session.registry.find(record.name), snapshots=True)
        else:
            pytest.fail("the block was not used again")
        session.create("clone", parent=session.find_snapshot(f"{record.name}@t"))
        session.delete_snapshot(session.find_snapshot(f"{record.name}@t"))


def test_a_snapshot_that_is_read_is_not_collected(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    mkfs.create(path, 64 * BLOCK, 6)
    with Session.open(path) as session:
        record = session.create("a", 40 * BLOCK)
        with session.opened(record) as vdi:
            vdi.write(0, bytes([1]) * 40 * BLOCK)
        snapshot = session.find_snapshot(str(session.snapshot(record)))
        image = session.image(snapshot)
        with session.opened(record) as vdi:
            vdi.write(0, bytes([2]) * 40 * BLOCK)
        session.delete_snapshot(snapshot)
        session.make_room()
        other = session.create("b", 200 * BLOCK)
        with session.opened(other) as vdi, suppress(NoSpace):
            vdi.write(0, bytes([3]) * 200 * BLOCK)
        assert image.read(0, 40 * BLOCK) == bytes([1]) * 40 * BLOCK


def test_reading_a_snapshot_that_is_deleted_meanwhile_is_an_error(path: str) -> None:
    with Session.open(path) as session:
        record = session.create("a", BLOCK)
        session.snapshot(record, "s")
    with Session.open(path, "read") as reader:
        reading = reader.reading(reader.find_snapshot("a@s"))
        assert reading.__enter__().read(0, BLOCK) == bytes(BLOCK)
        with Session.open(path) as session:
            session.delete_snapshot(session.find_snapshot("a@s"))
        with pytest.raises(NotFound, match="while it was read"):
            reading.__exit__(None, None, None)


def test_a_commit_that_is_interrupted_while_it_is_prepared_is_the_last(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with Session.open(path) as session:
        vdi = session.open_vdi(session.create("disk", 4 * BLOCK))
        vdi.write(0, b"x" * BLOCK)
        monkeypatch.setattr(session.store, "write_queued", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.commit([vdi])
        with pytest.raises(IoFailed, match="interrupted"):
            vdi.write(0, b"y" * BLOCK)
    with Session.open(path) as session, session.opened(session.registry.find("disk")) as vdi:
        assert vdi.read(0, BLOCK) == bytes(BLOCK)
    assert not check(path).damaged
