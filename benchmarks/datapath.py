"""What a virtual machine feels: reads and writes over NBD, beside other servers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

import fio
import peers
from figures import OURS, Figure, Goal, in_turns
from fio import Load
from workspace import DISK, Workspace, settled

QEMU_RAW: Final = "qemu-nbd raw"
QEMU_QCOW2: Final = "qemu-nbd qcow2"
QEMU_DIRECT: Final = "qemu-nbd raw, cache none"
QEMU_OVERLAY: Final = "qemu-nbd fresh overlay"
NBDKIT: Final = "nbdkit file"

_MIB: Final = 1 << 20
_WARM: Final = Load("read", _MIB, 4)


def existing_data(place: Workspace) -> list[Figure]:
    """Reads and writes of data that is there and owned."""
    long = min(place.size, 1 << 30)
    loads = {
        "4 KiB random read, depth 1": (
            Load("randread", 4096, 1),
            {QEMU_RAW: Goal(1.0)},
        ),
        "4 KiB random read, depth 16": (
            Load("randread", 4096, 16),
            {QEMU_RAW: Goal(3.0), NBDKIT: Goal(1.0)},
        ),
        "4 KiB random write, depth 1": (Load("randwrite", 4096, 1), {}),
        "4 KiB random write, depth 16": (
            Load("randwrite", 4096, 16),
            {QEMU_RAW: Goal(1.2)},
        ),
        "1 MiB sequential read": (Load("read", _MIB, 4), {QEMU_RAW: Goal(1.0)}),
        "1 MiB sequential write": (Load("write", _MIB, 4, long), {QEMU_RAW: Goal(1.0)}),
    }
    store, raw, qcow2 = place.store, place.raw, place.qcow2
    with ExitStack() as running:
        servers = {
            OURS: (running.enter_context(peers.tap(store)), DISK),
            QEMU_RAW: (running.enter_context(peers.qemu_nbd(raw, "raw")), ""),
            QEMU_QCOW2: (running.enter_context(peers.qemu_nbd(qcow2, "qcow2")), ""),
        }
        # nbdkit gets the same file: one writer at a time, and one copy in the page cache.
        servers[NBDKIT] = (running.enter_context(peers.nbdkit(raw)), "")
        for server, export in servers.values():
            whole = Load(_WARM.pattern, _WARM.block, _WARM.depth, place.size)
            fio.run(server.uri(export), whole, 0, 0)
        figures = [
            _figure(place, name, load, servers, goals) for name, (load, goals) in loads.items()
        ]
    return figures + _uncached(place, {name: load for name, (load, _) in loads.items()})


def _uncached(place: Workspace, loads: Mapping[str, Load]) -> list[Figure]:
    """The same past the page cache, where the disk is what counts."""
    with (
        peers.tap(place.store, "none") as ours,
        peers.qemu_nbd(place.raw, "raw", "none") as theirs,
    ):
        servers = {OURS: (ours, DISK), QEMU_DIRECT: (theirs, "")}
        return [
            _figure(place, f"{name}, cache none", load, servers, {}) for name, load in loads.items()
        ]


def _figure(
    place: Workspace,
    name: str,
    load: Load,
    servers: Mapping[str, tuple[peers.Server, str]],
    goals: Mapping[str, Goal],
) -> Figure:
    """Put one load on all servers, in turns."""
    contestants = {
        who: partial(_measure, place, load, server, export)
        for who, (server, export) in servers.items()
    }
    return Figure(name, _unit(load), in_turns(contestants, place.runs), goals)


def _measure(place: Workspace, load: Load, server: peers.Server, export: str, run: int) -> float:
    rate = fio.run(server.uri(export), load, place.seconds, run)
    if load.writes:
        settled(server.file)
    return rate * load.block / _MIB if load.block == _MIB else rate


def _unit(load: Load) -> str:
    return "MiB/s" if load.block == _MIB else "requests/s"


def fresh_clone(place: Workspace) -> list[Figure]:
    """Writes to an image that shares everything with another, each run to a new one.

    A short run may end in the page cache, a long one is as fast as the disk; so there is
    one for a time and one for a number of writes with a FLUSH at the end.
    """
    name = "4 KiB random write to a fresh clone, depth 16"
    timed = Load("randwrite", 4096, 16)
    flushed = Load("randwrite", 4096, 16, place.size // 32, flush=True)
    goals = {QEMU_OVERLAY: Goal(10.0)}
    return [
        Figure(name, _unit(timed), _fresh(place, timed, "timed"), goals),
        Figure(f"{name}, with a flush", _unit(flushed), _fresh(place, flushed, "flushed"), goals),
    ]


def _fresh(place: Workspace, load: Load, name: str) -> dict[str, list[float]]:
    """Put a load on new clones and new overlays, in turns."""
    names = [f"{name}-{run}" for run in range(place.runs)]
    place.clone(names)
    with peers.tap(place.store) as server:

        def ours(run: int) -> float:
            return _measure(place, load, server, names[run], run)

        def theirs(run: int) -> float:
            image = place.overlay(names[run])
            with peers.qemu_nbd(image, "qcow2") as overlay:
                rate = _measure(place, load, overlay, "", run)
            image.unlink()
            return rate

        return in_turns({OURS: ours, QEMU_OVERLAY: theirs}, place.runs)
