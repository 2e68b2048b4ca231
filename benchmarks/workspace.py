"""The images that all contestants work on, made once and of the same random bytes."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from core import mkfs
from core.format import MIN_EXTENTS
from core.session import Session
from core.transfer import fill

DISK: Final = "disk"
"""Name of the VDI that holds the image."""

_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Workspace:
    """A folder on a real disk, and how large, long and often things are measured.

    `size` is in bytes, `seconds` the length of one fio run, `many` how many snapshots and
    clones "ten thousand" are, `crowd` how many clones are open at once.
    """

    folder: Path
    size: int
    seconds: float
    runs: int
    many: int
    crowd: int

    @cached_property
    def raw(self) -> Path:
        """A full raw image of random bytes."""
        path = self.folder / "full.raw"
        source = random.Random(path.name)
        with open(path, "wb") as file:
            for _ in range(0, self.size, _PIECE):
                file.write(source.randbytes(_PIECE))
        return evicted(path)

    @cached_property
    def sparse(self) -> Path:
        """A raw image with every eighth piece filled, 512 MiB of 4 GiB."""
        path = self.folder / "sparse.raw"
        source = random.Random(path.name)
        with open(path, "wb") as file:
            for offset in range(0, self.size, 8 * _PIECE):
                file.seek(offset)
                file.write(source.randbytes(_PIECE))
            file.truncate(self.size)
        return evicted(path)

    @cached_property
    def qcow2(self) -> Path:
        """The raw image as a qcow2 image, which owns its clusters."""
        path = self.folder / "full.qcow2"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self.raw), str(path))
        return evicted(path)

    def overlay(self, name: str) -> Path:
        """Make an empty qcow2 overlay on the raw image."""
        path = self.folder / f"{name}.qcow2"
        run("qemu-img", "create", "-f", "qcow2", "-b", str(self.raw), "-F", "raw", str(path))
        return path

    def empty_store(self, name: str) -> Path:
        """Format a store with room for a few images."""
        path = self.folder / f"{name}.dat"
        extent = 64 << 20
        while extent * (MIN_EXTENTS - 1) < 2 * self.size + (1 << 30):
            extent *= 2
        mkfs.create(str(path), extent, MIN_EXTENTS)
        return path

    @cached_property
    def store(self) -> Path:
        """A store with one VDI, which holds the raw image and owns its blocks."""
        path = self.empty_store("store")
        with (
            Session.open(str(path), "write") as session,
            session.opened(session.create(DISK)) as vdi,
        ):
            fill(vdi, session, str(self.raw))
        return evicted(path)

    def clone(self, names: list[str]) -> None:
        """Snapshot the VDI and make clones of it; nobody may have the store open."""
        with Session.open(str(self.store), "write") as session:
            record = session.registry.find(DISK)
            where = session.snapshot(record)
            snapshot = session.find_snapshot(str(where))
            for name in names:
                session.create(name, parent=snapshot)


def run(*command: str) -> str:
    """Run a program and return its output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def settled(path: Path) -> Path:
    """Wait until a file is on disk, so that no later run pays for writing it."""
    with open(path, "rb") as file:
        os.fdatasync(file.fileno())
    return path


def evicted(path: Path) -> Path:
    """Take a file out of the page cache, so that how it was written does not matter.

    The kernel keeps what was written together in one large folio, in which a later small
    write is slow; who is read warm again has the folios of readahead, as all others.
    """
    settled(path)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def warmed(path: Path) -> Path:
    """Read a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_PIECE):
            pass
    return path
