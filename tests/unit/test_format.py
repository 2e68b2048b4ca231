"""Every on-disk structure: packing and unpacking, damage, limits, and the document."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import pytest
from format_fixtures import make
from hypothesis import given
from hypothesis import strategies as st

from core import format as f
from core.errors import BadRequest

STORE = bytes(range(16))
OTHER_STORE = bytes(16)


def sample_lines(count: int) -> tuple[f.LogRecord, ...]:
    return tuple(
        f.LogRecord(f.KIND_SNAPSHOT, -1 - n, 0x1122 + n, 0x3344, 3, 0x5566, 0x7788, f"ü{n}", True)
        for n in range(count)
    )


SUPERBLOCK = f.Superblock(
    STORE, 128, 9, 7, 0x11, 0x22, 0x33, -5, lock_master=b"m" * 16, settled=True
)
EXTENT = f.ExtentHeader(5, 0x1234567890, 0x42, b"s" * 16, -77)
BITMAP = f.BitmapBlock(5, 2, 0x987654321, 12, bytes([0x0F] * 3) + bytes(f.BITMAP_BYTES - 3))
VDI = f.VdiRecord(
    id=0x0102,
    uuid=b"v" * 16,
    name="größe",
    state=f.DELETED,
    sequence=0x1111_2222_3333,
    size=0x4444_5555,
    root=0xFFFF_0000_1234_5679,
    height=4,
    token=0x77,
    mapped=0x88,
    own=0x99,
    created_ns=-3,
    modified_ns=1 << 60,
    deleted_ns=1 << 61,
    parent_block=1 << 38,
    parent_offset=23,
    parent_vdi=0xAABB,
    parent_uuid=b"p" * 16,
    log_previous=0xDEAD_BEEF_0000_0001,
    log_block=0x1234_5678,
    log_number=0x3_0000_0000,
    log_first=0x2_0000_0009,
    snapshots=0x10_0001,
    session=b"t" * 16,
    schedule_ns=0x5_5555_5555,
    schedule_keep=0x6666_6666,
    log_retired=0x7_7777_7777,
    log_kept=0xFEED_BEEF_0000_0001,
    log_kept_number=0x2_0000_000A,
    page=sample_lines(2),
)
LOG_BLOCK = f.LogBlock(0x0102, 0x3_0000_0001, 0xBEEF, sample_lines(24), 0xCAFE, 0x2_0000_0003)
LINE = sample_lines(1)[0]
SESSIONS = f.SessionList(0x1234567890, (b"s" * 16, b"t" * 16), True)


@dataclass(frozen=True)
class Kind:
    """A checksummed structure: a sample, its bytes, and how it is read back."""

    sample: Any
    data: bytes
    unpack: Any

    @property
    def slot(self) -> bool:
        """Whether it has stamps."""
        return isinstance(self.sample, f.ExtentHeader | f.BitmapBlock | f.VdiRecord | f.SessionList)


STAMPED = {at + byte for at in range(2 * f.SECTOR - 2, f.BLOCK, f.SECTOR) for byte in (0, 1)}
"""The bytes of a slot that are stamps."""


KINDS = {
    "Superblock": Kind(SUPERBLOCK, SUPERBLOCK.pack(), f.Superblock.unpack),
    "Extent header": Kind(
        EXTENT, EXTENT.pack(STORE), partial(f.ExtentHeader.unpack, store=STORE, extent=5)
    ),
    "Bitmap block": Kind(
        BITMAP, BITMAP.pack(STORE), partial(f.BitmapBlock.unpack, store=STORE, extent=5, index=2)
    ),
    "VDI record": Kind(VDI, VDI.pack(STORE), partial(f.VdiRecord.unpack, store=STORE, vdi=0x0102)),
    "List of sessions": Kind(
        SESSIONS, SESSIONS.pack(STORE), partial(f.SessionList.unpack, store=STORE)
    ),
    "Log page and log block": Kind(
        LOG_BLOCK, LOG_BLOCK.pack(STORE), partial(f.LogBlock.unpack, store=STORE)
    ),
    "Log record": Kind(LINE, LINE.pack(), f.LogRecord.unpack),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@each_kind
def test_what_was_packed_is_unpacked(kind: Kind) -> None:
    assert kind.unpack(kind.data) == kind.sample
    for field in fields(kind.sample):  # a sample of defaults would prove nothing
        assert getattr(kind.sample, field.name) != field.default or field.name in {
            "version",
            "kind",
        }


@each_kind
@given(data=st.data())
def test_no_damage_goes_unnoticed(kind: Kind, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(kind.data) - 1))
    change = data.draw(st.binary(min_size=1, max_size=40).filter(any))
    broken = bytearray(kind.data)
    for offset, bits in enumerate(change):
        broken[(at + offset) % len(broken)] ^= bits
    different = {n for n, byte in enumerate(broken) if byte != kind.data[n]}
    if kind.slot and different <= STAMPED:  # all that it says can be read: see below
        assert kind.unpack(bytes(broken)) == kind.sample
    else:
        assert kind.unpack(bytes(broken)) is None


SLOTS = {
    f.EXTENT_SLOT: (EXTENT, partial(f.ExtentHeader.unpack, store=STORE, extent=5)),
    f.BITMAP_SLOT: (BITMAP, partial(f.BitmapBlock.unpack, store=STORE, extent=5, index=2)),
    f.VDI_SLOT: (VDI, partial(f.VdiRecord.unpack, store=STORE, vdi=0x0102)),
    f.SESSIONS_SLOT: (SESSIONS, partial(f.SessionList.unpack, store=STORE)),
}
SAMPLE = sorted(
    {*range(700), *(byte * 8 + bit for byte in STAMPED for bit in range(8)), *range(0, 32768, 61)}
)
"""Bits to flip: all of the fields at the start and of stamps, some of the rest."""
each_slot = pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.magic[:7].decode())


def condition(slot: f.SlotKind, block: bytes) -> f.Condition:
    return f.condition(slot, block, SLOTS[slot][1](block) is not None)


@each_slot
def test_every_flipped_bit_of_a_slot_is_seen_as_damage(slot: f.SlotKind) -> None:
    sample, unpack = SLOTS[slot]
    data = sample.pack(STORE)
    assert condition(slot, data) is f.Condition.VALID
    for bit in SAMPLE:
        flipped = bytearray(data)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        found = condition(slot, bytes(flipped))
        if found is f.Condition.SCARRED:
            assert unpack(bytes(flipped)) == sample
        else:
            assert found is f.Condition.DAMAGED, bit


@each_slot
def test_every_flipped_bit_of_an_empty_slot_is_seen_as_damage(slot: f.SlotKind) -> None:
    assert condition(slot, bytes(f.BLOCK)) is f.Condition.EMPTY
    for bit in SAMPLE:
        flipped = bytearray(f.BLOCK)
        flipped[bit >> 3] = 1 << (bit & 7)
        assert condition(slot, bytes(flipped)) is f.Condition.DAMAGED


@each_slot
def test_every_mix_of_sectors_of_two_writes_is_torn(slot: f.SlotKind) -> None:
    sample, unpack = SLOTS[slot]
    new = sample.pack(STORE)
    for old in (bytes(f.BLOCK), replace(sample, sequence=sample.sequence - 2).pack(STORE)):
        for mask in range(1, 255, 3):
            mixed = b"".join(
                (new if mask >> n & 1 else old)[n * f.SECTOR : (n + 1) * f.SECTOR] for n in range(8)
            )
            if mixed in (old, new):
                continue
            found = condition(slot, mixed)
            # What is torn between sectors that say the same has all that one write says.
            assert found is f.Condition.TORN or unpack(mixed) is not None


@each_slot
def test_what_belongs_elsewhere_is_not_torn(slot: f.SlotKind) -> None:
    sample, _ = SLOTS[slot]
    for block in (
        sample.pack(OTHER_STORE),
        EXTENT.pack(STORE) if slot is not f.EXTENT_SLOT else VDI.pack(STORE),
        b"\xa5" * f.BLOCK,
        b"text that somebody wrote to a file\n".ljust(64, b".") * 64,
    ):
        assert condition(slot, block) is f.Condition.DAMAGED


def test_slots_without_stamps_are_read_and_not_told_apart() -> None:
    for slot, (sample, unpack) in SLOTS.items():
        if slot is f.SESSIONS_SLOT:
            continue
        old = sample.pack(STORE, stamped=False)
        assert old[:8] == slot.plain
        assert unpack(old) == sample
        assert condition(slot, old) is f.Condition.VALID
        torn = old[:16] + bytes(f.BLOCK - 16)
        assert condition(slot, torn) is f.Condition.DAMAGED


def test_no_flipped_bit_of_a_node_leaves_its_check_as_it_was() -> None:
    # CRC-32C is linear: what a flip does to the check does not depend on the node.
    zeros = bytes(f.BLOCK)
    for bit in range(f.BLOCK * 8):
        flipped = bytearray(zeros)
        flipped[bit >> 3] = 1 << (bit & 7)
        assert f.node_check(flipped) != f.node_check(zeros)


@pytest.mark.parametrize("tear", [0, 16, 512, 2048, 4095])
@each_kind
def test_a_torn_block_is_not_valid(kind: Kind, tear: int) -> None:
    keep = tear * len(kind.data) // f.BLOCK
    rest = len(kind.data) - keep
    for tail in (bytes(rest), b"\xff" * rest):
        torn = kind.data[:keep] + tail
        lost = {n for n, byte in enumerate(torn) if byte != kind.data[n]}
        # Between sectors that say the same it has all that was written, but for stamps.
        whole = kind.slot and lost <= STAMPED
        assert torn == kind.data or kind.unpack(torn) == (kind.sample if whole else None)


def test_blocks_of_elsewhere_are_not_taken() -> None:
    assert f.ExtentHeader.unpack(EXTENT.pack(STORE), OTHER_STORE, 5) is None
    assert f.ExtentHeader.unpack(EXTENT.pack(STORE), STORE, 4) is None
    assert f.BitmapBlock.unpack(BITMAP.pack(STORE), OTHER_STORE, 5, 2) is None
    assert f.BitmapBlock.unpack(BITMAP.pack(STORE), STORE, 5, 1) is None
    assert f.BitmapBlock.unpack(BITMAP.pack(STORE), STORE, 6, 2) is None
    assert f.VdiRecord.unpack(VDI.pack(STORE), OTHER_STORE, VDI.id) is None
    assert f.VdiRecord.unpack(VDI.pack(STORE), STORE, VDI.id + 1) is None
    assert f.LogBlock.unpack(LOG_BLOCK.pack(STORE), OTHER_STORE) is None
    assert f.VdiRecord.unpack(EXTENT.pack(STORE), STORE, 5) is None
    assert f.Superblock.unpack(b"short") is None


@pytest.mark.parametrize(
    "name", ["a", "x" * 255, "ü" * 127, "日本語", "\U0001f4be"], ids=["1", "255", "2", "3", "4"]
)
def test_names_of_any_length_are_kept(name: str) -> None:
    record = replace(VDI, name=name)
    assert f.VdiRecord.unpack(record.pack(STORE), STORE, record.id) == record


@pytest.mark.parametrize("label", ["", "x" * 80, "ü" * 40])
def test_labels_of_any_length_are_kept(label: str) -> None:
    line = replace(LINE, label=label)
    assert f.LogRecord.unpack(line.pack()) == line


@pytest.mark.parametrize("count", [0, 1, 24])
def test_pages_of_any_length_are_kept(count: int) -> None:
    record = replace(VDI, page=sample_lines(count))
    assert f.VdiRecord.unpack(record.pack(STORE), STORE, record.id) == record


def test_contents_that_no_writer_leaves_are_refused_though_the_checksum_is_right() -> None:
    def resealed(data: bytes, at: int, value: bytes) -> bytes:
        block = bytearray(data)
        block[at : at + len(value)] = value
        block[8:12] = bytes(4)
        return f._seal(block)

    def record_with(at: int, value: bytes) -> bytes:
        block = bytearray(f.open_slot(f.VDI_SLOT, VDI.pack(STORE)) or b"")
        block[at : at + len(value)] = value
        return f._seal_slot(f.VDI_SLOT, block, True)

    unpack = KINDS["VDI record"].unpack
    assert unpack(record_with(180, (25).to_bytes(4, "little"))) is None  # page count
    assert unpack(record_with(512, (256).to_bytes(2, "little"))) is None  # name length
    assert unpack(record_with(514, b"\xff")) is None  # not UTF-8
    assert unpack(record_with(1024 + 48, b"x")) is None  # a line whose own CRC is wrong
    assert unpack(record_with(8, b"")) == VDI
    assert f.Superblock.unpack(resealed(SUPERBLOCK.pack(), 32, b"\0\x20")) is None  # 8 KiB blocks
    assert f.Superblock.unpack(resealed(SUPERBLOCK.pack(), 28, b"\x02")) is not None  # see below


def test_an_unknown_version_or_feature_can_still_be_told_from_damage() -> None:
    later = replace(SUPERBLOCK, version=2, incompat=1 << 31)
    assert f.Superblock.unpack(later.pack()) == later


def test_the_newer_valid_slot_wins() -> None:
    old, new = replace(VDI, sequence=1), replace(VDI, sequence=2)
    assert f.newer(old, new) is new
    assert f.newer(new, old) is new
    assert f.newer(None, old) is old
    assert f.newer(None, None) is None


# -- radix entries and heights ---------------------------------------------------------


@given(st.integers(0, f.MAX_BLOCKS - 1), st.integers(0, f.CHECK_MASK), st.booleans())
def test_an_entry_keeps_its_three_fields(block: int, check: int, writable: bool) -> None:
    entry = f.pack_entry(block, check, writable)
    assert 0 <= entry < 1 << 64
    assert f.entry_block(entry) == block
    assert f.entry_check(entry) == check
    assert bool(entry & f.WRITABLE) == writable


def test_the_check_of_a_node_is_its_crc_in_23_bits() -> None:
    assert f.node_check(b"123456789") == 0xE3069283 & 0x7FFFFF  # CRC-32C's usual test value
    assert f.node_check(memoryview(bytearray(b"123456789"))) == f.node_check(b"123456789")


@pytest.mark.parametrize(
    ("size", "height"),
    [
        (0, 1),
        (1, 1),
        (2 << 20, 1),
        ((2 << 20) + 1, 2),
        (1 << 30, 2),
        ((1 << 30) + 1, 3),
        (512 << 30, 3),
        ((512 << 30) + 1, 4),
        (256 << 40, 4),
    ],
)
def test_height_is_the_fewest_levels(size: int, height: int) -> None:
    assert f.height_for(size) == height


def test_blocks_for_rounds_up() -> None:
    assert [f.blocks_for(n) for n in (0, 1, 4095, 4096, 4097)] == [0, 1, 1, 1, 2]


# -- geometry --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"),
    [(64 * 4096, 6), (16 << 20, 6), (2 << 30, 6), (2 << 30, 8000), (1 << 40, 2048)],
)
def test_geometries_that_are_possible(size: int, count: int) -> None:
    f.check_geometry(size, count)
    sb = f.Superblock(STORE, size >> 12, count)
    assert f.Superblock.unpack(sb.pack()) == sb
    assert sb.size == size * count
    assert sb.overhead < sb.extent_blocks


@pytest.mark.parametrize(
    ("size", "count", "message", "hint"),
    [
        (32 * 4096, 6, "an extent of 131072 bytes is not possible", "from 256K to 1T"),
        (2 << 40, 6, "an extent of 2199023255552 bytes is not possible", "power of two"),
        (3 << 20, 6, "an extent of 3145728 bytes is not possible", "power of two"),
        (0, 6, "an extent of 0 bytes is not possible", "power of two"),
        (-(1 << 20), 6, "an extent of -1048576 bytes is not possible", "power of two"),
        (2 << 30, 5, "5 extents are too few", "at least 6 extents"),
        (2 << 30, -1, "-1 extents are too few", "at least 6 extents"),
        (1 << 40, 2049, "2049 extents of 1099511627776 bytes are too many", "549755813888 blocks"),
    ],
)
def test_geometries_that_are_not(size: int, count: int, message: str, hint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        f.check_geometry(size, count)
    assert caught.value.message == message
    assert hint in caught.value.hint


@pytest.mark.parametrize("extent_blocks", [64, 4096, 1 << 15, 1 << 19, 1 << 28])
def test_no_two_things_share_a_block(extent_blocks: int) -> None:
    sb = f.Superblock(STORE, extent_blocks, 6)
    assert sb.vdi_slot(0, 0) == 2
    assert sb.vdi_slot(sb.max_vdis - 1, 1) < sb.copy_block == extent_blocks - 1
    assert sb.extent_start(3) == 3 * extent_blocks
    assert sb.bitmap_slot(3, 0, 0) == sb.extent_start(3) + 2
    assert sb.bitmap_slot(3, sb.bitmap_blocks - 1, 1) == sb.extent_start(3) + sb.overhead - 1
    assert sb.bitmap_blocks * f.BITMAP_BITS >= extent_blocks
    assert not sb.holds_payload(sb.extent_start(3) + sb.overhead - 1)
    assert sb.holds_payload(sb.extent_start(3) + sb.overhead)
    assert sb.holds_payload(sb.blocks - 1)
    for outside in (0, extent_blocks - 1, sb.blocks, -1):
        assert not sb.holds_payload(outside)


def test_65536_vdis_fit_from_1_gib_extents_on() -> None:
    assert f.Superblock(STORE, (2 << 30) >> 12, 6).max_vdis == 65_536
    assert f.Superblock(STORE, (1 << 30) >> 12, 6).max_vdis == 65_536
    assert f.Superblock(STORE, (16 << 20) >> 12, 6).max_vdis == 2046
    assert f.Superblock(STORE, 64, 6).max_vdis == 30


def test_a_grown_superblock_is_newer() -> None:
    grown = SUPERBLOCK.grown(12)
    assert asdict(grown) == {**asdict(SUPERBLOCK), "extents": 12, "sequence": 8}


# -- docs/format.md --------------------------------------------------------------------

DOCUMENT = make.DOCUMENT.read_text(encoding="utf-8")
MAGIC = {
    "Superblock": f.SUPERBLOCK_MAGIC,
    "Extent header": f.EXTENT_SLOT.magic,
    "Bitmap block": f.BITMAP_SLOT.magic,
    "VDI record": f.VDI_SLOT.magic,
    "List of sessions": f.SESSIONS_SLOT.magic,
    "Log page and log block": f.LOG_MAGIC,
}
# Fields of the document that are no attribute of the class.
DERIVED = {
    "block size": f.BLOCK,
    "page count": len(VDI.page),
    "count": len(SESSIONS.sessions),
    "name length": len(VDI.name.encode()),
    "label length": len(LINE.label.encode()),
    "store": STORE,
}


def table(heading: str) -> list[list[str]]:
    """The rows of the first table of bytes or bits in a section."""
    section = re.split(rf"^##+ {heading}$", DOCUMENT, flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    rows = re.search(r"^\| (?:offset|bits|height) .*\n\|[- |]+\n((?:\|.*\n)+)", section, re.M)
    assert rows
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def stored(value: Any) -> bytes | int:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, tuple):
        return b"".join(one if isinstance(one, bytes) else one.pack() for one in value)
    assert isinstance(value, bytes | int)
    return value


@pytest.mark.parametrize("heading", KINDS)
def test_the_tables_of_the_document_are_what_is_packed(heading: str) -> None:
    sample, data = KINDS[heading].sample, KINDS[heading].data
    rows = table(heading)
    saved = next((int(offset) for offset, _, field, _ in rows if field == "saved"), None)
    if saved is not None:
        plain = bytearray(data)
        for number in range(7):
            at = 2 * f.SECTOR - 2 + number * f.SECTOR
            plain[at : at + 2] = data[saved + 2 * number : saved + 2 * number + 2]
        data = bytes(plain)
    position = 0
    named = set()
    for offset, length, field, meaning in rows:
        at, size = int(offset), int(length)
        assert at == position, f"{field}: a gap or an overlap"
        position += size
        raw = data[at : at + size]
        if field == "zero":
            assert raw == bytes(size)
            continue
        if field == "magic":
            assert raw == MAGIC[heading]
            continue
        if field == "saved":
            assert size == 2 * len(range(f.SECTOR, f.BLOCK, f.SECTOR))
            continue
        if field == "crc":
            assert data[:at] + bytes(4) + data[at + 4 :] != data
            continue
        named.add(field)
        value = stored(DERIVED[field] if field in DERIVED else getattr(sample, field))
        if isinstance(value, bytes):
            assert raw == value.ljust(size, b"\0"), field
        else:
            signed = "*signed*" in meaning
            assert int.from_bytes(raw, "little", signed=signed) == value, field
    assert position == len(data)
    assert {field.name for field in fields(sample)} <= named


def test_the_document_has_the_bits_of_an_entry() -> None:
    got = {}
    for bits, field, _ in table("Radix entry"):
        low, _, high = bits.partition("–")
        got[field] = (int(low), int(high or low))
    assert got == {"writable": (0, 0), "block": (1, 40), "check": (41, 63)}
    for field, (low, high) in got.items():
        ones = (1 << high - low + 1) - 1
        values = {"writable": False, "block": 0, "check": 0} | {field: ones}
        assert f.pack_entry(**values) == ones << low


def test_the_document_has_the_right_numbers() -> None:
    units = {"MiB": 20, "GiB": 30, "TiB": 40}
    for height, size in table("Radix node"):
        number, unit = size.split()
        assert int(number) << units[unit] == f.FANOUT ** int(height) * f.BLOCK
    for fact in (
        f"covers {f.BITMAP_BITS:,} blocks",
        f"| VDIs | {f.MAX_VDIS:,};",
        f"| name | {f.MAX_NAME} bytes",
        f"| label | {f.MAX_LABEL} bytes",
        f"**block** is {f.BLOCK} bytes",
        f"A page is {f.LOG_RECORDS} log records from byte {f.LOG_PAGE_START}",
        f"# On-disk format, version {f.VERSION}",
        f"{f.Superblock(STORE, (2 << 30) >> 12, 6).bitmap_blocks} of them",
    ):
        assert fact in DOCUMENT
    assert f.MAX_BLOCKS == 1 << 39
    assert f.MIN_EXTENTS == 6
    assert f.MIN_EXTENT == 256 << 10
    assert f.MAX_EXTENT == 1 << 40


def test_the_example_in_the_document_is_what_the_code_writes(tmp_path: Any) -> None:
    path = tmp_path / "store"
    make.example(str(path))
    data = path.read_bytes()
    shown = make.excerpts(DOCUMENT)
    assert set(shown) == {0, 2, 3, 64, 66, 125, 127}
    for block, dump in shown.items():
        real = make.hexdump(data[block * f.BLOCK : (block + 1) * f.BLOCK])
        assert dump == real, f"block {block}: run python tests/format_fixtures/make.py"
