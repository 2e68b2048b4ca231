from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.locks import KEY, SHORT, service

from core import lock_connection
from core.lock_connection import LockConnection
from core.lock_service import LockService
from core.lock_timing import Timing


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock master that is only slow is waited for."""
    monkeypatch.setattr(lock_connection, "FIRST", 60.0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="plx", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def unix(folder: Path) -> str:
    return str(folder / "locks")


@pytest.fixture
def timing() -> Timing:
    return SHORT


@pytest.fixture
def master(unix: str, timing: Timing) -> Iterator[LockService]:
    """A lock master on a Unix socket and, with KEY, on TCP."""
    listen = ("127.0.0.1", 0)
    with service(unix, listen, store="5e" * 16, purpose="tap", timing=timing) as found:
        yield found


@pytest.fixture
def port(master: LockService) -> int:
    found: int = master.addresses[0][1]
    return found


Join = Callable[..., LockConnection]


@pytest.fixture
def join(unix: str) -> Iterator[Join]:
    """Makes sessions, by default over the Unix socket, with KEY over TCP, and ends them."""
    with ExitStack() as stack:

        def make(address: str = "", purpose: str = "test", **options: Any) -> LockConnection:
            if "tls" not in options:
                options.setdefault("key", lambda: KEY)  # not used on a Unix socket
            locks = LockConnection(address or f"unix:{unix}", purpose, **options)
            stack.callback(locks.close)
            return locks

        yield make
