"""Reading an image in: this project's `vdi fill` beside `qemu-img convert` and `cp`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import peers
from figures import OURS, Figure, Goal
from workspace import Workspace, run, settled, warmed

CONVERT: Final = "qemu-img convert -O qcow2"
COPY: Final = "cp"

Copier = Callable[[Path, Path], None]
"""Copies an image to a target that `_targets` prepared."""


def _ours(source: Path, target: Path) -> None:
    run(*peers.PLXSH, "-s", str(target), "-q", "vdi", "fill", "disk", str(source))


def _convert(source: Path, target: Path) -> None:
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(target))


def _copy(source: Path, target: Path) -> None:
    run("cp", "--reflink=never", str(source), str(target))


_COPIERS: Final[dict[str, Copier]] = {OURS: _ours, CONVERT: _convert, COPY: _copy}


def images(place: Workspace) -> list[Figure]:
    """Fill from a full and from a sparse image, each run into a new target.

    Only `vdi fill` waits for the disk before it returns; so there are two figures, one
    until the command returns and one until what it wrote is on disk, whoever waits.
    """
    sources = {"full": place.raw, "sparse": place.sparse}
    returned: dict[str, dict[str, list[float]]] = {}
    durable: dict[str, dict[str, list[float]]] = {}
    for _ in range(place.runs):
        for kind, source in sources.items():
            for who, copier in _COPIERS.items():
                times = _time(place, source, who, copier)
                returned.setdefault(kind, {}).setdefault(who, []).append(times[0])
                durable.setdefault(kind, {}).setdefault(who, []).append(times[1])
    full = f"fill, full image of {place.size >> 20} MiB"
    sparse = f"fill, sparse image with {place.size >> 23} MiB of data"
    share = {
        "an eighth of a full fill": [seconds / 8 for seconds in durable["full"][OURS]],
    }
    return [
        Figure(f"{full}, on disk", "MiB/s", _rates(durable["full"], place.size), _GOAL),
        Figure(f"{full}, command returns", "MiB/s", _rates(returned["full"], place.size)),
        Figure(f"{sparse}, on disk", "s", {**durable["sparse"], **share}),
    ]


_GOAL: Final = {CONVERT: Goal(1.3)}


def _rates(seconds: dict[str, list[float]], size: int) -> dict[str, list[float]]:
    return {who: [size / (1 << 20) / value for value in some] for who, some in seconds.items()}


def _time(place: Workspace, source: Path, who: str, copier: Copier) -> tuple[float, float]:
    """Return the seconds until the command returned and until all was on disk."""
    if who == OURS:
        target = place.empty_store("fill")
        run(*peers.PLXSH, "-s", str(target), "vdi", "create", "disk")
        settled(target)
    else:
        target = place.folder / "fill.target"
    warmed(source)
    start = time.perf_counter()
    copier(source, target)
    returned = time.perf_counter() - start
    settled(target)
    durable = time.perf_counter() - start
    target.unlink()
    return returned, durable
