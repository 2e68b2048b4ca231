"""Room that has to be asked for: clients wait for it, the loop does not."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fake_locks import FakeLocks, tap_under, wait_for
from support.memory import MemoryDevice
from support.stores import noise
from support.tap import MIB, NbdError, RawClient, contents_of, make_store

from core.errors import IoFailed, ParallaxError, TooEarly
from core.lock_messages import Holding, Who
from core.session import Session
from core.tap import protocol as p
from core.tap.aside import Aside
from core.tap.jobs import Jobs, Steps
from core.tap.reads import QUICK
from core.tap.server import Tap

TROUBLES = [
    IoFailed("the lock master does not answer"),
    TooEarly("the lock master was started a moment ago"),
]
either = pytest.mark.parametrize("error", TROUBLES, ids=["away", "quiet"])


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Extents of 1 MiB, so that a few writes need another one."""
    return make_store(tmp_path, 256, 16)


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks()


class Away:
    """A lock master that is away for whoever asks for an extent, until `end`."""

    def __init__(self, locks: FakeLocks, error: ParallaxError) -> None:
        self.error = error
        self.over = threading.Event()
        self.asked = threading.Event()
        locks.trouble = self.trouble

    def trouble(self, name: str) -> None:
        if self.over.is_set() or not (name.startswith("extent/") or not name):
            return
        self.asked.set()
        self.over.wait(0.05)
        raise self.error

    def end(self) -> None:
        self.over.set()


def room(tap: Tap) -> int:
    """How many requests had to wait so far."""
    return tap._shared.room.waited


def claimed(tap: Tap) -> int:
    return len(tap._shared.session.store.allocator.claimed)


@contextmanager
def writer_on(unix: str, name: str = "empty") -> Iterator[RawClient]:
    with RawClient(unix) as client:
        yield client.go(name)


# -- ahead -----------------------------------------------------------------------------


