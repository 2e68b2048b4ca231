"""Clients that others wrote: what they expect of a server, they find.

Each test starts the programs it names; a program that is missing makes it fail.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.stores import noise, small_store
from support.tap import CONTENTS, MIB, TapProcess, both_caches, contents_of, tap_process

from core.session import Session

pytestmark = pytest.mark.slow

SIZE = 16 * MIB


def run(*command: str, status: int = 0) -> str:
    """Run a program; its standard output. Its exit status has to be `status`."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sparse_image(path: Path) -> bytes:
    """An image with data, holes and an odd size."""
    data = noise(MIB, "a") + bytes(3 * MIB) + noise(100_000, "b") + bytes(5 * MIB) + b"end"
    path.write_bytes(data)
    run("fallocate", "--dig-holes", str(path))
    return data


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """`golden` as an image file."""
    path = tmp_path / "golden.img"
    path.write_bytes(CONTENTS)
    return path


# -- nbdinfo, nbdcopy ------------------------------------------------------------------


def test_nbdinfo_maps_tebibytes_of_holes(store: str) -> None:
    half = 10 << 40
    with (
        Session.open(store) as session,
        session.opened(session.create("huge", 2 * half)) as vdi,
    ):
        vdi.write(half, noise(MIB, "middle"))
    with tap_process(store) as tap:
        parts = json.loads(run("nbdinfo", "--json", "--map", tap.uri("huge")))
    found = [(part["offset"], part["length"], part["type"]) for part in parts]
    assert found == [(0, half, 3), (half, MIB, 0), (half + MIB, half - MIB, 3)]


def test_nbdinfo(server: TapProcess) -> None:
    [export] = json.loads(run("nbdinfo", "--json", server.uri("golden")))["exports"]
    assert export["export-size"] == len(CONTENTS)
    assert export["export-name"] == "golden"
    assert re.fullmatch(
        "VDI 0, UUID [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}, snapshots: 1", export["description"]
    )
    assert export["contexts"] == ["base:allocation"]
    able = {name for name, value in export.items() if value is True}
    assert able == {
        f"can_{word}"
        for word in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    }


def test_nbdinfo_of_a_snapshot(server: TapProcess) -> None:
    [export] = json.loads(run("nbdinfo", "--json", server.uri("golden@base")))["exports"]
    assert export["is_read_only"] is True


def test_nbdinfo_map(server: TapProcess) -> None:
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri("golden")))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, MIB, 0),
        (MIB, MIB, 3),
        (2 * MIB, MIB, 0),
    ]


def test_nbdinfo_list(server: TapProcess) -> None:
    exports = json.loads(run("nbdinfo", "--list", "--json", server.uri("")))["exports"]
    assert [e["export-name"] for e in exports] == ["golden", "clone", "empty", "golden@base"]


@both_caches
def test_nbdcopy_out(server: TapProcess, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    run("nbdcopy", server.uri("golden"), str(copy))
    assert copy.read_bytes() == CONTENTS


@both_caches
def test_nbdcopy_in(server: TapProcess, tmp_path: Path, store: str) -> None:
    data = sparse_image(tmp_path / "image")
    run("nbdcopy", "--flush", str(tmp_path / "image"), server.uri("empty"), status=1)  # too large
    run("truncate", "--size", str(8 * MIB), str(tmp_path / "image"))
    run("nbdcopy", "--flush", str(tmp_path / "image"), server.uri("empty"))
    assert contents_of(store, "empty") == data[: 8 * MIB]


# -- qemu ------------------------------------------------------------------------------


def test_qemu_img_convert_out(server: TapProcess, tmp_path: Path, image: Path) -> None:
    copy = str(tmp_path / "copy.qcow2")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri("golden"), copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(image), copy)


def test_qemu_img_convert_in(server: TapProcess, tmp_path: Path, store: str) -> None:
    data = sparse_image(tmp_path / "image")[: 8 * MIB]
    run("truncate", "--size", str(8 * MIB), str(tmp_path / "image"))
    target = server.uri("empty")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(tmp_path / "image"), target)
    assert server.stop() == 0
    assert contents_of(store, "empty") == data


def test_qemu_img_compare(server: TapProcess, image: Path) -> None:
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri("golden@base"), str(image))
    run(
        *("qemu-img", "compare", "-f", "raw", "-F", "raw"),
        *(server.uri("empty"), str(image)),
        status=1,
    )


def test_qemu_img_map(server: TapProcess) -> None:
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri("golden")))
    assert [(e["start"], e["length"], e["data"]) for e in extents] == [
        (0, MIB, True),
        (MIB, MIB, False),
        (2 * MIB, MIB, True),
    ]


@both_caches
def test_qemu_io(server: TapProcess, store: str) -> None:
    commands = (
        "write -P 0x55 4096 8192",
        "write -f -P 0x66 12288 4096",
        "write -z 65536 65536",
        "write -z -u 262144 65536",
        "discard 524288 65536",
        "read -P 0x55 4096 8192",
        "read -P 0 65536 65536",
        "flush",
    )
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", "-f", "raw", *words, server.uri("clone"))
    assert "failed" not in said
    now = contents_of(store, "clone")
    assert now[4096:16384] == b"\x55" * 8192 + b"\x66" * 4096
    assert now[65536:131072] == now[524288:589824] == bytes(65536)


