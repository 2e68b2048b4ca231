"""Several sessions on one store: names, ids, VDIs and snapshots, and who is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fleet import Fleet, member_of
from support.memory import MemoryDevice, RecordingDevice
from support.stores import live, noise, small_store, write

from core import mkfs, transfer
from core.blockstore import Blockstore, read_uuid
from core.check import check_store
from core.device import FileDevice
from core.errors import BadRequest, Corrupt, Fenced, InUse, IoFailed, NotFound, ParallaxError
from core.format import BLOCK, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.remote import pack_error, raise_error
from core.session import Session
from core.snaplog import SnapshotId
from core.vdi import NOBODY

EXTENT = 256
EXTENTS = 8


@pytest.fixture
def device() -> RecordingDevice:
    device = RecordingDevice(EXTENT * EXTENTS * BLOCK)
    mkfs.format_device(device, EXTENT * BLOCK, EXTENTS)
    return device


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def two(fleet: Fleet, device: RecordingDevice) -> tuple[Session, Session]:
    return fleet.session(device), fleet.session(device)


def contents(session: Session, name: str) -> bytes:
    """What a VDI holds as of its last commit, read past all locks and caches."""
    store = Blockstore(session.store.device)
    record = Session(store, LockMaster()).registry.find(name)
    return Session(store, LockMaster()).live_image(record).read(0, record.size)


def owned_vdi(session: Session, name: str = "disk", blocks: int = 4) -> VdiRecord:
    """A VDI whose blocks it owns, closed cleanly."""
    record = session.create(name, blocks * BLOCK)
    write(session, record, 0, noise(blocks * BLOCK, name))
    return session.registry.find(name)


# -- names and ids ---------------------------------------------------------------------


def test_a_name_is_given_once_and_ids_never_twice(two: tuple[Session, Session]) -> None:
    one, other = two
    assert one.create("a").id == 0
    assert other.create("b").id == 1
    assert one.create("c").id == 2
    for session in two:
        with pytest.raises(BadRequest, match="taken by VDI 1"):
            session.create("b")
        assert [r.name for r in session.registry.vdis()] == ["a", "b", "c"]


def test_who_gives_a_name_waits_for_the_other(two: tuple[Session, Session]) -> None:
    one, other = two
    other.create("warm")  # knows the names by now
    waits = []

    def other_creates() -> None:
        waits.append(1)
        one._table._write_new("late", 0, None, grant)
        grant.release()

    grant = member_of(one).acquire("registry")
    member_of(other).on_wait = other_creates
    with pytest.raises(BadRequest, match="'late' is taken"):
        other.create("late")
    assert waits == [1]


def test_rename_delete_and_restore_are_seen_by_the_other(two: tuple[Session, Session]) -> None:
    one, other = two
    record = one.create("a")
    other.create("b")
    one.rename(record, "c")
    assert other.create("a").id == 2
    with pytest.raises(BadRequest, match="taken"):
        other.rename(other.registry.find("b"), "c")
    other.delete(other.registry.find("c"))
    with pytest.raises(NotFound):
        one.rename(one.registry.get(0) or record, "d")
    assert one.create("c").id == 3
    with pytest.raises(BadRequest, match="taken"):
        one.restore(one.registry.find_deleted("c"))
    one.restore(one.registry.find_deleted("c"), "d")
    assert [r.name for r in other.registry.vdis()] == ["d", "b", "a", "c"]
    with pytest.raises(BadRequest, match="taken"):
        other.create("d")


def test_a_clone_of_a_snapshot_that_the_other_deleted_is_refused(
    two: tuple[Session, Session],
) -> None:
    one, other = two
    record = owned_vdi(one)
    one.snapshot(record, "s")
    snapshot = other.find_snapshot("disk@s")
    one.delete_snapshot(snapshot)
    with pytest.raises(NotFound, match="was deleted"):
        other.create("clone", parent=snapshot)
    with pytest.raises(NotFound, match="was deleted"):
        other.rollback(other.registry.find("disk"), snapshot)
    with pytest.raises(NotFound, match="was deleted"):
        other.delete_snapshot(snapshot)


def test_a_vdi_with_a_clone_of_the_other_is_not_deleted(two: tuple[Session, Session]) -> None:
    one, other = two
    one.snapshot(owned_vdi(one), "s")
    other.create("clone", parent=other.find_snapshot("disk@s"))
    with pytest.raises(InUse, match="has clones: 'clone'"):
        one.delete(one.registry.find("disk"), snapshots=True)


# -- VDIs that are open elsewhere ------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda s, r: s.open_vdi(r),
        lambda s, r: s.delete(r),
        lambda s, r: s.resize(r, 99 * BLOCK),
        lambda s, r: s.live_image(r),
    ],
)
def test_who_has_it_open_is_said_by_name(
    two: tuple[Session, Session], act: Callable[[Session, VdiRecord], object]
) -> None:
    one, other = two
    record = owned_vdi(one, "my disk")
    one.open_vdi(record)
    with pytest.raises(InUse) as refused:
        act(other, record)
    assert refused.value.message == "VDI 'my disk' is open on host1, process 1001 (tool 1)"


def test_it_opens_as_of_the_last_commit_of_whoever_had_it(two: tuple[Session, Session]) -> None:
    one, other = two
    record = owned_vdi(one)  # what `record` says is old by the time the other opens it
    for turn, session in enumerate((one, other, one)):
        with session.opened(record) as vdi:
            assert vdi.read(0, BLOCK) == noise(BLOCK, turn - 1) if turn else True
            vdi.write(0, noise(BLOCK, turn))
    assert live(other, "disk")[:BLOCK] == noise(BLOCK, 2)


def test_snapshots_names_and_schedules_by_a_call_to_the_holder(
    two: tuple[Session, Session],
) -> None:
    one, other = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)
    vdi.write(0, noise(BLOCK, "new"))
    where = other.snapshot(record, "s")
    [snapshot] = other.snapshots(other.registry.find("disk"))
    assert (snapshot.id, snapshot.label) == (where, "s")
    assert other.image(snapshot).read(0, BLOCK) == noise(BLOCK, "new")
    with pytest.raises(BadRequest, match="label"):
        other.snapshot(record, "a@b")
    other.rename(record, "renamed")
    assert vdi.name == other.registry.find("renamed").name == "renamed"
    with pytest.raises(BadRequest, match="taken"):
        one.create("renamed")
    other.schedule(record, 10**9, 5)
    assert vdi.schedule == (10**9, 5)
    assert other.registry.find("renamed").schedule_keep == 5
    other.delete_snapshot(snapshot)
    assert list(one.snapshots(one.registry.find("renamed"))) == []
    with pytest.raises(NotFound, match="was deleted"):
        other.delete_snapshot(snapshot)
    one.release(vdi)
    assert not check_store(one.store).damaged


def test_a_snapshot_in_the_middle_of_a_change_is_refused(two: tuple[Session, Session]) -> None:
    one, other = two
    record = owned_vdi(one)
    with one.opened(record) as vdi:
        vdi.trim(0, BLOCK)
        with pytest.raises(InUse, match="'disk' is being changed"):
            other.snapshot(record)
        assert contents(other, "disk") == noise(4 * BLOCK, "disk")
    assert other.registry.find("disk").snapshots == 0


def test_a_holder_that_goes_away_before_it_is_asked_is_not_needed(
    two: tuple[Session, Session],
) -> None:
    one, other = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)
    member_of(one).attend = lambda: one.release(vdi) or one.attend()  # type: ignore[func-returns-value]
    other.snapshot(record, "s")
    assert [s.label for s in other.snapshots(other.registry.find("disk"))] == ["s"]


@pytest.mark.parametrize("done", [False, True])
def test_a_holder_that_dies_in_the_middle_is_one_clear_error(
    fleet: Fleet, two: tuple[Session, Session], done: bool
) -> None:
    one, other = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)

    def die() -> None:
        if done:
            vdi.snapshot("s")
            one.commit([vdi])
        fleet.kill(member_of(one))

    member_of(one).attend = die
    with pytest.raises(IoFailed):
        other.snapshot(record, "s")
    assert other.registry.find("disk").snapshots == int(done)


def test_a_closing_session_answers_who_waits(two: tuple[Session, Session]) -> None:
    one, other = two
    record = owned_vdi(one)
    one.open_vdi(record)
    member_of(one).attend = one.close
    other.snapshot(record, "s")
    assert other.registry.find("disk").snapshots == 1


def test_nonsense_is_refused_and_not_fatal(two: tuple[Session, Session]) -> None:
    one, other = two
    one.open_vdi(owned_vdi(one))
    for name, method, argument in [
        ("vdi/0", "snapshot", "{}"),
        ("vdi/0", "snapshot", "what"),
        ("vdi/0", "fly", "{}"),
        ("vdi/0", "delete_snapshot", '{"block": "x", "offset": 0}'),
    ]:
        with pytest.raises((BadRequest, IoFailed)):
            other.locks.call(name, method, argument)
    other.snapshot(other.registry.find("disk"))


# -- errors on their way ---------------------------------------------------------------


def kinds(of: type[ParallaxError] = ParallaxError) -> Iterator[type[ParallaxError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", sorted(set(kinds()), key=lambda kind: kind.__name__))
def test_an_error_comes_out_as_it_went_in(kind: type[ParallaxError]) -> None:
    error = Corrupt("bad", 7, "hint") if kind is Corrupt else kind("message", "hint")
    with pytest.raises(ParallaxError) as caught:
        raise_error(pack_error(error))
    assert type(caught.value) is (kind if "code" in vars(kind) else kind.__base__)
    assert (caught.value.message, caught.value.hint) == (error.message, "hint")


def test_what_is_no_error_is_one() -> None:
    with pytest.raises(IoFailed, match="what"):
        raise_error("what")


# -- leases ----------------------------------------------------------------------------


def test_a_session_whose_lease_lapsed_writes_not_one_byte(
    fleet: Fleet, device: RecordingDevice, two: tuple[Session, Session]
) -> None:
    one, _ = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)
    vdi.write(0, noise(BLOCK, "before"))
    vdi.snapshot("s")
    vdi.write(BLOCK, noise(BLOCK, "before"))
    pending = one.begin_commit([vdi])
    vdi.write(0, noise(BLOCK, "later"))
    member_of(one).freeze()
    fleet.pass_time(fleet.master.timing.stop_after + 1)
    writes = device.writes
    pending.sync()  # as on the commit thread
    with pytest.raises(Fenced):
        vdi.write(0, noise(BLOCK, "no"))
    for act in (
        lambda: vdi.trim(0, BLOCK),
        lambda: vdi.snapshot("no"),
        lambda: one.commit([vdi]),
        lambda: one.create("no"),
        lambda: one.rename(record, "no"),
        lambda: one.store.write(9, [bytes(BLOCK)]),
        lambda: one.store.device.discard(0, BLOCK),
        lambda: one.store.write_queued(),
        one.close,
    ):
        with pytest.raises(ParallaxError):
            act()
    assert device.writes == writes


def test_a_file_looks_at_the_lease_before_each_system_call(fleet: Fleet, tmp_path: Path) -> None:
    path = small_store(tmp_path, EXTENT)
    session = fleet.session(path)
    member = member_of(session)
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Fenced("the lease has lapsed")

    file = session.store.device._device  # type: ignore[attr-defined]
    assert isinstance(file, FileDevice)
    assert file.guard == member.check
    file.guard = check
    block = session.store.sb.extent_start(5) + 100
    with pytest.raises(Fenced):
        session.store.write(block, [noise(64 * BLOCK)])
    with open(path, "rb") as file_:
        file_.seek(block * BLOCK)
        written = file_.read(64 * BLOCK)
    assert written[: 32 * BLOCK] == noise(64 * BLOCK)[: 32 * BLOCK]
    assert written[32 * BLOCK :] == bytes(32 * BLOCK)


def test_a_lease_that_is_back_in_time_is_a_pause(
    fleet: Fleet, two: tuple[Session, Session]
) -> None:
    one, _ = two
    vdi = one.open_vdi(owned_vdi(one))
    vdi.write(0, noise(BLOCK, 1))
    one.commit([vdi])
    member_of(one).freeze()
    fleet.pass_time(fleet.master.timing.stop_after + 1)
    with pytest.raises(Fenced):
        vdi.write(0, noise(BLOCK, 2))
    with pytest.raises(Fenced):
        one.commit([vdi])
    member_of(one).thaw()
    assert not one.locks.is_lost()
    vdi.write(0, noise(BLOCK, 3))
    vdi.snapshot()
    one.commit([vdi])
    assert contents(one, "disk")[:BLOCK] == noise(BLOCK, 3)


def test_a_broken_grant_stops_that_vdi_only(fleet: Fleet, two: tuple[Session, Session]) -> None:
    one, other = two
    first, second = (one.open_vdi(owned_vdi(one, name)) for name in ("first", "second"))
    for vdi in (first, second):
        vdi.snapshot("before")
        vdi.write(0, noise(BLOCK, "unsaved"))
    fleet.break_lock("vdi/0")
    with pytest.raises(Fenced):
        first.write(0, noise(BLOCK, "more"))
    second.write(BLOCK, noise(BLOCK, "more"))
    pending = one.begin_commit([first, second])
    pending.sync()
    pending.finish()
    assert [*pending.left_out] == [0]
    assert contents(one, "first") == noise(4 * BLOCK, "first")
    assert contents(one, "second")[: 2 * BLOCK] == noise(BLOCK, "unsaved") + noise(BLOCK, "more")
    with pytest.raises(Fenced):
        one.commit([first])
    one.drop(first)
    with other.opened(other.registry.find("first")) as again:
        again.write(0, noise(BLOCK, "other"))
    one.release(second)
    assert contents(one, "first")[:BLOCK] == noise(BLOCK, "other")


def test_a_lost_vdi_does_not_keep_the_others_from_making_room(
    fleet: Fleet, two: tuple[Session, Session]
) -> None:
    one, _ = two
    first, second = (one.open_vdi(owned_vdi(one, name)) for name in ("first", "second"))
    for vdi in (first, second):
        vdi.trim(0, BLOCK)
    fleet.break_lock("vdi/0")
    assert one.make_room()
    assert second.record.mapped == 3
    assert first.record.mapped == 4


def test_a_grant_broken_during_a_commit_leaves_that_vdi_out(
    fleet: Fleet, two: tuple[Session, Session]
) -> None:
    one, _ = two
    first, second = (one.open_vdi(owned_vdi(one, name)) for name in ("first", "second"))
    for vdi in (first, second):
        vdi.snapshot("new")
    pending = one.begin_commit([first, second])
    fleet.break_lock("vdi/0")
    pending.sync()
    one.settle()
    assert [*pending.left_out] == [0]
    assert first.is_lost
    assert [r.snapshots for r in one.registry.vdis()] == [0, 1]
    one.drop(first)
    one.close()


# -- taking over -----------------------------------------------------------------------


def tree(session: Session, name: str) -> set[int]:
    """The blocks of data that the last commit of a VDI refers to."""
    record = session.registry.find(name)
    image = Session(Blockstore(session.store.device), LockMaster()).live_image(record)
    runs = image.map.lookup_range(0, record.size // BLOCK)
    return {run.block + n for run in runs if run.block for n in range(run.length)}


def freeze_and_lose(fleet: Fleet, session: Session) -> None:
    member_of(session).freeze()
    fleet.end_leases()


def test_late_writes_of_the_one_before_never_reach_what_the_new_one_wrote(
    fleet: Fleet, device: RecordingDevice, two: tuple[Session, Session]
) -> None:
    one, other = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)
    late: list[tuple[int, bytes]] = []
    vdi.write(0, noise(BLOCK, "in place"))
    for vblock in range(4):  # what it has submitted and what is still on its way
        entry = vdi.map.lookup(vblock)
        late.append((entry >> 1 & (1 << 40) - 1, noise(BLOCK, ("late", vblock))))
    freeze_and_lose(fleet, one)
    new = other.open_vdi(record)
    new.write(0, noise(2 * BLOCK, "new"))
    other.commit([new])
    for block, data in late:
        device.pwritev(block * BLOCK, [data])
    assert contents(other, "disk")[: 2 * BLOCK] == noise(2 * BLOCK, "new")
    assert new.read(0, 2 * BLOCK) == noise(2 * BLOCK, "new")
    new.write(0, noise(BLOCK, "again"))  # now it owns the block
    other.release(new)
    for block, data in late:
        device.pwritev(block * BLOCK, [data])
    with other.opened(record) as vdi:  # the next one still knows
        vdi.write(2 * BLOCK, noise(BLOCK, "third"))
    for block, data in late:
        device.pwritev(block * BLOCK, [data])
    found = contents(other, "disk")
    assert found[:BLOCK] == noise(BLOCK, "again")
    assert found[BLOCK : 2 * BLOCK] == noise(2 * BLOCK, "new")[BLOCK:]
    assert found[2 * BLOCK : 3 * BLOCK] == noise(BLOCK, "third")


def test_the_first_write_in_place_is_announced_before_it_is_made(
    device: RecordingDevice, two: tuple[Session, Session]
) -> None:
    one, _ = two
    record = owned_vdi(one)
    assert one.registry.find("disk").session == NOBODY
    vdi = one.open_vdi(record)
    seen: list[bytes] = []
    blocks = tree(one, "disk")

    def on_write(first: int, _run: object) -> None:
        if first in blocks:
            durable = MemoryDevice(device.size, device.durable)
            seen.append(Session(Blockstore(durable), LockMaster()).registry.find("disk").session)

    device.on_write = on_write
    vdi.write(0, noise(BLOCK, "in place"))
    assert seen == [one.store.session]


@pytest.mark.parametrize("commit", [False, True])
def test_a_clean_close_lets_the_next_one_write_in_place(
    two: tuple[Session, Session], commit: bool
) -> None:
    one, other = two
    record = owned_vdi(one)
    vdi = one.open_vdi(record)
    vdi.write(0, noise(BLOCK, "one"))
    if commit:
        one.commit([vdi])
    one.release(vdi)
    assert one.registry.find("disk").session == NOBODY
    before = tree(one, "disk")
    with other.opened(record) as again:
        again.write(0, noise(BLOCK, "other"))
    assert tree(other, "disk") == before
    assert contents(other, "disk")[:BLOCK] == noise(BLOCK, "other")


def test_a_session_that_closes_leaves_the_mark_too(two: tuple[Session, Session]) -> None:
    one, other = two
    one.open_vdi(owned_vdi(one)).write(0, noise(BLOCK, "one"))
    one.close()
    assert other.registry.find("disk").session == NOBODY
    assert contents(other, "disk")[:BLOCK] == noise(BLOCK, "one")


def test_a_change_is_not_committed_early_by_announcing(two: tuple[Session, Session]) -> None:
    one, _ = two
    record = owned_vdi(one)

    def half() -> None:
        with one.opened(record) as vdi:
            vdi.trim(0, 2 * BLOCK)
            vdi.write(0, noise(BLOCK, "half"))
            vdi.write(0, noise(BLOCK, "half again"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert contents(one, "disk") == noise(4 * BLOCK, "disk")


# -- starting over ---------------------------------------------------------------------


def test_starting_over_drops_all_and_goes_on(
    fleet: Fleet, device: RecordingDevice, two: tuple[Session, Session]
) -> None:
    one, other = two
    first, second = (one.open_vdi(owned_vdi(one, name)) for name in ("first", "second"))
    first.write(0, noise(BLOCK, "flushed"))
    first.snapshot("s")
    one.commit([first])
    first.trim(0, BLOCK)
    first.write(BLOCK, noise(BLOCK, "dirty"))
    second.snapshot("pending")
    pending = one.begin_commit([second])
    second.write(0, noise(BLOCK, "dirty"))
    was, number = one.store.session, one.join_name
    freeze_and_lose(fleet, one)
    assert number not in [h.name for h in fleet.master.holdings()]
    with other.opened(other.registry.find("second")) as taken:
        taken.write(0, noise(BLOCK, "other"))
    member_of(one).thaw()
    assert one.locks.is_lost()
    writes = device.writes
    pending.sync()
    with pytest.raises(Fenced):
        first.write(0, noise(BLOCK, "no"))
    one.start_over()
    assert device.writes == writes + 1  # its new name, in the list of sessions
    assert one.open_vdis == []
    assert one.store.session != was
    assert one.join_name in [h.name for h in fleet.master.holdings()]
    one.release(first)  # by those who had it open: they need not know
    assert contents(one, "first")[:BLOCK] == noise(BLOCK, "flushed")
    assert contents(one, "second")[:BLOCK] == noise(BLOCK, "other")
    with one.opened(one.registry.find("first")) as again:
        again.write(0, noise(BLOCK, "again"))
    assert contents(other, "first")[:BLOCK] == noise(BLOCK, "again")
    one.create("third")
    other.close()
    one.close()
    assert not check_store(Blockstore(device)).damaged


def test_a_failure_that_is_no_loss_is_not_forgotten(fleet: Fleet, device: RecordingDevice) -> None:
    session = fleet.session(device)
    session.store.fail(IoFailed("the disk is broken"))
    session.start_over()
    with pytest.raises(IoFailed, match="the disk is broken"):
        session.create("no")


# -- growing ---------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_a_store_grows_while_others_write(
    device: RecordingDevice, two: tuple[Session, Session], told: bool
) -> None:
    one, other = two
    vdi = other.open_vdi(owned_vdi(other, "disk", 100))
    if not told:
        member_of(other).attend = None
    device.size = (EXTENTS + 4) * EXTENT * BLOCK
    assert one.grow(EXTENTS + 4).extents == EXTENTS + 4
    assert other.store.sb.extents == (EXTENTS + 4 if told else EXTENTS)
    vdi.write(0, noise(BLOCK, "goes on"))
    other.commit([vdi])
    with one.opened(one.create("big", 9 * EXTENT * BLOCK)) as big:
        big.write(0, noise(9 * EXTENT * BLOCK, "big")[: 8 * EXTENT * BLOCK])
    image = other.image(snapshot_of(one, "big"))
    assert (
        image.read(7 * EXTENT * BLOCK, BLOCK)
        == noise(9 * EXTENT * BLOCK, "big")[7 * EXTENT * BLOCK : (7 * EXTENT + 1) * BLOCK]
    )
    with pytest.raises(BadRequest, match="12 extents already"):
        other.grow(EXTENTS)
    other.close()
    one.close()
    assert not check_store(Blockstore(device)).damaged


def snapshot_of(session: Session, name: str):  # type: ignore[no-untyped-def]
    session.snapshot(session.registry.find(name), "s")
    return session.find_snapshot(f"{name}@s")


# -- files of one host -----------------------------------------------------------------


def test_readers_of_live_contents_share_and_keep_writers_out(fleet: Fleet, tmp_path: Path) -> None:
    path = small_store(tmp_path, EXTENT)
    one = fleet.session(path)
    record = owned_vdi(one)
    readers = [Session.open(path, "shared", locks=fleet.member()) for _ in range(2)]
    for reader in readers:
        image = reader.live_image(record)
        assert image.read(0, 4 * BLOCK) == noise(4 * BLOCK, "disk")
    with pytest.raises(InUse, match=r"VDI 'disk' is read on host2.*, host3"):
        one.open_vdi(record)
    other = owned_vdi(one, "other")
    for reader in readers:
        reader.close()
    with one.opened(record) as vdi:
        vdi.write(0, noise(BLOCK, "new"))
        with (
            Session.open(path, "shared", locks=fleet.member()) as reader,
            pytest.raises(InUse, match="VDI 'disk' is open on host1"),
        ):
            reader.live_image(record)
    reader = Session.open(path, "shared", locks=fleet.member())
    assert reader.live_image(record).read(0, BLOCK) == noise(BLOCK, "new")
    assert reader.live_image(other).size == 4 * BLOCK
    reader.close()
    one.close()
    with Session.open(path):
        pass


def test_a_writer_alone_and_sessions_keep_each_other_out(fleet: Fleet, tmp_path: Path) -> None:
    path = small_store(tmp_path, EXTENT)
    uuid = read_uuid(path).hex()
    with Session.open(path):
        with pytest.raises(InUse):
            fleet.session(path)
        guest = fleet.member(uuid)
        with Session.open(path, locks=guest):  # its host has the exclusive lock
            pass
        assert guest.client.phase == "left"
    session = fleet.session(path)
    another = fleet.session(path)
    with pytest.raises(InUse):
        Session.open(path)
    session.close()
    another.close()
    host = FileDevice(path, True, "host")
    guest_session = Session.open(path, locks=fleet.member(uuid))
    host.close()
    with pytest.raises(InUse, match="a guest of another process"):
        Session.open(path)  # the host died, the guest's lease may be valid
    with pytest.raises(InUse, match="a guest of another process"):
        Session.open(path, "shared")
    with pytest.raises(InUse, match="a guest of another process"):
        fleet.session(path)  # another lock master knows nothing of what the guest holds
    host = FileDevice(path, True, "host")
    assert not host.is_alone()
    guest_session.close()
    assert host.is_alone()
    host.close()


def test_locks_are_closed_when_the_store_cannot_be_opened(fleet: Fleet, tmp_path: Path) -> None:
    member = fleet.member()
    with pytest.raises(NotFound):
        Session.open(str(tmp_path / "none"), locks=member)
    assert member.client.phase == "left"


# -- long work -------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["fill", "export", "validate"])
def test_long_transfers_answer_others(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    path = small_store(tmp_path, EXTENT)
    one, other = fleet.session(path), fleet.session(path)
    served = owned_vdi(one, "served")
    busy = owned_vdi(one, "busy")
    one.open_vdi(served)
    image = tmp_path / "image"
    image.write_bytes(noise(4 * BLOCK, "busy"))
    named = json.dumps({"uuid": served.uuid.hex(), "label": "s"})
    asked: list[SnapshotId] = []
    really = Session.attend

    def attend(session: Session) -> None:
        if not asked and session is one:
            calling = member_of(other).client.call(fleet.now, "vdi/0", "snapshot", named)
            fleet.pump()
            really(one)
            assert calling.answer is not None
            assert calling.answer.done
            asked.append(SnapshotId(0, 0))

    monkeypatch.setattr(Session, "attend", attend)
    if work == "fill":
        with one.opened(busy) as vdi:
            transfer.fill(vdi, one, str(image))
    elif work == "export":
        transfer.export(one.live_image(busy), str(tmp_path / "out"))
    else:
        transfer.validate(one.live_image(busy), str(image))
    assert asked
    assert other.registry.find("served").snapshots == 1


def test_a_block_that_another_session_used_again_is_read_anew(
    two: tuple[Session, Session],
) -> None:
    """One has the node of the old tree in its cache when the other puts a new one there."""
    one, other = two
    record = owned_vdi(one)
    turns, seen = 120, set()
    for turn in range(turns):
        data = noise(4 * BLOCK, turn)
        with other.opened(record) as vdi:
            vdi.trim(0, vdi.size)
            vdi.write(0, data)
        root = one.registry.find("disk").root >> 1 & (1 << 40) - 1
        seen.add(root)
        for session in two:
            record = session.registry.find("disk")
            assert Image(session.store, record.root, 1, record.size).read(0, record.size) == data
    assert len(seen) < turns  # blocks were used again