def test_an_extent_is_there_before_it_is_needed(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix) as one:
        wait_for(lambda: claimed(tap))
        allocator = tap._shared.session.store.allocator
        for number in range(5 * 16):
            assert one.write(number * (MIB // 16), noise(MIB // 16, str(number))) == 0
            wait_for(lambda: allocator.free >= allocator.low)
        assert room(tap) == 0
        away = Away(locks, TROUBLES[0])
        assert one.write(5 * MIB, noise(MIB // 4, "late")) == 0
        assert away.asked.wait(60)  # for one more, while nobody waits
        assert one.write(5 * MIB, b"in place") == 0
        assert room(tap) == 0
        away.end()


def test_no_more_than_one_is_claimed_ahead(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, session):
        assert claimed(tap) == 0  # nobody writes
        with writer_on(unix) as one:
            wait_for(lambda: claimed(tap))
            allocator = session.store.allocator
            one.write(0, noise(3 * MIB, "data"))
            wait_for(lambda: allocator.free >= allocator.low)
            wait_for(lambda: not tap._shared.room._asking)
            assert allocator.free < allocator.low + 256
    assert not [name for name in locks.held if name.startswith("extent/")]


# -- waiting ---------------------------------------------------------------------------


@either
def test_writes_wait_for_a_lock_master_and_nobody_else_does(
    store: str, locks: FakeLocks, error: ParallaxError
) -> None:
    data = noise(4 * MIB, "data")
    with (
        tap_under(locks, store) as (tap, unix, _),
        writer_on(unix) as one,
        RawClient(unix) as reader,
        RawClient(unix) as second,
    ):
        away = Away(locks, error)
        reader.go("golden@base")
        second.go("clone")
        written = one.send(p.CMD_WRITE, 0, data=data)
        flushed = one.send(p.CMD_FLUSH)
        wait_for(lambda: room(tap))
        assert len(reader.read(0, 4096)) == 4096
        assert len(second.read(0, 4096)) == 4096
        one.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.reply()
        one.sock.settimeout(60)
        away.end()
        answers = [one.reply(), one.reply()]
        assert [answer.cookie for answer in answers] == [written, flushed]
        assert [answer.flags for answer in answers] == [0, 0]
        assert one.read(0, len(data)) == data
    assert contents_of(store, "empty")[: len(data)] == data


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (p.CMD_WRITE, 0),
        (p.CMD_WRITE, p.FLAG_FUA),
        (p.CMD_WRITE_ZEROES, p.FLAG_NO_HOLE),
        (p.CMD_WRITE_ZEROES, p.FLAG_NO_HOLE | p.FLAG_FUA),
        (p.CMD_TRIM, p.FLAG_FUA),
    ],
)
def test_all_that_changes_can_wait(store: str, locks: FakeLocks, kind: int, flags: int) -> None:
    with tap_under(locks, store) as (tap, unix, session), writer_on(unix, "clone") as one:
        wait_for(lambda: claimed(tap))
        allocator = session.store.allocator
        wait_for(lambda: allocator.free >= allocator.low)
        away = Away(locks, TROUBLES[0])
        spoken_for = allocator.free
        allocator.reserve(spoken_for, urgent=True)
        data = noise(MIB // 2, "data") if kind == p.CMD_WRITE else b""
        cookie = one.send(kind, 0, 0 if data else MIB // 2, flags, data)
        wait_for(lambda: room(tap))
        away.end()
        answer = one.reply()
        assert (answer.cookie, answer.flags) == (cookie, 0)
        assert one.read(0, MIB // 2) == (data or bytes(MIB // 2))
        allocator.unreserve(spoken_for)
    assert contents_of(store, "clone")[: MIB // 2] == (data or bytes(MIB // 2))


def test_no_space_is_said_when_it_is_true(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.room._NONE_FOR", 3600.0)
    locks.others = {f"extent/{number}" for number in range(16)}
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix) as one:
        assert one.write(0, b"data") == errno.ENOSPC
        assert one.write(0, b"data") == errno.ENOSPC
        asked = room(tap)
        assert one.write(0, b"data") == errno.ENOSPC
        assert room(tap) == asked  # it is known, and not asked for each time
        locks.others.clear()
        tap._shared.room._none_until = 0.0
        assert one.write(0, b"data") == 0


def test_a_damaged_extent_is_an_error_and_not_a_wait(store: str, locks: FakeLocks) -> None:
    with open(store, "r+b") as file:
        for number in range(1, 16):
            file.seek(number * MIB)
            file.write(bytes(2 * 4096))
    with tap_under(locks, store) as (_, unix, _), writer_on(unix) as one:
        assert one.write(0, b"data") == errno.ENOSPC  # there is no other extent


def test_clients_that_wait_can_leave(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix) as other:
        away = Away(locks, TROUBLES[0])
        with writer_on(unix) as one:
            one.send(p.CMD_WRITE, 0, data=noise(3 * MIB, "data"))
            wait_for(lambda: room(tap))
        wait_for(lambda: len(tap._clients) == 1)
        away.end()
        assert other.write(4096, b"another client of the same VDI") == 0
        assert other.read(4096, 7) == b"another"


def test_a_tap_stops_while_clients_wait(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix) as one:
        away = Away(locks, TROUBLES[0])
        one.send(p.CMD_WRITE, 0, data=noise(3 * MIB, "data"))
        wait_for(lambda: room(tap))
        tap._loop.look = None
        tap.stop()
        assert one.hung_up()
    away.end()
    assert not [name for name in locks.held if name.startswith("extent/")]


def test_who_waits_when_the_session_is_lost_is_hung_up_on(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, session), writer_on(unix) as one:
        away = Away(locks, TROUBLES[0])
        one.send(p.CMD_WRITE, 0, data=noise(3 * MIB, "data"))
        wait_for(lambda: room(tap))
        locks.lose()
        assert one.hung_up()
        away.end()
        wait_for(lambda: not tap._shared.gate.shut)
        with writer_on(unix) as again:
            assert again.write(0, noise(3 * MIB, "more")) == 0
        assert session.store.allocator.claim == tap._shared.room._claim


def test_an_extent_that_comes_too_late_is_given_back(store: str, locks: FakeLocks) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def trouble(name: str) -> None:
        if name.startswith("extent/"):
            asked.set()
            assert go_on.wait(60)

    with tap_under(locks, store) as (tap, unix, _), writer_on(unix):
        locks.trouble = trouble
        with writer_on(unix, "clone") as one:
            one.send(p.CMD_WRITE, 0, data=noise(3 * MIB, "data"))
            assert asked.wait(60)
        tap.stop()
        wait_for(lambda: tap._aside._closed)
        go_on.set()
    wait_for(lambda: not [name for name in locks.held if name.startswith("extent/")])


def test_what_waits_keeps_its_bytes_when_the_buffer_is_used_again(
    store: str, locks: FakeLocks
) -> None:
    with tap_under(locks, store) as (tap, unix, session), writer_on(unix) as one:
        wait_for(lambda: claimed(tap))
        allocator = session.store.allocator
        wait_for(lambda: allocator.free >= allocator.low)
        away = Away(locks, TROUBLES[0])
        spoken_for = allocator.free
        allocator.reserve(spoken_for, urgent=True)
        data, more = noise(80 << 10, "data"), noise(QUICK, "more")
        both = one.request(p.CMD_WRITE, 0, data=data) + one.request(p.CMD_WRITE, MIB, data=more)
        one.sock.sendall(both[: -QUICK // 2])  # half of the second, which is moved to the front
        wait_for(lambda: room(tap))
        away.end()
        assert one.reply().flags == 0
        one.sock.sendall(both[-QUICK // 2 :])
        assert one.reply().flags == 0
        assert one.read(0, len(data)) == data
        assert one.read(MIB, len(more)) == more
        allocator.unreserve(spoken_for)


def test_answers_that_nobody_waits_for_are_given_back() -> None:
    told: list[object] = []
    dropped: list[object] = []
    go_on = threading.Event()
    aside = Aside(lambda: None)
    aside.ask(lambda: "first", told.append, dropped.append)
    wait_for(lambda: aside.rung)
    aside.ask(lambda: go_on.wait(60) and "second", told.append, dropped.append)
    closing = threading.Thread(target=aside.close)
    closing.start()
    wait_for(lambda: dropped == ["first"])
    go_on.set()
    closing.join(60)
    assert dropped == ["first", "second"]
    assert told == []


def test_a_lapse_while_a_client_waits_is_a_pause_too(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix) as one:
        away = Away(locks, TROUBLES[0])
        one.send(p.CMD_WRITE, 0, data=noise(3 * MIB, "data"))
        wait_for(lambda: room(tap))
        locks.lapse()
        wait_for(lambda: tap._shared.gate.shut)
        away.end()
        wait_for(lambda: not tap._shared.room._asking)
        one.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.reply()
        one.sock.settimeout(60)
        locks.renew()
        assert one.reply().flags == 0


# -- snapshots -------------------------------------------------------------------------


def test_snapshots_wait_when_the_whole_lease_is_over(store: str, locks: FakeLocks) -> None:
    with Session.open(store) as session:
        session.snapshot(session.registry.find("clone"), "other")
    with tap_under(locks, store) as (tap, unix, _), writer_on(unix, "golden@base") as reader:
        locks.lapse()
        wait_for(lambda: tap._shared.gate.shut)
        golden = reader.read(0, MIB)
        locks.left = -locks.grace
        locks.ring()
        wait_for(lambda: tap._shared.gate.over)
        reader.send(p.CMD_READ, 0, MIB)
        reader.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            reader.reply()
        reader.sock.settimeout(60)
        with RawClient(unix) as late, pytest.raises(NbdError, match="no valid lease"):
            late.go("clone@other")
        locks.renew()
        assert reader.reply(MIB).payload == golden
        with writer_on(unix, "clone@other") as late:
            assert late.read(0, 4096) == golden[:4096]


def test_no_job_goes_on_while_all_are_stopped() -> None:
    done = []

    def steps() -> Steps:
        done.append("first")
        yield None
        done.append("second")

    jobs = Jobs(MemoryDevice(4096), lambda: None)
    try:
        jobs.add(steps())
        jobs.run()
        jobs.stopped = True
        jobs.run()
        jobs.run()
        assert done == ["first"]
        assert not jobs.ready  # the loop may sleep
        jobs.stopped = False
        jobs.release()
        jobs.run()
        assert done == ["first", "second"]
    finally:
        jobs.close()


# -- seals -----------------------------------------------------------------------------


def test_the_seal_of_a_killed_collector_ends_and_nobody_waits_for_the_answer(
    store: str, locks: FakeLocks
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def trouble(name: str) -> None:
        if not name:
            asked.set()
            assert answer.wait(60)

    with (
        tap_under(locks, store, commit_interval=0.05) as (_, unix, session),
        writer_on(unix) as one,
    ):
        assert one.write(0, b"data") == 0
        collector = Holding("gc", 7, False, Who(9, "otherhost", 9, "plxsh store gc"))
        locks.holding = [collector]
        locks.ask_for(session.join_name, "seal", collection=7)
        locks.trouble = trouble
        assert asked.wait(60)
        assert one.write(0, b"more") == 0  # while the lock master thinks
        answer.set()
        assert one.write(0, b"more") == 0
        assert session.member.token == 7  # the collector holds its lock
        locks.holding = []
        wait_for(lambda: not session.member.token)
