"""Snapshots by what people write: a place, a label, or a VDI and one of them."""

from __future__ import annotations

from typing import Final

from core import snaplog
from core.blockstore import Blockstore
from core.errors import BadRequest, NotFound
from core.format import BLOCK, BLOCK_SHIFT, LIVE, LogBlock
from core.registry import Registry, suggest
from core.snaplog import Snapshot, SnapshotId

_ID_LENGTH: Final = 24


def find_snapshot(store: Blockstore, reference: str) -> Snapshot:
    """Return the snapshot that a reference names; see `Session.find_snapshot`."""
    vdi, at, label = reference.rpartition("@")
    where = parse_snapshot_id(label)
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
        for snapshot in snaplog.snapshots(store, Registry(store).find(vdi)):
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
        found = snaplog.find(store, record, where)
        if found is not None:
            return found
    for record in registry.vdis():
        if record.log_block == where.block:
            return snaplog.find(store, record, where)
    return None


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
