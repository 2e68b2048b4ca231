"""The modules beside a running tap, and under the lock master of several hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.tap import free_port, short_folder

from core.session import Session

pytestmark = pytest.mark.slow

Host = Any
MIB = 1 << 20
LEASE = 10  # short, so that the lock master is soon done with being quiet


@contextmanager
def service(host: Host, ready: str, *words: object) -> Iterator[None]:
    """A command of plxsh that runs until the end of the block."""
    line = [str(host.plxsh), "-v", "--store", str(host.store), *map(str, words)]
    with subprocess.Popen(line, env=host.environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for told in process.stderr:
                said.append(told)
                if ready in told:
                    break
            else:
                raise AssertionError(said)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=90)


SETTINGS = ["beside a tap", "under a lock master with a tap", "under a lock master"]


@pytest.fixture(params=SETTINGS)
def socket(stored: Host, request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """The socket of the tap, None without one; the modules work with it from now on."""
    with short_folder() as folder:
        unix = folder / "nbd.sock"
        stored.environment["PARALLAX_RUN_DIR"] = str(folder)
        stored.always["wait"] = 90
        if request.param == "beside a tap":
            with service(stored, "listening on", "tap", "serve", "--unix", unix):
                yield unix
            return
        address = f"127.0.0.1:{free_port()}"
        state = folder / "epoch"
        words = ("--listen", address, "--state", state, "--lease", LEASE)
        with service(stored, "listens on", "lock", "master", *words):
            stored.always["lock_master"] = address
            if request.param == "under a lock master":
                yield None
                return
            serve = ("--lock-master", address, "tap", "serve", "--unix", unix)
            with service(stored, "listening on", *serve):
                yield unix


def reader(unix: Path, name: str) -> subprocess.Popen[str]:
    """A client that has an export open until its standard input ends."""
    line = ["qemu-io", "-f", "raw", f"nbd+unix:///{name}?socket={unix}"]
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("write -P 7 0 8k\nflush\n")
    process.stdin.flush()
    told = process.stdout.readline()
    assert "wrote" in told, told
    return process


def test_every_module(stored: Host, socket: Path | None) -> None:
    """What changes is checked, run, run again and checked again, as without anybody beside."""
    assert stored.does("blockstore", extents=17)["store"]["extents"] == 17
    gold = stored.does("vdi", name="gold", source=str(stored.image))
    assert gold["vdi"]["intact"] is True
    stored.does("snapshot", vdi="gold", label="v1", schedule={"every": "1h", "keep": 3})
    vm = stored.does("vdi", name="vm", **{"from": "gold@v1"}, size="2M")
    assert vm["vdi"]["parent"].startswith("gold@")
    config = stored.folder / "vm.cfg"
    config.write_text("name = 'vm'\n")
    assert stored("xen_disk", path=str(config), vdev="xvda", vdi="vm")["changed"]
    assert len(stored("vdi_info")["vdis"]) == 2
    assert len(stored("snapshot_info", vdi="gold")["snapshots"]) == 2
    assert stored("blockstore_info")["blockstore"]["vdis"] == 2
    if socket is None:
        assert stored("export_info")["serving"] is False
    else:
        in_use(stored, socket)
    assert stored("vdi", name="vm", state="absent", force=True)["changed"]
    assert [vdi["name"] for vdi in stored("vdi_info")["vdis"]] == ["gold"]


def in_use(stored: Host, socket: Path) -> None:
    """What works while a machine has its disk open, and what is refused with who has it."""
    client = reader(socket, "vm")
    try:
        (connection,) = stored("export_info", socket=str(socket), vdi="vm")["connections"]
        assert connection["access"] == "w"
        stored.does("snapshot", vdi="vm", label="live")
        assert not stored("vdi", name="vm", **{"from": "gold@v1"})["changed"]
        stored.always["wait"] = 0
        for name, params in (
            ("vdi", {"name": "vm", "state": "absent", "force": True}),
            ("vdi", {"name": "vm", "source": str(stored.image), "force": True}),
            ("snapshot", {"vdi": "vm", "label": "live", "state": "rolled_back", "force": True}),
        ):
            for check in (True, False):
                told = stored(name, check=check, **params)
                assert told.get("code") == "in_use", (name, check, told)
                assert "vm" in told["msg"]
    finally:
        client.communicate("quit\n", timeout=90)
    stored.always["wait"] = 90
    told = stored("snapshot", vdi="vm", label="live", state="rolled_back")
    assert told["changed"] is False, told  # all that was written was in it


@pytest.mark.parametrize("socket", SETTINGS[:2], indirect=True)
def test_what_machines_wrote_is_in_the_snapshot_that_a_module_takes(
    stored: Host, socket: Path
) -> None:
    stored("vdi", name="vm", size="1M")
    client = reader(socket, "vm")
    try:
        assert stored("snapshot", vdi="vm", label="live")["changed"]
    finally:
        client.communicate("write -P 9 0 8k\nquit\n", timeout=90)
    assert stored("snapshot", vdi="vm", label="live", state="rolled_back", force=True)["changed"]
    raw = stored.folder / "vm.raw"
    words = [str(stored.plxsh), "-s", str(stored.store)]
    if "lock_master" in stored.always:
        words += ["--lock-master", stored.always["lock_master"]]
    line = [*words, "vdi", "export", "vm", str(raw)]
    subprocess.run(line, env=stored.environment, check=True, capture_output=True)
    assert raw.read_bytes()[:8192] == b"\x07" * 8192


@pytest.mark.parametrize("socket", SETTINGS[:1], indirect=True)
def test_a_disk_in_use_is_not_filled_again(stored: Host, socket: Path) -> None:
    """Whether the guest has written since the fill cannot be told, so it counts as if."""
    stored("vdi", name="vm", source=str(stored.image))
    (mark,) = stored("snapshot_info", vdi="vm")["snapshots"]
    other = stored.folder / "other.img"
    other.write_bytes(b"another system" * 1000)
    client = reader(socket, "vm")
    stored.always["wait"] = 0
    try:
        for check in (True, False):
            told = stored("vdi", check=check, name="vm", source=str(other))
            assert told.get("failed"), told
            assert "in use" in told["msg"]
        assert stored("snapshot_info", vdi="vm")["snapshots"] == [mark]
    finally:
        client.communicate("quit\n", timeout=90)
    for check in (True, False):
        told = stored("vdi", check=check, name="vm", source=str(other))
        assert told.get("code") == "would_lose_data", told
        assert "was written to" in told["msg"]


def test_what_a_crash_left_is_not_rolled_back_without_force(stored: Host) -> None:
    """Who takes a VDI over calls nothing its own, and yet no snapshot has what was written."""
    stored("vdi", name="vm", size="1M")
    stored("snapshot", vdi="vm", label="one")
    with Session.open(str(stored.store)) as session:
        with session.opened(session.registry.find("vm")) as vm:
            vm.write(0, b"a guest" * 1000)
        with session.opened(session.registry.find("vm")) as vm:
            vm.map.disown()
    assert stored("vdi_info", name="vm")["vdis"][0]["own"] == 0
    told = stored.fails("snapshot", vdi="vm", label="one", state="rolled_back")
    assert told["code"] == "would_lose_data"
    told = stored("snapshot", vdi="vm", label="one", state="rolled_back", force=True)
    assert not told.get("failed"), told
    assert told["changed"]
