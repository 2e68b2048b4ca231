"""Every on-disk structure of a blockstore: layout, packing, checksums. No I/O.

`docs/format.md` describes the same bytes for people; a test compares the two. All
integers are little endian, all blocks are 4 KiB, every metadata block carries a CRC-32C
of itself (with the checksum field as zeros) or is reached through a pointer that carries
a check of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from google_crc32c import value as crc32c

from core.errors import BadRequest

BLOCK_SHIFT: Final = 12
BLOCK: Final = 1 << BLOCK_SHIFT
"""Bytes in a block."""
ZERO_BLOCK: Final = bytes(BLOCK)

VERSION: Final = 1
MIN_EXTENT: Final = 64 * BLOCK
MAX_EXTENT: Final = 1 << 40
MIN_EXTENTS: Final = 6
MAX_VDIS: Final = 65_536
MAX_NAME: Final = 255
"""Longest VDI name in bytes of UTF-8."""
MAX_SEQUENCE: Final = (1 << 62) - 1
"""Highest sequence number: at a million commits a second it takes 146,000 years."""
MAX_TOKEN: Final = (1 << 63) - 1
"""A fencing token is lower, so that there is always a next one."""
MAX_LABEL: Final = 80
"""Longest snapshot label in bytes of UTF-8."""

# ---------------------------------------------------------------------------------------
# Radix entries: writable flag (bit 0), block number (bits 1-40), check (bits 41-63).

FANOUT_SHIFT: Final = 9
FANOUT: Final = 1 << FANOUT_SHIFT
"""Entries in a radix node."""
MAX_HEIGHT: Final = 4
MAX_VDI_BLOCKS: Final = 1 << (FANOUT_SHIFT * MAX_HEIGHT)
MAX_VDI_SIZE: Final = MAX_VDI_BLOCKS << BLOCK_SHIFT
"""Largest virtual size in bytes: 256 TiB."""

WRITABLE: Final = 1
BLOCK_MASK: Final = (1 << 40) - 1
CHECK_SHIFT: Final = 41
CHECK_MASK: Final = (1 << 23) - 1
MAX_BLOCKS: Final = 1 << 39
"""Most blocks in a store; block numbers above stand for nodes not yet written."""


def pack_entry(block: int, check: int, writable: bool) -> int:
    """Return the 64-bit radix entry that points to `block`."""
    return (check << CHECK_SHIFT) | (block << 1) | writable


def entry_block(entry: int) -> int:
    """Return the block number a radix entry points to; 0 is a hole."""
    return (entry >> 1) & BLOCK_MASK


def entry_check(entry: int) -> int:
    """Return the 23-bit check of a radix entry."""
    return entry >> CHECK_SHIFT


def node_check(data: bytes | bytearray | memoryview) -> int:
    """Return the check that a pointer to this node or log block must carry."""
    return int(crc32c(bytes(data))) & CHECK_MASK


def height_for(size: int) -> int:
    """Return the fewest radix levels that map `size` bytes (at least 1)."""
    blocks = blocks_for(size)
    height = 1
    while blocks > 1 << (FANOUT_SHIFT * height):
        height += 1
    return height


def blocks_for(size: int) -> int:
    """Return how many blocks hold `size` bytes."""
    return (size + BLOCK - 1) >> BLOCK_SHIFT


# ---------------------------------------------------------------------------------------
# Blocks that carry their own checksum share one start: magic (8), CRC-32C (4), store UUID.

_PREFIX = struct.Struct("<8sI16s")
_CRC_AT = 8


def _seal(block: bytearray) -> bytes:
    """Fill in the checksum of a block whose checksum field is still zero."""
    struct.pack_into("<I", block, _CRC_AT, crc32c(bytes(block)))
    return bytes(block)


def _intact(block: bytes, magic: bytes) -> bool:
    """Say whether `block` has this magic and its checksum is right."""
    if len(block) != BLOCK or block[:8] != magic:
        return False
    (stored,) = struct.unpack_from("<I", block, _CRC_AT)
    return bool(crc32c(block[:_CRC_AT] + b"\0\0\0\0" + block[_CRC_AT + 4 :]) == stored)


# ---------------------------------------------------------------------------------------
# Slots: what is written again and again has two blocks, written in turn. Each of their
# sectors ends with a *stamp* of the checksum of that write, so that a write of which only
# some sectors came to the disk can be told from a block that has rotted.

SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all."""
_STAMPS_AT: Final = tuple(range(2 * SECTOR - 2, BLOCK, SECTOR))
_STAMP: Final = struct.Struct("<H")
_SAVED: Final = 2 * len(_STAMPS_AT)


