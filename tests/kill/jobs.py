"""The commands that are cut off or made to fail, and the store they work on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kill.tracing import PLXSH

from core import mkfs
from core.format import BLOCK
from core.session import Session

KIB = 1 << 10
EXTENT = 64 * BLOCK
EXTENTS = 6


def noise(length: int, seed: int) -> bytes:
    """Bytes that are no zeros and differ from seed to seed."""
    return random.Random(seed).randbytes(length)


def build_store(path: Path) -> None:
    """Make a small store that has all there can be: snapshots, a clone, changes on top."""
    mkfs.create(str(path), EXTENT, EXTENTS)
    with Session.open(str(path)) as session:
        base = session.create("base", 256 * KIB)
        with session.opened(base) as vdi:
            vdi.write(0, noise(80 * KIB, 1))
            vdi.write(200 * KIB, noise(20 * KIB, 2))
        session.snapshot(base, "clean")
        web = session.create("web", parent=session.find_snapshot("base@clean"))
        with session.opened(base) as vdi:
            vdi.write(40 * KIB + 100, noise(20 * KIB, 3))
        with session.opened(web) as vdi:
            vdi.write(0, noise(8 * KIB, 4))
        old = session.create("old", 64 * KIB)
        with session.opened(old) as vdi:
            vdi.write(0, noise(64 * KIB, 5))
        session.snapshot(old, "last")


def build_image(path: Path) -> None:
    """Make an image with data, a hole and a last block that is not whole."""
    with path.open("wb") as image:
        image.write(noise(50 * KIB, 6))
        image.seek(180 * KIB)
        image.write(noise(33 * KIB + 1, 7))


def damage(path: Path) -> None:
    """Break both slots of an extent's bitmap: what is reachable tells what it was."""
    with Session.open(str(path), "read") as session:
        sb = session.store.sb
        blocks = [sb.bitmap_slot(1, 0, slot) for slot in (0, 1)]
    with path.open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK + 100)
            file.write(b"broken")


def nothing(path: Path) -> None:
    """Leave the store as it is."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        args: of plxsh; {image} stands for the path of an image.
        again: exit status when it is repeated after it took effect.
        prepare: what happens to the store before.
        spare: how many of its writes it can do without when the disk is full.
    """

    args: str
    again: int = 0
    prepare: Callable[[Path], None] = nothing
    spare: int = 0

    def command(self, store: Path) -> list[str]:
        """Return the command line; a store and an image lie in one folder."""
        words = [word.format(image=store.parent / "image") for word in self.args.split()]
        return [*PLXSH, "-s", str(store), *words]


JOBS = {
    "create": Job("vdi create new --size 64K", again=2, spare=1),
    "clone": Job("vdi create copy --from base@clean", again=2, spare=1),
    "fill": Job("vdi fill -y base {image}"),
    "rename": Job("vdi rename web www", again=3),
    "grow a VDI": Job("vdi resize base 1M"),
    "shrink a VDI": Job("-y vdi resize base 16K --force"),
    "delete": Job("-y vdi delete old --snapshots", again=3),
    "snapshot": Job("snap create base --label now"),
    "delete a snapshot": Job("-y snap delete old@last", again=3),
    "roll back": Job("-y snap rollback base base@clean"),
    "grow the store": Job("store grow --extents 8", again=2),
}
REPAIR = Job("store check --repair", prepare=damage)


class Stores:
    """Makes stores to break: copies of one that was built once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built = folder / "built"
        build_store(self._built)
        self._count = 0

    def new(self, job: Job) -> Path:
        """Return the path of a fresh store, alone with an image in a folder."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        store = folder / "store"
        shutil.copyfile(self._built, store)
        job.prepare(store)
        if "{image}" in job.args:
            build_image(folder / "image")
        return store

    @staticmethod
    def drop(store: Path) -> None:
        """Remove a store that did what it should."""
        shutil.rmtree(store.parent)
