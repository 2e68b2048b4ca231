"""Files as block devices: exact reads and writes, locks, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.device import FileDevice, io_error, lock_holder
from core.errors import (
    BadRequest,
    InUse,
    IoFailed,
    NoSpace,
    NotFound,
    ParallaxError,
    ReadOnly,
    WouldBlock,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 64)
    return str(file)


@pytest.fixture
def device(path: str) -> Iterator[FileDevice]:
    device = FileDevice(path, writable=True)
    yield device
    device.close()


def test_reads_and_writes_are_exact(device: FileDevice) -> None:
    assert device.size == 256 * 64
    assert device.pread(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    device.pwritev(5, [b"ab", bytearray(b"c"), memoryview(b"de")])
    first, second = bytearray(2), bytearray(4)
    device.preadv(4, [first, second])
    assert bytes(first + second) == b"\4abcde"
    device.flush()


def test_more_buffers_than_one_call_takes(device: FileDevice) -> None:
    pieces = [bytes([n % 251]) for n in range(3000)]
    device.pwritev(0, pieces)
    got = [bytearray(1) for _ in pieces]
    device.preadv(0, got)
    assert b"".join(got) == b"".join(pieces)


def test_short_reads_and_writes_go_on(device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_read = os.pwritev, os.preadv

    def short_write(fd: int, buffers: list[bytes], at: int) -> int:
        return real_write(fd, [memoryview(buffers[0])[:3]], at)

    def short_read(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        return real_read(fd, [memoryview(buffers[0])[:3]], at, flags)

    monkeypatch.setattr(os, "pwritev", short_write)
    device.pwritev(1, [b"hello", b"", b"wonderful", b"world"])
    monkeypatch.setattr(os, "preadv", short_read)
    first, second = bytearray(7), bytearray(12)
    device.preadv(1, [first, second])
    assert bytes(first + second) == b"hellowonderfulworld"


def test_a_write_without_progress_fails(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(IoFailed, match="at byte 7: no progress"):
        device.pwritev(7, [b"x"])


def test_reading_past_the_end_says_where_it_ends(device: FileDevice) -> None:
    with pytest.raises(IoFailed) as caught:
        device.pread(device.size - 4, 8)
    assert caught.value.message == f"{device.name} ends at byte {device.size}"
    assert caught.value.hint == "the store is truncated"


def test_not_waiting_says_which_bytes_are_missing(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def cold(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", cold)
    with pytest.raises(WouldBlock) as caught:
        device.preadv(8192, [bytearray(100)], wait=False)
    assert (caught.value.offset, caught.value.length) == (8192, 100)

    monkeypatch.setattr(os, "preadv", lambda fd, b, at, _: real(fd, [memoryview(b[0])[:60]], at))
    with pytest.raises(WouldBlock) as caught:
        device.preadv(8192, [bytearray(100)], wait=False)
    assert (caught.value.offset, caught.value.length) == (8252, 40)


def test_a_file_system_without_nowait_is_read_the_plain_way(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = os.preadv, []

    def without(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        asked.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", without)
    buffer = bytearray(4)
    device.preadv(0, [buffer], wait=False)
    device.preadv(0, [buffer], wait=False)
    assert buffer == b"\0\1\2\3"
    assert len(asked) == 3  # it is asked with the flag once only


def test_discard_makes_zeros_and_frees_space(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (1 << 20))
    device = FileDevice(str(file), writable=True)
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


def test_closing_twice_does_nothing(path: str) -> None:
    device = FileDevice(path)
    device.close()
    device.close()


def test_a_read_only_device_refuses_writes(path: str) -> None:
    device = FileDevice(path)
    with pytest.raises(ParallaxError, match="cannot write"):
        device.pwritev(0, [b"x"])
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
        (errno.EROFS, ReadOnly, "permissions"),
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


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        FileDevice(str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="is no file and no block device"):
        FileDevice(str(tmp_path))
    with pytest.raises(BadRequest, match="is no file and no block device"):
        FileDevice("/dev/null")
    with pytest.raises(BadRequest, match="Is a directory"):
        FileDevice(str(tmp_path), writable=True)


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


def test_a_second_writer_is_told_who_the_first_is(path: str) -> None:
    with held_elsewhere(path, "exclusive") as holder:
        for lock in ("exclusive", "shared"):
            with pytest.raises(InUse) as caught:
                FileDevice(path, True, lock)  # type: ignore[arg-type]
            assert caught.value.message.startswith(f"{path} is in use by ")
            assert f"(pid {holder.pid})" in caught.value.message
            assert caught.value.hint == "stop it, or wait until it is done"
        FileDevice(path).close()  # who takes no lock is not kept out
        who = lock_holder(path)
        assert who is not None
        assert who.endswith(f"(pid {holder.pid})")
        assert not who.startswith("python")  # the program, not its interpreter
        holder.communicate()
    assert lock_holder(path) is None
    FileDevice(path, True, "exclusive").close()


def test_shared_locks_share(path: str) -> None:
    first = FileDevice(path, lock="shared")
    second = FileDevice(path, lock="shared")
    with pytest.raises(InUse):
        FileDevice(path, True, "exclusive")
    first.close()
    second.close()
    FileDevice(path, True, "exclusive").close()


def test_the_holder_of_no_lock_or_no_file_is_nobody(path: str) -> None:
    assert lock_holder(path) is None
    assert lock_holder(path + ".none") is None
