"""Stores on block devices: loop devices, as the system makes them, mounts them and swaps to them.

What the system does not offer to a process that is not root is tried by root only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shell.conftest import Plx, Result
from support.rooted import SIMULATED_HOSTS

pytestmark = [pytest.mark.slow, SIMULATED_HOSTS]

MIB = 1 << 20
CREATE = ("-y", "store", "create", "--extent-size", "1M", "--force")


def system(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def loop(file: Path, *options: str) -> Iterator[str]:
    with open(file, "ab") as image:
        image.truncate(max(64 * MIB, image.tell()))
    device = system("losetup", "--find", "--show", *options, file)
    try:
        yield device
    finally:
        system("losetup", "--detach", device)


@contextmanager
def mounted(what: str, where: Path, *options: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    system("mount", *options, what, where)
    try:
        yield
    finally:
        system("umount", where)


def sound(plx: Plx, device: str) -> Result:
    done = plx("-s", device, "store", "check")
    assert done.out.endswith(": sound\n")
    return done


@pytest.mark.parametrize("cache", ["host", "none"])
def test_a_device_without_a_way_to_discard_is_written_with_zeros(
    plx: Plx, tmp_path: Path, cache: str
) -> None:
    with mounted("ramfs", tmp_path / "ram", "-t", "ramfs"):
        (tmp_path / "ram" / "file").write_bytes(b"old" * MIB)
        with loop(tmp_path / "ram" / "file") as device:
            assert "already holds data, at byte 0 " in plx.fails(2, *CREATE[1:-1], device)
            done = plx("--cache", cache, "-o", "json", *CREATE, device)
            progress = json.loads(done.err.splitlines()[-1])["progress"]
            assert (progress["what"], progress["done"]) == ("clear", 64 * MIB)
            assert (tmp_path / "ram" / "file").read_bytes()[7 * MIB :] == bytes(57 * MIB)
            plx("-s", device, "vdi", "create", "a", "--size", "1M")
            (tmp_path / "image").write_bytes(b"x" * MIB)
            plx("-s", device, "vdi", "fill", "a", str(tmp_path / "image"))
            plx("-y", "-s", device, "vdi", "delete", "a")
            assert "cannot be given back" in plx("-y", "-s", device, "store", "gc").err
            sound(plx, device)


def test_a_device_that_the_system_uses_is_left_alone(plx: Plx, tmp_path: Path) -> None:
    with loop(tmp_path / "disk") as device:
        system("mke2fs", "-q", "-F", device)
        where = tmp_path / "a b"
        with mounted(device, where):
            (where / "file").write_text("mine")
            told = f"{device} is in use: mounted on {where} "
            for words in (CREATE, ("-n", *CREATE), CREATE[1:-1], ("--cache", "none", *CREATE)):
                assert told in plx.fails(4, *words, device)
            original = [Path(sys.executable).parent / "parallax-mkfs", device, "1M", "6"]
            assert told in subprocess.run(original, capture_output=True, text=True).stderr
            assert (where / "file").read_text() == "mine"
        assert system("e2fsck", "-fn", device)
        system("mkswap", device)
        system("swapon", device)
        try:
            assert "is in use: used as swap space" in plx.fails(4, *CREATE, device)
        finally:
            system("swapoff", device)
        assert "already holds swap space, at byte 4086" in plx.fails(2, *CREATE[1:-1], device)


def test_the_system_leaves_a_device_alone_that_holds_an_open_store(
    plx: Plx, tmp_path: Path
) -> None:
    from core.session import Session

    with loop(tmp_path / "disk") as device:
        plx(*CREATE, device)
        with Session.open(device):
            done = subprocess.run(["mke2fs", "-F", device], capture_output=True, text=True)
            assert "in use by the system" in done.stderr
            assert "(pid " in plx.fails(4, "-s", device, "vdi", "create", "x")
        sound(plx, device)


def test_a_device_that_is_read_only_or_too_small(plx: Plx, tmp_path: Path) -> None:
    with loop(tmp_path / "disk") as device:
        assert "has 67108864 bytes, the store needs" in plx.fails(6, "store", "create", device)
        plx(*CREATE, device)
        for dry in ((), ("-n",)):
            line = plx.fails(6, *dry, "-s", device, "store", "grow", "--extents", "99")
            assert "has 67108864 bytes, the store needs 103809024 " in line
        plx("-s", device, "store", "grow", "--extents", "9")
        sound(plx, device)
    with loop(tmp_path / "disk", "--read-only") as device:
        assert "is a read-only device" in plx.fails(4, *CREATE, device)
        assert "is a read-only device" in plx.fails(4, "-s", device, "vdi", "create", "x")
        sound(plx, device)


@pytest.mark.parametrize("cache", ["host", "none"])
def test_a_device_with_sectors_of_4_kib(plx: Plx, tmp_path: Path, cache: str) -> None:
    (tmp_path / "image").write_bytes(b"data" * 100000)
    with loop(tmp_path / "disk", "--sector-size", "4096") as device:
        options = ("--cache", cache, "-s", device)
        plx("--cache", cache, *CREATE, device)
        plx(*options, "vdi", "create", "a", "--size", "400000")
        plx(*options, "vdi", "fill", "a", "image")
        plx(*options, "store", "grow", "--extents", "8")
        plx(*options, "store", "gc")
        plx(*options, "vdi", "validate", "a", "image")
        sound(plx, device)


def test_what_others_have_put_on_a_device_is_called_by_its_name(plx: Plx, tmp_path: Path) -> None:
    with loop(tmp_path / "disk") as device:
        for program, name in (
            (("mke2fs", "-q", "-F", device), "an ext2, ext3 or ext4 file system"),
            (("mkswap", device), "swap space"),
        ):
            system(*program)
            assert f"already holds {name}, at byte" in plx.fails(2, *CREATE[1:-1], device)
            system("wipefs", "-a", device)
