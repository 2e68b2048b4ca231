"""Start the servers that are compared and end them, each by its process id."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLXSH: Final = (sys.executable, "-m", "plxsh")
_START: Final = 30.0
_STOP: Final = 60.0


@dataclass(frozen=True)
class Server:
    """An NBD server that is running.

    `file` is where its data is, `socket` the Unix socket it listens on.
    """

    pid: int
    socket: Path
    file: Path

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"


@contextmanager
def tap(store: Path, cache: str = "host") -> Iterator[Server]:
    """Serve the VDIs of a store with this project; `cache` is host or none."""
    with _socket("tap") as path:
        command = [*PLXSH, "-s", str(store), "--cache", cache]
        command += ["tap", "serve", "--unix", str(path)]
        with _serving(command, path, store) as server:
            yield server


@contextmanager
def qemu_nbd(image: Path, image_format: str, cache: str = "writeback") -> Iterator[Server]:
    """Serve one image with qemu-nbd; aio is left at its default, threads."""
    with _socket("qemu") as path:
        command = ["qemu-nbd", "-f", image_format, "-k", str(path), "-t", "-e", "16"]
        command += [f"--cache={cache}", str(image)]
        with _serving(command, path, image) as server:
            yield server


@contextmanager
def nbdkit(image: Path) -> Iterator[Server]:
    """Serve one raw image with nbdkit's file plugin."""
    with _socket("nbdkit") as path:
        command = ["nbdkit", "-f", "-U", str(path), "file", str(image)]
        with _serving(command, path, image) as server:
            yield server


@contextmanager
def _socket(name: str) -> Iterator[Path]:
    """Yield a short path for a socket: a long one does not fit into an address."""
    with tempfile.TemporaryDirectory(prefix="plxbench") as folder:
        yield Path(folder, name)


@contextmanager
def _serving(command: list[str], path: Path, file: Path) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_for(path, process)
            yield Server(process.pid, path, file)
            process.terminate()
            process.wait(_STOP)
        except BaseException as error:
            log.seek(0)
            error.add_note(f"{' '.join(command)}: {log.read().strip()}")
            raise
        finally:
            process.kill()  # nothing happens if it has ended
            process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(path))
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
            else:
                return
        time.sleep(0.02)
