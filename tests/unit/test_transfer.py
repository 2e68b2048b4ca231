"""Fill, validate and export with small images: what arrives, and what an error leaves."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import resource
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.stores import live, noise, small_store

from core import source as sources
from core import transfer
from core.errors import (
    BadRequest,
    Different,
    Interrupted,
    IoFailed,
    NoSpace,
    NotFound,
    ParallaxError,
)
from core.extent import read_bitmap
from core.format import BLOCK, VdiRecord
from core.session import Session

CHUNK = 4 * BLOCK


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sources, transfer):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(transfer, "_BEHIND", 2 * CHUNK)
    monkeypatch.setattr(sources, "_SMALL_HOLE", BLOCK)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session.open(small_store(tmp_path)) as opened:
        yield opened


def sparse(path: Path, parts: dict[int, bytes], size: int) -> str:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    return str(path)


def fill(session: Session, record: VdiRecord, source: str, **more: object) -> int:
    with session.opened(record) as vdi:
        return transfer.fill(vdi, session, source, **more)  # type: ignore[arg-type]


def validate(session: Session, name: str, source: str) -> None:
    transfer.validate(session.live_image(session.registry.find(name)), source)


def stop_at(limit: int) -> transfer.Progress:
    """What Ctrl-C after `limit` bytes looks like from inside."""

    def progress(done: int, _: int | None) -> None:
        if done >= limit:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A named pipe that somebody writes some bytes to."""
    writers = []

    def make(data: bytes) -> str:
        path = tmp_path / f"pipe{len(writers)}"
        os.mkfifo(path)

        def write() -> None:
            with open(path, "wb", buffering=0) as file:
                for at in range(0, len(data), 5000):
                    try:
                        file.write(data[at : at + 5000])
                    except BrokenPipeError:
                        return

        writers.append(threading.Thread(target=write))
        writers[-1].start()
        return str(path)

    yield make
    for number, writer in enumerate(writers):
        # A writer whose pipe nobody opened waits, or is about to: this wakes it.
        while writer.is_alive():
            os.close(os.open(tmp_path / f"pipe{number}", os.O_RDONLY | os.O_NONBLOCK))
            writer.join(0.1)


@pytest.fixture
def standard_input() -> Iterator[Callable[[int], None]]:
    """Make standard input a descriptor, which is closed."""
    before = os.dup(0)

    def connect(fd: int) -> None:
        os.dup2(fd, 0)
        os.close(fd)

    yield connect
    os.dup2(before, 0)
    os.close(before)


# -- fill ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 511, 512, BLOCK - 1, BLOCK, BLOCK + 1, 3 * CHUNK + 77])
def test_an_image_keeps_its_exact_size_and_bytes(
    session: Session, tmp_path: Path, size: int
) -> None:
    data = noise(size)
    source = sparse(tmp_path / "image", {0: data}, size)
    assert fill(session, session.create("a"), source) == size
    assert live(session, "a") == data
    validate(session, "a", source)


def test_holes_and_zeros_take_no_space(session: Session, tmp_path: Path) -> None:
    size = 1 << 40
    parts = {0: noise(BLOCK), 8 * BLOCK: bytes(8 * BLOCK), (1 << 39) + 5: noise(BLOCK, 1)}
    source = sparse(tmp_path / "image", parts, size)
    fill(session, session.create("a"), source)
    record = session.registry.find("a")
    assert (record.size, record.mapped) == (size, 3)
    validate(session, "a", source)


def test_what_is_filled_becomes_the_image_followed_by_zeros(
    session: Session, tmp_path: Path
) -> None:
    record = session.create("a", 40 * BLOCK - 9)
    with session.opened(record) as vdi:
        vdi.write(0, noise(vdi.size))
    parts = {0: noise(100, 1), 20 * BLOCK: noise(5 * BLOCK, 2)}
    source = sparse(tmp_path / "image", parts, 30 * BLOCK + 9)
    fill(session, record, source)
    assert live(session, "a") == Path(source).read_bytes() + bytes(10 * BLOCK - 18)
    assert session.registry.find("a").mapped == 6


