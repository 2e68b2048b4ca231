"""A virtual machine boots from a clone over the tap, writes to it, and nothing else changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.tap import listens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("boot"),  # a guest takes a whole processor
]

BOOT_LIMIT = 480
MARKER = "/var/lib/marker"


class Store:
    """A store with the guest's image and two clones of it.

    Attributes:
        path: the store.
        socket: where its tap listens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "store"
        self.socket = folder / "socket"

    def plxsh(self, *args: object) -> str:
        """Run a command and return what it printed."""
        done = subprocess.run(
            self.command(*args), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return done.stdout

    def command(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "plxsh", "-s", str(self.path), *map(str, args)]

    @contextmanager
    def served(self) -> Iterator[None]:
        """Run a tap, and end it in good order."""
        tap = subprocess.Popen(self.command("-q", "tap", "serve", "--unix", self.socket))
        try:
            until = time.monotonic() + 60
            while not listens(self.socket):
                assert tap.poll() is None, "the tap has ended"
                assert time.monotonic() < until, "the tap does not listen"
                time.sleep(0.02)
            yield
            tap.send_signal(signal.SIGTERM)
            assert tap.wait(60) == 0
        finally:
            if tap.poll() is None:
                tap.kill()
                tap.wait()

    def exported(self, reference: str) -> Path:
        """Export an image to a file and make sure that its file system is sound."""
        image = self.folder / f"{reference}.img"
        image.unlink(missing_ok=True)
        self.plxsh("vdi", "export", reference, image)
        subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, check=True)
        return image

    def file_in(self, reference: str, name: str) -> str:
        """Return the text of a file inside an image, empty if there is none."""
        request = f"cat {name}"
        command = ["/usr/sbin/debugfs", "-R", request, self.exported(reference)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def store(guest: Path, tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.plxsh("store", "create", store.path, "--extent-size", "64M")
    store.plxsh("vdi", "create", "base")
    store.plxsh("vdi", "fill", "base", guest / "root.img")
    store.plxsh("snap", "create", "base", "--label", "fresh")
    for clone in ("one", "two"):
        store.plxsh("vdi", "create", clone, "--from", "base@fresh")
    return store


def start(kit: Path, guest: Path, store: Store, name: str, tag: str) -> subprocess.Popen[str]:
    """Boot a guest whose disk is a VDI of the store."""
    return subprocess.Popen(
        ["bash", kit / "boot.sh", f"nbd+unix:///{name}?socket={store.socket}", tag],
        env={
            **os.environ,
            "KIT": str(guest),
            "TIMEOUT": str(BOOT_LIMIT),
            "LOG": str(store.folder / f"{tag}.log"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(guest: subprocess.Popen[str], store: Store, tag: str, boots: int) -> None:
    """Wait until a guest has powered off; it must have said that all went well."""
    said, _ = guest.communicate(timeout=BOOT_LIMIT + 60)
    log = (store.folder / f"{tag}.log").read_text(errors="replace")
    assert guest.returncode == 0, f"{said}\n{log}"
    assert f"BOOTKIT-OK tag={tag} boots={boots}" in said, said


def test_two_guests_boot_from_two_clones_again_and_again(
    boot_kit: Path, guest: Path, store: Store
) -> None:
    with store.served():
        guests = {name: start(boot_kit, guest, store, name, f"{name}-a") for name in ("one", "two")}
        for name, running in guests.items():
            finish(running, store, f"{name}-a", boots=1)
    with store.served():
        finish(start(boot_kit, guest, store, "one", "one-b"), store, "one-b", boots=2)
    one, two = store.file_in("one", MARKER), store.file_in("two", MARKER)
    assert [line.split()[:2] for line in one.splitlines()] == [
        ["tag=one-a", "boots=1"],
        ["tag=one-b", "boots=2"],
    ]
    assert [line.split()[:2] for line in two.splitlines()] == [["tag=two-a", "boots=1"]]
    for untouched in ("base@fresh", "base"):
        assert store.file_in(untouched, MARKER) == ""
        store.plxsh("vdi", "validate", untouched, guest / "root.img")
    store.plxsh("store", "check")
