"""Remembered names: what is seen of a store, and how little work that takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shell.many import store_of_clones
from support.shell import populated

from core.blockstore import Blockstore
from core.format import BLOCK, BLOCK_MASK, DELETED
from core.registry import Registry
from core.schedule import MIN_INTERVAL_NS
from core.session import Session
from plxsh.names import Names

LONG = 60.0
HEAVY = {
    "numpy",
    "rich",
    "pydot",
    "prompt_toolkit",
    "websockets",
    "core.session",
    "core.tap.status",
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return settled(populated(tmp_path))


def settled(path: str) -> str:
    """Make a file look as if it had not changed for a while."""
    os.utime(path, (1, 1))
    return path


def changed(path: str) -> None:
    """Make it look changed, but not a moment ago."""
    before = os.stat(path).st_mtime
    os.utime(path, (before + 1, before + 1))


def names_of(names: Names, state: int = 1) -> list[str]:
    return [record.name for record in names.vdis(state)]


class Counter:
    """Counts the calls of a method that still does what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        original: Callable[..., Any] = getattr(owner, method)

        def counted(*args: Any) -> Any:
            self.calls.append(args)
            return original(*args)

        monkeypatch.setattr(owner, method, counted)


def test_vdis_live_and_deleted(path: str) -> None:
    with Session.open(path) as session:
        session.delete(session.registry.find("web"))
    names = Names(path, LONG)
    assert names_of(names) == ["base", "My new VDI", "日本語"]
    assert names_of(names, DELETED) == ["web"]


def test_snapshots_newest_first_by_name_id_and_uuid(path: str) -> None:
    names = Names(path, LONG)
    base = names.vdis()[0]
    for reference in ("base", "0", "000", str(uuid.UUID(bytes=base.uuid))):
        assert [s.label for s in names.snapshots(reference)] == ["patched", "clean"]
    for reference in ("web", "nobody", "99", "9" * 5000, "é" * 36, "-" * 36, ""):
        assert names.snapshots(reference) == ()


def test_all_snapshots_by_vdi(path: str) -> None:
    found = [(s.vdi, s.label) for s in Names(path, LONG).all_snapshots()]
    assert found == [(0, "patched"), (0, "clean"), (2, "before upgrade"), (3, "")]


def test_known_starts_nothing(path: str) -> None:
    names = Names(path, LONG)
    assert names.known() is None
    names.vdis()
    known = names.known()
    assert known is not None
    assert known.find("base") is known.with_id(0) is known.live[0]
    assert known.find("Base") is known.find("7") is known.with_id(7) is None


