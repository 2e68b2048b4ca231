"""Real Xen: a dom0 whose xl calls the block script, and domains that boot from our tap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.tap import RawClient, free_port, listens
from xen.world import SCRIPT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.xdist_group("boot"),  # it takes a whole processor
]

LIMIT = 900
IN_USE = 4
END = "# every domU has ended"
"""The line of dom0's init before which the second test puts what it wants done."""
CREATE = "xl create /tmp/u$n.cfg"
DESTROY = """
attached() { for d in /sys/block/nbd*/pid; do [ ! -e "$d" ] || echo "XENKIT $1: ${d%/pid}"; done; }
attached "in use"
xl unpause u0; sleep 2; xl destroy u0
attached "left by xl destroy"
xl create /tmp/u1.cfg && step u1 created at last
"""


def built(script: Path, folder: Path, **environment: str) -> Path:
    """Have a kit build what it boots."""
    done = subprocess.run(
        ["bash", script, folder],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{script} failed: {done.stdout}{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def root_image(xen_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a domain that counts its boots."""
    kit = xen_kit.parent / "bootkit/build.sh"
    return built(kit, tmp_path_factory.mktemp("guest")) / "root.img"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is copied over dom0's root."""
    folder = tmp_path_factory.mktemp("overlay")
    scripts = folder / "etc/xen/scripts"
    scripts.mkdir(parents=True)
    shutil.copy(SCRIPT, scripts)
    return folder


@pytest.fixture(scope="module")
def host(xen_kit: Path, overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Xen host with the block script."""
    folder = tmp_path_factory.mktemp("host")
    yield built(xen_kit / "build.sh", folder, OVERLAY=str(overlay))
    shutil.rmtree(folder)


@contextmanager
def running(command: list[str], socket: Path) -> Iterator[None]:
    """Run a server that listens on a socket, and end it in good order."""
    until = time.monotonic() + 120
    process = subprocess.Popen(command)
    try:
        while not listens(socket):
            assert time.monotonic() < until, f"{command} does not listen"
            if process.poll() is not None:
                assert process.returncode == IN_USE
                time.sleep(1)
                process = subprocess.Popen(command)
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


class Store:
    """A store with a gold image, clones of it, and a tap."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.path, self.image, self.folder = folder / "store", image, folder
        self.port = free_port()
        self.options: list[str] = []
        self.plxsh("store", "create", self.path, "--extent-size", "64M")
        self.plxsh("vdi", "create", "gold")
        self.plxsh("vdi", "fill", "gold", image)
        self.plxsh("snap", "create", "gold", "--label", "v1")
        clones = ("vm one", "two", "three")
        create = ("vdi", "create", "--from", "gold@v1")
        self.id = {clone: self.plxsh(*create, clone).strip() for clone in clones}

    def command(self, *args: object) -> list[str]:
        words = ["-s", str(self.path), *self.options, *map(str, args)]
        return [sys.executable, "-m", "plxsh", *words]

    def plxsh(self, *args: object) -> str:
        done = subprocess.run(self.command(*args), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return done.stdout

    @contextmanager
    def lock_master(self) -> Iterator[None]:
        """Have a lock master say who may write what, as among several hosts."""
        socket = self.folder / "locks"
        state = self.folder / "epoch"
        command = self.command("-q", "lock", "master", "--unix", socket, "--state", state)
        with running([*command, "--listen", f"127.0.0.1:{free_port()}"], socket):
            self.options += ["--lock-master", f"unix:{socket}"]
            yield

    @contextmanager
    def tap(self, socket: Path, *options: object) -> Iterator[None]:
        """Run a tap; a lock master may be too young still to let it begin."""
        with running(self.command("-q", "tap", "serve", "--unix", socket, *options), socket):
            yield

    def markers(self, reference: str) -> list[list[str]]:
        """What the boots of an image have left in it; its file system has to be sound."""
        image = self.folder / "exported.img"
        image.unlink(missing_ok=True)
        self.plxsh("vdi", "export", reference, image)
        subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, check=True)
        command = ["/usr/sbin/debugfs", "-R", "cat /var/lib/marker", image]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split()[:2] for line in said.splitlines()]


def boot(kit: Path, host: Path, folder: Path, *exports: str) -> tuple[int, str]:
    """Boot the host and have it create a domain for each export; returns status and log."""
    log = folder / "xen.log"
    done = subprocess.run(
        ["bash", kit / "boot.sh", *exports],
        env={**os.environ, "KIT": str(host), "TIMEOUT": str(LIMIT), "LOG": str(log)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT + 60,
    )
    return done.returncode, log.read_text(errors="replace").replace("\r", "")


@pytest.fixture
def store(root_image: Path) -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="xen") as folder:
        yield Store(Path(folder), root_image)


def test_two_domains_run_from_two_clones(
    xen_kit: Path, host: Path, store: Store, tmp_path: Path
) -> None:
    socket = store.folder / "tap"
    with store.tap(socket, "--tcp", f"127.0.0.1:{store.port}"):
        status, log = boot(
            xen_kit, host, tmp_path, f"{store.port}:vm%20one", f"{store.port}:{store.id['two']}"
        )
        assert status == 0, log
        assert "still attached" not in log
        assert store.plxsh("-o", "json", "tap", "list", "--unix", socket).count('"peer"') == 0
    assert store.markers("vm one") == [["tag=domu0", "boots=1"]]
    assert store.markers("two") == [["tag=domu1", "boots=1"]]
    for untouched in ("gold", "gold@v1", "three"):
        store.plxsh("vdi", "validate", untouched, store.image)
    store.plxsh("store", "check")


def test_one_vdi_is_not_for_two_domains(
    xen_kit: Path, overlay: Path, store: Store, tmp_path: Path
) -> None:
    init = (xen_kit / "dom0-init").read_text()
    for what, instead in ((CREATE, CREATE.replace("create", "create -p")), (END, DESTROY + END)):
        assert init.count(what) == 1
        init = init.replace(what, instead)
    (overlay / "sbin").mkdir(exist_ok=True)
    (overlay / "sbin/init").write_text(init)
    (overlay / "sbin/init").chmod(0o755)
    with ExitStack() as stack:
        stack.enter_context(store.lock_master())
        host = built(xen_kit / "build.sh", tmp_path / "host", OVERLAY=str(overlay))
        stack.enter_context(store.tap(store.folder / "tap", "--tcp", f"127.0.0.1:{store.port}"))
        stack.enter_context(store.tap(store.folder / "other"))
        stack.enter_context(RawClient(str(store.folder / "other"))).go("three")
        exports = ("two", store.id["two"], "three")
        _, log = boot(xen_kit, host, tmp_path, *(f"{store.port}:{name}" for name in exports))
        shutil.rmtree(host)
        said = "\n".join(line for line in log.splitlines() if "script:" in line or "XENKIT" in line)
        print(said)
        in_use = f"VDI '{store.id['two']}' is in use by domain 'u0' (id 1), disk xvda"
        assert f"script: {in_use}, which may write it" in said
        assert re.search(r"script: 'three': .*held by \S+, process \d+", said)
        assert re.findall("XENKIT in use: (.*)", said) == ["/sys/block/nbd0"]
        assert "left by xl destroy" not in said
        assert "u1 created at last" in said
        assert "XENKIT-OK u1" in said
        assert "still attached" not in said
        # the lock is free: who works on the store by itself can have it
        store.plxsh("-y", "vdi", "fill", "two", store.image)
