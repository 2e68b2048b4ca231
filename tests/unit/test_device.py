"""What every device does, with the page cache or without: exact reads and writes, locks, and
errors that say what to do. What only one of them does is below, and in `test_direct`.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.stores import noise

from core.device import FileDevice, io_error, lock_holder
from core.direct import DirectDevice
from core.errors import (
    BadRequest,
    InUse,
    IoFailed,
    NoSpace,
    NotFound,
    NotSupported,
    ParallaxError,
    ReadOnly,
    WouldBlock,
)

MIB = 1 << 20
BLOCK = 4096

Kind = type[FileDevice]


@pytest.fixture(params=[FileDevice, DirectDevice])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of device in turn."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 64)
    return str(file)


@pytest.fixture
def device(path: str, kind: Kind) -> Iterator[FileDevice]:
    device = kind(path, writable=True)
    yield device
    device.close()


@pytest.fixture
def hosted(path: str) -> Iterator[FileDevice]:
    """A device behind the page cache."""
    device = FileDevice(path, writable=True)
    yield device
    device.close()


# -- every device ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 8), (250, 10), (511, 2), (4000, 200), (4096, 4096), (1, 16383), (0, 16384)],
)
def test_any_bytes_can_be_read(device: FileDevice, offset: int, length: int) -> None:
    wanted = (bytes(range(256)) * 64)[offset : offset + length]
    assert device.size == 256 * 64
    assert device.pread(offset, length) == wanted
    memory = memoryview(bytearray(length + 3))[3:]  # as no device wants it
    device.preadv(offset, [memory[: length // 3], memory[length // 3 :]])
    assert memory == wanted


@pytest.mark.parametrize("blocks", [1, 3, 16, 17, 256, 700])
def test_whole_blocks_are_written_from_any_memory(device: FileDevice, blocks: int) -> None:
    length = blocks * BLOCK
    device.resize(4 * MIB)
    data = noise(length, "data")
    cuts = sorted({0, 1, length // 3, length // 2, length})
    odd = memoryview(b"." + data)[1:]
    buffers: list[bytes | memoryview] = [b"", *(odd[a:b] for a, b in pairwise(cuts))]
    device.pwritev(2 * BLOCK, buffers)
    assert device.pread(2 * BLOCK, length) == data
    device.flush()
    whole = Path(device.name).read_bytes()
    assert whole == bytes(range(256)) * 32 + data + (
        (bytes(range(256)) * 64)[2 * BLOCK + length :]
        + bytes(4 * MIB - max(2 * BLOCK + length, 4 * BLOCK))
    )


def test_many_blocks_that_lie_apart_in_memory(device: FileDevice) -> None:
    pieces = [noise(BLOCK, n) for n in range(1100)]  # more than one call takes
    device.pwritev(0, pieces)
    assert device.pread(0, 1100 * BLOCK) == b"".join(pieces)


def test_what_the_system_does_in_part_goes_on(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, real_read = os.pwritev, os.preadv

    def short_write(fd: int, buffers: list[memoryview], at: int) -> int:
        return real_write(fd, [memoryview(buffers[0])[:1536]], at)

    def short_read(fd: int, buffers: list[memoryview], at: int, flags: int = 0) -> int:
        return real_read(fd, [memoryview(buffers[0])[:1536]], at, flags)

    monkeypatch.setattr(os, "pwritev", short_write)
    data = noise(3 * BLOCK, "short")
    device.pwritev(BLOCK, [data])
    monkeypatch.setattr(os, "preadv", short_read)
    assert device.pread(BLOCK, 3 * BLOCK) == data


def test_what_was_fetched_is_read_without_waiting(device: FileDevice) -> None:
    data = noise(3 * MIB, "fetched")
    device.pwritev(0, [data])
    device.flush()
    release = device.fetch(5000, 2 * MIB)
    buffer = bytearray(2 * MIB)
    device.preadv(5000, [buffer], wait=False)
    assert buffer == data[5000 : 5000 + 2 * MIB]
    release()
    with pytest.raises(IoFailed, match="ends at byte"):
        device.fetch(4 * MIB, BLOCK)


def test_reads_and_writes_are_exact(hosted: FileDevice) -> None:
    assert hosted.size == 256 * 64
    assert hosted.pread(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    hosted.pwritev(5, [b"ab", bytearray(b"c"), memoryview(b"de")])
    first, second = bytearray(2), bytearray(4)
    hosted.preadv(4, [first, second])
    assert bytes(first + second) == b"\4abcde"
    hosted.flush()


def test_more_buffers_than_one_call_takes(hosted: FileDevice) -> None:
    pieces = [bytes([n % 251]) for n in range(3000)]
    hosted.pwritev(0, pieces)
    got = [bytearray(1) for _ in pieces]
    hosted.preadv(0, got)
    assert b"".join(got) == b"".join(pieces)


def test_short_reads_and_writes_go_on(hosted: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_read = os.pwritev, os.preadv

    def short_write(fd: int, buffers: list[bytes], at: int) -> int:
        return real_write(fd, [memoryview(buffers[0])[:3]], at)

    def short_read(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        return real_read(fd, [memoryview(buffers[0])[:3]], at, flags)

    monkeypatch.setattr(os, "pwritev", short_write)
    hosted.pwritev(1, [b"hello", b"", b"wonderful", b"world"])
    monkeypatch.setattr(os, "preadv", short_read)
    first, second = bytearray(7), bytearray(12)
    hosted.preadv(1, [first, second])
    assert bytes(first + second) == b"hellowonderfulworld"


def test_a_write_without_progress_fails(
    hosted: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(IoFailed, match="at byte 7: no progress"):
        hosted.pwritev(7, [b"x"])


def test_reading_past_the_end_says_where_it_ends(device: FileDevice) -> None:
    with pytest.raises(IoFailed) as caught:
        device.pread(device.size - 4, 8)
    assert caught.value.message == f"{device.name} ends at byte {device.size}"
    assert caught.value.hint == "the store is truncated"


def test_not_waiting_says_which_bytes_are_missing(
    hosted: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def cold(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", cold)
    with pytest.raises(WouldBlock) as caught:
        hosted.preadv(8192, [bytearray(100)], wait=False)
    assert caught.value.ranges == ((8192, 100),)

    monkeypatch.setattr(os, "preadv", lambda fd, b, at, _: real(fd, [memoryview(b[0])[:60]], at))
    with pytest.raises(WouldBlock) as caught:
        hosted.preadv(8192, [bytearray(100)], wait=False)
    assert caught.value.ranges == ((8252, 40),)


def test_a_file_system_without_nowait_is_read_the_plain_way(
    hosted: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = os.preadv, []

    def without(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        asked.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", without)
    buffer = bytearray(4)
    hosted.preadv(0, [buffer], wait=False)
    hosted.preadv(0, [buffer], wait=False)
    assert buffer == b"\0\1\2\3"
    assert len(asked) == 3  # it is asked with the flag once only


def test_discard_makes_zeros_and_frees_space(tmp_path: Path, kind: Kind) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (1 << 20))
    device = kind(str(file), writable=True)
    device.flush()
    before = file.stat().st_blocks
    device.discard(4096, 1 << 19)
    assert device.pread(4096, 1 << 19) == bytes(1 << 19)
    assert device.pread(0, 4096) == b"x" * 4096
    assert file.stat().st_blocks < before
    assert file.stat().st_size == 1 << 20
    with pytest.raises(ParallaxError, match="cannot discard -1 bytes"):
        device.discard(0, -1)
    device.close()


def test_resize_grows_and_never_shrinks(device: FileDevice) -> None:
    device.resize(100)
    assert device.size == 256 * 64
    device.resize(1 << 20)
    assert device.size == os.stat(device.name).st_size == 1 << 20
    assert device.pread((1 << 20) - 4, 4) == bytes(4)
    with pytest.raises(ParallaxError, match=r"cannot make .* bytes long"):
        device.resize(1 << 62)


def test_the_parts_of_a_file_that_take_space(tmp_path: Path, kind: Kind) -> None:
    file = tmp_path / "file"
    with open(file, "wb") as raw:
        raw.truncate(16 * MIB)
        for at in (0, 4 * MIB, 15 * MIB):
            raw.seek(at)
            raw.write(b"x" * MIB)
    device = kind(str(file))
    for low, high, expected in (
        (0, 32, [(0, 2), (8, 10), (30, 32)]),
        (1, 9, [(1, 2), (8, 9)]),
        (10, 12, []),
        (30, 46, [(30, 32)]),
    ):
        taken = device.taken(low * MIB // 2, (high - low) * MIB // 2)
        assert taken is not None
        assert [(a * 2 / MIB, b * 2 / MIB) for a, b in taken] == expected
    device.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_the_system_knows_no_holes_nothing_is_said(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(code, os.strerror(code))
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    assert device.taken(4096, 8192) is None


def test_a_file_that_is_cleared_is_zeros_of_the_same_size(device: FileDevice) -> None:
    device.clear(lambda *_: None)
    assert device.pread(0, device.size) == bytes(256 * 64)
    assert os.stat(device.name).st_blocks == 0


def test_a_disk_is_cleared_by_holes_or_by_zeros(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.resize(300 * MIB)
    device.is_disk = True
    device.pwritev(200 * MIB, [b"x" * BLOCK])
    told: list[tuple[int, int | None]] = []
    device.clear(lambda done, total: told.append((done, total)))
    assert told == [(at * MIB, 300 * MIB) for at in (0, 128, 256, 300)]
    assert device.pread(200 * MIB, BLOCK) == bytes(BLOCK)

    def no_holes(*_: object) -> None:
        raise NotSupported("no holes")

    zeroed: list[tuple[int, int]] = []

    def ioctl(_fd: int, number: int, argument: bytes) -> None:
        assert number == 0x127F  # BLKZEROOUT
        zeroed.append(struct.unpack("=QQ", argument))

    monkeypatch.setattr(device, "discard", no_holes)
    monkeypatch.setattr("fcntl.ioctl", ioctl)
    device.clear(lambda *_: None)
    at = [0, 128 * MIB, 256 * MIB, 300 * MIB]
    assert zeroed == [(low, high - low) for low, high in pairwise(at)]


# -- a file that is not what it was ----------------------------------------------------


def test_a_file_that_is_what_it_was_is_well(device: FileDevice, path: str) -> None:
    device.verify()
    device.resize(device.size + 8 * BLOCK)
    with open(path, "ab") as other:
        other.truncate(device.size + BLOCK)  # another session made it longer
    device.verify()


def test_a_file_that_was_cut_off_is_noticed(device: FileDevice, path: str) -> None:
    os.truncate(path, device.size - BLOCK)
    with pytest.raises(IoFailed, match="was truncated while it was open"):
        device.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: shutil.copy(path, f"{path}.new") and os.replace(f"{path}.new", path),
         "was replaced"),
        (os.unlink, "was deleted or renamed"),
        (lambda path: os.rename(path, f"{path}.old"), "was deleted or renamed"),
        (lambda path: shutil.move(os.path.dirname(path), f"{os.path.dirname(path)}.old"),
         "was deleted or renamed"),
    ],
    ids=["replaced", "deleted", "renamed", "folder"],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_noticed(
    tmp_path: Path, kind: Kind, change: Callable[[str], object], message: str
) -> None:
    path = str(tmp_path / "folder" / "file")
    os.mkdir(os.path.dirname(path))
    Path(path).write_bytes(bytes(8 * BLOCK))
    device = kind(path, True)
    try:
        change(path)
        with pytest.raises(IoFailed, match=f"{message} while it was open") as caught:
            device.verify()
        place = caught.value.hint.split()[-1]
        assert place == f"/proc/{os.getpid()}/fd/{device._fd}"
        assert os.stat(place).st_size == 8 * BLOCK
    finally:
        device.close()


def test_a_link_that_leads_elsewhere_is_noticed(tmp_path: Path, kind: Kind) -> None:
    link = tmp_path / "link"
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(8 * BLOCK))
    link.symlink_to("one")
    device = kind(str(link), True)
    device.verify()
    link.unlink()
    link.symlink_to("two")
    with pytest.raises(IoFailed, match="was replaced"):
        device.verify()
    device.close()


def test_a_relative_path_means_what_it_meant(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(8 * BLOCK))
    monkeypatch.chdir(tmp_path)
    device = kind("file", True)
    monkeypatch.chdir("/")
    device.verify()
    device.close()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO, errno.ETIMEDOUT])
def test_a_system_that_cannot_tell_is_no_failure(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(path: str) -> os.stat_result:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "stat", failing)
    device.verify()


def disk(number: int) -> os.stat_result:
    """What the system says of a disk's node."""
    return os.stat_result((stat.S_IFBLK | 0o660, 5, 6, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": number})


def test_a_disk_is_known_by_its_number(device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device.is_disk = True
    device._identity = device._identity_of(disk(7))
    nodes: list[os.stat_result] = [disk(7)]

    def node(path: str) -> os.stat_result:
        if not nodes:
            raise FileNotFoundError(errno.ENOENT, "no such node", path)
        return nodes.pop()

    monkeypatch.setattr(os, "stat", node)
    device.verify()
    device.verify()  # its name is gone, as after a volume was renamed: it is the same disk
    nodes.append(disk(8))
    with pytest.raises(IoFailed, match="was replaced"):
        device.verify()


def test_a_guest_needs_its_host_on_the_same_file(path: str, kind: Kind) -> None:
    host = kind(path, True, "host")
    kind(path, True, "guest").close()
    shutil.copy(path, f"{path}.new")
    os.replace(f"{path}.new", path)
    with pytest.raises(IoFailed, match="is not the file that the tap of this store has open"):
        kind(path, True, "guest")
    host.close()


def test_closing_twice_does_nothing(path: str, kind: Kind) -> None:
    device = kind(path)
    device.close()
    device.close()


def test_a_read_only_device_refuses_writes(path: str, kind: Kind) -> None:
    device = kind(path)
    with pytest.raises(ParallaxError, match="cannot write"):
        device.pwritev(0, [bytes(BLOCK)])
    device.close()


def test_a_failed_flush_says_that_nothing_is_sure(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(IoFailed, match="cannot flush") as caught:
        device.flush()
    assert not isinstance(caught.value, NoSpace)  # that would invite a retry
    assert caught.value.hint == "open the store again"


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        (errno.ENOSPC, NoSpace, "free space"),
        (errno.EDQUOT, NoSpace, "free space"),
        (errno.ENOENT, NotFound, "check the path"),
        (errno.EACCES, ReadOnly, "permissions"),
        (errno.EROFS, ReadOnly, "ReadWritePaths="),
        (errno.EISDIR, BadRequest, "name a file"),
        (errno.EIO, IoFailed, "system log"),
    ],
)
def test_what_the_system_says_becomes_one_of_ours(
    code: int, kind: type[ParallaxError], hint: str
) -> None:
    error = io_error(OSError(code, os.strerror(code)), "cannot open it")
    assert type(error) is kind
    assert error.message == f"cannot open it: {os.strerror(code)}"
    assert hint in error.hint


def test_what_cannot_be_opened(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(NotFound, match="No such file"):
        kind(str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="is no file and no block device"):
        kind(str(tmp_path))
    with pytest.raises(BadRequest, match="is no file and no block device"):
        kind("/dev/null")
    with pytest.raises(BadRequest, match="Is a directory"):
        kind(str(tmp_path), writable=True)


# -- locks -----------------------------------------------------------------------------

HOLD = "import sys; from core.device import FileDevice\n"
HOLD += "FileDevice(sys.argv[1], True, sys.argv[2]); print('held', flush=True); input()"


def held_elsewhere(path: str, lock: str) -> subprocess.Popen[str]:
    """Another process that holds a lock until its standard input closes."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_told_who_the_first_is(path: str, kind: Kind) -> None:
    with held_elsewhere(path, "exclusive") as holder:
        for lock in ("exclusive", "shared"):
            with pytest.raises(InUse) as caught:
                kind(path, True, lock)  # type: ignore[arg-type]
            assert caught.value.message.startswith(f"{path} is in use by ")
            assert f"(pid {holder.pid})" in caught.value.message
            assert caught.value.hint == "stop it, or wait until it is done"
        kind(path).close()  # who takes no lock is not kept out
        who = lock_holder(path)
        assert who is not None
        assert who.endswith(f"(pid {holder.pid})")
        assert not who.startswith("python")  # the program, not its interpreter
        assert "\n" not in who
        assert len(who) < 100
        holder.communicate()
    assert lock_holder(path) is None
    kind(path, True, "exclusive").close()


def test_the_holder_is_told_by_its_command_even_behind_options(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = tmp_path / "tool"
    script = (
        "import fcntl, sys\n"
        f"fd = open({str(path)!r}, 'w')\n"
        "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()\n"
    )
    program.write_text(script)
    words = [sys.executable, str(program), "-s", "/some/where/u.dat", "tap", "serve"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        assert lock_holder(str(path)) == f"tool -s u.dat tap serve (pid {holder.pid})"
        holder.communicate()


def test_shared_locks_share(path: str, kind: Kind) -> None:
    first = kind(path, lock="shared")
    second = kind(path, lock="shared")
    with pytest.raises(InUse):
        kind(path, True, "exclusive")
    first.close()
    second.close()
    kind(path, True, "exclusive").close()


def test_the_holder_of_no_lock_or_no_file_is_nobody(path: str) -> None:
    assert lock_holder(path) is None
    assert lock_holder(path + ".none") is None