def test_holes_need_not_end_at_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of smaller blocks: data from 1000 to 6000 and from 64 KiB + 1000 on."""
    data = {1000: noise(5000), 65536 + 1000: noise(9000, 1)}
    source = sparse(tmp_path / "image", data, 100_000)
    edges = [1000, 6000, 65536 + 1000, 65536 + 10000]
    real = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            return real(fd, offset, whence)
        passed = sum(edge <= offset for edge in edges)
        if passed % 2 == (whence == os.SEEK_DATA):
            return offset
        if passed < len(edges):
            return edges[passed]
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return 100_000

    with sources.opened(source, None, "") as image, monkeypatch.context() as context:
        context.setattr(os, "lseek", lseek)
        pieces = [(offset, length, data is None) for offset, length, data in image.pieces()]
    assert pieces == [
        (0, 8192, False),
        (8192, 65536 - 8192, True),
        (65536, 3 * BLOCK, False),
        (65536 + 3 * BLOCK, 100_000 - 65536 - 3 * BLOCK, True),
    ]


def test_a_snapshot_keeps_what_was_there(session: Session, tmp_path: Path) -> None:
    record = session.create("a", CHUNK)
    before = noise(CHUNK)
    with session.opened(record) as vdi:
        vdi.write(0, before)
        vdi.snapshot("kept")
    fill(session, record, sparse(tmp_path / "image", {0: noise(CHUNK, 1)}, CHUNK))
    assert session.image(session.find_snapshot("a@kept")).read(0, CHUNK) == before
    assert live(session, "a") == noise(CHUNK, 1)


@pytest.mark.parametrize("size", [1, CHUNK, 2 * CHUNK + 5000])
def test_a_pipe_sets_the_size_with_its_end(
    session: Session, pipe: Callable[[bytes], str], size: int
) -> None:
    assert fill(session, session.create("a"), pipe(noise(size))) == size
    assert live(session, "a") == noise(size)


def test_a_pipe_of_zeros_is_all_hole(session: Session, pipe: Callable[[bytes], str]) -> None:
    fill(session, session.create("a"), pipe(bytes(3 * CHUNK)))
    record = session.registry.find("a")
    assert (record.size, record.mapped) == (3 * CHUNK, 0)


def test_a_pipe_that_brings_too_much_changes_nothing(
    session: Session, pipe: Callable[[bytes], str]
) -> None:
    record = session.create("a", CHUNK + 1)
    with session.opened(record) as vdi:
        vdi.write(0, noise(CHUNK))
    with pytest.raises(BadRequest, match="bytes or more, the VDI has"):
        fill(session, record, pipe(noise(2 * CHUNK, 1)))
    assert live(session, "a") == noise(CHUNK) + b"\0"


def test_an_image_that_is_too_large_is_refused_before_anything_is_written(
    session: Session, tmp_path: Path
) -> None:
    record = session.create("a", BLOCK)
    source = sparse(tmp_path / "image", {}, BLOCK + 1)
    with pytest.raises(BadRequest, match=f"has {BLOCK + 1} bytes or more, the VDI has {BLOCK}"):
        fill(session, record, source)
    assert session.registry.find("a").sequence == record.sequence


def test_a_device_is_read_to_its_end(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sparse(tmp_path / "device", {0: noise(BLOCK)}, 9 * BLOCK)
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    fill(session, session.create("a"), source)
    assert live(session, "a") == noise(BLOCK) + bytes(8 * BLOCK)


def test_progress_counts_bytes_of_the_image(
    session: Session, tmp_path: Path, pipe: Callable[[bytes], str]
) -> None:
    seen: list[tuple[int, int | None]] = []
    source = sparse(tmp_path / "image", {0: noise(CHUNK + 1)}, 5 * CHUNK)
    fill(session, session.create("a"), source, progress=lambda *at: seen.append(at))
    assert seen[0] == (0, 5 * CHUNK)
    assert seen[-1] == (5 * CHUNK, 5 * CHUNK)
    assert seen == sorted(seen)
    seen.clear()
    fill(session, session.create("b"), pipe(noise(CHUNK)), progress=lambda *at: seen.append(at))
    assert seen == [(0, None), (CHUNK, None)]


# -- bad input -------------------------------------------------------------------------


def test_a_source_that_is_missing(session: Session, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"cannot read .*nothing: No such file") as error:
        fill(session, session.create("a"), str(tmp_path / "nothing"))
    assert error.value.exit_status == 3


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "it is a folder"),
        ("/dev/zero", "it is a character device"),
        ("socket", "it is a socket"),
        ("/proc/cpuinfo", "it has no size"),
        ("/proc/self/mem", "it has no size"),
        ("/sys/devices/system/cpu/online", r"it ends after \d+ of the \d+ bytes that it claims"),
    ],
)
def test_a_source_that_is_no_image(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    record = session.create("a")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for attempt in (
            lambda: fill(session, record, path),
            lambda: fill(session, record, path, image_format="raw"),
            lambda: validate(session, "a", path),
        ):
            with pytest.raises(BadRequest, match=f"^{path} is no image: {why}"):
                attempt()
    assert session.registry.find("a") == record


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/zero", "^standard input is a character device"),
        ("/dev/null", "^standard input is empty"),
        ("/", "Is a directory"),
    ],
)
def test_standard_input_that_is_no_image(
    session: Session, path: str, said: str, standard_input: Callable[[int], None]
) -> None:
    standard_input(os.open(path, os.O_RDONLY))
    with pytest.raises(BadRequest, match=said):
        fill(session, session.create("a"), "-")


def test_a_terminal_is_not_read(session: Session, standard_input: Callable[[int], None]) -> None:
    master, terminal = os.openpty()
    standard_input(terminal)
    with pytest.raises(BadRequest, match=r"^standard input is a terminal"):
        sources.measured("-", None, session.store.device.name)
    os.close(master)


def test_the_store_is_no_source(session: Session, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(session.store.device.name)
    with pytest.raises(BadRequest, match="is the blockstore itself"):
        fill(session, session.create("a"), str(tmp_path / "link"))


def test_an_empty_source(session: Session, tmp_path: Path, pipe: Callable[[bytes], str]) -> None:
    record = session.create("a", BLOCK)
    (tmp_path / "empty").touch()
    for source in (str(tmp_path / "empty"), pipe(b"")):
        with pytest.raises(BadRequest, match="is empty"):
            fill(session, record, source)


@pytest.mark.parametrize("change", [-1, -3 * CHUNK, 1])
def test_a_source_that_changes_while_it_is_read(
    session: Session, tmp_path: Path, change: int
) -> None:
    size = 4 * CHUNK
    source = sparse(tmp_path / "image", {0: noise(size)}, size)

    def progress(_: int, __: int | None) -> None:
        os.truncate(source, size + change)

    record = session.create("a")
    with pytest.raises(IoFailed, match=f"changed from {size} to .* bytes while it was read"):
        fill(session, record, source, progress=progress)
    assert session.registry.find("a") == record


LOOKS_LIKE = {
    "qcow2 with a backing file": (0, b"QFI\xfb\0\0\0\2" + bytes(7) + b"\1", "a qcow2 image"),
    "qcow2 with a data file": (0, b"QFI\xfb\0\0\0\3" + bytes(71) + b"\4", "a qcow2 image"),
    "qcow": (0, b"QFI\xfb\0\0\0\1", "a qcow image"),
    "half a qcow2 header": (0, b"QFI\xfb", "a qcow2 image"),
    "vmdk": (0, b"KDMV", "a vmdk image"),
    "vmdk descriptor": (0, b"# Disk DescriptorFile", "a vmdk image"),
    "descriptor in small letters": (0, b"\n # disk descriptorfile\n", "a vmdk image"),
    "descriptor without a title": (0, b"# by hand\n\nversion=1\n", "a vmdk image"),
    "vdi": (64, b"\x7f\x10\xda\xbe", "a vdi image"),
    "vhdx": (0, b"vhdxfile", "a vhdx image"),
    "dynamic vhd": (0, b"conectix", "a vpc image"),
    "fixed vhd": (BLOCK - 512, b"conectix", "a vpc image"),
    "old fixed vhd": (BLOCK - 511, b"conectix", "a vpc image"),
    "dmg": (BLOCK - 512, b"koly", "a dmg image"),
    "ova": (257, b"ustar", "a tar archive"),
    "zip": (0, b"PK\3\4", "a zip archive"),
}
COMPRESSED = {
    "gzip": gzip.compress(b"x"),
    "xz": lzma.compress(b"x"),
    "bzip2": bz2.compress(b"x"),
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
}


@pytest.mark.parametrize("kind", [*LOOKS_LIKE, *COMPRESSED])
def test_what_looks_like_another_format_must_be_named(
    session: Session, tmp_path: Path, pipe: Callable[[bytes], str], kind: str
) -> None:
    if kind in COMPRESSED:
        at, magic, said = 0, COMPRESSED[kind], rf"is compressed \({kind}\)"
    else:
        at, magic, what = LOOKS_LIKE[kind]
        said = f"looks like {what}"
    data = (bytes(at) + magic).ljust(BLOCK, b"\0")
    source = sparse(tmp_path / "image", {0: data}, BLOCK)
    record = session.create("a")
    for name in (source, pipe(data)):
        with pytest.raises(BadRequest, match=said) as error:
            fill(session, record, name)
        assert "--format raw" in error.value.hint
        assert session.registry.find("a") == record
        with pytest.raises(BadRequest, match=said):
            validate(session, "a", name if name == source else pipe(data))
    with pytest.raises(BadRequest, match=said):
        sources.measured(source, None, session.store.device.name)
    fill(session, record, source, image_format="raw")
    assert live(session, "a") == data
    fill(session, session.create("b"), pipe(data), image_format="raw")
    assert live(session, "b") == data


@pytest.mark.parametrize("before", [BLOCK, CHUNK - 100, CHUNK, CHUNK + 100, 3 * CHUNK])
def test_the_end_of_a_pipe_is_looked_at_wherever_it_is(
    session: Session, pipe: Callable[[bytes], str], before: int
) -> None:
    record = session.create("a")
    with pytest.raises(BadRequest, match="looks like a vpc image"):
        fill(session, record, pipe(noise(before) + b"conectix".ljust(512)))
    assert session.registry.find("a") == record


def test_a_disk_encrypted_as_a_whole_is_raw(session: Session, tmp_path: Path) -> None:
    source = sparse(tmp_path / "image", {0: b"LUKS\xba\xbe\0\2"}, BLOCK)
    assert fill(session, session.create("a"), source) == BLOCK


def test_a_qcow2_header_on_a_device_is_not_followed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"QFI\xfb" + bytes(3) + b"\3" + bytes(96)
    source = sparse(tmp_path / "device", {0: head}, BLOCK)
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    with pytest.raises(BadRequest, match="looks like a qcow2 image"):
        fill(session, session.create("a"), source)


def test_other_formats_need_qemu_img(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sparse(tmp_path / "image", {0: b"KDMV"}, BLOCK)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="need qemu-img, which is not installed") as error:
        fill(session, session.create("a"), source, image_format="vmdk")
    assert "Debian package qemu-utils" in error.value.hint


def test_a_pipe_must_be_raw(session: Session, pipe: Callable[[bytes], str]) -> None:
    with pytest.raises(BadRequest, match="a vmdk image cannot be read from"):
        fill(session, session.create("a"), pipe(b"x"), image_format="vmdk")


# -- when it is cut off ----------------------------------------------------------------


def used(session: Session) -> int:
    """Blocks that are allocated, as the bitmaps say."""
    session.store.write_queued()
    store = session.store
    return sum(
        part.used
        for extent in range(1, store.sb.extents)
        for part in read_bitmap(store.device, store.sb, extent)
    )


def interrupted_fill(session: Session, record: VdiRecord, tmp_path: Path) -> Interrupted:
    source = sparse(tmp_path / "image", {0: noise(5 * CHUNK, 1)}, 5 * CHUNK)
    with pytest.raises(Interrupted) as error:
        fill(session, record, source, progress=stop_at(3 * CHUNK))
    assert error.value.exit_status == 130
    return error.value


def test_an_interrupt_leaves_the_vdi_as_before(session: Session, tmp_path: Path) -> None:
    record = session.create("a", 5 * CHUNK)
    with session.opened(record) as vdi:
        vdi.write(0, noise(5 * CHUNK))
    error = interrupted_fill(session, record, tmp_path)
    assert error.message == "interrupted: VDI 'a' is as before"
    assert live(session, "a") == noise(5 * CHUNK)


def test_an_interrupted_fill_leaves_no_blocks_allocated(session: Session, tmp_path: Path) -> None:
    record = session.create("a")
    with session.opened(record) as vdi:
        vdi.write(0, b"")
    session.store.allocator.reserve(1)  # claims the first extent
    session.store.allocator.unreserve(1)
    before = used(session)
    interrupted_fill(session, record, tmp_path)
    assert used(session) == before


def test_an_interrupt_after_a_commit_says_how_far_it_got(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "COMMIT_EVERY", 2 * CHUNK)
    record = session.create("a", 5 * CHUNK)
    with session.opened(record) as vdi:
        vdi.write(0, noise(5 * CHUNK))
    error = interrupted_fill(session, record, tmp_path)
    assert f"its first {2 * CHUNK} bytes are those of {tmp_path / 'image'}" in error.message
    expected = noise(5 * CHUNK, 1)[: 2 * CHUNK] + noise(5 * CHUNK)[2 * CHUNK :]
    assert live(session, "a") == expected


def test_an_interrupt_in_the_commit_frees_nothing_that_is_in_use(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40 * BLOCK
    record = session.create("a")
    fill(session, record, sparse(tmp_path / "image", {0: noise(size)}, size))

    def stop() -> None:
        raise KeyboardInterrupt

    source = sparse(tmp_path / "image", {0: noise(size, 1)}, size)
    record = session.registry.find("a")
    with monkeypatch.context() as context:
        context.setattr(session.store.device, "flush", stop)
        with pytest.raises(Interrupted, match="is as before"):
            fill(session, record, source)
    with suppress(ParallaxError):  # it may refuse to go on
        other = session.create("b", size)
        for seed in range(2, 5):
            with session.opened(other) as vdi:
                vdi.trim(0, size)
                vdi.write(0, noise(size, seed))
    assert live(session, "a") == noise(size)


def test_an_interrupt_of_a_growing_vdi(
    session: Session, pipe: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "COMMIT_EVERY", CHUNK)
    source = pipe(noise(3 * CHUNK))
    with pytest.raises(Interrupted, match=f"its first {CHUNK} bytes"):
        fill(session, session.create("a"), source, progress=stop_at(CHUNK))
    assert live(session, "a") == noise(CHUNK)


def test_a_store_that_is_full_says_how_much_of_the_image_it_holds(
    session: Session, tmp_path: Path
) -> None:
    size = 6 * 64 * BLOCK
    source = sparse(tmp_path / "image", {0: noise(size)}, size)
    with pytest.raises(NoSpace, match="the blockstore is full; VDI 'a' is filled in part") as error:
        fill(session, session.create("a"), source)
    match = re.search(r"its first (\d+) bytes", error.value.message)
    assert match
    done = int(match[1])
    assert done > size // 2
    assert live(session, "a")[:done] == noise(size)[:done]


def test_filling_again_in_a_nearly_full_store(session: Session, tmp_path: Path) -> None:
    size = 200 * BLOCK
    record = session.create("a")
    for seed in range(3):
        fill(session, record, sparse(tmp_path / "image", {0: noise(size, seed)}, size))
        assert live(session, "a") == noise(size, seed)


def test_running_out_after_old_data_was_given_up_says_so(session: Session, tmp_path: Path) -> None:
    record = session.create("a", 400 * BLOCK)
    with session.opened(record) as vdi:
        vdi.write(0, noise(200 * BLOCK))
    source = sparse(tmp_path / "image", {0: noise(400 * BLOCK, 1)}, 400 * BLOCK)
    with pytest.raises(NoSpace, match="VDI 'a' is filled in part: its first"):
        fill(session, record, source)


def test_a_fill_that_has_no_room_at_all_says_that_nothing_was_written(
    session: Session, tmp_path: Path
) -> None:
    record = session.create("a", 64 * BLOCK)
    with session.opened(record) as vdi:
        vdi.write(0, noise(2 * BLOCK))
    with session.opened(session.create("full", 400 * BLOCK)) as vdi, suppress(NoSpace):
        for block in range(400):
            vdi.write(block * BLOCK, noise(BLOCK, block))
    source = sparse(tmp_path / "image", {0: noise(64 * BLOCK, 1)}, 64 * BLOCK)
    with pytest.raises(NoSpace, match=r"nothing of .* was written to VDI 'a', which is empty now"):
        fill(session, record, source)


# -- validate --------------------------------------------------------------------------

SIZE = 9 * CHUNK + 5


@pytest.fixture
def filled(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with data, a hole and data, and VDI "a" that equals it."""
    monkeypatch.setattr(transfer, "_WINDOW", 4 * CHUNK)
    parts = {0: noise(CHUNK), 6 * CHUNK: noise(SIZE - 6 * CHUNK, 1)}
    source = sparse(tmp_path / "image", parts, SIZE)
    fill(session, session.create("a"), source)
    return Path(source)


