"""Making, opening and growing stores; the superblock and its copy; the node cache."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import (
    EXTENT,
    EXTENTS,
    memory_store,
    noise,
    open_store,
    peek,
    poke,
    small_store,
)

from core import blockstore, mkfs
from core.blockstore import Blockstore, NodeCache, empty_node
from core.device import Buffer, FileDevice
from core.errors import (
    BadRequest,
    Corrupt,
    InUse,
    IoFailed,
    NoSpace,
    NotAStore,
    NotFound,
    ParallaxError,
    ReadOnly,
)
from core.extent import read_bitmap, read_header
from core.format import BLOCK, Superblock, node_check, pack_entry
from core.lock_master import LockMaster
from core.mkfs import create, grow, rehearse
from plxsh.overview import used_blocks

SIZE = EXTENT * BLOCK


@pytest.fixture
def path(tmp_path: Path) -> str:
    return small_store(tmp_path)


def change_superblock(path: str, **fields: int) -> None:
    sb = Superblock.unpack(peek(path, 0))
    assert sb
    changed = replace(sb, **fields)  # type: ignore[arg-type]
    poke(path, 0, changed.pack())
    poke(path, sb.copy_block, changed.pack())


def opened(path: str, mode: blockstore.Mode = "read") -> Blockstore:
    """A store that was opened and closed again: what it says stays."""
    store = Blockstore.open(path, mode)
    store.close()
    return store


# -- making ----------------------------------------------------------------------------


def test_a_new_store_is_empty_and_sparse(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    sb = create(path, 16 << 20, 6)
    assert os.stat(path).st_size == 6 * 16 << 20
    assert os.stat(path).st_blocks * 512 < 1 << 20
    assert os.stat(path).st_mode & 0o777 == 0o600
    store = Blockstore.open(path)
    assert store.sb == sb
    assert store.warnings == []
    for extent in range(1, 6):
        assert read_header(store.device, sb, extent).session == bytes(16)
        [part] = read_bitmap(store.device, sb, extent)
        assert part.used == sb.overhead
    store.close()


@pytest.mark.slow
def test_two_tebibytes_of_large_extents(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create(str(path), 2 << 30, 1024)
    assert path.stat().st_size == 2 << 40
    assert path.stat().st_blocks * 512 < 160 << 20
    store = Blockstore.open(str(path), "write", LockMaster())
    store.allocator.take(1)
    store.close()
    path.unlink()


@pytest.mark.parametrize(("size", "count"), [(SIZE, 5), (SIZE // 2, 6), (3 << 20, 6)])
def test_an_impossible_geometry_leaves_nothing_behind(
    tmp_path: Path, size: int, count: int
) -> None:
    with pytest.raises(BadRequest):
        create(str(tmp_path / "store"), size, count)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["pwritev", "flush", "resize"])
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fails(*_: object) -> None:
        raise NoSpace("cannot write: No space left on device")

    monkeypatch.setattr(FileDevice, failing, fails)
    with pytest.raises(NoSpace):
        create(str(tmp_path / "store"), SIZE, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_does_not_remove_a_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise IoFailed("cannot flush")

    path = tmp_path / "store"
    path.touch()
    monkeypatch.setattr(FileDevice, "flush", fails)
    with pytest.raises(IoFailed):
        create(str(path), SIZE, 6)
    assert path.exists()


def test_where_no_store_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"cannot create .*/none/store: there is no folder .*/none"):
        create(str(tmp_path / "none" / "store"), SIZE, 6)
    with pytest.raises(BadRequest, match="is the name of a folder"):
        create(f"{tmp_path}/store/", SIZE, 6)
    with pytest.raises(NotFound, match="there is no device /dev/no-such-disk"):
        create("/dev/no-such-disk", SIZE, 6)
    assert not os.path.exists("/dev/no-such-disk")
    with pytest.raises(BadRequest, match="Is a directory"):
        create(str(tmp_path), SIZE, 6)


def ext4(path: str) -> None:
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path, "4M"], check=True)


def qcow2(path: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)


def partitioned(path: str) -> None:
    Path(path).write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))


def text_at_the_end(path: str) -> None:
    Path(path).write_bytes(bytes(3 << 20) + b"important")


def another_store(path: str) -> None:
    create(path, SIZE, 6)


def a_store_without_its_beginning(path: str) -> None:
    create(path, SIZE, 6)
    with open(path, "r+b") as file:
        file.write(bytes(BLOCK))


CONTENTS = [
    pytest.param(ext4, "an ext2, ext3 or ext4 file system, at byte 1080", marks=pytest.mark.slow),
    pytest.param(qcow2, "a qcow2 image, at byte 0", marks=pytest.mark.slow),
    (partitioned, "a partition table or a boot sector, at byte 510"),
    (text_at_the_end, "data, at byte 3145728"),
    (another_store, "a blockstore, at byte 0"),
    (a_store_without_its_beginning, "a blockstore whose first block is lost, at byte 258048"),
]


@pytest.mark.parametrize(("fill", "what"), CONTENTS)
def test_what_holds_something_is_formatted_by_force_only(
    tmp_path: Path, fill: Callable[[str], None], what: str
) -> None:
    path = str(tmp_path / "file")
    fill(path)
    before = Path(path).read_bytes()
    with pytest.raises(BadRequest) as caught:
        create(path, SIZE, 6)
    assert caught.value.message == f"{path} already holds {what}"
    assert caught.value.hint.startswith("'plxsh store create --force' overwrites it")
    assert Path(path).read_bytes() == before

    sb = create(path, SIZE, 6, force=True)
    assert opened(path).sb == sb
    leftover = Path(path).read_bytes()[6 * SIZE :]
    assert leftover == bytes(len(leftover))


def test_a_file_of_zeros_is_free_to_take(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(3 << 20))
    create(str(path), SIZE, 6)
    assert path.stat().st_size == 3 << 20
    assert opened(str(path)).sb.extents == 6


def test_space_that_was_set_aside_for_a_store_stays_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 6 * SIZE)
    create(str(path), SIZE, 6)
    assert path.stat().st_blocks * 512 >= 6 * SIZE


@pytest.mark.parametrize("error", [NoSpace("full"), KeyboardInterrupt()])
def test_a_store_that_could_not_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(SIZE))
    write = FileDevice.pwritev

    def fails(device: FileDevice, offset: int, buffers: Sequence[Buffer]) -> None:
        if offset >= 4 * SIZE:
            raise error
        write(device, offset, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(FileDevice, "pwritev", fails)
        with pytest.raises(type(error)):
            create(str(path), SIZE, 6)
    assert not any(path.read_bytes())
    create(str(path), SIZE, 6)


def test_a_link_to_nothing_yet_is_followed(tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    (tmp_path / "middle").symlink_to("disks/store")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "middle")
    rehearse(str(link), SIZE, 6)
    assert not (disks / "store").exists()
    sb = create(str(link), SIZE, 6)
    assert opened(str(disks / "store")).sb == sb
    assert link.is_symlink()
    with pytest.raises(BadRequest, match=f"^{link} already holds a blockstore"):
        create(str(link), SIZE, 6)


def test_a_link_whose_target_could_not_be_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to("store")
    monkeypatch.setattr(FileDevice, "pwritev", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        create(str(link), SIZE, 6)
    assert link.is_symlink()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("make", [create, rehearse])
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, make: Callable[..., object]) -> None:
    link = tmp_path / "link"
    for target, kind, told in (
        ("gone/store", NotFound, f"it is a link to {tmp_path}/gone/store, and there is no folder"),
        ("link", NotFound, "Too many levels of symbolic links"),
        (".", BadRequest, "Is a directory"),
        ("file/store", NotFound, "Not a directory"),
    ):
        (tmp_path / "file").touch()
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(kind) as caught:
            make(str(link), SIZE, 6)
        assert told in caught.value.message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_store_in_use_is_not_formatted(path: str) -> None:
    before = Path(path).read_bytes()
    store = Blockstore.open(path, "shared")
    with pytest.raises(InUse, match=f"{path} is in use by .*pid {os.getpid()}"):
        create(path, SIZE, 6, force=True)
    store.close()
    assert Path(path).read_bytes() == before


def test_what_a_store_looks_at_does_not_grow_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "store")
    create(path, 1 << 30, 100)
    read: list[int] = []
    preadv = FileDevice.preadv

    def counted(device: FileDevice, offset: int, buffers: Sequence[bytearray]) -> None:
        read.append(sum(map(len, buffers)))
        preadv(device, offset, buffers)

    monkeypatch.setattr(FileDevice, "preadv", counted)
    store = Blockstore.open(path)
    opening = sum(read)
    assert opening <= 2 * BLOCK
    used = [used_blocks(store, extent) for extent in range(1, 100)]
    assert set(used) == {store.sb.overhead}
    assert sum(read) - opening == 99 * 6 * BLOCK  # header and both ends: the bitmap takes 18
    store.close()


# -- opening ---------------------------------------------------------------------------


def test_no_store(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(NotFound) as caught:
        Blockstore.open(path)
    assert caught.value.message == f"there is no blockstore at {path}"
    assert f"plxsh store create {path}" in caught.value.hint
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("contents", [b"", b"hello", bytes(3 << 20), noise(2 << 20)])
def test_a_file_without_a_store(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents)
    with pytest.raises(NotAStore) as caught:
        Blockstore.open(str(path))
    assert caught.value.message == f"{path} holds no blockstore"
    assert "plxsh store create" in caught.value.hint


def test_a_store_opens_as_the_writer_only_once(path: str) -> None:
    writer = Blockstore.open(path, "write")
    for mode in ("write", "shared"):
        with pytest.raises(InUse):
            Blockstore.open(path, mode)  # type: ignore[arg-type]
    opened(path, "read")
    writer.close()
    opened(path, "write")


def test_a_read_only_file_can_be_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(name: str, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    opened(path)
    with pytest.raises(ReadOnly, match="Permission denied") as caught:
        Blockstore.open(path, "write")
    assert caught.value.hint == "check permissions, or run as its owner"


@pytest.mark.parametrize("damage", [bytes(BLOCK), noise(BLOCK), b"PARALLAX" + bytes(64)])
def test_the_copy_takes_over_and_says_so(path: str, damage: bytes) -> None:
    sb = opened(path).sb
    poke(path, 0, damage)
    store = opened(path)
    assert store.sb == sb
    [warning] = store.warnings
    assert warning.startswith("block 0: the superblock is damaged, its copy in block 63 was used")


def test_the_copy_is_found_for_every_extent_size(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    for shift in (18, 20, 24, 31):
        sb = create(path, 1 << shift, 6, force=True)
        poke(path, 0, bytes(BLOCK))
        assert opened(path).sb == sb


def test_a_damaged_copy_is_a_warning(path: str) -> None:
    poke(path, 63, b"x" * 10)
    store = opened(path)
    assert store.warnings == ["block 63: the copy of the superblock is damaged"]


def test_the_newer_superblock_counts(path: str) -> None:
    """A crash between the two writes of a change leaves the copy ahead."""
    old = opened(path).sb
    poke(path, old.copy_block, replace(old, sequence=2, compat=5).pack())
    assert opened(path).sb.compat == 5
    poke(path, old.copy_block, replace(old, sequence=0, compat=6).pack())
    assert opened(path).sb.compat == 0
    poke(path, old.copy_block, replace(old, uuid=b"x" * 16, sequence=9).pack())
    assert opened(path).sb == old


def test_both_superblocks_damaged(path: str) -> None:
    poke(path, 0, b"x", 100)
    poke(path, 63, b"x", 100)
    with pytest.raises(Corrupt) as caught:
        Blockstore.open(path)
    assert caught.value.message == (f"block 0: the superblock of {path} and its copy are damaged")
    assert caught.value.hint == "restore it from a backup"


def test_another_version(path: str) -> None:
    change_superblock(path, version=2)
    with pytest.raises(NotAStore) as caught:
        Blockstore.open(path)
    assert caught.value.message == (f"{path} has format version 2, this Parallax reads version 1")
    assert caught.value.hint == "use the version of Parallax that made it"


def test_unknown_features(path: str) -> None:
    change_superblock(path, compat=1 << 31)
    opened(path, "write")
    change_superblock(path, ro_compat=4)
    opened(path, "read")
    opened(path, "shared")
    with pytest.raises(ReadOnly) as read_only:
        Blockstore.open(path, "write")
    assert read_only.value.message == f"{path} can only be read by this Parallax (ro-compat 0x4)"
    assert read_only.value.hint == "use a newer Parallax to write to it"
    change_superblock(path, incompat=0x8000_0000)
    with pytest.raises(NotAStore) as unknown:
        Blockstore.open(path)
    assert unknown.value.message == (
        f"{path} uses features this Parallax does not know (incompat 0x80000000)"
    )
    assert unknown.value.hint == "use a newer Parallax"


@pytest.mark.parametrize("fields", [{"extents": 2}, {"extent_blocks": 96}, {"extent_blocks": 0}])
def test_a_superblock_that_makes_no_sense(path: str, fields: dict[str, int]) -> None:
    sb = replace(opened(path).sb, **fields)  # type: ignore[arg-type]
    poke(path, 0, sb.pack())
    with pytest.raises(ParallaxError):
        Blockstore.open(path)


@pytest.mark.parametrize("size", [6 * SIZE - 1, 6 * SIZE - BLOCK, SIZE, BLOCK])
def test_a_truncated_store(path: str, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(IoFailed) as caught:
        Blockstore.open(path)
    assert caught.value.message == (
        f"{path} is truncated: it has {size} bytes, the store {6 * SIZE}"
    )
    assert caught.value.hint == "restore the missing part; nothing was changed"


def test_a_failed_opening_lets_go_of_the_lock(path: str) -> None:
    change_superblock(path, incompat=4)
    for _ in range(2):
        with pytest.raises(NotAStore):
            Blockstore.open(path, "write")
    change_superblock(path, incompat=2)
    opened(path, "write")


# -- blocks ----------------------------------------------------------------------------


def test_reading_needs_no_allocator_and_writing_does(path: str) -> None:
    store = Blockstore.open(path, "read")
    assert not store.writable
    with pytest.raises(ReadOnly, match=f"{path} is open for reading only"):
        store.allocator  # noqa: B018
    store.close()
    store = Blockstore.open(path, "write")
    assert store.writable
    store.close()
    store.close()


def test_blocks_are_written_in_runs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a, b, c = noise(BLOCK, 1), noise(BLOCK, 2), noise(BLOCK, 3)
    store.write(70, [a, b])
    store.write(90, [c])
    assert store.device.pread(70 * BLOCK, 2 * BLOCK) == a + b
    assert store.device.pread(90 * BLOCK, BLOCK) == c
    store.close()


def test_queued_blocks_are_readable_at_once_and_written_later(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    blocks = {n: noise(BLOCK, n) for n in (80, 81, 90)}
    for number, data in blocks.items():
        store.queue(number, data)
        entry = pack_entry(number, node_check(data), True)
        assert bytes(store.checked(entry)) == data
        assert store.device.pread(number * BLOCK, BLOCK) == bytes(BLOCK)
    store.write_queued()
    for number, data in blocks.items():
        assert store.device.pread(number * BLOCK, BLOCK) == data
        assert bytes(store.checked(pack_entry(number, node_check(data), False))) == data
    store.close()


def test_a_full_file_system_keeps_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    data = noise(BLOCK)
    store.queue(80, data)

    def full(*_: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(store.device, "pwritev", full)
        with pytest.raises(NoSpace):
            store.write_queued()
    assert bytes(store.checked(pack_entry(80, node_check(data), True))) == data
    store.write_queued()
    assert store.device.pread(80 * BLOCK, BLOCK) == data
    store.close()


def test_a_pointer_must_match_what_it_points_to(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    node = struct.pack("<512Q", *[pack_entry(90, 0, True)] * 512)
    store.write(100, [node])
    good = pack_entry(100, node_check(node), True)
    assert bytes(store.node(good, 0)) == node
    assert store.node(good & ~1, 0) is store.node(good, 0)
    with pytest.raises(Corrupt) as caught:
        store.node(pack_entry(100, node_check(node) ^ 1, True), 0)
    assert caught.value.message == (
        "block 100: is not what the pointer to it promises (damaged or stale)"
    )
    assert caught.value.hint == "run 'plxsh store check'"
    for outside in (1, 63, 64, 67, EXTENTS * EXTENT, (1 << 40) - 1):
        with pytest.raises(Corrupt, match=f"block {outside}: a pointer leads outside"):
            store.checked(pack_entry(outside, 0, False))
    store.close()


BEHIND = EXTENTS * EXTENT
OUTSIDE = (0, 1, 4, 63, 64, 67, 129, BEHIND, 1 << 25, 1 << 39, (1 << 40) - 1)
"""Blocks that hold no payload; the last ones are the numbers of nodes not yet written."""


def forged(store: Blockstore, entries: dict[int, int]) -> int:
    """Write a node with these entries to block 100; return a pointer to it."""
    node = bytearray(BLOCK)
    for slot, entry in entries.items():
        struct.pack_into("<Q", node, 8 * slot, entry)
    store.write(100, [node])
    return pack_entry(100, node_check(node), False)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("block", OUTSIDE)
def test_a_node_that_points_outside_the_payload_is_refused(
    level: int, writable: bool, block: int
) -> None:
    store = memory_store()
    bad = pack_entry(block, 7 * level, writable) or 1
    pointer = forged(store, {0: pack_entry(80, 0, True), 17: bad, 511: bad})
    with pytest.raises(Corrupt, match=f"block 100: its entry 17 cannot be a pointer: {bad:#x}"):
        store.node(pointer, level)
    assert not store.nodes.young


def test_only_what_points_to_a_node_carries_a_check() -> None:
    store = memory_store()
    pointer = forged(store, {3: pack_entry(80, 1, True), 4: pack_entry(383, 0, False)})
    for _ in range(2):  # the second time it is in the cache, as what it may be
        assert store.node(pointer, 1)[3] == pack_entry(80, 1, True)
        with pytest.raises(Corrupt, match="block 100: its entry 3 cannot be"):
            store.node(pointer, 0)


def test_a_node_may_point_to_an_extent_that_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    pointer = forged(store, {5: pack_entry(BEHIND + 10, 0, False)})
    looks = []

    def refresh() -> None:
        looks.append(1)
        store.sb = store.sb.grown(EXTENTS + 1)

    monkeypatch.setattr(store, "refresh", refresh)
    assert store.node(pointer, 0)[5]
    assert store.node(pointer, 0)[5]
    assert looks == [1]


def test_after_a_failure_nothing_more_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.check_writable()
    store.allocator.take(1)
    store.fail(IoFailed("cannot flush the disk"))
    store.fail(IoFailed("a later one"))
    with pytest.raises(IoFailed) as caught:
        store.check_writable()
    assert caught.value.message == (
        "nothing more is written after a failure: cannot flush the disk"
    )
    assert caught.value.hint == "open the store again; it is as of its last commit"
    before = Path(store.device.name).read_bytes()
    store.close()
    assert Path(store.device.name).read_bytes() == before


def test_closing_writes_what_bitmaps_owe(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    sb, path = store.sb, store.device.name
    store.allocator.take(3)
    store.close()
    store = Blockstore.open(path)
    assert read_bitmap(store.device, sb, 1)[0].used == sb.overhead + 3
    store.close()


# -- growing ---------------------------------------------------------------------------


def test_growing_keeps_what_is_there(path: str) -> None:
    before = Path(path).read_bytes()
    old = opened(path).sb
    new = grow(path, 9)
    assert (new.extents, new.sequence, new.uuid) == (9, 2, old.uuid)
    assert opened(path).sb == new
    assert opened(path).warnings == []
    data = Path(path).read_bytes()
    assert len(data) == 9 * SIZE
    assert data[SIZE : 6 * SIZE] == before[SIZE:]
    store = Blockstore.open(path, "write")
    assert sum(count for _, count in store.allocator.take(450)) == 450
    store.close()


def test_what_cannot_be_grown(path: str, tmp_path: Path) -> None:
    for extents in (6, 5, -1):
        with pytest.raises(BadRequest) as caught:
            grow(path, extents)
        assert caught.value.message == f"{path} has 6 extents already"
        assert caught.value.hint == "a store grows, it cannot shrink"
    with pytest.raises(BadRequest, match="are too many"):
        grow(path, 1 << 40)
    reader = Blockstore.open(path, "shared")
    with pytest.raises(InUse):
        grow(path, 7)
    reader.close()
    with pytest.raises(NotFound):
        grow(str(tmp_path / "none"), 7)
    assert opened(path).sb.extents == 6


def test_a_growth_cut_off_before_the_superblock_changes_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise IoFailed("power cut")

    monkeypatch.setattr(mkfs, "write_superblock", cut_off)
    old = opened(path).sb
    with pytest.raises(IoFailed):
        grow(path, 9)
    assert opened(path).sb == old


# -- the node cache --------------------------------------------------------------------


def test_the_cache_is_bounded() -> None:
    cache = NodeCache(100 * 4608)
    nodes = {key: empty_node() for key in range(1000)}
    for key, node in nodes.items():
        cache.put(key, node)
    assert cache.get(999) is nodes[999]
    kept = [key for key in nodes if cache.get(key) is not None]
    assert 50 <= len(kept) <= 100
    assert min(kept) >= 900


def test_what_is_asked_for_stays() -> None:
    cache = NodeCache(100 * 4608)
    favourite = empty_node()
    cache.put(-1, favourite)
    for key in range(1000):
        cache.put(key, empty_node())
        assert cache.get(-1) is favourite
    assert cache.get(0) is None


def test_a_new_node_replaces_the_old_one_under_the_same_pointer() -> None:
    cache = NodeCache()
    old, new = empty_node(), empty_node()
    cache.put(7, old)
    cache.put(7, new)
    assert cache.get(7) is new
