"""What is found in a file or on a disk before it is formatted, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core import contents
from core.contents import Found, find
from core.device import FileDevice

MIB = 1 << 20
SIZE = 4096 * MIB + 512

AT_THE_START = [
    *(sector << 9 for sector in range(16)),
    *(kib << 10 for kib in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
    *(0x4000 << n for n in range(9)),
    0x1FFD8, 0x10034, 0x10040, 0x8001, 0x4000040,
]  # fmt: skip
"""Where libblkid looks for something, bytes."""
AT_THE_END = [
    *(sectors << 9 for sectors in (1, 2, 11, 16, 63, 257, 399, 591, 675, 735, 951, 991, 3087)),
    *(kib << 10 for kib in (4, 8, 64, 128, 256, 512, 1024)),
]
"""The same, counted from the end."""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileDevice]:
    """A disk of 4 GiB, which tells nothing of holes."""
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    device = FileDevice(str(path), True)
    device.is_disk = True
    monkeypatch.setattr(device, "taken", lambda *_: None)
    yield device
    device.close()


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_SAMPLES", 16)


def write(device: FileDevice, at: int, data: bytes) -> None:
    with open(device.name, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("at", [*AT_THE_START, *(SIZE - at for at in AT_THE_END)])
def test_a_byte_where_there_may_be_a_label_is_found_on_a_disk(disk: FileDevice, at: int) -> None:
    write(disk, at, b"\x07")
    if at == 0x4000040:  # too far inside for more than a name
        write(disk, at, b"_BHRfS_M")
        assert find(disk) == Found("a btrfs file system", at)
    else:
        assert find(disk) == Found("data", at)


@pytest.mark.parametrize("at", [100 * MIB, 2222 * MIB])
def test_data_in_the_middle_of_a_disk_is_found_by_samples(disk: FileDevice, at: int) -> None:
    write(disk, at, b"\x07" * 5 * MIB)
    found = find(disk)
    assert found is not None
    assert at <= found.at < at + 5 * MIB


def test_a_disk_is_not_read_as_a_whole(disk: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = disk.pread

    def pread(offset: int, length: int) -> bytes:
        read.append(length)
        return real(offset, length)

    monkeypatch.setattr(disk, "pread", pread)
    told: list[tuple[int, int | None]] = []
    assert find(disk, lambda done, total: told.append((done, total))) is None
    assert sum(read) < 100 * MIB
    assert told[-1] == (96 * MIB >> 12, 96 * MIB >> 12)


def test_every_byte_of_a_small_disk_is_read(disk: FileDevice) -> None:
    disk.size = 90 * MIB
    write(disk, 33 * MIB + 77, b"\x07")
    assert find(disk) == Found("data", 33 * MIB + 77)


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("label", contents._LABELS)
def test_what_tells_what_it_is_is_called_that(disk: FileDevice, label: contents._Label) -> None:
    at = label.place(SIZE)
    write(disk, at, label.magic)
    assert find(disk) == Found(label.what, at)


def test_any_byte_of_a_file_is_found_and_holes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        file.seek(300 << 30)
        file.write(bytes(3 * MIB))
        file.seek((700 << 30) + 99)
        file.write(b"\x07")
    device = FileDevice(str(path))
    read: list[int] = []
    real = device.pread

    def pread(offset: int, length: int) -> bytes:
        read.append(length)
        return real(offset, length)

    monkeypatch.setattr(device, "pread", pread)
    assert find(device) == Found("data", (700 << 30) + 99)
    assert sum(read) < 5 * MIB
    device.close()
