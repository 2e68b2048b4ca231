"""A tap with other sessions on its store: calls, leases, losses, schedules, hand-over."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from support.fake_locks import FakeLocks, tap_under, wait_for
from support.tap import CONTENTS, MIB, NbdError, RawClient, contents_of

from core.errors import BadRequest, InUse, NotFound, ParallaxError
from core.session import Session
from core.tap import protocol as p
from core.tap.collecting import Chore
from core.tap.status import query_status


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks()


def vdi(store: str, name: str) -> int:
    with Session.open(store, "read") as session:
        return session.registry.find(name).id


def snapshots(store: str, name: str) -> list[bytes]:
    """The contents of each snapshot, oldest first."""
    with Session.open(store, "read") as session:
        found = [*session.snapshots(session.registry.find(name))]
        return [session.image(snap).read(0, 8192) for snap in reversed(found)]


# -- calls -----------------------------------------------------------------------------


def test_a_live_snapshot_holds_all_that_was_answered_before(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "empty")
    with tap_under(locks, store, commit_interval=3600.0) as (_, unix, _), RawClient(unix) as one:
        one.go("empty").write(0, b"before")
        where = locks.ask_for(f"vdi/{number}", "snapshot", label="live")
        one.write(0, b"behind")
        assert [data[:6] for data in snapshots(store, "empty")] == [b"before"]
        assert where.keys() == {"block", "offset"}
    assert contents_of(store, "empty")[:6] == b"behind"


def test_calls_that_come_together_share_a_commit(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "empty")
    with tap_under(locks, store, commit_interval=3600.0) as (tap, unix, _), RawClient(unix) as one:
        one.go("empty").write(0, b"data")
        with locks.lock:  # the tap cannot take any before all are there
            asked = [locks.request(f"vdi/{number}", "snapshot", label=f"s{n}") for n in range(8)]
        for future in asked:
            future.result(60)
        assert sum(tap._shared.commits.took.buckets) == 1
    assert len(snapshots(store, "empty")) == 8


def test_a_call_that_makes_no_sense_is_answered_so(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "empty")
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as one:
        one.go("empty")
        with pytest.raises(NotFound):
            locks.ask_for("vdi/77", "snapshot", label="")
        with pytest.raises(BadRequest):
            locks.ask_for(f"vdi/{number}", "dance")
        with pytest.raises(BadRequest):
            locks.ask_for(f"vdi/{number}", "snapshot", label="x" * 5000)
        with pytest.raises(ParallaxError, match="makes no sense"):
            locks.ask_for(f"vdi/{number}", "snapshot")  # without its label
        assert one.write(0, b"on") == 0
        assert locks.ask_for(f"vdi/{number}", "rename", name="full") == {}
    with Session.open(store, "read") as session:
        assert session.registry.find("full").id == number


# -- leases ----------------------------------------------------------------------------


def test_a_lapse_is_a_pause(store: str, locks: FakeLocks) -> None:
    with (
        tap_under(locks, store) as (tap, unix, _),
        RawClient(unix) as writer,
        RawClient(unix) as reader,
    ):
        writer.go("clone").write(0, b"before")
        reader.go("golden@base")
        locks.lapse()
        wait_for(lambda: tap._shared.gate.shut)
        writer.send(p.CMD_WRITE, 0, data=b"behind")
        writer.send(p.CMD_READ, 0, 6)
        writer.send(p.CMD_FLUSH)
        assert len(reader.read(0, 4096)) == 4096  # a snapshot is nobody's to lose
        with RawClient(unix) as late, pytest.raises(NbdError, match="no valid lease"):
            late.go("empty")
        writer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            writer.reply()
        writer.sock.settimeout(60)
        locks.renew()
        assert writer.reply().flags == 0
        assert writer.reply(6).payload == b"behind"
        assert writer.reply().flags == 0
        assert tap._shared.gate.shut_for() > 0.3


def test_after_a_loss_clients_are_gone_and_can_come_back(store: str, locks: FakeLocks) -> None:
    with (
        tap_under(locks, store, commit_interval=3600.0) as (tap, unix, _),
        RawClient(unix) as writer,
        RawClient(unix) as reader,
    ):
        writer.go("clone").write(0, b"flushed")
        assert writer.call(p.CMD_FLUSH) == 0
        writer.write(8192, b"unflushed")
        reader.go("golden@base")
        locks.lose()
        assert writer.hung_up()
        assert reader.hung_up()  # its snapshot may be gone, and its blocks somebody else's
        wait_for(lambda: not tap._shared.gate.shut)
        with RawClient(unix) as again:
            assert again.go("clone").read(0, 7) == b"flushed"
            assert again.read(8192, 9) == CONTENTS[8192:8201]
            assert again.write(0, b"go on") == 0
            assert again.call(p.CMD_FLUSH) == 0
        assert tap._shared.gate.losses == 1
    assert contents_of(store, "clone")[:5] == b"go on"


def test_one_broken_lock_costs_only_its_clients(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "clone")
    with (
        tap_under(locks, store, commit_interval=3600.0) as (_, unix, _),
        RawClient(unix) as lost,
        RawClient(unix) as kept,
    ):
        lost.go("clone").write(0, b"gone")
        kept.go("empty").write(0, b"kept")
        locks.held[f"vdi/{number}"].lost = True
        assert lost.hung_up()  # also when it asks for nothing
        assert kept.write(4, b"kept") == 0
        assert kept.call(p.CMD_FLUSH) == 0
    assert contents_of(store, "empty")[:8] == b"keptkept"


def test_who_has_a_vdi_is_told_to_whoever_wants_it(store: str, locks: FakeLocks) -> None:
    locks.others.add(f"vdi/{vdi(store, 'clone')}")
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as client:
        with pytest.raises(NbdError, match="held by otherhost, process 7"):
            client.go("clone")
        locks.others.clear()
        client.go("clone")
        assert client.write(0, b"mine") == 0


def test_a_lock_master_that_does_not_answer_holds_nobody_up(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.opening._LONGEST", 0.3)
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as busy:
        busy.go("empty")
        locks.answering = False
        with RawClient(unix) as client:
            data = b"clone"
            client.send_option(p.OPT_GO, len(data).to_bytes(4, "big") + data + bytes(2))
            assert busy.write(0, b"on") == 0
            _, kind, text = client.option_reply()
            assert kind & 1 << 31
            assert b"does not answer" in text
            locks.answering = True
            assert client.go("clone").write(0, b"now") == 0


# -- schedules -------------------------------------------------------------------------


@pytest.mark.slow
def test_scheduled_snapshots_are_points_between_two_requests(store: str, locks: FakeLocks) -> None:
    """Each write puts a number into two blocks at once, and a later one never comes first."""
    number = vdi(store, "empty")
    with tap_under(locks, store) as (tap, unix, _), RawClient(unix) as client:
        client.go("empty")
        assert locks.ask_for(f"vdi/{number}", "schedule", every_ns=10_000_000, keep=20) == {}
        done = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until or tap._shared.totals.scheduled_snapshots <= 20:
            done += 1
            stamp = done.to_bytes(8, "big") * 1024
            assert client.write(0, stamp) == 0
        [export] = query_status(unix)["exports"]
        assert export["schedule"] == {"every_ns": 10_000_000, "keep": 20}
        taken = tap._shared.totals.scheduled_snapshots
        assert taken > 20
        assert locks.ask_for(f"vdi/{number}", "schedule", every_ns=0, keep=0) == {}
        quiet = tap._shared.totals.scheduled_snapshots
        client.write(0, bytes(8192))
        time.sleep(0.1)
        assert tap._shared.totals.scheduled_snapshots - quiet <= 1
    found = snapshots(store, "empty")
    assert len(found) in (20, 21)
    stamps = []
    for data in found:
        assert data == data[:8] * 1024  # not torn
        stamps.append(int.from_bytes(data[:8], "big"))
    assert stamps == sorted(set(stamps))


def test_nothing_is_taken_of_what_did_not_change(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "empty")
    with tap_under(locks, store) as (tap, unix, _), RawClient(unix) as client:
        client.go("empty").write(0, b"once")
        assert locks.ask_for(f"vdi/{number}", "schedule", every_ns=10_000_000, keep=5) == {}
        wait_for(lambda: tap._shared.totals.scheduled_snapshots)
        time.sleep(0.2)
        assert tap._shared.totals.scheduled_snapshots == 1


# -- hand-over -------------------------------------------------------------------------


def test_a_vdi_is_given_up_with_all_that_was_answered(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "clone")
    with (
        tap_under(locks, store, commit_interval=3600.0) as (_, unix, _),
        RawClient(unix) as writer,
    ):
        assert writer.go("clone").write(0, b"moved") == 0
        assert locks.ask_for(f"vdi/{number}", "give_up") == {}
        assert f"vdi/{number}" not in locks.held
        assert contents_of(store, "clone")[:5] == b"moved"
        assert writer.hung_up()
        with RawClient(unix) as late, pytest.raises(NbdError, match="handed over"):
            late.go("clone")
        with pytest.raises(NotFound):
            locks.ask_for(f"vdi/{number}", "give_up")


def test_a_vdi_that_is_taken_waits_for_its_client(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "clone")
    with Session.open(store, "read") as session:
        uuid = session.registry.find("clone").uuid.hex()
    locks.others.add(f"vdi/{number}")
    me = "session/1"
    with tap_under(locks, store) as (tap, unix, _):
        assert locks.ask_for(me, "take", vdi=number, uuid=uuid, seconds=30) == {}
        with RawClient(unix) as early, pytest.raises(NbdError, match="handed over"):
            early.go("clone")
        locks.others.clear()
        locks.ring()
        wait_for(lambda: tap._shared.exports.find(number))
        with pytest.raises(InUse):
            locks.ask_for(me, "take", vdi=number, uuid=uuid, seconds=30)
        with RawClient(unix) as client:
            assert client.go("clone").write(0, b"here") == 0
        wait_for(lambda: f"vdi/{number}" not in locks.held)  # it has come and gone: nobody waits
        with pytest.raises(NotFound):
            locks.ask_for(me, "take", vdi=number, uuid="00" * 16, seconds=30)
        with pytest.raises(BadRequest):
            locks.ask_for(me, "take", vdi=number)
    assert contents_of(store, "clone")[:4] == b"here"


def test_a_vdi_that_no_client_wants_is_given_back(store: str, locks: FakeLocks) -> None:
    number = vdi(store, "clone")
    with Session.open(store, "read") as session:
        uuid = session.registry.find("clone").uuid.hex()
    granted: list[str] = []
    locks.trouble = granted.append
    with tap_under(locks, store) as (tap, _, _):
        locks.ask_for("session/1", "take", vdi=number, uuid=uuid, seconds=0.2)
        wait_for(lambda: f"vdi/{number}" in granted)
        wait_for(lambda: f"vdi/{number}" not in locks.held)
        assert tap._shared.exports.find(number) is None


# -- collections -----------------------------------------------------------------------


@pytest.mark.slow
def test_collections_run_one_at_a_time_and_end_with_the_tap(
    store: str, locks: FakeLocks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "runs"
    script = f"open({str(log)!r}, 'a').write('x'); print('done here'); import time; time.sleep(0.3)"
    caplog.set_level("INFO")
    chore = Chore([sys.executable, "-c", script], {}, 0.1)
    with tap_under(locks, store, collector=chore) as (tap, _, _):
        wait_for(lambda: tap._shared.collecting.runs >= 2)
    runs = tap._shared.collecting.runs
    assert runs <= len(log.read_text()) <= runs + 1
    assert any("collection: done here" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_full_store_is_collected_soon(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.collecting._FULL_DELAY", 0.01)
    chore = Chore([sys.executable, "-c", "pass"])
    with tap_under(locks, store, collector=chore) as (tap, unix, session), RawClient(unix) as one:
        size = session.store.sb.extents * session.store.sb.extent_blocks * 4096
        big = session.create("big", 2 * size)
        one.go("big")
        at = 0
        while (error := one.write(at, b"x" * MIB)) == 0:
            at += MIB
        assert error == p.ENOSPC
        assert big.id
        one.write(at, b"x" * MIB)
        wait_for(lambda: tap._shared.collecting.runs)
        time.sleep(0.1)
        assert tap._shared.collecting.runs == 1
