"""Stores as somebody makes them who wants to hurt: any value, and every checksum is right."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.format import (
    BLOCK,
    FANOUT,
    FANOUT_SHIFT,
    WRITABLE,
    LogBlock,
    Superblock,
    VdiRecord,
    entry_block,
    newer,
    node_check,
    pack_entry,
)

_NODE = struct.Struct(f"<{FANOUT}Q")


class Forger:
    """A store that is closed, changed in memory until `save`.

    Args:
        path: its file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._raw = bytearray(self._path.read_bytes())
        sb = Superblock.unpack(self.block(0))
        assert sb
        self.sb = sb

    def save(self) -> None:
        self._path.write_bytes(self._raw)

    def block(self, number: int) -> bytes:
        return bytes(self._raw[number * BLOCK : (number + 1) * BLOCK])

    def put(self, number: int, data: bytes) -> None:
        assert len(data) == BLOCK
        self._raw[number * BLOCK : (number + 1) * BLOCK] = data

    # -- records -----------------------------------------------------------------------

    def record(self, vdi: int) -> VdiRecord:
        slots = [self.block(self.sb.vdi_slot(vdi, slot)) for slot in (0, 1)]
        record = newer(*[VdiRecord.unpack(slot, self.sb.uuid, vdi) for slot in slots])
        assert record
        return record

    def put_record(self, record: VdiRecord) -> None:
        """Fill both slots."""
        for sequence in (record.sequence, max(0, record.sequence - 1)):
            block = self.sb.vdi_slot(record.id, sequence % 2)
            self.put(block, replace(record, sequence=sequence).pack(self.sb.uuid))

    def set_record(self, vdi: int, **fields: Any) -> VdiRecord:
        """Change fields of a record."""
        record = replace(self.record(vdi), **fields)
        self.put_record(record)
        return record

    def set_line(self, vdi: int, number: int, **fields: Any) -> VdiRecord:
        """Change fields of a line of the page in a record."""
        page = [*self.record(vdi).page]
        page[number] = replace(page[number], **fields)
        return self.set_record(vdi, page=tuple(page))

    def set_old_line(self, vdi: int, number: int, **fields: Any) -> int:
        """Change fields of a line of the newest full page; return the block of the page."""
        record = self.record(vdi)
        block = entry_block(record.log_previous)
        page = LogBlock.unpack(self.block(block), self.sb.uuid)
        assert page
        lines = [*page.page]
        lines[number] = replace(lines[number], **fields)
        data = replace(page, page=tuple(lines)).pack(self.sb.uuid)
        self.put(block, data)
        pointer = pack_entry(block, node_check(data), False)
        kept = pointer if entry_block(record.log_kept) == block else record.log_kept
        self.set_record(vdi, log_previous=pointer, log_kept=kept)
        return block

    # -- trees -------------------------------------------------------------------------

    def node(self, block: int) -> list[int]:
        return [*_NODE.unpack(self.block(block))]

    def put_node(self, block: int, entries: list[int]) -> int:
        """Write a node; return the check that pointers to it must carry."""
        self.put(block, _NODE.pack(*entries))
        return node_check(self.block(block))

    def path(self, vdi: int, vblock: int = 0) -> list[int]:
        """The blocks of the nodes above a virtual block of the live tree, root first."""
        record = self.record(vdi)
        blocks, entry = [], record.root
        for level in range(record.height - 1, -1, -1):
            blocks.append(entry_block(entry))
            entry = self.node(blocks[-1])[vblock >> FANOUT_SHIFT * level & FANOUT - 1]
        return blocks

    def set_entries(self, vdi: int, level: int, vblock: int, entries: Mapping[int, int]) -> int:
        """Change entries of the node at a level above a virtual block, in place.

        The checks of all nodes above it are made right, up to the record.

        Returns:
            The block of the node.
        """
        record = self.record(vdi)
        blocks = self.path(vdi, vblock)
        for at in range(level, record.height):
            block = blocks[record.height - 1 - at]
            node = self.node(block)
            for slot, entry in entries.items():
                node[slot] = entry
            check = self.put_node(block, node)
            slot = vblock >> FANOUT_SHIFT * (at + 1) & FANOUT - 1
            if at + 1 < record.height:
                flag = self.node(blocks[record.height - 2 - at])[slot] & WRITABLE
                entries = {slot: pack_entry(block, check, bool(flag))}
            else:
                self.set_record(vdi, root=pack_entry(block, check, bool(record.root & WRITABLE)))
        return blocks[record.height - 1 - level]


def own_pointer(block: int) -> int:
    """Return the entry that a node in `block`, full of it, carries as a pointer to itself.

    A CRC is linear: with each bit of the check that is set in the entries, the same bits of
    the node's own check flip. Which of them must be set so that both agree is a system of 23
    equations over two values.
    """

    def own(check: int) -> int:
        return node_check(_NODE.pack(*[pack_entry(block, check, True)] * FANOUT))

    zero = own(0)
    rows = []  # of (I + L | zero), one a bit of the check, as integers of 24 bits
    flips = [own(1 << bit) ^ zero ^ 1 << bit for bit in range(23)]
    for bit in range(23):
        row = sum((flips[of] >> bit & 1) << of for of in range(23))
        rows.append(row | (zero >> bit & 1) << 23)
    pivots: dict[int, int] = {}
    for row in rows:
        for bit, pivot in pivots.items():
            if row >> bit & 1:
                row ^= pivot
        lead = row & (1 << 23) - 1
        if not lead:
            assert not row, "no such node; take another block"
            continue
        low = (lead & -lead).bit_length() - 1
        pivots = {b: p ^ row if p >> low & 1 else p for b, p in pivots.items()} | {low: row}
    check = sum((row >> 23) << bit for bit, row in pivots.items())
    assert own(check) == check
    return pack_entry(block, check, True)