@dataclass(frozen=True, slots=True)
class SlotKind:
    """How one kind of slot looks.

    `magic` is that of slots with stamps, `plain` of those without. The bytes that stamps took
    the place of are at `saved`.
    """

    magic: bytes
    plain: bytes
    saved: int


class Condition(Enum):
    """What a slot is."""

    VALID = "valid"
    SCARRED = "valid, but no write has left its stamps like that"
    EMPTY = "empty"
    TORN = "torn"
    DAMAGED = "damaged"


def _stamp(crc: int) -> int:
    """Return the stamp of a checksum: 15 bits of it and their parity.

    Two different stamps differ in two bits or more, so no flipped bit makes one of another.
    """
    bits = crc & 0x7FFF
    return bits << 1 | bits.bit_count() & 1


def _seal_slot(kind: SlotKind, block: bytearray, stamped: bool) -> bytes:
    """Fill in magic, checksum and stamps of a slot."""
    block[:8] = kind.magic if stamped else kind.plain
    crc = crc32c(bytes(block))
    struct.pack_into("<I", block, _CRC_AT, crc)
    if stamped:
        for number, at in enumerate(_STAMPS_AT):
            saved = kind.saved + 2 * number
            block[saved : saved + 2] = block[at : at + 2]
            _STAMP.pack_into(block, at, _stamp(crc))
    return bytes(block)


def _without_stamps(kind: SlotKind, block: bytes) -> tuple[bytearray, int]:
    """Return a slot's contents, with zeros as checksum, and the checksum it has."""
    plain = bytearray(block)
    (stored,) = struct.unpack_from("<I", block, _CRC_AT)
    plain[_CRC_AT : _CRC_AT + 4] = bytes(4)
    if block[:8] == kind.magic:
        for number, at in enumerate(_STAMPS_AT):
            saved = kind.saved + 2 * number
            plain[at : at + 2] = block[saved : saved + 2]
        plain[kind.saved : kind.saved + _SAVED] = bytes(_SAVED)
    return plain, stored


def open_slot(kind: SlotKind, block: bytes) -> bytes | None:
    """Return what a slot holds, without stamps; None when it is not valid."""
    if len(block) != BLOCK or block[:8] not in (kind.magic, kind.plain):
        return None
    plain, stored = _without_stamps(kind, block)
    return bytes(plain) if crc32c(bytes(plain)) == stored else None


def condition(kind: SlotKind, block: bytes, belongs: bool) -> Condition:
    """Say what a slot is.

    A write of which only some sectors came to the disk leaves stamps of two writes. Whatever
    else is not valid is damaged: a block that rotted has the stamps of one write, and one that
    is valid elsewhere was not torn. Without stamps it cannot be told.

    Args:
        kind: of slot.
        block: its contents.
        belongs: whether it is valid and belongs to this place.
    """
    if block == ZERO_BLOCK:
        return Condition.EMPTY
    stamps = [_STAMP.unpack_from(block, at)[0] for at in _STAMPS_AT]
    sane = all(map(_is_stamp, stamps))
    if belongs:
        return Condition.VALID if sane or block[:8] == kind.plain else Condition.SCARRED
    begun = block[:8] == kind.magic or not any(block[:SECTOR])
    if not (begun and sane) or open_slot(kind, block) is not None:
        return Condition.DAMAGED
    plain, stored = _without_stamps(kind, block)
    one_write = {_stamp(stored), *stamps} == {_stamp(stored)}
    # A checksum that rotted differs from the stamps as well: then the rest agrees with them.
    only_checksum = {_stamp(crc32c(bytes(plain)))} == {*stamps}
    return Condition.DAMAGED if one_write or only_checksum else Condition.TORN


def _is_stamp(stamp: int) -> bool:
    return _stamp(stamp >> 1) == stamp


