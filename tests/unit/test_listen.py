"""Unix sockets: paths that are too long for the kernel, and what is there already."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from core.errors import BadRequest, InUse, NotFound
from core.listen import MOST_SOCKET_PATH, check_socket_path, listen_unix, short_path
from core.tap.status import query_status


def deep(folder: Path) -> Path:
    """A folder whose path is too long for a socket."""
    path = folder / ("d" * 100) / ("e" * 100)
    path.mkdir(parents=True)
    return path


def test_the_limit_is_that_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("n" * MOST_SOCKET_PATH)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind("m" * (MOST_SOCKET_PATH + 1))
    check_socket_path("n" * MOST_SOCKET_PATH)
    wanted = "a socket path has at most 107 bytes, .* has 108"
    with pytest.raises(BadRequest, match=wanted):
        check_socket_path("ü" * 54)


def test_a_long_path_is_reached_by_a_short_one(tmp_path: Path) -> None:
    path = str(deep(tmp_path) / "x.sock")
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        with short_path(path) as short:
            client.connect(short)
        with pytest.raises(InUse, match=f"listens on {re.escape(path)} already"):
            listen_unix(path)
    listen_unix(path).close()  # in place of what was left behind
    assert os.path.exists(path)


def test_errors_name_the_path_that_was_given(tmp_path: Path) -> None:
    folder = deep(tmp_path)
    (folder / "file").touch()
    with pytest.raises(BadRequest, match=f"{folder}/file exists and is no socket"):
        listen_unix(str(folder / "file"))
    with pytest.raises(NotFound, match=f"cannot listen on {folder}/none/x: No such"):
        listen_unix(str(folder / "none" / "x"))
    name = "n" * 200
    with pytest.raises(BadRequest, match=f"at most 107 bytes, {folder}/{name} has"):
        listen_unix(str(folder / name))
    with pytest.raises(BadRequest, match=f"at most 100 bytes, {folder}/x.sock has"):
        query_status(str(folder / "x.sock"))
