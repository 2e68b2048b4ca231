"""Snapshots and clones beside one 4 KiB write with fdatasync, and lists of many clones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import peers
from figures import OURS, Figure, Goal, Measure, in_turns
from widetree import create_mapped
from workspace import Workspace, run

from core.format import BLOCK, LOG_RECORDS, VdiRecord
from core.session import Session

WRITE: Final = "4 KiB write + fdatasync"
_BATCH: Final = LOG_RECORDS
"""Operations of a run: one of so many snapshots begins a new page of the log."""
_SAME: Final = Goal(0.0, 1.2)
_FLUSHES: Final = {WRITE: Goal(0.0, 4.0)}


def snapshots(place: Workspace) -> list[Figure]:
    """Snapshots of idle VDIs: the first, the ten-thousandth, of 1 GiB, of 512 GiB."""
    with Session.open(str(place.empty_store("snapshots")), "write") as session:
        names = count()

        def first(_: int) -> float:
            record = session.create(f"first-{next(names)}", 1 << 30)
            return _seconds(lambda: session.snapshot(record))

        def another(record: VdiRecord) -> Measure:
            return lambda _: _seconds(lambda: session.snapshot(record))

        def written(record: VdiRecord) -> Measure:
            def measure(_: int) -> float:
                block = os.urandom(BLOCK)
                vdi = session.open_vdi(record)
                vdi.write(next(names) * BLOCK % record.size, block)
                seconds = _seconds(lambda: session.snapshot(record))
                session.release(vdi)
                return seconds

            return measure

        old = session.create("old", 1 << 30)
        with session.opened(old) as vdi:
            for _ in range(place.many - 1):
                vdi.snapshot()
        small = create_mapped(session, "1 GiB", 2)
        large = create_mapped(session, "512 GiB", 3)
        with _writes(place.folder) as write:
            values = in_turns(
                {
                    WRITE: write,
                    "first": first,
                    "old": another(old),
                    "1 GiB": another(small),
                    "512 GiB": another(large),
                    "1 GiB, written": written(small),
                    "512 GiB, written": written(large),
                },
                place.runs,
                _BATCH,
            )
    values = {who: [1e6 * seconds for seconds in some] for who, some in values.items()}
    write_cost, initial = values[WRITE], values["first"]
    nth = f"snapshot number {place.many:,} and on"
    return [
        _cost("snapshot, the first of a VDI", values["first"], {WRITE: write_cost}, _FLUSHES),
        _cost(
            nth,
            values["old"],
            {WRITE: write_cost, "the first": initial},
            _FLUSHES | {"the first": _SAME},
        ),
        _cost("snapshot of 1 GiB mapped", values["1 GiB"], {WRITE: write_cost}, _FLUSHES),
        _cost(
            "snapshot of 512 GiB mapped",
            values["512 GiB"],
            {WRITE: write_cost, "of 1 GiB": values["1 GiB"]},
            _FLUSHES | {"of 1 GiB": _SAME},
        ),
        _cost(
            "snapshot of 512 GiB after a write of 4 KiB",
            values["512 GiB, written"],
            {WRITE: write_cost, "of 1 GiB": values["1 GiB, written"]},
            {},
        ),
    ]


def clones(place: Workspace) -> list[Figure]:
    """Clones: the first of a store, the ten-thousandth; and a list of all."""
    crowded = place.empty_store("clones")
    with (
        Session.open(str(place.empty_store("few-clones")), "write") as few,
        Session.open(str(crowded), "write") as many,
        _writes(place.folder) as write,
    ):
        small, large = _cloner(few, "1 GiB", 2), _cloner(few, "512 GiB", 3)
        late = _cloner(many, "1 GiB", 2)
        for _ in range(place.many):
            late(0)
        values = in_turns(
            {WRITE: write, "1 GiB": small, "512 GiB": large, "late": late}, place.runs, _BATCH
        )
    values = {who: [1e6 * seconds for seconds in some] for who, some in values.items()}
    cost, early = {WRITE: values[WRITE]}, values["1 GiB"]
    everything = place.many + place.runs * _BATCH + 1
    listed = in_turns(
        {OURS: lambda _: _list(crowded, everything), "1 s": lambda _: 1.0}, place.runs
    )
    return [
        _cost("clone of 1 GiB mapped", early, cost, _FLUSHES),
        _cost(
            "clone of 512 GiB mapped",
            values["512 GiB"],
            cost | {"of 1 GiB": early},
            _FLUSHES | {"of 1 GiB": _SAME},
        ),
        _cost(
            f"clone number {place.many:,} and on of one image",
            values["late"],
            cost | {"the first ones": early},
            _FLUSHES | {"the first ones": _SAME},
        ),
        Figure(f"vdi list of {place.many:,} clones", "s", listed, {"1 s": Goal(0.0, 1.0)}),
    ]


def start_up(place: Workspace) -> list[Figure]:
    """The time that a command takes which does almost nothing."""
    store = place.empty_store("small")
    run(*peers.PLXSH, "-s", str(store), "vdi", "create", "disk", "--size", "1G")
    image = place.folder / "small.qcow2"
    run("qemu-img", "create", "-f", "qcow2", str(image), "1G")
    theirs = ("qemu-img", "snapshot", "-l", str(image))
    contestants: dict[str, Measure] = {
        OURS: lambda _: _list(store, 1),
        "qemu-img snapshot -l": lambda _: _seconds(lambda: run(*theirs)),
    }
    values = in_turns(contestants, place.runs, 3)
    return [Figure("plxsh vdi list, start-up", "s", values)]


def _cost(
    name: str, ours: list[float], others: dict[str, list[float]], goals: dict[str, Goal]
) -> Figure:
    return Figure(name, "µs", {OURS: ours, **others}, goals)


def _cloner(session: Session, name: str, height: int) -> Measure:
    """Return what makes one more clone of a VDI with a full tree of `height` levels."""
    record = create_mapped(session, name, height)
    snapshot = session.find_snapshot(str(session.snapshot(record)))
    names = count()
    return lambda _: _seconds(
        lambda: session.create(f"clone {next(names)} of {name}", parent=snapshot)
    )


@contextmanager
def _writes(folder: Path) -> Iterator[Measure]:
    """Yield what overwrites 4 KiB of a file and waits for the disk."""
    path = folder / "writes"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    blocks = 1024
    try:
        os.write(fd, bytes(blocks * BLOCK))
        os.fsync(fd)
        places = count()

        def write(_: int) -> float:
            block = os.urandom(BLOCK)

            def once() -> None:
                os.pwrite(fd, block, next(places) % blocks * BLOCK)
                os.fdatasync(fd)

            return _seconds(once)

        yield write
    finally:
        os.close(fd)
        path.unlink()


def _list(store: Path, expected: int) -> float:
    """Return how long `vdi list` takes, which has to list so many VDIs."""
    start = time.perf_counter()
    listed = run(*peers.PLXSH, "-s", str(store), "-o", "plain", "vdi", "list")
    seconds = time.perf_counter() - start
    if len(listed.splitlines()) != expected:
        raise RuntimeError(f"vdi list has {len(listed.splitlines())} lines, not {expected}")
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
