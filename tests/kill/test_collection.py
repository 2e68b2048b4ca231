"""`store gc`, killed or failing at every write, sync and hole it makes.

It is not all or nothing, since several VDIs may go one after the other. But whatever stays is
whole, a deleted VDI that can still be restored is too, and doing it again ends the work.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kill.jobs import Job, Stores
from kill.repeat import plxsh
from kill.tracing import EIO, FULL, KILL, PLXSH, Fault, points, run
from kill.view import sound, view
from shell.tap import connect, environment, read, serving

from core.check import check
from core.format import DELETED
from core.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def fill_with_garbage(path: Path) -> None:
    """Delete two VDIs, one a clone of what the other still has, and a snapshot."""
    with Session.open(str(path)) as session:
        session.create("copy", parent=session.find_snapshot("old@last"))
        with session.opened(session.registry.find("copy")) as vdi:
            vdi.write(0, b"c" * 8192)
        session.delete(session.registry.find("copy"))
        session.delete(session.registry.find("old"), snapshots=True)
        session.delete_snapshot(session.find_snapshot("base@clean"))


GC = Job("-y store gc", prepare=fill_with_garbage)


def all_restored(path: Path) -> dict[str, Any]:
    """Return what every VDI shows once the deleted ones are restored, in a copy of the store."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    with Session.open(str(copy)) as session:
        for record in session.registry.vdis(DELETED):
            session.restore(record)
    shown: dict[str, Any] = sound(str(copy))["vdis"]
    copy.unlink()
    return shown


@pytest.mark.parametrize("fault", [KILL, EIO, FULL], ids=["kill", "EIO", "ENOSPC"])
def test_what_stays_is_whole_and_the_rest_goes_the_next_time(fault: Fault, stores: Stores) -> None:
    store = stores.new(GC)
    log = store.parent / "log"
    before, restorable = view(str(store)), all_restored(store)
    assert restorable.keys() - before["vdis"].keys() == {"old", "copy"}
    assert run(GC.command(store), log).returncode == 0
    where = points(log)
    assert {point.name for point in where} >= {"fdatasync", "fallocate"}
    stores.drop(store)
    seen = set()
    for point in where:
        store = stores.new(GC)
        done = run(GC.command(store), store.parent / "log", fault.at(point))
        assert "Traceback" not in done.stderr
        assert sound(str(store)) == before, point
        left = all_restored(store)
        assert left == {name: restorable[name] for name in left}, point
        seen.add(len(left))
        status, said = plxsh(GC.command(store)[len(PLXSH) :])
        assert status == 0, said
        assert sound(str(store)) == before
        report = check(str(store))
        assert (report.deleted, report.unreachable) == (0, 0)
        stores.drop(store)
    assert seen >= {len(before["vdis"]), len(restorable)}, "no point before or none after"


def test_a_kill_between_freeing_and_giving_back_costs_nothing_for_good(stores: Stores) -> None:
    """The holes that were not made are made the next time."""
    whole = stores.new(GC)
    log = whole.parent / "log"
    assert run(GC.command(whole), log).returncode == 0
    [first] = [point for point in points(log) if point == ("fallocate", 1)]
    store = stores.new(GC)
    full = store.stat().st_blocks
    run(GC.command(store), store.parent / "log", KILL.at(first))
    assert check(str(store)).deleted == 0
    assert store.stat().st_blocks >= full
    plxsh(GC.command(store)[len(PLXSH) :])
    assert store.stat().st_blocks <= whole.stat().st_blocks < full


def test_killed_beside_a_tap_it_leaves_all_whole_and_the_tap_goes_on(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector is a process of its own; the tap frees its part or keeps it, nothing else."""

    def collected(store: Path, fault: str | None) -> int:
        """Run it beside a tap with a guest, who must notice nothing."""
        words = ("-s", str(store), "tap", "serve", "--unix", "nbd.sock")
        with serving(*words, environment=environment()) as folder:
            monkeypatch.setenv("PARALLAX_RUN_DIR", os.path.join(folder, "parallax"))
            with closing(connect(os.path.join(folder, "nbd.sock"), "base")) as guest:
                shown = read(guest, 0, 256 << 10)
                done = run(GC.command(store), store.parent / "log", fault)
                assert "Traceback" not in done.stderr
                assert read(guest, 0, 256 << 10) == shown
        return done.returncode

    store = stores.new(GC)
    before = view(str(store))
    assert collected(store, None) == 0
    where = points(store.parent / "log")
    assert check(str(store)).unreachable == 0
    assert {point.name for point in where} >= {"fdatasync"}
    stores.drop(store)
    for point in where[:: max(1, len(where) // 8)]:
        store = stores.new(GC)
        collected(store, KILL.at(point))
        assert sound(str(store)) == before, point
        status, said = plxsh(GC.command(store)[len(PLXSH) :])
        assert status == 0, said
        report = check(str(store))
        assert (report.damaged, report.deleted, report.unreachable) == (False, 0, 0)
        stores.drop(store)
