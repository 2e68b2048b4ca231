"""Without the page cache: nothing is kept that was read, and nothing old is ever seen."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.stores import noise

from core import direct
from core.direct import DirectDevice, open_device
from core.errors import BadRequest, IoFailed, WouldBlock
from core.session import Session

BLOCK = 4096
MIB = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DirectDevice]:
    """A device of 4 MiB of noise."""
    path = tmp_path / "file"
    path.write_bytes(noise(4 * MIB, "start"))
    device = DirectDevice(str(path), writable=True)
    device.flush()
    yield device
    device.close()


def near(device: DirectDevice, offset: int, length: int = BLOCK) -> bytes | None:
    """What is read without waiting, None when that is not possible."""
    buffer = bytearray(length)
    try:
        device.preadv(offset, [buffer], wait=False)
    except WouldBlock:
        return None
    return bytes(buffer)


def cached_pages(path: str) -> int:
    """How many pages of a file are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = os.stat(path).st_size
    count = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * count)()
    fd = os.open(path, os.O_RDONLY)
    try:
        where = libc.mmap(
            None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0)
        )
        assert libc.mincore(ctypes.c_void_p(where), ctypes.c_size_t(size), found) == 0
        libc.munmap(ctypes.c_void_p(where), ctypes.c_size_t(size))
    finally:
        os.close(fd)
    return sum(byte & 1 for byte in found)


def forget_pages(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize(("cache", "stays"), [("host", True), ("none", False)])
def test_only_the_page_cache_keeps_what_was_read_and_written(
    tmp_path: Path, cache: str, stays: bool
) -> None:
    path = str(tmp_path / "file")
    Path(path).write_bytes(noise(MIB, "file"))
    forget_pages(path)
    assert cached_pages(path) == 0
    device = open_device(path, True, "none", cache)  # type: ignore[arg-type]
    device.pread(0, MIB)
    device.pwritev(0, [noise(MIB, "other")])
    assert (cached_pages(path) > 0) == stays
    device.close()


def test_a_whole_store_keeps_out_of_the_page_cache(tmp_path: Path) -> None:
    from core import mkfs

    path = str(tmp_path / "store")
    mkfs.create(path, 4 * MIB, 6, cache="none")
    with Session.open(path, cache="none") as session:
        record = session.create("disk", 2 * MIB)
        with session.opened(record) as vdi:
            vdi.write(700, noise(MIB, "disk"))
            assert vdi.read(700, MIB) == noise(MIB, "disk")
        session.snapshot(session.registry.find("disk"), "one")
    assert cached_pages(path) == 0
    with Session.open(path) as session:  # the other way sees the same
        image = session.live_image(session.registry.find("disk"))
        assert image.read(700, MIB) == noise(MIB, "disk")
    assert cached_pages(path) > 0


@pytest.mark.parametrize(("offset", "length"), [(1, BLOCK), (0, 1), (512, 512), (0, BLOCK + 512)])
def test_parts_of_blocks_are_not_written(device: DirectDevice, offset: int, length: int) -> None:
    with pytest.raises(BadRequest, match="no whole blocks"):
        device.pwritev(offset, [bytes(length)])
    assert Path(device.name).read_bytes() == noise(4 * MIB, "start")


def test_the_end_of_a_device_of_an_odd_size(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(noise(3 * BLOCK + 1000, "odd"))
    device = DirectDevice(str(path))
    assert device.pread(2 * BLOCK, BLOCK + 1000) == noise(3 * BLOCK + 1000, "odd")[2 * BLOCK :]
    assert device.pread(3 * BLOCK + 990, 10) == noise(3 * BLOCK + 1000, "odd")[-10:]
    with pytest.raises(IoFailed, match=f"ends at byte {3 * BLOCK + 1000}"):
        device.pread(2 * BLOCK, 2 * BLOCK)
    device.close()


def test_an_empty_file_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    device = DirectDevice(str(path), True)
    device.resize(BLOCK)
    assert device.pread(0, BLOCK) == bytes(BLOCK)
    device.close()


def test_a_file_system_without_it_is_refused_at_once() -> None:
    with pytest.raises(BadRequest) as caught:
        DirectDevice("/proc/version")
    assert caught.value.message == (
        "what holds /proc/version cannot do without the page cache (no O_DIRECT)"
    )
    assert caught.value.hint == "put the store elsewhere, or open it with --cache host"


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EINVAL, BadRequest, "cannot do without the page cache"),
        (errno.EIO, IoFailed, "cannot read .* at byte 0"),
    ],
)
def test_one_that_refuses_only_to_read_is_refused_at_once_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(BLOCK))

    def refuses(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuses)
        with pytest.raises(kind, match=message):
            DirectDevice(str(path), True, "exclusive")
    DirectDevice(str(path), True, "exclusive").close()  # the lock was given back


