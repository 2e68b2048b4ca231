"""Old stores stay readable: the fixtures made by earlier versions, and what they hold."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from core.check import check
from core.session import Session
from format_fixtures import make

FIXTURES = sorted(make.HERE.glob("*.store.xz"))


def unpack(fixture: Path, folder: Path) -> str:
    path = folder / "store"
    path.write_bytes(lzma.decompress(fixture.read_bytes()))
    return str(path)


def expected(fixture: Path) -> object:
    return json.loads(fixture.with_name(fixture.name.replace(".store.xz", ".json")).read_text())


def test_there_is_a_fixture_of_this_version() -> None:
    assert make.STORE in FIXTURES


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_an_old_store_reads_as_when_it_was_made(fixture: Path, tmp_path: Path) -> None:
    path = unpack(fixture, tmp_path)
    before = Path(path).read_bytes()
    with Session.open(path, "shared") as session:
        assert make.describe(session) == expected(fixture)
    assert not check(path).damaged
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_an_old_store_can_be_used(fixture: Path, tmp_path: Path) -> None:
    path = unpack(fixture, tmp_path)
    with Session.open(path) as session:
        base = session.registry.find("base")
        clone = session.create("new", parent=next(session.snapshots(base)))
        with session.opened(clone) as vdi:
            vdi.write(100, b"new")
        session.snapshot(clone, "new too")
    with Session.open(path) as session:
        assert session.image(session.find_snapshot("new@new too")).read(100, 3) == b"new"
        new = make.describe(session)
    old = expected(fixture)
    assert [vdi for vdi in new["vdis"] if vdi["name"] != "new"] == old["vdis"]  # type: ignore[index]


def test_the_fixture_has_one_of_everything() -> None:
    contents = json.loads(make.CONTENTS.read_text())
    by_name = {vdi["name"]: vdi for vdi in contents["vdis"]}
    assert by_name["base"]["log"] > 24  # a full page
    assert by_name["base"]["log"] - len(by_name["base"]["snapshots"]) == 4  # two tombstones
    assert not all(name.isascii() for name in by_name)
    assert by_name["odd"]["size"] % 512
    assert by_name["huge"]["size"] == 256 << 40
    assert by_name["empty"]["size"] == 0
    assert by_name["renamed"]["parent"][0] == by_name["größe-日本"]["id"]
    assert contents["deleted"] == ["gone"]
