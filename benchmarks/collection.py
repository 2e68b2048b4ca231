"""How fast garbage collection marks what is in use, all of it before anything is freed.

Two VDIs: one whose nodes are all different, read from the page cache, and one of 512 GiB
whose nodes are shared as those of many snapshots are, where a node is read once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from figures import OURS, Figure, Goal, Measure, in_turns
from widetree import create_mapped
from workspace import Workspace

from core import mkfs
from core.format import BLOCK, BLOCK_SHIFT, MIN_EXTENTS
from core.session import Session

_GOAL: Final = "10 million/s"
_PER_VDI: Final = 1000
"""Blocks mapped here for each VDI of other parts: ten million for ten thousand."""


def marking(place: Workspace) -> list[Figure]:
    """Mark a store of distinct nodes, and one of shared nodes."""
    blocks = place.many * _PER_VDI
    figures = []
    for name, (path, mapped) in {
        f"gc, mark {blocks:,} blocks under nodes of their own": (_distinct(place, blocks), blocks),
        "gc, mark 512 GiB under nodes that are shared": _shared(place),
    }.items():
        values = in_turns({OURS: _marker(path, mapped), _GOAL: lambda _: 10.0}, place.runs)
        figures.append(Figure(name, "million blocks/s", values, {_GOAL: Goal(1.0)}))
        path.unlink()
    return figures


def _distinct(place: Workspace, blocks: int) -> Path:
    """Make a store with a VDI that maps so many blocks, no two nodes alike; data is holes."""
    path = place.folder / "distinct.dat"
    extent = 1 << 20
    while extent * (MIN_EXTENTS - 1) < (blocks << BLOCK_SHIFT) * 1.1:
        extent *= 2
    mkfs.create(str(path), extent, MIN_EXTENTS)
    with (
        Session.open(str(path), "write") as session,
        session.opened(session.create("distinct", blocks * BLOCK)) as vdi,
    ):
        at = 0
        for first, count in vdi.take(blocks):
            vdi.map.update(at, first, count)
            at += count
    return path


def _shared(place: Workspace) -> tuple[Path, int]:
    """Make a store with a VDI of 512 GiB; return the blocks it maps too."""
    path = place.empty_store("shared")
    with Session.open(str(path), "write") as session:
        return path, create_mapped(session, "512 GiB", 3).size >> BLOCK_SHIFT


def _marker(path: Path, mapped: int) -> Measure:
    """Return what marks a store of so many mapped blocks, with no node in memory yet."""

    def measure(_: int) -> float:
        with Session.open(str(path), "write") as session:
            start = time.perf_counter()
            session.plan_collection()
            return mapped / 1e6 / (time.perf_counter() - start)

    return measure
