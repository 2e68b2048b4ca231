"""The key that a lock master makes for its user and root, and that others are kept out by it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.locks import ROOT
from support.rooted import NOBODY, SECOND_USER

from core import lock_key, mkfs
from core.errors import BadRequest, NotFound, ReadOnly
from core.lock_key import OWN_KEY, find_own_key, make_own_key


@pytest.fixture
def place(folder: Path) -> Path:
    """A folder for a key, as `make_own_key` makes it."""
    make_own_key(str(folder / "state"))
    return folder / "state"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# -- one key ---------------------------------------------------------------------------------


def test_it_is_made_once_and_found_by_whoever_looks_there(folder: Path) -> None:
    old = os.umask(0)
    try:
        key = make_own_key(str(folder / "a/b"))
    finally:
        os.umask(old)
    assert len(key) == 64
    assert mode(folder / "a/b" / OWN_KEY) == 0o600
    assert mode(folder / "a/b") == 0o755
    assert make_own_key(str(folder / "a/b")) == key
    assert find_own_key([str(folder / "none"), str(folder / "a/b")]) == key
    assert os.listdir(folder / "a/b") == [OWN_KEY]
    with pytest.raises(NotFound, match="no lock master has made one here") as caught:
        find_own_key([str(folder / "none")])
    assert "PARALLAX_LOCK_KEY" in caught.value.hint


def test_two_that_start_at_once_have_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, link = threading.Barrier(2), os.link

    def together(*paths: str) -> None:
        both.wait(60)  # neither has found one, both have written theirs
        link(*paths)

    monkeypatch.setattr("os.link", together)
    keys: list[bytes] = []
    starts = [
        threading.Thread(target=lambda: keys.append(make_own_key(str(folder)))) for _ in range(2)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert keys[0] == keys[1]
    assert os.listdir(folder) == [OWN_KEY]


def test_a_start_that_is_killed_leaves_no_half_of_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            make_own_key(str(folder))
    assert not os.listdir(folder)
    make_own_key(str(folder))


# -- traps of others -------------------------------------------------------------------------


def test_a_link_or_a_pipe_in_its_place_is_no_key(place: Path) -> None:
    path = place / OWN_KEY
    path.rename(place / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(Exception, match="symbolic links"):
        find_own_key([str(place)])
    with pytest.raises(Exception, match="symbolic links"):
        make_own_key(str(place))  # nothing is written through it either
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(BadRequest, match="no key that this user has made"):
        find_own_key([str(place)])


def test_what_others_can_read_or_replace_is_no_key(place: Path) -> None:
    path = place / OWN_KEY
    path.chmod(0o640)
    with pytest.raises(BadRequest, match="others may read the key"):
        find_own_key([str(place)])
    path.chmod(0o600)
    for wrong in (0o777, 0o1777, 0o775):
        place.chmod(wrong)
        with pytest.raises(BadRequest, match="others may replace the key"):
            find_own_key([str(place)])
    path.unlink()
    with pytest.raises(BadRequest, match="others may replace the key"):
        make_own_key(str(place))
    assert not os.listdir(place)


def test_only_what_is_ours_or_roots_is_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user, owner, trusted in (
        (1000, 1000, True),
        (1000, 0, True),
        (1000, 1001, False),
        (0, 1001, True),
    ):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        assert lock_key._is_trusted(owner) is trusted
    monkeypatch.setattr(lock_key, "_is_trusted", lambda _uid: False)
    with pytest.raises(BadRequest, match="no key that this user has made"):
        find_own_key([str(place)])


def test_who_may_not_read_it_is_told_whose_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refused)
        patch.setattr(lock_key, "_owner", lambda _path: "carol or root")
        with pytest.raises(ReadOnly, match=r"cannot read its key .*: Permission denied") as caught:
            find_own_key([str(place)])
    assert caught.value.hint.startswith("run this as carol or root, or name its key with ")


# -- another user of the same host -----------------------------------------------------------

# The interpreter may be in somebody's home, so all is imported before another user goes on.
PROGRAM = """
import importlib, json, os, pkgutil, socket, sys
import core, plxsh
for package in (core, plxsh):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
from plxsh.__main__ import main
import encodings.idna, rich.table, tomllib, websockets, yaml
user = int(sys.argv.pop(1))
if user:
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
"""
COMMAND = PROGRAM + "sys.argv[0] = 'plxsh'; main()"
CONNECT = (
    PROGRAM
    + """
