"""Finding snapshots, by what people write too, while others drop and collect them.

Who looks for one has no lock. A page of a snapshot log that was dropped may be collected, and
used for something else, between the reading of the VDI's record and of the page. That is no
damage: the record says something else by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from core import snaplog
from core.blockstore import Blockstore
from core.errors import BadRequest, Corrupt, NotFound
from core.format import BLOCK, BLOCK_SHIFT, LIVE, WRITABLE, LogBlock, VdiRecord
from core.registry import Registry, suggest
from core.snaplog import Snapshot, SnapshotId

_ID_LENGTH: Final = 24


def snapshots(store: Blockstore, record: VdiRecord) -> Iterator[Snapshot]:
    """Yield the snapshots of a VDI, newest first; where the log has changed, go on with that.

    Raises:
        Corrupt: a page of the log is damaged.
        NotFound: the VDI was deleted and collected meanwhile.
    """
    before: int | None = None
    while True:
        try:
            for snapshot in snaplog.snapshots(store, record):
                if before is None or snapshot.line < before:
                    before = snapshot.line
                    yield snapshot
            return
        except Corrupt:
            now = Registry(store).get(record.id)
            if now is None or now.uuid != record.uuid or now.state != record.state:
                raise NotFound(
                    f"VDI {record.name!r} was deleted in the meantime", "list them again"
                ) from None
            if now.sequence == record.sequence:
                raise
            record = now


def is_kept(store: Blockstore, record: VdiRecord) -> bool:
    """Say whether a snapshot of a VDI, or the one it was cloned from, has its contents.

    That it has no blocks of its own does not tell: after a crash, who takes a VDI over
    leaves what was written to nobody.
    """
    root = record.root & ~WRITABLE
    if not record.mapped or any(found.root == root for found in snapshots(store, record)):
        return True
    parent = _snapshot_anywhere(store, SnapshotId(record.parent_block, record.parent_offset))
    return parent is not None and parent.root == root


def has_snapshot(store: Blockstore, record: VdiRecord, wanted: Snapshot) -> bool:
    """Return whether a VDI has a snapshot: that one, and not another in its old place."""
    for snapshot in snapshots(store, record):
        if snapshot.id == wanted.id:
            return snapshot.time_ns == wanted.time_ns
    return False


def find_snapshot(store: Blockstore, reference: str) -> Snapshot:
    """Return the snapshot that a reference names; see `Session.find_snapshot`."""
    vdi, at, label = reference.rpartition("@")
    where = parse_snapshot_id(label)
    if at and not (vdi and label):
        raise BadRequest(
            f"{reference!r} names no snapshot: there is nothing {'behind' if vdi else 'before'}"
            " the '@'",
            "write VDI@LABEL or VDI@BLOCK.OFFSET; 'plxsh snap list VDI' shows those of a VDI",
        )
    if where is None and not at:
        raise BadRequest(
            f"{reference!r} names no snapshot", "write BLOCK.OFFSET, VDI@LABEL or BLOCK OFFSET"
        )
    hint = "'plxsh snap list VDI' shows those of a VDI"
    if not at:
        assert where is not None
        found = _snapshot_anywhere(store, where)
        if found is not None:
            return found
    else:
        labels = []
        for snapshot in snapshots(store, Registry(store).find(vdi)):
            if snapshot.id == where or (where is None and snapshot.label == label):
                return snapshot
            labels.append(snapshot.label)
        if where is None:
            hint = suggest(label, filter(None, labels), f"{vdi}@") or hint
    raise NotFound(f"there is no snapshot {reference}", hint)


def _snapshot_anywhere(store: Blockstore, where: SnapshotId) -> Snapshot | None:
    """Find a snapshot by its id alone: its block tells whose it is."""
    if not store.holds_payload(where.block):
        return None
    registry = Registry(store)
    raw = store.device.pread(where.block << BLOCK_SHIFT, BLOCK)
    page = LogBlock.unpack(raw, store.sb.uuid)
    record = registry.get(page.vdi) if page else None
    if record is not None and record.state == LIVE:
        found = _with_id(store, record, where)
        if found is not None:
            return found
    for record in registry.vdis():
        if record.log_block == where.block:
            return _with_id(store, record, where)
    return None


def _with_id(store: Blockstore, record: VdiRecord, where: SnapshotId) -> Snapshot | None:
    return next((found for found in snapshots(store, record) if found.id == where), None)


def parse_snapshot_id(text: str) -> SnapshotId | None:
    """Return the id that `BLOCK.OFFSET` stands for, None for any other text."""
    block, dot, offset = text.partition(".")
    if (
        len(text) <= _ID_LENGTH
        and dot
        and block.isascii()
        and block.isdigit()
        and offset.isascii()
        and offset.isdigit()
    ):
        return SnapshotId(int(block), int(offset))
    return None