def test_what_changed_is_seen(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.names._REST", 0)
    names = Names(path, LONG)
    assert names_of(names) == ["base", "web", "My new VDI", "日本語"]
    assert len(names.snapshots("base")) == 2
    with Session.open(path) as session:
        session.rename(session.registry.find("web"), "www")
        session.create("new")
        session.snapshot(session.registry.find("base"), "third")
        session.delete_snapshot(session.find_snapshot("base@clean"))
    assert names_of(names) == ["base", "www", "My new VDI", "日本語", "new"]
    assert [s.label for s in names.snapshots("base")] == ["third", "patched"]


def test_snapshots_that_a_schedule_dropped_are_gone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That changes no page of the log, only a number in the record."""
    monkeypatch.setattr("plxsh.names._REST", 0)
    with Session.open(path) as session, session.opened(session.registry.find("base")) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 3)
        for number in range(3):
            vdi.snapshot(f"t{number}", scheduled=True)
    settled(path)
    names = Names(path, LONG)
    assert [s.label for s in names.snapshots("base")] == ["t2", "t1", "t0", "patched", "clean"]
    with Session.open(path) as session, session.opened(session.registry.find("base")) as vdi:
        vdi.set_schedule(MIN_INTERVAL_NS, 1)
        assert vdi.drop_scheduled() == 2
    assert [s.label for s in names.snapshots("base")] == ["t2", "patched", "clean"]


def test_two_changes_in_one_tick_of_the_clock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.names._REST", 0)
    stamp = time.time_ns()
    clock = count(stamp)  # a machine that stands still in between makes it no longer
    fake = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: next(clock))
    monkeypatch.setattr("plxsh.names.time", fake)
    names = Names(path, LONG)
    with Session.open(path) as session:
        session.create("first")
    os.utime(path, ns=(stamp, stamp))
    assert "first" in names_of(names)
    with Session.open(path) as session:
        session.create("second")
    os.utime(path, ns=(stamp, stamp))
    assert "second" in names_of(names)


def test_an_unchanged_store_is_not_opened(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.names._REST", 0)
    opened = Counter(monkeypatch, Blockstore, "__init__")
    names = Names(path, LONG)
    for _ in range(5):
        names.vdis()
        names.snapshots("base")
    assert len(opened.calls) == 2  # once for the VDIs, once for the snapshots


def test_only_changed_records_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.dat"
    store_of_clones(path, 300)
    settled(str(path))
    monkeypatch.setattr("plxsh.names._REST", 0)
    parsed = Counter(monkeypatch, Registry, "get")
    names = Names(str(path), LONG)
    assert len(names.vdis()) == 301
    assert len(parsed.calls) == 301
    del parsed.calls[:]
    changed(str(path))
    assert len(names.vdis()) == 301
    assert parsed.calls == []
    with Session.open(str(path)) as session:
        session.rename(session.registry.find("clone-150"), "other")
    del parsed.calls[:]
    assert names_of(names)[150] == "other"
    assert [call[1] for call in parsed.calls] == [150]


def test_a_store_may_come_and_go(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plxsh.names._REST", 0)
    where = tmp_path / "store"
    names = Names(str(where), LONG)
    assert names.vdis() == names.snapshots("base") == names.all_snapshots() == ()
    os.rename(path, where)
    assert names_of(names)[0] == "base"
    where.unlink()
    assert names.vdis() == names.snapshots("base") == ()
    where.write_bytes(os.urandom(1 << 20))
    assert names.vdis() == ()
    where.unlink()
    where.mkdir()
    assert names.vdis() == ()


def test_a_damaged_record_hides_only_itself(path: str) -> None:
    with Session.open(path, "read") as session:
        sb = session.store.sb
    with open(path, "r+b") as file:
        for slot in (0, 1):
            file.seek(sb.vdi_slot(1, slot) * BLOCK + 100)
            file.write(b"damage")
    assert names_of(Names(path, LONG)) == ["base", "My new VDI", "日本語"]


def test_a_damaged_page_hides_only_older_snapshots(path: str) -> None:
    with Session.open(path) as session:
        for number in range(30):
            session.snapshot(session.registry.find("web"), f"s{number}")
        page = session.registry.find("web").log_previous >> 1 & BLOCK_MASK
    with open(path, "r+b") as file:
        file.seek(page * BLOCK + 2000)
        file.write(b"damage")
    names = Names(path, LONG)
    assert [s.label for s in names.snapshots("web")] == [f"s{n}" for n in range(29, 23, -1)]
    assert len(names.snapshots("base")) == 2


class Gate:
    """Holds up whoever comes to it until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(LONG)

    def open(self) -> None:
        self._open.set()


def readers() -> int:
    return sum(thread.name == "names" for thread in threading.enumerate())


def test_a_disk_that_hangs_holds_up_nobody(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    original = Blockstore.open

    def slow(*args: Any, **options: Any) -> Blockstore:
        gate.wait()
        return original(*args, **options)

    monkeypatch.setattr(Blockstore, "open", slow)
    names = Names(path, 0.01)
    try:
        for _ in range(20):
            assert names.vdis() == names.snapshots("base") == ()
        assert gate.reached.wait(LONG)
        assert readers() == 1
    finally:
        gate.open()
    while readers():
        time.sleep(0.01)
    assert names_of(names)[0] == "base"


def test_a_question_that_came_too_late_is_answered_next(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no reason to rest that the store was just read without it."""
    monkeypatch.setattr("plxsh.names._REST", 0)
    names = Names(path, 0.01)
    while not names.vdis() or readers():  # it tells of names before it decides how long to rest
        time.sleep(0.01)
    monkeypatch.setattr("plxsh.names._REST", 1_000_000)
    gate = Gate()
    original = Blockstore.open

    def slow(*args: Any, **options: Any) -> Blockstore:
        gate.wait()
        return original(*args, **options)

    monkeypatch.setattr(Blockstore, "open", slow)
    changed(path)
    try:
        names.vdis()
        assert gate.reached.wait(LONG)
        assert names.snapshots("base") == ()
    finally:
        gate.open()
    while readers():
        time.sleep(0.01)
    names.snapshots("base")
    while readers():
        time.sleep(0.01)
    assert len(names.snapshots("base")) == 2


def test_the_first_names_of_many_are_there_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.dat"
    store_of_clones(path, 300)
    gate = Gate()
    original = Registry.get

    def get(registry: Registry, number: int) -> Any:
        if number == 200:
            gate.wait()
        return original(registry, number)

    monkeypatch.setattr(Registry, "get", get)
    names = Names(str(path), LONG)
    threading.Thread(target=names.vdis).start()
    try:
        assert gate.reached.wait(LONG)
        known = names.known()
        assert known is not None
        assert 50 < len(known.live) <= 200
    finally:
        gate.open()
    assert len(names.vdis()) == 301


def test_reading_rests_ten_times_as_long_as_it_took(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, time_ns=time.time_ns)
    monkeypatch.setattr("plxsh.names.time", fake)
    original = Blockstore.open

    def slow(*args: Any, **options: Any) -> Blockstore:
        clock.now += 1.0
        return original(*args, **options)

    monkeypatch.setattr(Blockstore, "open", slow)
    names = Names(path, LONG)
    names.vdis()
    assert clock.now == 1.0
    with Session.open(path) as session:  # the session opens the store itself
        session.create("new")
    clock.now = 10.9
    assert "new" not in names_of(names)
    clock.now = 11.1
    assert "new" in names_of(names)


def test_completion_imports_nothing_heavy(path: str) -> None:
    script = (
        "import json, sys\n"
        "from plxsh.context import Settings\n"
        "from plxsh.cli import cli\n"
        "from plxsh.completer import complete\n"
        "from plxsh.names import Names\n"
        "settings = Settings(store=sys.argv[1])\n"
        "settings.names = Names(settings.store, 60)\n"
        "found = complete(cli, settings, ['snap', 'delete'], 'base@')\n"
        "print(json.dumps([[c.text for c in found], sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    found, modules = json.loads(done.stdout)
    assert found == ["base@patched", "base@clean"]
    assert set(modules) & HEAVY == set()