@pytest.mark.parametrize(
    "at",
    [0, 1, BLOCK - 1, BLOCK, CHUNK - 1, CHUNK, 4 * CHUNK + 1234, 6 * CHUNK - 1, SIZE - 1],
)
@pytest.mark.parametrize("side", ["image", "vdi"])
def test_the_first_difference_is_named(session: Session, filled: Path, at: int, side: str) -> None:
    changed = bytes([filled.read_bytes()[at] ^ 0x80])
    if side == "image":
        with open(filled, "r+b") as file:
            file.seek(at)
            file.write(changed)
    else:
        with session.opened(session.registry.find("a")) as vdi:
            vdi.write(at, changed)
    with pytest.raises(Different, match=f" differs at byte {at}$") as error:
        validate(session, "a", str(filled))
    assert error.value.exit_status == 1


def test_the_first_of_two_differences_counts(session: Session, filled: Path) -> None:
    with session.opened(session.registry.find("a")) as vdi:
        vdi.write(3 * CHUNK, b"x")
        vdi.write(CHUNK + 17, b"x")
    with pytest.raises(Different, match=f" differs at byte {CHUNK + 17}$"):
        validate(session, "a", str(filled))


@pytest.mark.parametrize("size", [1, CHUNK, SIZE - 1, SIZE + 1, SIZE + 3 * CHUNK])
def test_another_size_differs_where_one_ends(session: Session, filled: Path, size: int) -> None:
    os.truncate(filled, size)
    with pytest.raises(Different, match=f"differs at byte {min(size, SIZE)}: "):
        validate(session, "a", str(filled))


