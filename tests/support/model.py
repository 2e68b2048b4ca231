"""What a store must contain, kept beside the engine in plain dictionaries.

A `Disk` is the contents of an image: virtual block to 4 KiB of bytes, holes left out. A
`VdiModel` also knows what a power cut may leave: what each record on disk stands for (by
its sequence number), what was last promised to be durable, and every value that was
written to a block since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from core.format import BLOCK, ZERO_BLOCK, blocks_for

SECTOR = 512

Disk = dict[int, bytes]
SnapshotId = tuple[int, int]


def write_disk(disk: Disk, offset: int, data: bytes) -> dict[int, bytes]:
    """Write bytes; return the blocks that changed, as they are now."""
    changed: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        vblock, start = divmod(offset + at, BLOCK)
        part = data[at : at + BLOCK - start]
        old = disk.get(vblock, ZERO_BLOCK)
        new = old[:start] + part + old[start + len(part) :]
        if new == ZERO_BLOCK:
            disk.pop(vblock, None)
        else:
            disk[vblock] = new
        if new != old:
            changed[vblock] = new
        at += len(part)
    return changed


def zero_disk(disk: Disk, offset: int, end: int) -> dict[int, bytes]:
    """Zero the bytes from `offset` up to `end`; return the blocks that changed."""
    changed: dict[int, bytes] = {}
    if end <= offset:
        return changed
    for vblock in [b for b in disk if b * BLOCK < end and (b + 1) * BLOCK > offset]:
        low = max(0, offset - vblock * BLOCK)
        high = min(BLOCK, end - vblock * BLOCK)
        changed |= write_disk(disk, vblock * BLOCK + low, bytes(high - low))
    return changed


def read_disk(disk: Mapping[int, bytes], offset: int, length: int) -> bytes:
    first, last = offset // BLOCK, blocks_for(offset + length)
    whole = b"".join(disk.get(block, ZERO_BLOCK) for block in range(first, last))
    start = offset - first * BLOCK
    return whole[start : start + length]


@dataclass(frozen=True)
class SnapshotModel:
    """A snapshot; its id is None until the engine has told it."""

    id: SnapshotId | None
    label: str
    size: int
    disk: Mapping[int, bytes]
    scheduled: bool = False


@dataclass(frozen=True)
class Version:
    """One state of a VDI; `moment` counts its changes, to tell what came later."""

    moment: int
    name: str
    size: int
    deleted: bool
    disk: Mapping[int, bytes]
    snapshots: tuple[SnapshotModel, ...]


@dataclass
class VdiModel:
    """A VDI: `disk`, `name`, `size` and `snapshots` (oldest first) are as of now.

    Attributes:
        committed: its state as of the last acknowledged commit, None before the first.
        floor: the lowest sequence number that may be found on disk.
        versions: what a record with a certain sequence number may stand for.
        history: (moment, virtual block, contents) of changes since `committed`.
        before: its state when the operation under way began.
        prepared: its state when the commit under way was prepared.
        collected: whether it was deleted and then collected, so that nothing of it is left.
    """

    id: int
    name: str
    size: int
    disk: Disk = field(default_factory=dict)
    snapshots: tuple[SnapshotModel, ...] = ()
    deleted: bool = False
    committed: Version | None = None
    floor: int = 0
    versions: dict[int, list[Version]] = field(default_factory=dict)
    history: list[tuple[int, int, bytes]] = field(default_factory=list)
    moment: int = 0
    before: Version | None = None
    prepared: Version | None = None
    collected: bool = False

    def now(self) -> Version:
        return Version(
            self.moment, self.name, self.size, self.deleted, dict(self.disk), self.snapshots
        )

    def copy(self) -> VdiModel:
        """A model of the same VDI with nothing under way."""
        return replace(
            self,
            disk=dict(self.disk),
            versions=dict(self.versions),
            history=list(self.history),
            before=None,
            prepared=None,
        )

    def write(self, offset: int, data: bytes) -> None:
        self._note(write_disk(self.disk, offset, data))

    def zero(self, offset: int, length: int) -> None:
        self._note(zero_disk(self.disk, offset, offset + length))

    def resize(self, size: int) -> None:
        self._note(zero_disk(self.disk, size, self.size))
        self.size = size

    def retain(self, keep: int) -> None:
        """Drop the oldest scheduled snapshots beyond `keep`."""
        scheduled = [snap for snap in self.snapshots if snap.scheduled]
        gone = scheduled[: max(0, len(scheduled) - keep)]
        self.snapshots = tuple(s for s in self.snapshots if not any(s is g for g in gone))

    def rollback(self, snapshot: SnapshotModel) -> None:
        self.moment += 1
        self.disk = dict(snapshot.disk)
        self.size = snapshot.size

    def delete(self) -> None:
        self.moment += 1
        self.deleted = True

    def restore(self) -> None:
        self.moment += 1
        self.deleted = False

    def rename(self, name: str) -> None:
        self.moment += 1
        self.name = name

    def _note(self, changed: Mapping[int, bytes]) -> None:
        self.moment += 1
        self.history += [(self.moment, vblock, data) for vblock, data in changed.items()]

    def recorded(self, sequence: int) -> None:
        """Note that a record with this sequence number was written to the device."""
        if self.prepared is not None:
            self.versions[sequence] = [self.prepared]
        else:
            self.versions[sequence] = [self.now(), *([self.before] if self.before else [])]

    def promised(self, version: Version) -> None:
        """Note that a commit of `version` was acknowledged."""
        self.committed = version
        self.floor = max(self.versions)
        self.versions = {self.floor: [version]}
        self.history = [change for change in self.history if change[0] > version.moment]

    def created(self, first: int) -> None:
        """Note that its creation was acknowledged; of its two records the first is durable."""
        self.promised(self.now())
        assert self.committed is not None
        self.versions[first] = [self.committed]
        self.floor = first

    def failed(self, disk: Disk) -> None:
        """Note that the operation under way did not happen, except for what `disk` shows."""
        assert self.before is not None
        before = self.before
        self.name, self.size, self.deleted = before.name, before.size, before.deleted
        self.snapshots = before.snapshots
        self.moment += 1
        self.disk = disk

    def found(self, version: Version, sequence: int, collected: bool) -> None:
        """Become what was found on disk after a crash."""
        self.collected = collected
        self.name, self.size, self.deleted = version.name, version.size, version.deleted
        self.disk, self.snapshots = dict(version.disk), version.snapshots
        self.moment += 1
        self.before = self.prepared = None
        self.versions = {sequence: [version]}
        self.promised(self.now())

    def base(self, sequence: int) -> list[Version]:
        """Return what a record found on disk may stand for, later changes aside."""
        if sequence < self.floor or sequence not in self.versions:
            return []
        if sequence == self.floor and self.committed is not None:
            return [self.committed]
        return self.versions[sequence]

    def later(self, moment: int, vblock: int) -> list[bytes]:
        """Return the values a block was given after a moment."""
        return [data for at, block, data in self.history if block == vblock and at > moment]


def old_or_new(found: bytes, base: bytes, later: list[bytes]) -> bool:
    """Whether each sector of a block is as in `base` or as in one of the later values."""
    for at in range(0, BLOCK, SECTOR):
        sector = found[at : at + SECTOR]
        if sector != base[at : at + SECTOR] and all(
            sector != value[at : at + SECTOR] for value in later
        ):
            return False
    return True
