"""What a snapshot every 10 ms costs who writes, and whether all of them are good.

    python benchmarks/snapshots.py [--seconds 60] [--runs 1] [--size 256] [--keep 50]

fio writes through the tap, with a FLUSH now and then, and verifies what it wrote, in turns
to a VDI with a schedule and to one without. Afterwards every snapshot there is gets checked
and read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import fio
import peers
from figures import OURS, Figure, Goal, as_table, in_turns
from fio import Load
from workspace import Workspace, settled

from core import features, mkfs
from core.check import check
from core.format import BLOCK, BLOCK_SHIFT, INCOMPAT_SCHEDULES, MIN_EXTENTS, VdiRecord
from core.schedule import MIN_INTERVAL_NS
from core.session import Session
from core.snaplog import last_line

EVERY: Final = "every"
NEVER: Final = "never"
WITHOUT: Final = "without a schedule"
_GOAL: Final = Goal(0.85)
_EXTENT: Final = 64 << 20
_LOADS: Final = {
    "1 MiB sequential write": Load("write", 1 << 20, 4, verify=True, flush_every=16),
    "4 KiB sequential write, depth 16": Load("write", 4096, 16, verify=True, flush_every=256),
    "4 KiB random write, depth 16": Load("randwrite", 4096, 16, verify=True, flush_every=256),
}


@dataclass
class Ticks:
    """What the schedule did: snapshots taken, and those there was no time for."""

    taken: int = 0
    missed: int = 0


def schedule(place: Workspace) -> list[Figure]:
    """Writes to a VDI of which a snapshot is taken every 10 ms."""
    return measured(place, min(place.size // 4, 256 << 20), 50, list(_LOADS))[0]


def measured(
    place: Workspace, size: int, keep: int, loads: Sequence[str]
) -> tuple[list[Figure], dict[str, Ticks]]:
    """Write to a VDI of `size` bytes with and without a schedule that keeps `keep` snapshots.

    Raises:
        RuntimeError: what was read is not what was written, or a snapshot cannot be read.
    """
    figures, ticks = [], {}
    store = place.folder / "schedule.dat"
    room = 2 * size + min(4 << 30, round(place.seconds * (1 << 30)))
    _prepare(store, size, room, keep)
    for name in loads:
        load = _LOADS[name]
        done = ticks[name] = Ticks()
        contestants = {
            OURS: partial(_write, place, store, EVERY, load, done),
            WITHOUT: partial(_write, place, store, NEVER, load, None),
        }
        title = f"{name}, a snapshot each 10 ms"
        values = in_turns(contestants, place.runs)
        figures.append(Figure(title, "requests/s", values, {WITHOUT: _GOAL}))
        _read_all(store)
    store.unlink()
    return figures, ticks


def _prepare(store: Path, size: int, room: int, keep: int) -> None:
    """Make the two VDIs, both full of the same bytes, in a store of `room` bytes.

    It is that large because each snapshot keeps all that was written since the one before.

    All of the store is written once before: a disk that was never written to is slow the
    first time, which would be told as the cost of snapshots, who write to new places.
    """
    piece = bytes(range(1, 256)) * (1 << 12)
    sb = mkfs.create(str(store), _EXTENT, max(MIN_EXTENTS, room // _EXTENT + 2))
    with open(store, "r+b") as file:
        for extent in range(1, sb.extents):
            file.seek((sb.extent_start(extent) + sb.overhead) * BLOCK)
            file.write((b"-" * BLOCK) * (sb.extent_blocks - sb.overhead))
    with Session.open(str(store)) as session:
        features.enable(session.store, INCOMPAT_SCHEDULES)
        for name in (EVERY, NEVER):
            with session.opened(session.create(name, size)) as vdi:
                for offset in range(0, size, len(piece)):
                    vdi.write(offset, piece[: size - offset])
                if name == EVERY:
                    vdi.set_schedule(MIN_INTERVAL_NS, keep)
    settled(store)


def _record(store: Path, name: str) -> VdiRecord:
    with Session.open(str(store), "read") as session:
        return session.registry.find(name)


def _write(
    place: Workspace, store: Path, name: str, load: Load, ticks: Ticks | None, run: int
) -> float:
    """Write for a while and verify; return requests a second."""
    before = last_line(_record(store, name))
    with peers.tap(store) as server:
        rate = fio.run(server.uri(name), load, place.seconds, run)
    settled(store)
    if ticks is not None:
        taken = last_line(_record(store, name)) - before
        ticks.taken += taken
        ticks.missed += max(0, round(place.seconds * 1e9 / MIN_INTERVAL_NS) - taken)
    return rate


def _read_all(store: Path) -> None:
    """Check the store, and read each block that any of the snapshots has."""
    report = check(str(store))
    if report.damaged:
        raise RuntimeError(f"{store}: {report.findings}")
    with Session.open(str(store), "shared") as session:
        newer = session.live_image(session.registry.find(EVERY))
        for snapshot in session.snapshots(session.registry.find(EVERY)):
            image = session.image(snapshot)
            for first, count in newer.map.diff(image.map):
                length = min(count * BLOCK, image.size - (first << BLOCK_SHIFT))
                image.read(first << BLOCK_SHIFT, length)
            newer = image
        newer.read(0, newer.size)


def main() -> None:
    """Measure, and show the table."""
    parser = argparse.ArgumentParser(description="Measure what a snapshot every 10 ms costs.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run [60]")
    parser.add_argument("--runs", type=int, default=1, help="of each, in turns [1]")
    parser.add_argument("--size", type=int, default=256, help="MiB of the VDI [256]")
    parser.add_argument("--keep", type=int, default=50, help="snapshots that are kept [50]")
    parser.add_argument("--only", choices=_LOADS, action="append", help="this load")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on a disk")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parallax-bench-", dir=wanted.dir) as folder:
        size = wanted.size << 20
        place = Workspace(Path(folder), size, wanted.seconds, wanted.runs, 0, 0)
        figures, ticks = measured(place, size, wanted.keep, wanted.only or list(_LOADS))
    print(as_table(figures))
    for name, done in ticks.items():
        print(f"{name}: {done.taken} snapshots taken, {done.missed} ticks without one")
    for figure in figures:
        ours, theirs = (median(figure.values[who]) for who in (OURS, WITHOUT))
        print(f"{figure.name}: {1 - ours / theirs:.1%} lost")


if __name__ == "__main__":
    main()
