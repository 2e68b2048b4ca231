"""The state of a store in a few numbers, read where nobody waits for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from shell.many import store_of_clones
from support.shell import populated

from core.session import Session
from plxsh.names import Names
from plxsh.overview import Overview, Overviews, overview

NOWHERE = "/nonexistent/nbd.sock"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return populated(tmp_path)


@pytest.fixture(autouse=True)
def patience_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, all names are counted."""
    monkeypatch.setattr("plxsh.overview._NAMES_TIMEOUT", 60.0)


@pytest.fixture
def tap() -> Iterator[tuple[str, list[bytes]]]:
    """A socket whose status is the last document of a list."""
    folder = tempfile.mkdtemp(prefix="plx")
    answers: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/nbd.sock.status")
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answers[-1])

        server = threading.Thread(target=serve)
        server.start()
        yield f"{folder}/nbd.sock", answers
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    shutil.rmtree(folder)


def document(store: str, *exports: int) -> bytes:
    """What a tap tells that has these VDIs open."""
    told = [
        {"id": number, "name": f"{number}", "snapshot": None, "read_only": False, "connections": []}
        for number in exports
    ]
    return json.dumps({"store": store, "exports": told}).encode()


def test_space_and_vdis(path: str) -> None:
    found = overview(Names(path, 60), NOWHERE)
    assert found.total == 5 << 20
    assert 8192 < found.used < 1 << 20
    assert (found.vdis, found.holder, found.trouble) == (4, None, "")
    assert found.exports is None


def test_all_vdis_are_counted_however_many(tmp_path: Path) -> None:
    many = tmp_path / "many.dat"
    store_of_clones(many, 1000)
    assert overview(Names(str(many), 0.0), NOWHERE).vdis == 1001


def test_who_writes(path: str) -> None:
    names = Names(path, 60)
    with Session.open(path):
        holder = overview(names, NOWHERE).holder
    assert holder is not None
    assert f"pid {os.getpid()}" in holder


def test_what_is_open(path: str, tap: tuple[str, list[bytes]]) -> None:
    where, answers = tap
    names = Names(path, 60)
    answers.append(document(path, 0, 2))
    found = overview(names, where)
    assert found.exports == 2
    assert names.opened == {0, 2}
    answers.append(document("/another/store", 0, 2))
    assert overview(names, where).exports is None
    answers.append(b"nonsense")
    assert overview(names, where).exports is None


def test_trouble_in_few_words(tmp_path: Path, path: str) -> None:
    def trouble(name: str) -> str:
        return overview(Names(name, 60), NOWHERE).trouble

    assert trouble(str(tmp_path / "nothing")) == "no store there"
    junk = tmp_path / "junk"
    junk.write_bytes(os.urandom(1 << 16))
    assert trouble(str(junk)) == "not a store"
    junk.write_bytes(b"PARALLAX" + bytes(1 << 16))
    assert trouble(str(junk)) == "damaged"
    os.truncate(path, 1 << 20)
    assert trouble(path) == "cannot be read"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("plxsh.overview.time", fake)


def settle(overviews: Overviews) -> None:
    """Wait until no thread is looking."""
    del overviews
    while any(thread.name == "overview" for thread in threading.enumerate()):
        time.sleep(0.01)


def test_news_are_told_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("plxsh.names._REST", 0)
    told: Queue[int] = Queue()
    overviews = Overviews(Names(path, 60), NOWHERE, lambda: told.put(1))
    assert overviews.latest() is None
    settle(overviews)
    first = overviews.latest()
    assert first is not None
    assert (first.vdis, told.qsize()) == (4, 1)
    clock.now = 2.5
    assert overviews.latest() == first
    settle(overviews)
    assert told.qsize() == 1
    with Session.open(path) as session:
        session.create("new")
    clock.now = 5.0
    overviews.latest()
    settle(overviews)
    assert told.qsize() == 2
    latest = overviews.latest()
    assert latest is not None
    assert latest.vdis == 5


def test_looks_are_two_seconds_apart_and_a_tenth_of_the_time(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    looks: list[float] = []
    takes = SimpleNamespace(seconds=0.0)

    def look(*_: Any) -> Overview:
        looks.append(clock.now)
        clock.now += takes.seconds
        return Overview()

    monkeypatch.setattr("plxsh.overview.overview", look)
    overviews = Overviews(Names(path), NOWHERE, lambda: None)

    def ask(now: float) -> None:
        clock.now = now
        overviews.latest()
        settle(overviews)

    ask(0.0)
    ask(1.9)
    takes.seconds = 1.0
    ask(2.1)  # until 3.1
    ask(13.0)
    ask(13.2)
    assert looks == [0.0, 2.1, 13.2]


def test_a_look_that_hangs_holds_up_nobody(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    looks: list[int] = []

    def look(*_: Any) -> Overview:
        looks.append(1)
        assert gate.wait(60)
        return Overview()

    monkeypatch.setattr("plxsh.overview.overview", look)
    overviews = Overviews(Names(path), NOWHERE, lambda: None)
    try:
        assert [overviews.latest() for _ in range(10)] == [None] * 10
    finally:
        gate.set()
    settle(overviews)
    assert looks == [1]


def test_a_bug_is_no_noise_on_the_screen(
    path: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def look(*_: Any) -> Overview:
        raise RuntimeError

    monkeypatch.setattr("plxsh.overview.overview", look)
    overviews = Overviews(Names(path), NOWHERE, lambda: None)
    overviews.latest()
    settle(overviews)
    latest = overviews.latest()
    assert latest is not None
    assert latest.trouble
    assert capfd.readouterr() == ("", "")
