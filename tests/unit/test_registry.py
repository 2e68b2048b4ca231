"""The table of VDIs: finding them, damage that stays where it is, names that may be."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from support.memory import MemoryDevice
from support.stores import memory_store, noise, poke, small_store

from core.blockstore import Blockstore
from core.errors import BadRequest, Corrupt, NotFound
from core.format import BLOCK, DELETED, FREE, LIVE, MAX_VDIS, SECTOR, VdiRecord
from core.registry import Registry, check_label, check_name
from core.session import Session


def vdi(number: int, name: str = "", sequence: int = 1, state: int = LIVE) -> VdiRecord:
    unique = uuid.UUID(int=(1 << 127) + number).bytes
    return VdiRecord(number, unique, name or f"disk{number}", state, sequence)


def made(registry: Registry, record: VdiRecord) -> VdiRecord:
    """Both slots filled, as a creation leaves them."""
    registry.write(record)
    last = VdiRecord(record.id, record.uuid, record.name, record.state, record.sequence + 1)
    registry.write(last)
    return last


def damage(store: Blockstore, number: int, *slots: int) -> None:
    for slot in slots:
        store.device.pwritev(store.sb.vdi_slot(number, slot) * BLOCK, [noise(BLOCK, slot)])


@pytest.fixture
def store() -> Blockstore:
    return memory_store(1024)


@pytest.fixture
def registry(store: Blockstore) -> Registry:
    return Registry(store)


def test_an_empty_table(registry: Registry) -> None:
    assert list(registry.scan()) == []
    assert registry.vdis() == []
    assert registry.get(0) is None
    assert next(registry.free_ids()) == 0


def test_records_are_written_alternately(store: Blockstore, registry: Registry) -> None:
    registry.write(vdi(5, "one", 1))
    registry.write(vdi(5, "two", 2))
    slots = [store.device.pread(store.sb.vdi_slot(5, slot) * BLOCK, BLOCK) for slot in (0, 1)]
    assert [VdiRecord.unpack(slot, store.sb.uuid, 5).name for slot in slots] == ["two", "one"]  # type: ignore[union-attr]
    assert registry.get(5) == vdi(5, "two", 2)
    registry.write(vdi(5, "three", 3))
    assert registry.get(5) == vdi(5, "three", 3)


def test_a_torn_slot_leaves_the_commit_before(store: Blockstore, registry: Registry) -> None:
    registry.write(vdi(5, "old", 1))
    registry.write(vdi(5, "new", 2))
    at = store.sb.vdi_slot(5, 0) * BLOCK
    old, new = store.device.pread(at, BLOCK), vdi(5, "newest", 4).pack(store.sb.uuid)
    for cut in range(SECTOR, BLOCK, SECTOR):
        for torn in (new[:cut] + old[cut:], old[:cut] + new[cut:], new[:cut] + bytes(BLOCK - cut)):
            store.device.pwritev(at, [torn])
            record = registry.get(5)
            assert record is not None
            # Sectors without anything in them differ in nothing but their stamps.
            assert record.name in ("old", "new", "newest")
            assert record.name == "old" or VdiRecord.unpack(torn, store.sb.uuid, 5) == record


def test_a_damaged_slot_may_be_the_newest(store: Blockstore, registry: Registry) -> None:
    registry.write(vdi(5, "old", 1))
    registry.write(vdi(5, "new", 2))
    damage(store, 5, 0)
    message = "block 12: the newest record of VDI 5 'old' may be lost: this one is damaged"
    with pytest.raises(Corrupt, match=message) as caught:
        registry.get(5)
    assert caught.value.hint == "'plxsh store check --repair' goes on with that commit"
    [(number, found)] = registry.scan()
    assert number == 5
    assert isinstance(found, Corrupt)


def test_both_slots_say_the_same_where_nobody_writes(store: Blockstore, registry: Registry) -> None:
    twins = vdi(5, "same", 1), vdi(5, "same", 2)
    for record in twins:
        store.device.pwritev(
            store.sb.vdi_slot(5, record.sequence % 2) * BLOCK, [record.pack(store.sb.uuid)]
        )
    for slot in (0, 1):
        at = store.sb.vdi_slot(5, slot) * BLOCK
        good = store.device.pread(at, BLOCK)
        for bit in (28 * 8 + 1, 28 * 8 + 3, 8 * 8, 1022 * 8, 3000 * 8):
            flipped = bytearray(good)
            flipped[bit >> 3] ^= 1 << (bit & 7)
            store.device.pwritev(at, [flipped])
            record = registry.get(5)
            assert record is not None
            assert record in twins
        store.device.pwritev(at, [good])
    one, other = (store.device.pread(store.sb.vdi_slot(5, slot) * BLOCK, BLOCK) for slot in (0, 1))
    store.device.pwritev(store.sb.vdi_slot(5, 0) * BLOCK, [other, one])
    assert registry.get(5) in twins, "what they say is right wherever they are"


def test_damage_is_reported_and_hides_nothing(store: Blockstore, registry: Registry) -> None:
    records = [made(registry, vdi(number)) for number in range(5)]
    damage(store, 2, 0, 1)
    found = dict(registry.scan())
    assert sorted(found) == [0, 1, 2, 3, 4]
    bad = found[2]
    assert isinstance(bad, Corrupt)
    assert bad.message == f"block {store.sb.vdi_slot(2, 0)}: both records of VDI 2 are damaged"
    assert bad.hint == "run 'plxsh store check --repair'"
    assert registry.vdis() == [r for r in records if r.id != 2]
    with pytest.raises(Corrupt, match="both records of VDI 2"):
        registry.get(2)
    with pytest.raises(Corrupt):
        registry.find("2")
    assert registry.find("disk3") == records[3]
    assert next(registry.free_ids()) == 5


@pytest.mark.parametrize("torn", [16, 512, 2048])
def test_a_creation_cut_off_is_no_vdi(store: Blockstore, registry: Registry, torn: int) -> None:
    whole = vdi(0).pack(store.sb.uuid)
    block = whole[:torn] + bytes(BLOCK - torn)
    store.device.pwritev(store.sb.vdi_slot(0, 1) * BLOCK, [block])
    if VdiRecord.unpack(block, store.sb.uuid, 0) is None:
        assert registry.get(0) is None
        assert list(registry.scan()) == []
        assert next(registry.free_ids()) == 0


def test_a_reader_that_meets_a_write_looks_again(
    store: Blockstore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = made(registry, vdi(1))
    real = store.device.pread
    torn = [noise(2 * BLOCK)] * 2

    def pread(offset: int, length: int) -> bytes:
        return torn.pop() if torn else real(offset, length)

    monkeypatch.setattr(store.device, "pread", pread)
    assert registry.get(1) == good

    def window(offset: int, length: int) -> bytes:
        data = real(offset, length)
        if length > 2 * BLOCK:
            data = data[: 2 * BLOCK] + noise(2 * BLOCK) + data[4 * BLOCK :]
        return data

    monkeypatch.setattr(store.device, "pread", window)
    assert dict(registry.scan()) == {1: good}


def test_finding_by_id_name_and_uuid(registry: Registry) -> None:
    records = [
        made(registry, vdi(number, name)) for number, name in enumerate(["web", "db", "größe"])
    ]
    for number, record in enumerate(records):
        assert registry.find(str(number)) == record
        assert registry.find(record.name) == record
        assert registry.find(str(uuid.UUID(bytes=record.uuid))) == record
        assert registry.find(str(uuid.UUID(bytes=record.uuid)).upper()) == record


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("wbe", "did you mean 'web'?"),
        ("database", "did you mean 'database2' or 'database1'?"),
        ("nothing like it", "'plxsh vdi list' shows those there are"),
        ("7", "'plxsh vdi list' shows those there are"),
        ("9" * 5000, "'plxsh vdi list' shows those there are"),
        ("²", "'plxsh vdi list' shows those there are"),
        ("", "'plxsh vdi list' shows those there are"),
        (str(uuid.UUID(int=1)), "'plxsh vdi list' shows those there are"),
    ],
)
def test_what_is_not_there(registry: Registry, reference: str, hint: str) -> None:
    for number, name in enumerate(["web", "database1", "database2"]):
        made(registry, vdi(number, name))
    with pytest.raises(NotFound) as caught:
        registry.find(reference)
    assert caught.value.message.startswith("there is no VDI ")
    assert reference in caught.value.message
    assert caught.value.hint == hint


def test_deleted_vdis_are_found_only_when_asked_for(registry: Registry) -> None:
    gone = made(registry, vdi(0, "gone", state=DELETED))
    for reference in ("gone", "0"):
        with pytest.raises(NotFound):
            registry.find(reference)
        assert registry.find_deleted(reference) == gone
    assert registry.vdis(DELETED) == [gone]
    assert next(registry.free_ids()) == 1  # its blocks are not collected yet


def test_a_deleted_vdi_is_found_by_id_name_or_uuid(registry: Registry) -> None:
    gone = made(registry, vdi(3, "gone", state=DELETED))
    made(registry, vdi(4, "collected", state=FREE))
    for reference in ("3", "gone", str(uuid.UUID(bytes=gone.uuid))):
        assert registry.find_deleted(reference) == gone
    for reference in ("4", "collected", "9", "12345678901234567890", "gon"):
        with pytest.raises(NotFound) as caught:
            registry.find_deleted(reference)
        assert caught.value.message == (
            f"there is no deleted VDI {reference!r}, or its space was collected"
        )
    assert caught.value.hint == "did you mean 'gone'?"


def test_a_name_that_several_deleted_vdis_have_is_refused_with_their_ids(
    registry: Registry,
) -> None:
    made(registry, vdi(0, "web", state=DELETED))
    made(registry, vdi(1, "web"))
    made(registry, vdi(2, "web", state=DELETED))
    with pytest.raises(BadRequest) as caught:
        registry.find_deleted("web")
    assert caught.value.message == "2 deleted VDIs have the name 'web': 0, 2"
    assert caught.value.hint == "give the id"
    assert registry.find_deleted("2").id == 2


def test_a_live_vdi_is_not_among_the_deleted_ones(registry: Registry) -> None:
    made(registry, vdi(7, "web"))
    for reference in ("7", "web"):
        with pytest.raises(BadRequest) as caught:
            registry.find_deleted(reference)
        assert caught.value.message == "VDI 7 'web' is not deleted"


def test_ids_that_were_never_given_come_first(registry: Registry) -> None:
    for number in (0, 1, 2, 5):
        made(registry, vdi(number, state=FREE if number == 1 else LIVE))
    ids = registry.free_ids()
    for number in (3, 4, 6, 7):
        assert next(ids) == number
        assert next(ids) == number  # it was not used
        registry.write(vdi(number))


def test_the_place_freed_longest_ago_is_given_first() -> None:
    registry = Registry(memory_store(64))
    for number in range(30):
        made(registry, vdi(number))
    assert next(registry.free_ids(), None) is None
    for number, freed in ((7, 300), (3, 200), (9, 100), (4, 100)):
        registry.write(replace(vdi(number, sequence=3, state=FREE), modified_ns=freed))
    ids = registry.free_ids()
    assert next(ids) == 4
    registry.write(vdi(9, sequence=4))  # another session was faster
    assert list(ids) == [3, 7]


@pytest.mark.parametrize("given", [0, 1, 2, 3, 4, 7, 8, 9, 29, 30])
def test_the_end_of_the_table(given: int) -> None:
    registry = Registry(memory_store(64))
    for number in range(given):
        registry.write(vdi(number))
    assert next(registry.free_ids(), None) == (given if given < 30 else None)


def test_an_id_for_a_new_vdi_costs_a_few_reads_in_a_large_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry(memory_store((2 << 30) // BLOCK))
    reads = []

    def read(number: int) -> VdiRecord | None:
        reads.append(number)
        return vdi(number) if number < 10_000 else None

    monkeypatch.setattr(registry, "_read", read)
    assert next(registry.free_ids()) == 10_000
    assert len(reads) <= 30


def test_ids_out_of_the_table(store: Blockstore, registry: Registry) -> None:
    for number in (-1, store.sb.max_vdis, 1 << 40):
        assert registry.get(number) is None
    last = made(registry, vdi(store.sb.max_vdis - 1))
    assert registry.get(last.id) == last


def test_65536_vdis_are_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store((2 << 30) // BLOCK)
    registry = Registry(store)
    assert store.sb.max_vdis == MAX_VDIS == 65_536
    last = made(registry, vdi(65_535))
    assert registry.get(65_535) == last
    assert registry.get(65_536) is None
    monkeypatch.setattr(registry, "_read", lambda n: vdi(n) if n < 65_535 else None)
    assert next(registry.free_ids()) == 65_535
    monkeypatch.setattr(registry, "_read", vdi)
    assert list(registry.free_ids()) == []


def test_the_end_of_the_table_is_found_without_reading_all_of_it() -> None:
    class Counting(MemoryDevice):
        reads = 0

        def pread(self, offset: int, length: int) -> bytes:
            self.reads += length
            return super().pread(offset, length)

    device = Counting((2 << 30) * 6)
    registry = Registry(memory_store((2 << 30) // BLOCK, device=device))
    for number in range(200):
        made(registry, vdi(number))
    device.reads = 0
    assert len(registry.vdis()) == 200
    assert device.reads == 3 * 256 * BLOCK


def test_a_store_on_disk(tmp_path: Path) -> None:
    path = small_store(tmp_path)
    with Session.open(path) as session:
        record = session.create("disk0")
    poke(path, 2, b"x", 600)
    store = Blockstore.open(path)
    assert Registry(store).find("disk0").uuid == record.uuid
    store.close()


# -- names and labels ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "web-1", "größe 日本", "1.5", "x" * 255, "ü" * 127, "12a", "-x", "a/b", "²"]
)
def test_names_that_may_be(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("", "the name is empty", "give a name of 1 to 255 bytes"),
        ("x" * 256, "the name has 256 bytes", "a name has at most 255 bytes of UTF-8"),
        ("ü" * 128, "the name has 256 bytes", "a name has at most 255 bytes of UTF-8"),
        ("17", "the name '17' would be taken for an id", "add a letter to it"),
        (" a", "has spaces at its ends or characters that cannot be shown", "take them out"),
        ("a\n", "has spaces at its ends or characters that cannot be shown", "take them out"),
        ("a\x1b[2J", "characters that cannot be shown", "take them out"),
        ("a\0b", "characters that cannot be shown", "take them out"),
        ("a@b", "the name 'a@b' contains '@'", "stands before a snapshot's label"),
        ("\udc80", "the name is not valid UTF-8", "check the terminal's locale"),
        (str(uuid.UUID(int=5)), "would be taken for a UUID", "take another"),
    ],
)
def test_names_that_may_not(name: str, message: str, hint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_name(name)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("label", ["a", "before upgrade", "v1.5", "2026-11-23", "x" * 80, "1.x"])
def test_labels_that_may_be(label: str) -> None:
    check_label(label)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "the label is empty"),
        ("x" * 81, "the label has 81 bytes"),
        ("1.5", "would be taken for an id"),
        ("15", "would be taken for an id"),
        ("15.", "would be taken for an id"),
        ("a@b", "contains '@'"),
        ("a\tb", "cannot be shown"),
        ("\udcff", "is not valid UTF-8"),
    ],
)
def test_labels_that_may_not(label: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_label(label)
    assert message in caught.value.message
    assert caught.value.hint
