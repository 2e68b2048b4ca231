"""Small stores for tests: 64-block extents, six of them, a few KiB on disk."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from support.memory import MemoryDevice

from core import mkfs
from core.blockstore import Blockstore
from core.format import BLOCK, VdiRecord
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.session import Session

EXTENT = 64
EXTENTS = 6


def small_store(folder: Path, extent: int = EXTENT, extents: int = EXTENTS) -> str:
    """Format a store of `extents` extents of `extent` blocks; return its path."""
    path = str(folder / "store")
    mkfs.create(path, extent * BLOCK, extents)
    return path


def open_store(folder: Path, extent: int = EXTENT, extents: int = EXTENTS) -> Blockstore:
    """Format a store and open it for writing, without a session."""
    return Blockstore.open(small_store(folder, extent, extents), "write", LockMaster())


def memory_store(
    extent: int = EXTENT, extents: int = EXTENTS, device: MemoryDevice | None = None
) -> Blockstore:
    """Format a store in memory, or a given empty device, and open it for writing."""
    device = device or MemoryDevice(extent * extents * BLOCK)
    format_device(device, extent * BLOCK, extents)
    return Blockstore(device, LockMaster())


@lru_cache(256)
def noise(length: int, seed: object = 0) -> bytes:
    """Bytes that are not zeros and differ from seed to seed."""
    return random.Random(repr(seed)).randbytes(length)


def write(session: Session, record: VdiRecord, offset: int, data: bytes) -> None:
    """Write and commit."""
    with session.opened(record) as vdi:
        vdi.write(offset, data)


def live(session: Session, name: str) -> bytes:
    """All bytes of a VDI as of its last commit."""
    record = session.registry.find(name)
    return session.live_image(record).read(0, record.size)


def poke(path: str, block: int, data: bytes, at: int = 0) -> None:
    """Overwrite bytes of one block of a store that is closed."""
    with open(path, "r+b") as file:
        file.seek(block * BLOCK + at)
        file.write(data)


def peek(path: str, block: int) -> bytes:
    """The bytes of one block of a store."""
    with open(path, "rb") as file:
        file.seek(block * BLOCK)
        return file.read(BLOCK)
