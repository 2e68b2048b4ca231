"""The tap is killed, or its writes and syncs fail: what clients were promised stays true."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from kill.jobs import Job, Stores
from kill.liars import LIES
from kill.taps import Tap, audit, running, work
from kill.tracing import EIO, KILL, KILLED, SOCKETS, SYNCS, WRITES, Fault, Point, points
from kill.view import sound

from core.tap.server import COMMIT_INTERVAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STORE = Job("")
NBD_EIO, NBD_ENOSPC = 5, 28
FULL_ONCE = Fault("error=ENOSPC")
MISSED = 3
"""So many points may be missed: a loaded machine commits at other moments."""


def good_run(stores: Stores, names: tuple[str, ...]) -> list[Point]:
    """Serve undisturbed and look at the result; return where it can be disturbed.

    A run that took too long has commits of the tap's own in it, which others do not have.
    """
    for _ in range(5):
        began = time.monotonic()
        where = undisturbed(stores, names)
        if time.monotonic() - began < COMMIT_INTERVAL:
            break
    return where


def undisturbed(stores: Stores, names: tuple[str, ...]) -> list[Point]:
    store = stores.new(STORE)
    with running(store) as tap:
        for step in work(tap):
            assert step() == 0
        tap.send(signal.SIGTERM)
        status, said = tap.end()
    assert (status, said) == (0, "")
    for promises in tap.promises.values():
        promises.durable()  # an orderly end leaves nothing behind
    judge(tap, "an orderly end")
    assert audit(tap) == []
    return points(tap.log, names)


def judge(tap: Tap, what: object) -> None:
    """The store is sound, every promise holds, and snapshots never change."""
    found = sound(str(tap.store))
    broken = {name: sectors for name, sectors in tap.broken().items() if sectors}
    assert not broken, f"{what}: bytes that were durable are not there"
    snapshots = {name: vdi[-1] for name, vdi in found["vdis"].items()}
    before = {
        name: vdi[-1] for name, vdi in sound(str(tap.store.parents[1] / "built"))["vdis"].items()
    }
    assert snapshots == before, f"{what}: a snapshot changed"


@pytest.mark.parametrize("names", [WRITES, SYNCS, SOCKETS[1:]], ids=["writes", "syncs", "replies"])
def test_a_kill_undoes_no_promise(names: tuple[str, ...], stores: Stores) -> None:
    where = good_run(stores, names)
    assert len(where) >= 10
    met = 0
    for point in where:
        store = stores.new(STORE)
        with running(store, KILL.at(point)) as tap:
            try:
                for step in work(tap):
                    assert step() == 0
                tap.send(signal.SIGTERM)
            except ConnectionError:
                pass
            status, said = tap.end()
        assert status in (KILLED, 0), f"{point}: {said}"
        met += status == KILLED
        judge(tap, point)
        stores.drop(store)
    assert met >= len(where) - MISSED


def test_after_a_failed_sync_nothing_succeeds(stores: Stores) -> None:
    where = good_run(stores, SYNCS)
    met = refused = 0
    for point in where:
        store = stores.new(STORE)
        with running(store, EIO.at(point)) as tap:
            try:
                errors = [step() for step in work(tap)]
            except ConnectionResetError:  # it never began to serve
                status, said = tap.end()
                assert status == 5, f"{point}: {said}"
                assert "epoch" in said or "cannot flush" in said, f"{point}: {said}"
                refused += 1
                judge(tap, point)
                stores.drop(store)
                continue
            tap.send(signal.SIGTERM)
            status, said = tap.end()
        failed = next((n for n, error in enumerate(errors) if error), len(errors))
        assert set(errors[failed:]) <= {NBD_EIO}, f"{point}: {errors}"
        if failed < len(errors):
            assert status == 5, f"{point}: {said}"
        if status:
            assert status == 5, f"{point}: {said}"
            assert "cannot flush" in said, point
            met += 1
        judge(tap, point)
        stores.drop(store)
    assert refused <= 3, "the file of the epoch, its folder, and the list of sessions"
    assert met >= len(where) - refused - MISSED


@pytest.mark.parametrize(
    ("fault", "error", "told_of"),
    [(EIO, NBD_EIO, 1 / 2), (FULL_ONCE, NBD_ENOSPC, 1 / 3)],
    ids=["EIO", "ENOSPC"],
)
def test_a_failed_write_breaks_no_promise(
    fault: Fault, error: int, told_of: float, stores: Stores
) -> None:
    where = good_run(stores, WRITES)
    told = refused = 0
    for point in where:
        store = stores.new(STORE)
        with running(store, fault.at(point)) as tap:
            try:
                errors = [step() for step in work(tap)]
            except ConnectionResetError:  # it never began to serve
                status, said = tap.end()
                assert status == (5 if error == NBD_EIO else 6), f"{point}: {said}"
                assert "cannot write" in said, f"{point}: {said}"
                refused += 1
                judge(tap, point)
                stores.drop(store)
                continue
            tap.send(signal.SIGTERM)
            tap.end()
        failed = [answer for answer in errors if answer]
        # A record that could not be written fails everything that comes after it.
        assert not failed or failed[0] == error, f"{point}: {errors}"
        assert set(failed) <= {error, NBD_EIO}, f"{point}: {errors}"
        told += bool(failed)
        judge(tap, point)
        stores.drop(store)
    assert refused <= 1, "the list of sessions"
    # When space runs out, a second try may find some, and one copy of a bitmap is enough.
    assert told >= int(len(where) * told_of)


@pytest.mark.parametrize("lie", LIES)
def test_the_log_gives_a_liar_away(lie: str, stores: Stores) -> None:
    tap = lied_to(lie, stores)
    assert audit(tap), f"a tap may {lie} and nobody notices"


def test_a_kill_gives_a_liar_away(stores: Stores) -> None:
    tap = lied_to("answer at once", stores)
    assert tap.broken() != {"base": [], "web": []}


def lied_to(lie: str, stores: Stores) -> Tap:
    """Return a tap that lied to its clients and was killed when they were done."""
    store: Path = stores.new(STORE)
    command = [sys.executable, "-m", "kill.liars", lie, str(store), str(store.parent / "socket")]
    with running(store, command=command) as tap:
        for step in work(tap):
            assert step() == 0
        tap.send(signal.SIGKILL)
        assert tap.end()[0] == KILLED
    return tap