# ---------------------------------------------------------------------------------------
# Superblock: block 0, and a copy in the last block of the system extent.

SUPERBLOCK_MAGIC: Final = b"PARALLAX"
_SUPERBLOCK = struct.Struct("<8sI16sIIIIIIIQq16sI")
assert _SUPERBLOCK.size == 92

INCOMPAT_SCHEDULES: Final = 1
"""A VDI has or had a schedule: its snapshot log may lead to pages that are no more."""
INCOMPAT_STAMPS: Final = 2
"""Slots have stamps, and sessions that have not ended are listed."""
KNOWN_INCOMPAT: Final = INCOMPAT_SCHEDULES | INCOMPAT_STAMPS
RO_COMPAT_SHARED: Final = 1
"""Who writes needs the lock master that the superblock names."""
KNOWN_RO_COMPAT: Final = RO_COMPAT_SHARED
NO_LOCK_MASTER: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class Superblock:
    """The geometry and identity of a store.

    `extent_blocks` is a power of two, so that the copy can be found when block 0 is
    damaged. Unknown `incompat` features forbid opening, unknown `ro_compat` features
    forbid writing, unknown `compat` features are ignored.

    `lock_master` is the UUID of the lock master under which the store is shared, zeros for
    none; before `settled` its claim may still be overtaken by another one's.
    """

    uuid: bytes
    extent_blocks: int
    extents: int
    sequence: int = 1
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    created_ns: int = 0
    version: int = VERSION
    lock_master: bytes = NO_LOCK_MASTER
    settled: bool = False

    @property
    def blocks(self) -> int:
        """Blocks in the whole store."""
        return self.extent_blocks * self.extents

    @property
    def size(self) -> int:
        """Bytes in the whole store."""
        return self.blocks << BLOCK_SHIFT

    @property
    def copy_block(self) -> int:
        """Where the second copy of this superblock is."""
        return self.extent_blocks - 1

    @property
    def stamped(self) -> bool:
        """Whether slots have stamps, and sessions are listed."""
        return bool(self.incompat & INCOMPAT_STAMPS)

    def sessions_slot(self, slot: int) -> int:
        """Block number of one slot of the list of sessions; the VDI table never reaches it."""
        return 1 if slot else self.extent_blocks - 2

    @property
    def max_vdis(self) -> int:
        """How many VDI records fit into the system extent."""
        return min(MAX_VDIS, (self.extent_blocks - VDI_TABLE_START - 1) // 2)

    @property
    def bitmap_blocks(self) -> int:
        """Bitmap blocks of one extent, each stored in two slots."""
        return -(-self.extent_blocks // BITMAP_BITS)

    @property
    def overhead(self) -> int:
        """Blocks at the start of each extent that header and bitmap take."""
        return 2 + 2 * self.bitmap_blocks

    def extent_start(self, extent: int) -> int:
        """First block of an extent."""
        return extent * self.extent_blocks

    def bitmap_slot(self, extent: int, index: int, slot: int) -> int:
        """Block number of one slot of one bitmap block."""
        return extent * self.extent_blocks + 2 + 2 * index + slot

    def vdi_slot(self, vdi: int, slot: int) -> int:
        """Block number of one slot of a VDI record."""
        return VDI_TABLE_START + 2 * vdi + slot

    def holds_payload(self, block: int) -> bool:
        """Say whether `block` may hold data, nodes or log (not fixed metadata)."""
        return (
            self.extent_blocks <= block < self.blocks
            and block % self.extent_blocks >= self.overhead
        )

    def pack(self) -> bytes:
        """Return the block to write."""
        block = bytearray(BLOCK)
        _SUPERBLOCK.pack_into(
            block,
            0,
            SUPERBLOCK_MAGIC,
            0,
            self.uuid,
            self.version,
            BLOCK,
            self.compat,
            self.ro_compat,
            self.incompat,
            self.extent_blocks,
            self.extents,
            self.sequence,
            self.created_ns,
            self.lock_master,
            self.settled,
        )
        return _seal(block)

    @classmethod
    def unpack(cls, block: bytes) -> Superblock | None:
        """Return the superblock in `block`, or None when it is damaged or not one."""
        if not _intact(block, SUPERBLOCK_MAGIC):
            return None
        fields = _SUPERBLOCK.unpack_from(block)
        (_, _, uuid, version, size, compat, ro, incompat, eblocks, extents, seq, *rest) = fields
        if size != BLOCK or seq > MAX_SEQUENCE:
            return None
        created, master, settled = rest
        shape = (uuid, eblocks, extents, seq, compat, ro, incompat, created, version)
        return cls(*shape, master, bool(settled))

    def grown(self, extents: int) -> Superblock:
        """Return this superblock with more extents and the next sequence number."""
        return replace(self, extents=extents, sequence=self.sequence + 1)

    def under(self, lock_master: bytes, settled: bool = False) -> Superblock:
        """Return the next version of this superblock, of a store shared under a lock master."""
        shared = RO_COMPAT_SHARED if any(lock_master) else 0
        return replace(
            self,
            lock_master=lock_master,
            settled=settled,
            ro_compat=self.ro_compat & ~RO_COMPAT_SHARED | shared,
            sequence=self.sequence + 1,
        )


def check_geometry(extent_size: int, extents: int) -> None:
    """Refuse an extent size (bytes) or count that no store can have.

    Raises:
        BadRequest: with what would be accepted.
    """
    if extent_size < MIN_EXTENT or extent_size > MAX_EXTENT or extent_size & (extent_size - 1):
        raise BadRequest(
            f"an extent of {extent_size} bytes is not possible",
            f"take a power of two from {MIN_EXTENT >> 10}K to {MAX_EXTENT >> 40}T, such as 2G",
        )
    if extents < MIN_EXTENTS:
        raise BadRequest(
            f"{extents} extents are too few", f"a store has at least {MIN_EXTENTS} extents"
        )
    if (extent_size >> BLOCK_SHIFT) * extents > MAX_BLOCKS:
        raise BadRequest(
            f"{extents} extents of {extent_size} bytes are too many",
            f"a store has at most {MAX_BLOCKS} blocks of {BLOCK} bytes",
        )


# ---------------------------------------------------------------------------------------
# Extent header (two slots) and allocation bitmap (each block in two slots).

_EXTENT = struct.Struct("<8xI16sIQQ16sq")
assert _EXTENT.size == 72
EXTENT_SLOT: Final = SlotKind(b"PLXEXTN2", b"PLXEXTNT", 72)


@dataclass(frozen=True, slots=True)
class ExtentHeader:
    """Which session claimed an extent last, and under which fencing token."""

    extent: int
    sequence: int = 1
    token: int = 0
    session: bytes = bytes(16)
    claimed_ns: int = 0

    def pack(self, store: bytes, stamped: bool = True) -> bytes:
        """Return the block to write into slot `sequence % 2`."""
        block = bytearray(BLOCK)
        _EXTENT.pack_into(
            block,
            0,
            0,
            store,
            self.extent,
            self.sequence,
            self.token,
            self.session,
            self.claimed_ns,
        )
        return _seal_slot(EXTENT_SLOT, block, stamped)

    @classmethod
    def unpack(cls, block: bytes, store: bytes, extent: int) -> ExtentHeader | None:
        """Return the header in `block`, or None when it is damaged or another's."""
        plain = open_slot(EXTENT_SLOT, block)
        if plain is None:
            return None
        _, uuid, number, sequence, token, session, claimed = _EXTENT.unpack_from(plain)
        if uuid != store or number != extent:
            return None
        if sequence > MAX_SEQUENCE or token >= MAX_TOKEN:
            return None
        return cls(number, sequence, token, session, claimed)


_BITMAP = struct.Struct("<8xI16sIIQI")
assert _BITMAP.size == 48
BITMAP_SLOT: Final = SlotKind(b"PLXBITM2", b"PLXBITMP", 48)
BITMAP_START: Final = 64
BITMAP_BYTES: Final = BLOCK - BITMAP_START
BITMAP_BITS: Final = BITMAP_BYTES * 8
"""Blocks that one bitmap block covers."""


@dataclass(frozen=True, slots=True)
class BitmapBlock:
    """A part of an extent's allocation bitmap; bit i of byte j is block 8 j + i."""

    extent: int
    index: int
    sequence: int
    used: int
    bits: bytes

    def pack(self, store: bytes, stamped: bool = True) -> bytes:
        """Return the block to write into slot `sequence % 2`."""
        block = bytearray(BLOCK)
        _BITMAP.pack_into(block, 0, 0, store, self.extent, self.index, self.sequence, self.used)
        block[BITMAP_START : BITMAP_START + len(self.bits)] = self.bits
        return _seal_slot(BITMAP_SLOT, block, stamped)

    @classmethod
    def unpack(cls, block: bytes, store: bytes, extent: int, index: int) -> BitmapBlock | None:
        """Return the bitmap part in `block`, or None when it is damaged or another's."""
        plain = open_slot(BITMAP_SLOT, block)
        if plain is None:
            return None
        _, uuid, number, part, sequence, used = _BITMAP.unpack_from(plain)
        if uuid != store or number != extent or part != index or sequence > MAX_SEQUENCE:
            return None
        return cls(number, part, sequence, used, plain[BITMAP_START:])


# ---------------------------------------------------------------------------------------
# Sessions that have not ended (two slots): who may have left slots that are not twins.

_SESSIONS = struct.Struct("<8xI16sQII")
assert _SESSIONS.size == 44
SESSIONS_SLOT: Final = SlotKind(b"PLXSESSN", b"", 48)
_SESSIONS_AT: Final = 128
MAX_LISTED: Final = (BLOCK - _SESSIONS_AT) // 16
"""Sessions that the list has room for."""


@dataclass(frozen=True, slots=True)
class SessionList:
    """Sessions that write to the store, or have ended without tidying up.

    `more` says that there may be others, for whom there was no room or of whom nothing is known.
    """

    sequence: int = 1
    sessions: tuple[bytes, ...] = ()
    more: bool = False

    def pack(self, store: bytes) -> bytes:
        """Return the block to write into slot `sequence % 2`."""
        block = bytearray(BLOCK)
        _SESSIONS.pack_into(block, 0, 0, store, self.sequence, len(self.sessions), self.more)
        at = _SESSIONS_AT
        block[at : at + 16 * len(self.sessions)] = b"".join(self.sessions)
        return _seal_slot(SESSIONS_SLOT, block, True)

    @classmethod
    def unpack(cls, block: bytes, store: bytes) -> SessionList | None:
        """Return the list in `block`, or None when it is damaged or another's."""
        plain = open_slot(SESSIONS_SLOT, block)
        if plain is None:
            return None
        _, uuid, sequence, count, more = _SESSIONS.unpack_from(plain)
        if uuid != store or count > MAX_LISTED or sequence > MAX_SEQUENCE:
            return None
        ends = range(_SESSIONS_AT, _SESSIONS_AT + 16 * count, 16)
        return cls(sequence, tuple(plain[at : at + 16] for at in ends), bool(more))


# ---------------------------------------------------------------------------------------
# Snapshot log: pages of fixed records. The newest page lives inside the VDI record.

LOG_PAGE_START: Final = 1024
LOG_RECORD: Final = 128
LOG_RECORDS: Final = (BLOCK - LOG_PAGE_START) // LOG_RECORD
"""Records in one page of the snapshot log."""
assert LOG_RECORDS == 24

_LOG_RECORD = struct.Struct("<BBBBIqQQQQ80s")
assert _LOG_RECORD.size == LOG_RECORD

KIND_SNAPSHOT: Final = 1
KIND_TOMBSTONE: Final = 2
_SCHEDULED: Final = 1


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of a VDI's snapshot log.

    For a snapshot: its root entry (writable flag clear), radix height, size in bytes,
    mapped data blocks, the blocks that were the VDI's own when it was taken, and whether
    its schedule took it. For a tombstone: `root` and `size` are the (block, offset) of the
    snapshot it deletes.
    """

    kind: int
    time_ns: int
    root: int
    size: int
    height: int = 0
    mapped: int = 0
    own: int = 0
    label: str = ""
    scheduled: bool = False

    def pack(self) -> bytes:
        """Return the 128 bytes of the record, checksum included."""
        label = self.label.encode()
        record = bytearray(LOG_RECORD)
        _LOG_RECORD.pack_into(
            record,
            0,
            self.kind,
            self.height,
            len(label),
            _SCHEDULED * self.scheduled,
            0,
            self.time_ns,
            self.root,
            self.size,
            self.mapped,
            self.own,
            label,
        )
        struct.pack_into("<I", record, 4, crc32c(bytes(record)))
        return bytes(record)

    @classmethod
    def unpack(cls, record: bytes) -> LogRecord | None:
        """Return the record, or None when its checksum or its contents are wrong."""
        kind, height, length, flags, stored, time_ns, root, size, mapped, own, label = (
            _LOG_RECORD.unpack(record)
        )
        if crc32c(record[:4] + b"\0\0\0\0" + record[8:]) != stored or length > MAX_LABEL:
            return None
        if kind not in (KIND_SNAPSHOT, KIND_TOMBSTONE):
            return None
        try:
            text = label[:length].decode()
        except UnicodeDecodeError:
            return None
        scheduled = bool(flags & _SCHEDULED)
        return cls(kind, time_ns, root, size, height, mapped, own, text, scheduled)


def _pack_page(block: bytearray, page: tuple[LogRecord, ...]) -> None:
    """Put the records of one log page where every block that has a page keeps it."""
    for number, record in enumerate(page):
        at = LOG_PAGE_START + number * LOG_RECORD
        block[at : at + LOG_RECORD] = record.pack()


def _unpack_page(block: bytes, count: int) -> tuple[LogRecord, ...] | None:
    """Return the first `count` records of a block's log page; None when one is bad."""
    if count > LOG_RECORDS:
        return None
    records = []
    for at in range(LOG_PAGE_START, LOG_PAGE_START + count * LOG_RECORD, LOG_RECORD):
        record = LogRecord.unpack(block[at : at + LOG_RECORD])
        if record is None:
            return None
        records.append(record)
    return tuple(records)


LOG_MAGIC: Final = b"PLXSNLOG"
_LOG_BLOCK = struct.Struct("<8sI16sIQQQQ")
assert _LOG_BLOCK.size == 64


@dataclass(frozen=True, slots=True)
class LogBlock:
    """A full page of a VDI's snapshot log, written once and never changed.

    `previous` is the checked pointer (a radix entry) to the page before, 0 for the first;
    `number` counts the pages of this VDI from 0. `kept` is such a pointer to the newest page
    before that retention never drops, `kept_number` that page's number.
    """

    vdi: int
    number: int
    previous: int
    page: tuple[LogRecord, ...]
    kept: int = 0
    kept_number: int = 0

    def pack(self, store: bytes) -> bytes:
        """Return the block to write."""
        block = bytearray(BLOCK)
        _LOG_BLOCK.pack_into(
            block,
            0,
            LOG_MAGIC,
            0,
            store,
            self.vdi,
            self.number,
            self.previous,
            self.kept,
            self.kept_number,
        )
        _pack_page(block, self.page)
        return _seal(block)

    @classmethod
    def unpack(cls, block: bytes, store: bytes) -> LogBlock | None:
        """Return the log block in `block`, or None when it is damaged or another store's."""
        if not _intact(block, LOG_MAGIC):
            return None
        _, _, uuid, vdi, number, previous, kept, kept_number = _LOG_BLOCK.unpack_from(block)
        page = _unpack_page(block, LOG_RECORDS)
        if uuid != store or page is None:
            return None
        return cls(vdi, number, previous, page, kept, kept_number)


# ---------------------------------------------------------------------------------------
# VDI record: two slots, written alternately; the valid one with the higher sequence wins.

VDI_TABLE_START: Final = 2
_VDI = struct.Struct("<8xI16sQII16sQQBxxxxxxxQQQqqqQII16sQQIIQQ16sQIQQQ")
assert _VDI.size == 256
VDI_SLOT: Final = SlotKind(b"PLXVDI\0\2", b"PLXVDI\0\1", 256)
_NAME_AT: Final = 512
_NAME = struct.Struct("<H255s")

LIVE: Final = 1
DELETED: Final = 2
FREE: Final = 3
NO_VDI: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class VdiRecord:
    """All that the store knows about one VDI; replaced as a whole by each commit.

    `root` is the radix entry of the live tree, `mapped` the data blocks it maps, `own`
    the blocks (data and nodes) that this VDI alone holds since its last snapshot.
    `page` is the newest page of the snapshot log: it moves to block `log_block` (which is
    reserved for it from its first record on) when it is full. `log_previous` is the
    checked pointer to the page before it. Pages are numbered: the newest is `log_number`,
    those before `log_first` were given up by a repair. `snapshots` counts snapshots not deleted.

    Each `schedule_ns` nanoseconds a snapshot is to be taken and the newest `schedule_keep` of
    them are kept; 0: there is no schedule. Scheduled snapshots on lines of the log (counted
    from 0, all pages as one) before `log_retired` are dropped. `log_kept` and `log_kept_number`
    are what `LogBlock` says.
    """

    id: int
    uuid: bytes
    name: str
    state: int = LIVE
    sequence: int = 1
    size: int = 0
    root: int = 0
    height: int = 1
    token: int = 0
    mapped: int = 0
    own: int = 0
    created_ns: int = 0
    modified_ns: int = 0
    deleted_ns: int = 0
    parent_block: int = 0
    parent_offset: int = 0
    parent_vdi: int = NO_VDI
    parent_uuid: bytes = bytes(16)
    log_previous: int = 0
    log_block: int = 0
    log_number: int = 0
    log_first: int = 0
    snapshots: int = 0
    session: bytes = bytes(16)
    schedule_ns: int = 0
    schedule_keep: int = 0
    log_retired: int = 0
    log_kept: int = 0
    log_kept_number: int = 0
    page: tuple[LogRecord, ...] = ()

    def pack(self, store: bytes, stamped: bool = True) -> bytes:
        """Return the block to write into slot `sequence % 2`."""
        name = self.name.encode()
        block = bytearray(BLOCK)
        _VDI.pack_into(
            block,
            0,
            0,
            store,
            self.sequence,
            self.id,
            self.state,
            self.uuid,
            self.size,
            self.root,
            self.height,
            self.token,
            self.mapped,
            self.own,
            self.created_ns,
            self.modified_ns,
            self.deleted_ns,
            self.parent_block,
            self.parent_offset,
            self.parent_vdi,
            self.parent_uuid,
            self.log_previous,
            self.log_block,
            len(self.page),
            self.snapshots,
            self.log_number,
            self.log_first,
            self.session,
            self.schedule_ns,
            self.schedule_keep,
            self.log_retired,
            self.log_kept,
            self.log_kept_number,
        )
        _NAME.pack_into(block, _NAME_AT, len(name), name)
        _pack_page(block, self.page)
        return _seal_slot(VDI_SLOT, block, stamped)

    @classmethod
    def unpack(cls, block: bytes, store: bytes, vdi: int) -> VdiRecord | None:
        """Return the record in `block`, or None when it is damaged or another's."""
        plain = open_slot(VDI_SLOT, block)
        if plain is None:
            return None
        (
            _,
            uuid,
            sequence,
            number,
            state,
            own_uuid,
            size,
            root,
            height,
            token,
            mapped,
            own,
            created,
            modified,
            deleted,
            parent_block,
            parent_offset,
            parent_vdi,
            parent_uuid,
            log_previous,
            log_block,
            count,
            snapshots,
            log_number,
            log_first,
            session,
            schedule_ns,
            schedule_keep,
            log_retired,
            log_kept,
            log_kept_number,
        ) = _VDI.unpack_from(plain)
        length, raw_name = _NAME.unpack_from(plain, _NAME_AT)
        page = _unpack_page(plain, count)
        if uuid != store or number != vdi or length > MAX_NAME or page is None:
            return None
        try:
            name = raw_name[:length].decode()
        except UnicodeDecodeError:
            return None
        return cls(
            number,
            own_uuid,
            name,
            state,
            sequence,
            size,
            root,
            height,
            token,
            mapped,
            own,
            created,
            modified,
            deleted,
            parent_block,
            parent_offset,
            parent_vdi,
            parent_uuid,
            log_previous,
            log_block,
            log_number,
            log_first,
            snapshots,
            session,
            schedule_ns,
            schedule_keep,
            log_retired,
            log_kept,
            log_kept_number,
            page,
        )


def newer(*slots: VdiRecord | None) -> VdiRecord | None:
    """Return the valid slot with the higher sequence number, or None when none is valid."""
    return max((slot for slot in slots if slot), key=lambda slot: slot.sequence, default=None)