def test_two_qemu_io_on_two_vdis_at_once(server: TapProcess, store: str) -> None:
    running = [
        subprocess.Popen(
            [
                "qemu-io",
                "-f",
                "raw",
                "-c",
                f"write -P {byte} 0 2M",
                "-c",
                "flush",
                server.uri(name),
            ],
            stdout=subprocess.DEVNULL,
        )
        for byte, name in ((1, "clone"), (2, "empty"))
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert contents_of(store, "clone")[: 2 * MIB] == b"\1" * 2 * MIB
    assert contents_of(store, "empty")[: 2 * MIB] == b"\2" * 2 * MIB


# -- fio -------------------------------------------------------------------------------


@both_caches
@pytest.mark.parametrize("sizes", ["4k", "512-200k"])
def test_fio_verifies_what_it_wrote(server: TapProcess, sizes: str, tmp_path: Path) -> None:
    said = run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri('empty')}"),
        *("--rw=randwrite", f"--bsrange={sizes}" if "-" in sizes else f"--bs={sizes}"),
        *("--blockalign=512", "--size=8m", "--iodepth=16", "--verify=crc32c", "--fsync=64"),
        *("--verify_fatal=1", "--randseed=1", f"--aux-path={tmp_path}"),
    )
    assert "err= 0" in said


# -- libnbd ----------------------------------------------------------------------------


def libnbd(server: TapProcess, export: str, script: str, setup: str = "") -> None:
    """Run lines of Python against `h`, a connected handle of libnbd's own binding."""
    lines = (
        "import nbd",
        f"uri = {server.uri(export)!r}",
        "def connect():",
        "    h = nbd.NBD()",
        "    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)",
        "    h.connect_uri(uri)",
        "    return h",
        setup,
        "h = connect()",
        script,
        "h.shutdown()",
    )
    run("/usr/bin/python3", "-c", "\n".join(lines))


def test_libnbd_agrees_on_structured_replies(server: TapProcess) -> None:
    libnbd(server, "golden", "assert h.get_structured_replies_negotiated()")


def test_libnbd_reads_in_strict_mode(server: TapProcess) -> None:
    libnbd(
        server,
        "golden",
        "found = []\n"
        "h.pread_structured(3 << 20, 0, lambda part, at, kind, e: found.append((at, kind)))\n"
        "assert found == [(0, nbd.READ_DATA), (1 << 20, nbd.READ_HOLE), (2 << 20, nbd.READ_DATA)]",
    )


@both_caches
def test_libnbd_writes_on_several_connections(server: TapProcess, store: str) -> None:
    libnbd(
        server,
        "clone",
        "assert h.can_multi_conn()\n"
        "others = [connect() for _ in range(4)]\n"
        "for n, other in enumerate(others):\n"
        "    other.pwrite(bytes([n + 1]) * 65536, n * 65536)\n"
        "h.flush()\n",
    )
    expected = b"".join(bytes([n + 1]) * 65536 for n in range(4))
    assert contents_of(store, "clone")[: len(expected)] == expected


def test_libnbd_trims_and_zeroes(server: TapProcess) -> None:
    libnbd(
        server,
        "clone",
        "h.trim(65536, 0, nbd.CMD_FLAG_FUA)\n"
        "h.zero(65536, 65536, nbd.CMD_FLAG_FAST_ZERO)\n"
        "h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE)\n"
        "assert h.pread(196608, 0) == bytearray(196608)\n"
        "found = []\n"
        "h.block_status(262144, 0, lambda name, at, extents, e: found.extend(extents))\n"
        "assert found == [131072, 3, 131072, 0], found",
    )


@both_caches
def test_libnbd_reads_many_at_once(server: TapProcess) -> None:
    libnbd(
        server,
        "golden",
        "whole = h.pread(3 << 20, 0)\n"
        "parts = [(n, nbd.Buffer(4096)) for n in range(256)]\n"
        "cookies = [h.aio_pread(part, n * 4096) for n, part in parts]\n"
        "while not all(h.aio_command_completed(c) for c in cookies[-1:]):\n"
        "    h.poll(-1)\n"
        "while h.aio_in_flight():\n"
        "    h.poll(-1)\n"
        "for n, part in parts:\n"
        "    assert part.to_bytearray() == whole[n * 4096:(n + 1) * 4096]",
    )


def test_libnbd_is_told_of_errors(server: TapProcess) -> None:
    libnbd(
        server,
        "golden@base",
        "h.set_strict_mode(0)\n"
        "for attempt, expected in (\n"
        "    (lambda: h.pwrite(b'x', 0), 'EPERM'),\n"
        "    (lambda: h.pread(1, 3 << 20), 'EINVAL'),\n"
        "):\n"
        "    try:\n"
        "        attempt()\n"
        "    except nbd.Error as error:\n"
        "        assert error.errno == expected, error.errno\n"
        "    else:\n"
        "        raise AssertionError('no error')",
    )


# -- a file system ---------------------------------------------------------------------


def test_a_file_system_on_a_clone(tmp_path: Path) -> None:
    store = small_store(tmp_path, 8192)
    with Session.open(store) as session:
        session.create("base", SIZE)
        session.snapshot(session.registry.find("base"), "blank")
        session.create("disk", parent=session.find_snapshot("base@blank"))
    files = tmp_path / "files"
    files.mkdir()
    (files / "large").write_bytes(noise(3 * MIB))
    (files / "small").write_text("hello")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    run("mke2fs", "-q", "-t", "ext4", "-d", str(files), first, f"{SIZE // 1024}k")
    with tap_process(store) as tap:
        run("nbdcopy", "--flush", first, tap.uri("disk"))
        run("nbdcopy", tap.uri("disk"), second)
        assert "hello" in run("debugfs", "-R", "cat /small", second)
        run("debugfs", "-w", "-R", f"write {files / 'small'} more", second)
        run("nbdcopy", "--flush", second, tap.uri("disk"))
        run("nbdcopy", tap.uri("disk"), first)
    run("e2fsck", "-fn", first)
    assert "hello" in run("debugfs", "-R", "cat /more", first)
    assert contents_of(store, "base") == bytes(SIZE)