from core.errors import ParallaxError
from core.lock_connection import LockConnection
said = {}
for address, key in json.loads(sys.argv[1]):
    try:
        locks = LockConnection(address, "hostile", key=key.encode if key else None)
        said[address] = str(locks.acquire("gc", wait=60.0).token)
    except ParallaxError as error:
        said[address] = error.message
print(json.dumps(said))
"""
)


def run(user: int, program: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(user), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/", "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextmanager
def serving(shows: str, *words: str, **variables: str) -> Iterator[str]:
    """Run a command that serves as this user, and yield the line in which it says so."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "0", "-v", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            yield next(line for line in server.stderr if line.startswith(shows))
        finally:
            server.terminate()
            server.communicate()


@pytest.mark.slow
@SECOND_USER
def test_another_user_of_the_host_is_kept_out_of_a_lock_master(folder: Path) -> None:
    """Who is let in could take `gc` and have every session free what is not garbage."""
    folder.chmod(0o755)
    state, unix, own = folder / "state", str(folder / "locks"), folder / "nobody"
    words = ("lock", "master", "--listen", "127.0.0.1:0", "--unix", unix, "--lease", "1")
    with serving("serving locks", *words, PARALLAX_STATE_DIR=str(state)) as shown:
        address = "127.0.0.1:" + shown.partition(" port ")[2].split()[0]
        listing = ("--lock-master", address, "-o", "json", "lock", "list")

        ours = run(0, COMMAND, *listing, PARALLAX_STATE_DIR=str(state))
        assert json.loads(ours.stdout)["locks"] == [], ours.stderr

        theirs = run(NOBODY, COMMAND, *listing[:2], "lock", "list", PARALLAX_STATE_DIR=str(state))
        assert theirs.returncode == 5
        assert f"{address} cannot be used: cannot read its key {state / OWN_KEY}" in theirs.stderr
        assert "(run this as root, or name its key with PARALLAX_LOCK_KEY" in theirs.stderr
        assert theirs.stderr.count("\n") == 1

        own.mkdir()
        make_own_key(str(own))
        os.chown(own, NOBODY, NOBODY)
        os.chown(own / OWN_KEY, NOBODY, NOBODY)
        theirs = run(NOBODY, COMMAND, *listing[:2], "lock", "list", PARALLAX_STATE_DIR=str(own))
        assert theirs.returncode == 5
        assert "does not have the key of this lock master" in theirs.stderr

        tried = json.dumps([(address, ""), (address, "x" * 64), (f"unix:{unix}", "")])
        said = json.loads(run(NOBODY, CONNECT, tried).stdout)
        assert "Permission denied" in said.pop(f"unix:{unix}")
        assert "does not have the key" in said.pop(address)
        tried = json.dumps([(address, "")])
        assert "wants a shared key" in run(NOBODY, CONNECT, tried).stdout
        tried = json.dumps([(address, make_own_key(str(state)).decode())])
        assert json.loads(run(0, CONNECT, tried).stdout)[address].isdecimal()


@pytest.mark.slow
@SECOND_USER
def test_another_user_of_the_host_is_kept_out_of_every_socket(folder: Path) -> None:
    folder.chmod(0o755)
    store, sockets = folder / "store", folder / "run"
    mkfs.create(str(store), 1 << 20, 6)
    words = ("--store", str(store), "tap", "serve")
    with serving("serving", *words, PARALLAX_RUN_DIR=str(sockets)):
        found = [path for path in sockets.iterdir() if path.is_socket()]
        assert sorted(path.suffix for path in found) == [".locks", ".sock", ".status"]
        assert {mode(path) for path in found} == {0o600}
        assert not mode(sockets) & 0o022
        for path in found:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
        code = PROGRAM + (
            "for path in sys.argv[1:]:\n    print(socket.socket(socket.AF_UNIX).connect_ex(path))\n"
        )
        tried: Any = run(NOBODY, code, *map(str, found))
        assert tried.stdout.split() == ["13"] * 3, tried.stderr
