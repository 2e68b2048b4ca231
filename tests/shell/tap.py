"""A running `plxsh tap serve`, and the smallest client that opens an export."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LEASE, QUIET = 12.0, 22.0
"""Seconds of a lease that a machine may stand still in, and until a new lock master grants any."""

# As a user who is not root, so that the default socket is in a folder of the test.
PROGRAM = (
    "import os, sys; os.geteuid = lambda: 1000; sys.argv[0] = 'plxsh';"
    "from plxsh.__main__ import main; main()"
)


def as_user(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def serving(*words: str, environment: dict[str, str]) -> Iterator[str]:
    """Run a command that serves until it is told to stop; yield its folder for sockets."""
    with _started(*words, environment=environment) as (folder, _):
        yield folder


@contextmanager
def lock_master(*words: str) -> Iterator[str]:
    """Run a lock master on a port that is free, and yield its address."""
    words = ("lock", "master", "--listen", "127.0.0.1:0", *words)
    with _started(*words, environment=environment()) as (_, shown):
        where = re.fullmatch(r"serving locks on (.+) port (\d+); Ctrl-C ends it\n", shown)
        assert where, shown
        yield ":".join(where.groups())


@contextmanager
def held_port() -> Iterator[int]:
    """A TCP port where nobody listens and that is given to nobody who takes any free one.

    Who asks for it, and may use addresses again, can listen there meanwhile.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def _started(*words: str, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Run a command that serves; yield its folder for sockets, and what it says when it does."""
    folder = environment["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="plx")
    environment["PARALLAX_RUN_DIR"] = os.path.join(folder, "parallax")
    try:
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "-v", *words],
            env=environment,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stderr is not None
            shown = server.stderr.readline()
            while shown and not shown.startswith("serving "):  # the log comes first
                shown = server.stderr.readline()
            assert shown, server.wait()
            try:
                yield folder, shown
            finally:
                server.send_signal(signal.SIGTERM)
                status = server.wait()
            assert status == 0, server.stderr.read()
    finally:
        shutil.rmtree(folder)


def connect(path: str, export: str) -> socket.socket:
    """Open an export with NBD's oldest option; closing the socket lets it go."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    name = export.encode()
    _exactly(sock, 18)
    sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
    _exactly(sock, 10)
    return sock


def read(sock: socket.socket, offset: int, length: int) -> bytes:
    sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, offset, length))
    assert _exactly(sock, 16)[4:8] == bytes(4)
    return _exactly(sock, length)


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        assert part, data
        data += part
    return data


def environment() -> dict[str, str]:
    return dict(os.environ)
