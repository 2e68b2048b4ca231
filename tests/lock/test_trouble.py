"""Masters that stop and come back, processes that are stopped and killed."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path

import pytest
from lock.conftest import Join
from support.locks import SHORT, FreshEpochs, process, service, soon

from core import lock_connection
from core.errors import Fenced, InUse, IoFailed, TooEarly
from core.lock_epoch import EpochFile
from core.lock_messages import Welcome
from core.lock_service import LockService, _Line
from core.lock_timing import Timing

pytestmark = pytest.mark.slow


def settled(path: Path) -> EpochFile:
    """An epoch file, which makes the master after this one wait, but not this one for long."""
    return EpochFile(str(path))


def test_what_is_held_lives_through_a_restart(
    folder: Path, unix: str, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = folder / "epoch"
    file = settled(state)
    with service(unix, epochs=file) as first:
        locks = join()
        held = locks.acquire("vdi/1", wait=60.0)
        before = first.master.run
        states: list[str] = []
        locks._link._on_state = states.append
    file.close()
    soon(lambda: locks.state.startswith("down since"))
    held.check()  # the master is away, the lease is not over
    file = settled(state)
    with service(unix, epochs=file) as second:
        soon(lambda: locks.state == "up")
        soon(lambda: second.locks.holdings())
        assert second.master.run > before
        held.check()
        assert [(h.name, h.token) for h in locks.holdings()] == [("vdi/1", held.token)]
        with pytest.raises(TooEarly, match="started a moment ago and grants nothing for"):
            locks.acquire("vdi/2")
        assert locks.acquire("vdi/2", wait=60.0).token > held.token
        held.check()
        assert not locks.is_lost()
        assert states[-1] == "up"
    file.close()
    with pytest.raises(IoFailed, match="does not answer"):  # it takes a good part of the lease
        locks.acquire("vdi/3")
    locks.close()
    events = [getattr(record, "event", "") for record in caplog.records]
    assert "lock_down" in events
    assert events.count("lock_up") >= 2


def test_a_master_that_is_alone_need_not_wait(folder: Path, unix: str, join: Join) -> None:
    file = settled(folder / "epoch")
    with service(unix, epochs=file, alone=True) as master:
        master.locks.acquire("vdi/1")
        join().acquire("vdi/2")
    file.close()
    file = settled(folder / "epoch")
    with service(unix, epochs=file) as master:
        with pytest.raises(TooEarly, match="started a moment ago"):
            master.locks.acquire("vdi/1")
        master.locks.acquire("vdi/1", wait=60.0)
        assert master.locks.suspect("vdi/1")
    file.close()


def test_a_lease_lapses_when_the_master_is_away(unix: str, join: Join) -> None:
    timing = Timing(lease=12.0, worst_io=5.0, skew=1.0, margin=1.0)  # long between the two ends
    with service(unix, timing=timing):
        locks = join()
        held = locks.acquire("vdi/1")
        assert not math.isinf(locks.lease_left())
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        left = locks.lease_left()
        try:
            locks.check()
            held.check()
        except Fenced:
            break
        assert left > 0
        time.sleep(0.01)
    assert locks.lease_left() <= 0
    assert not locks.lease_over()  # the I/O time and the skew are left
    soon(locks.lease_over)
    assert locks.lease_left() <= timing.stop_after - timing.lease
    assert not locks.is_lost()
    with pytest.raises(Fenced, match="not renewed the lease for too long"):
        held.check()
    again = FreshEpochs(2)
    with service(unix, epochs=again, timing=timing):  # one that knows nothing, and grants at once
        soon(locks.is_lost)
        with pytest.raises(Fenced, match="were lost"):
            locks.check()
        assert locks.lease_over()
        locks.begin_again()
        soon(lambda: locks.lease_left() > 0)
        assert not locks.lease_over()
        fresh = locks.acquire("vdi/1")
        fresh.check()
        with pytest.raises(Fenced, match="vdi/1 is no longer held"):
            held.check()
        held.release()
        fresh.check()
        locks.close()


def test_asking_ends_although_the_master_went_away(
    unix: str, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(unix):
        locks = join()
        locks.acquire("vdi/1")
    monkeypatch.setattr(lock_connection, "FIRST", 0.5)
    with pytest.raises(IoFailed):
        locks.holdings()
    with pytest.raises(IoFailed):
        locks.call("vdi/2", "m", wait=0.2)
    locks.close()


def test_a_connection_that_breaks_costs_nothing(join: Join, master: LockService) -> None:
    a, b = join(), join()
    held = a.acquire("vdi/1")
    session = held._locks._client.session
    for _ in range(3):
        line = master._lines[session]
        assert master._loop is not None
        master._loop.call_soon_threadsafe(line.channel.abort)
        soon(lambda line=line: master._lines[session] is not line)
        held.check()
        assert a.acquire("vdi/2", wait=60.0).release() is None
    assert a._client.session == session
    with pytest.raises(InUse):
        b.acquire("vdi/1")


def test_a_process_that_is_killed_frees_at_once_on_a_unix_socket(
    unix: str, master: LockService, join: Join
) -> None:
    patient = join()
    with process(f"unix:{unix}") as other:
        other.say("acquire", "vdi/1", 60.0)
        asked = patient.ask("vdi/1", wait=60.0)
        session = next(h.who.session for h in master.locks.holdings())
        master.master._sessions[session].ends = math.inf  # its lease is no help
        other.send(signal.SIGKILL)
        soon(asked.poll)
    assert not master.locks.suspect("vdi/1")
    soon(lambda: not master._dead)


def test_over_tcp_a_killed_process_keeps_its_locks_until_the_lease_ends(
    port: int, master: LockService, join: Join
) -> None:
    with process(f"127.0.0.1:{port}") as other:
        other.say("acquire", "vdi/1", 60.0)
        other.send(signal.SIGKILL)
        locks = join()
        with pytest.raises(InUse):
            locks.acquire("vdi/1")
        locks.acquire("vdi/1", wait=60.0)
    assert master.locks.suspect("vdi/1")


def test_a_process_that_was_stopped_knows_it_when_it_goes_on(
    unix: str, master: LockService, join: Join
) -> None:
    locks = join()
    with process(f"unix:{unix}") as other:
        other.say("acquire", "vdi/1", 60.0)
        assert other.say("check", "vdi/1") == "valid"
        other.send(signal.SIGSTOP)
        taken = locks.acquire("vdi/1", wait=60.0)
        assert master.locks.suspect("vdi/1")
        other.send(signal.SIGCONT)
        assert other.say("check", "vdi/1").startswith("fenced: ")
        soon(lambda: other.say("lost"))
        assert "no longer held" in other.say("check", "vdi/1")
        taken.check()


def test_one_that_does_not_read_is_cut_off_and_no_other(
    master: LockService, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    good = join()
    held = good.acquire("vdi/1")
    bad = join(purpose="deaf")
    session = bad._client.session
    line: _Line = master._lines[session]
    loop = master._loop
    assert loop is not None
    # It never reads: its kernel takes no more, and the replies pile up on our side.
    line.channel._writer.transport.pause_reading()
    assert bad._link._channel is not None
    bad._link._channel._writer.transport.pause_reading()  # type: ignore[attr-defined]
    flood = [Welcome(session, "x" * 100_000, 1, SHORT)] * 10
    for _ in range(100):
        loop.call_soon_threadsafe(master._deliver, flood, None)
    soon(lambda: master.refused["slow_reader"])
    held.check()
    assert [h.name for h in good.holdings()] == ["vdi/1"]
    assert any(getattr(r, "reason", "") == "slow_reader" for r in caplog.records)
    soon(lambda: bad.state == "up" and bad.holdings())