def test_a_pipe_is_compared_too(
    session: Session, filled: Path, pipe: Callable[[bytes], str]
) -> None:
    data = filled.read_bytes()
    validate(session, "a", pipe(data))
    with pytest.raises(Different, match=f"differs at byte {SIZE - 1}: it ends there"):
        validate(session, "a", pipe(data[:-1]))
    with pytest.raises(Different, match=f"differs at byte {SIZE}: only the VDI ends"):
        validate(session, "a", pipe(data + b"\0"))


def test_an_interrupted_comparison(session: Session, filled: Path) -> None:
    image = session.live_image(session.registry.find("a"))
    with pytest.raises(Interrupted, match=f"no difference in the first {CHUNK} bytes"):
        transfer.validate(image, str(filled), progress=stop_at(CHUNK))


# -- export ----------------------------------------------------------------------------


def export(session: Session, target: Path | str, **more: object) -> None:
    image = session.live_image(session.registry.find("a"))
    transfer.export(image, str(target), **more)  # type: ignore[arg-type]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_exported_file_equals_the_vdi_and_is_sparse(
    session: Session, filled: Path, tmp_path: Path
) -> None:
    export(session, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == filled.read_bytes()
    assert os.stat(tmp_path / "out").st_blocks <= os.stat(filled).st_blocks
    assert left_in(tmp_path) == {"store", "image", "out"}


def test_an_existing_target_is_kept_without_force(
    session: Session, filled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"precious")
    with pytest.raises(BadRequest, match="out exists") as error:
        export(session, target)
    assert "--force" in error.value.hint
    assert target.read_bytes() == b"precious"
    export(session, target, force=True)
    assert target.read_bytes() == filled.read_bytes()


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("force", [False, True])
def test_the_store_is_no_target(session: Session, force: bool) -> None:
    with pytest.raises(BadRequest, match="is the blockstore itself"):
        export(session, session.store.device.name, force=force)


def test_a_target_that_cannot_be(session: Session, filled: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot hold an image"):
        export(session, tmp_path, force=True)
    with pytest.raises(NotFound, match="No such file"):
        export(session, tmp_path / "missing" / "out")
    with pytest.raises(NotFound, match="Not a directory"):
        export(session, filled / "out")


@pytest.mark.usefixtures("filled")
def test_an_interrupted_export_leaves_nothing(session: Session, tmp_path: Path) -> None:
    before = left_in(tmp_path)
    with pytest.raises(Interrupted, match="out was not written"):
        export(session, tmp_path / "out", progress=stop_at(CHUNK))
    assert left_in(tmp_path) == before


@pytest.mark.usefixtures("filled")
def test_a_full_target_leaves_nothing(session: Session, tmp_path: Path) -> None:
    before = left_in(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7 * CHUNK, limits[1]))
    try:
        with pytest.raises(ParallaxError, match=r"cannot write .*out: File too large"):
            export(session, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert left_in(tmp_path) == before


@pytest.mark.usefixtures("filled")
def test_a_target_without_space(session: Session) -> None:
    with pytest.raises(NoSpace, match="cannot write /dev/full: No space left"):
        export(session, "/dev/full")


def test_a_device_is_overwritten_with_zeros_too(
    session: Session, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"x" * (SIZE + BLOCK))
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    with pytest.raises(BadRequest, match="device exists"):
        export(session, device)
    export(session, device, force=True)
    assert device.read_bytes() == filled.read_bytes() + b"x" * BLOCK
    os.truncate(device, SIZE - 1)
    with pytest.raises(BadRequest, match=f"has {SIZE - 1} bytes, the image {SIZE}"):
        export(session, device, force=True)


def test_a_pipe_gets_every_byte(session: Session, filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "pipe"
    os.mkfifo(target)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(target.read_bytes()))
    reader.start()
    export(session, target)
    reader.join()
    assert got == [filled.read_bytes()]


@pytest.mark.usefixtures("filled")
def test_only_a_file_takes_other_formats(session: Session) -> None:
    with pytest.raises(BadRequest, match="a qcow2 image cannot be written to standard output"):
        export(session, "-", image_format="qcow2")