def test_a_failed_read_names_device_and_byte(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(IoFailed, match=f"cannot read {re.escape(device.name)} at byte 8192"):
        device.pread(8192, 100)
    with pytest.raises(IoFailed, match="at byte 8192"):
        device.fetch(8192, 100)
    assert device._near.size == 0


def test_memory_is_used_again(device: DirectDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        device.pwritev(0, [bytes(2 * MIB)])
        device.pread(100, 2 * MIB)
        device.pread(100, 50)
        device.fetch(0, 2 * MIB)()
    made: list[int] = []
    monkeypatch.setattr(direct, "mmap", lambda *_: made.append(1))
    device.pwritev(0, [bytes(2 * MIB)])
    device.pread(100, 2 * MIB)
    device.pread(100, 50)
    device.fetch(0, 2 * MIB)()
    assert not made


# -- reads that do not wait ------------------------------------------------------------


def test_what_was_not_fetched_is_missing(device: DirectDevice) -> None:
    with pytest.raises(WouldBlock) as caught:
        device.preadv(5000, [bytearray(9000)], wait=False)
    assert caught.value.ranges == ((5000, 9000),)
    release = device.fetch(5000, 1000)
    with pytest.raises(WouldBlock) as caught:
        device.preadv(5000, [bytearray(9000)], wait=False)
    assert caught.value.ranges == ((8192, 5808),)
    release()
    assert near(device, 5000, 10) is None


def test_it_is_near_until_the_last_release(device: DirectDevice) -> None:
    contents = noise(4 * MIB, "start")
    first, second = device.fetch(0, BLOCK), device.fetch(0, 2 * BLOCK)
    first()
    assert near(device, 0, 2 * BLOCK) == contents[: 2 * BLOCK]
    second()
    assert near(device, 0) is None
    assert device._near.size == 0


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_write_takes_away_what_was_fetched(device: DirectDevice, at: int) -> None:
    release = device.fetch(0, 3 * BLOCK)
    other = device.fetch(4 * BLOCK, BLOCK)
    device.pwritev(at * BLOCK, [noise(BLOCK, "new")])
    assert near(device, 0, 3 * BLOCK) is None
    assert near(device, 4 * BLOCK) is not None
    release()
    other()


def test_a_discard_takes_it_away_as_well(device: DirectDevice) -> None:
    release = device.fetch(0, BLOCK)
    device.discard(0, BLOCK)
    assert near(device, 0) is None
    release()


def test_a_failed_write_takes_it_away_as_well(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = device.fetch(0, BLOCK)
    real = os.pwritev

    def in_part(fd: int, buffers: list[memoryview], at: int) -> int:
        real(fd, [buffers[0][:512]], at)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", in_part)
    with pytest.raises(IoFailed):
        device.pwritev(0, [noise(BLOCK, "new")])
    assert near(device, 0) is None
    release()


@pytest.mark.parametrize("when", ["before the read", "after the read"])
def test_a_write_beside_a_fetch_leaves_nothing_old(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    real: Callable[[int, list[memoryview], int], int] = os.preadv
    new = noise(BLOCK, "new")

    def read(fd: int, buffers: list[memoryview], at: int) -> int:
        if when == "before the read":
            device.pwritev(0, [new])
        got = real(fd, buffers, at)
        if when == "after the read":
            device.pwritev(0, [new])
        return got

    monkeypatch.setattr(os, "preadv", read)
    release = device.fetch(0, BLOCK)
    monkeypatch.setattr(os, "preadv", real)
    assert near(device, 0) in (None, new)
    assert device.pread(0, BLOCK) == new
    release()


def test_a_reader_never_goes_back_in_time(device: DirectDevice) -> None:
    """Threads fetch one block again and again while it is written and read."""
    seen = 0
    stop = threading.Event()
    handed: list[Callable[[], None]] = []

    def fetching() -> None:
        while not stop.is_set():
            handed.append(device.fetch(0, BLOCK))

    threads = [threading.Thread(target=fetching) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in range(300):
            device.pwritev(0, [version.to_bytes(8, "little") * 512])
            for _ in range(50 if seen else 600_000):  # at first until one has fetched it
                found = near(device, 0)
                if found is not None:
                    assert found == version.to_bytes(8, "little") * 512
                    seen += 1
                    break
                time.sleep(1e-4)
            while handed:
                handed.pop()()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for release in handed:
        release()
    assert seen
    assert device._near.size == 0


def test_memory_for_what_was_fetched_has_an_end(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_MOST_NEAR", 2 * MIB)
    releases = [device.fetch(n * BLOCK, MIB) for n in range(8)]
    assert device._near.size == 2 * MIB
    for release in releases:
        release()
    assert device._near.size == 0
    release = device.fetch(0, MIB)
    assert near(device, 0, MIB) is not None
    release()
