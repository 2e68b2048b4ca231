"""Commands that are killed, or whose writes and syncs fail, at every single one of them.

Whatever happens, the store opens with no repair and is sound, the command's effect is all
there or not at all, and the command works afterwards.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kill.jobs import JOBS, REPAIR, Job, Stores
from kill.repeat import plxsh, works_again
from kill.tracing import EIO, FULL, KILL, KILLED, PLXSH, SYNCS, Fault, Point, calls_in, points, run
from kill.view import View, sound, view

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FAULTS = {"kill": KILL, "EIO": EIO, "ENOSPC": FULL}


def good_run(job: Job, stores: Stores) -> tuple[list[Point], View]:
    """Run a job undisturbed; return where it can be disturbed, and what it leaves."""
    store = stores.new(job)
    log = store.parent / "log"
    done = run(job.command(store), log)
    assert done.returncode == 0, done.stderr
    where, after = points(log), sound(str(store))
    stores.drop(store)
    return where, after


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_command_takes_effect_or_does_not(job: Job, fault: Fault, stores: Stores) -> None:
    where, after = good_run(job, stores)
    assert len(where) >= 3, "nothing to disturb: strace saw too little"
    first = stores.new(job)
    before = view(str(first))
    stores.drop(first)
    assert before != after
    happened = False
    spared = []
    for point in where:
        store = stores.new(job)
        log = store.parent / "log"
        done = run(job.command(store), log, fault.at(point))
        found = sound(str(store))
        if fault is FULL and done.returncode == 0:
            spared.append(point)
            assert found == after, point
        else:
            told(done, fault, point)
        nothing_follows_a_failed_sync(log)
        if found != before:
            assert found == after, f"{point}: neither before nor after"
        if fault is KILL or (fault is FULL and point.name not in SYNCS):
            assert found != before or not happened, f"{point}: it was there at an earlier one"
            happened = found != before
        works_again(job, store, found != before, after)
        stores.drop(store)
    # What is written for tidiness alone may be left out: twins, and the list of sessions. All of
    # that comes when the effect is there, and stays.
    assert len(spared) > job.spare if fault is FULL else not spared


def told(done: subprocess.CompletedProcess[str], fault: Fault, point: Point) -> None:
    """Make sure that the command says what was wrong, in one line, and how bad it is."""
    what = f"{point}: {done.stderr}"
    if fault is KILL:
        assert done.returncode == KILLED, what
        return
    full = fault is FULL and point.name not in SYNCS
    assert done.returncode == (6 if full else 5), what
    line = done.stderr.removesuffix("\n")
    assert "\n" not in line, what
    assert line.startswith("plxsh: "), what
    assert ("No space left" if fault is FULL else "Input/output error") in line, what
    assert line.endswith(")"), f"no hint: {what}"
    assert not done.stdout, what


def nothing_follows_a_failed_sync(log: Path) -> None:
    """Nothing may be written or synced after a sync that failed: it would hide the failure."""
    calls = calls_in(log)
    failed = [call.start for call in calls if call.name in SYNCS and call.result == -1]
    assert not failed or calls[-1].start == failed[0], log.read_text()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_repair_can_be_repeated(fault: Fault, stores: Stores) -> None:
    where, after = good_run(REPAIR, stores)
    for point in where:
        store = stores.new(REPAIR)
        log = store.parent / "log"
        done = run(REPAIR.command(store), log, fault.at(point))
        if fault is not FULL or done.returncode:  # what is for tidiness alone may be left out
            told(done, fault, point)
        nothing_follows_a_failed_sync(log)
        assert view(str(store)) == after, f"{point}: contents changed"
        works_again(REPAIR, store, False, after)
        stores.drop(store)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_store_is_made_or_is_none(fault: Fault, stores: Stores) -> None:
    job = Job("store create {image}.new --extent-size 256K --extents 6")
    where, _ = good_run(job, stores)
    for point in where:
        store = stores.new(job)
        made = store.parent / "image.new"
        log = store.parent / "log"
        done = run(job.command(store), log, fault.at(point))
        told(done, fault, point)
        nothing_follows_a_failed_sync(log)
        if fault is not KILL:
            assert not made.exists(), f"{point}: half a store is left behind"
        args = job.command(store)[len(PLXSH) :]
        status, said = plxsh(args)
        if status != 0:  # what was killed may have left something, which is not just replaced
            assert fault is KILL, said
            assert status == 2, said
            assert "already holds" in said
            assert "--force" in said
            status, said = plxsh(["-y", *args, "--force"])
            assert status == 0, said
        assert sound(str(made)) == {"extents": 6, "vdis": {}}
        stores.drop(store)
