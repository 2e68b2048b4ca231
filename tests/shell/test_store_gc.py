"""`plxsh store gc`: what it says, what it asks, and that it does just that."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import Any

import pytest
from shell.conftest import Plx
from shell.tap import connect, environment, read, serving
from shell.test_main import on_terminal

from core import device
from core.session import Session

BLOCK = 4096


@pytest.fixture
def untidy(plx: Plx) -> Plx:
    """Two deleted VDIs of 3 and 5 blocks of data, and what a deleted snapshot left."""
    with Session.open(str(plx.path)) as session:
        for name, blocks in (("old", 3), ("older", 5)):
            with session.opened(session.create(name, 1 << 20)) as vdi:
                vdi.write(0, os.urandom(blocks * BLOCK))
        for name in ("old", "older"):
            session.delete(session.registry.find(name))
        base = session.registry.find("base")
        session.snapshot(base, "brief")
        with session.opened(base) as vdi:
            vdi.write(8192, b"c" * BLOCK)
        session.delete_snapshot(session.find_snapshot("base@brief"))
    return plx


def gc(plx: Plx, *options: str) -> Any:
    found = plx("-o", "json", "-q", *options, "store", "gc").json
    del found["schema"]
    return found


OLD, OLDER, LEFT = 4 * BLOCK, 6 * BLOCK, 2 * BLOCK


def test_a_dry_run_says_what_is_freed_and_from_whom(untidy: Plx) -> None:
    before = untidy.bytes()
    assert untidy("-n", "store", "gc").out == (
        "would free 48 KiB: 16 KiB of deleted VDI 2 'old', 24 KiB of deleted VDI 3 'older',"
        " 8 KiB of deleted snapshots and leftovers\n"
    )
    told = gc(untidy, "-n")
    assert untidy.bytes() == before
    assert told["gc"]["freed"] == OLD + OLDER + LEFT
    assert [(v["id"], v["name"], v["bytes"]) for v in told["gc"]["vdis"]] == [
        (2, "old", OLD),
        (3, "older", OLDER),
    ]
    assert (told["gc"]["shared"], told["gc"]["leftovers"]) == (0, LEFT)
    assert told["gc"]["returned"] is None


def test_the_prediction_comes_true(untidy: Plx) -> None:
    used = untidy("-o", "json", "store", "info").json["store"]["used"]
    predicted = gc(untidy, "-n")["gc"]
    done = gc(untidy, "-y")["gc"]
    assert done.pop("returned") > 0
    del predicted["returned"]
    assert done == predicted
    assert untidy("-o", "json", "store", "info").json["store"]["used"] == used - done["freed"]
    assert untidy("vdi", "list", "--deleted").out == ""
    assert untidy("store", "check").out.endswith(", 0 B unreachable: sound\n")
    again = gc(untidy, "-y")["gc"]
    assert again == {"freed": 0, "vdis": [], "shared": 0, "leftovers": 0, "returned": 0}


def test_the_file_gives_back_what_it_says(untidy: Plx) -> None:
    before = untidy.path.stat().st_blocks * 512
    returned = gc(untidy, "-y")["gc"]["returned"]
    assert before - untidy.path.stat().st_blocks * 512 == returned
    assert returned >= OLD + OLDER


def test_deleted_vdis_stay_when_they_are_to_be_kept(untidy: Plx) -> None:
    told = untidy("-v", "store", "gc", "--keep-deleted")
    assert told.err.startswith("freed 8 KiB: 8 KiB of deleted snapshots and leftovers; ")
    untidy("vdi", "restore", "old")
    assert untidy("store", "check").out.endswith(": sound\n")


def test_without_a_terminal_nothing_is_lost(untidy: Plx) -> None:
    before = untidy.bytes()
    line = untidy.fails(2, "store", "gc")
    assert "deleted VDIs 2 'old', 3 'older' can never be restored then" in line
    assert untidy.bytes() == before


def test_nothing_is_asked_where_nothing_is_lost(plx: Plx) -> None:
    assert plx("-v", "store", "gc").err.startswith("freed 0 B; ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads of the tests
def test_it_asks_before_deleted_vdis_are_gone(untidy: Plx) -> None:
    before = untidy.bytes()
    status, shown = on_terminal("store", "gc", answer="\n")
    assert "'old', 3 'older' can never be restored then. Go on? [y/N]: " in " ".join(shown.split())
    assert status == 130
    assert untidy.bytes() == before
    assert on_terminal("store", "gc", answer="y\n")[0] == 0
    assert untidy("vdi", "list", "--deleted").out == ""


def test_many_deleted_vdis_are_counted(plx: Plx) -> None:
    with Session.open(str(plx.path)) as session:
        for number in range(8):
            session.delete(session.create(f"old{number}", BLOCK))
    line = plx.fails(2, "store", "gc")
    assert "deleted VDIs 2 'old0', 3 'old1', 4 'old2', 5 'old3', 6 'old4' and 3 more can" in line
    assert "0 B of 3 more deleted VDIs" in line
    assert len(gc(plx, "-y")["gc"]["vdis"]) == 8


def test_what_deleted_vdis_share_is_told_apart(plx: Plx) -> None:
    for name in ("web", "base"):
        plx("-y", "vdi", "delete", name, "--snapshots")
    told = gc(plx, "-n")["gc"]
    assert told["shared"] > 0
    assert told["freed"] == sum(v["bytes"] for v in told["vdis"]) + told["shared"]
    assert "that several of them shared" in plx("-n", "store", "gc").out


def test_a_file_system_without_holes_is_no_error(
    untidy: Plx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: object) -> int:
        device.ctypes.set_errno(95)  # EOPNOTSUPP
        return -1

    monkeypatch.setattr(device._libc, "fallocate", fallocate)
    done = untidy("-y", "-o", "json", "-q", "store", "gc")
    assert done.json["gc"]["returned"] is None
    assert done.json["gc"]["freed"] == OLD + OLDER + LEFT
    [line] = done.err.splitlines()
    assert line.startswith("plxsh: warning: space of ")
    assert line.endswith(" cannot be given back: Operation not supported")
    assert untidy("store", "check").out.endswith(", 0 B unreachable: sound\n")


def test_damage_frees_nothing(untidy: Plx) -> None:
    with Session.open(str(untidy.path), "read") as session:
        root = session.registry.find("base").root >> 1 & (1 << 40) - 1
    with open(untidy.path, "r+b") as file:
        file.seek(root * BLOCK)
        file.write(b"!" * BLOCK)
    before = untidy.bytes()
    assert "store check" in untidy.fails(5, "-y", "store", "gc")
    assert untidy.bytes() == before


@pytest.mark.slow
def test_it_works_while_a_tap_serves_the_store(
    untidy: Plx, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-s", str(untidy.path), "tap", "serve", "--unix", "nbd.sock")
    with serving(*words, environment=environment()) as folder:
        monkeypatch.setenv("PARALLAX_RUN_DIR", os.path.join(folder, "parallax"))
        with closing(connect(os.path.join(folder, "nbd.sock"), "base")) as guest:
            before = read(guest, 0, 16384)
            assert gc(untidy, "-n")["gc"]["freed"] == OLD + OLDER + LEFT
            assert untidy("store", "check").out.endswith(" unreachable: sound\n")
            told = gc(untidy, "-y")["gc"]
            assert told["freed"] == OLD + OLDER + LEFT
            assert told["returned"] > 0
            assert untidy("store", "check").out.endswith(", 0 B unreachable: sound\n")
            assert read(guest, 0, 16384) == before
            assert gc(untidy, "-y")["gc"]["freed"] == 0
            assert "in use" in untidy.fails(4, "store", "check", "--repair")
    assert untidy("store", "check").out.endswith(", 0 B unreachable: sound\n")


def test_progress_is_told_as_json(untidy: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.progress._JSON_EVERY", 600.0)  # the end of each stage alone
    done = untidy("-y", "-o", "json", "store", "gc")
    told = [json.loads(line)["progress"] for line in done.err.splitlines()]
    assert [stage["what"] for stage in told] == ["mark", "count", "give back"]
    assert all(stage["done"] == stage["total"] for stage in told)
