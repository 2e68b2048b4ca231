"""Paths for completion: what is in a folder, however large it is."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from plxsh.paths import entries


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "disk one.img").write_bytes(b"x" * 1536)
    (folder / ".hidden").write_bytes(b"")
    (folder / "disk.img").write_bytes(b"")
    (folder / "link").symlink_to("images")
    (folder / "broken").symlink_to("nowhere")
    monkeypatch.setattr("plxsh.paths._DEADLINE", 60.0)
    monkeypatch.chdir(folder)
    return folder


def paths(fragment: str, only_folders: bool = False) -> list[str]:
    return [entry.path for entry in entries(fragment, only_folders)]


def test_folders_end_in_a_slash() -> None:
    assert paths("") == paths("dis") == ["broken", "disk.img", "images/", "link/"]


def test_hidden_ones_behind_a_dot() -> None:
    assert ".hidden" in paths(".")
    assert ".hidden" in paths(".h")


def test_folders_only() -> None:
    assert paths("", True) == ["images/", "link/"]


def test_the_folder_stays_as_it_was_typed(files: Path) -> None:
    assert paths("images/d") == ["images/disk one.img"]
    assert paths("./images/") == ["./images/disk one.img"]
    assert paths(f"{files}/images/") == [f"{files}/images/disk one.img"]
    assert paths("link/") == ["link/disk one.img"]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    monkeypatch.setenv("HOME", str(files))
    assert paths("~/images/") == [f"{files}/images/disk one.img"]
    assert f"{files}/disk.img" in paths("~/d")
    assert f"{files}/disk.img" in paths("~")


def test_what_cannot_be_read_has_nothing_in_it() -> None:
    assert paths("nowhere/") == paths("disk.img/") == paths("\0/") == []


def test_descriptions() -> None:
    found = {entry.name: entry.describe() for entry in (*entries(""), *entries("images/"))}
    assert found["images"] == found["link"] == "folder"
    assert found["disk one.img"] == "1.5 KiB"
    assert found["broken"] == ""
    assert next(e for e in entries("/dev/nu") if e.name == "null").describe() == "special"


def test_a_name_that_no_terminal_can_show_is_left_out() -> None:
    Path("bad\nname").write_bytes(b"")
    with open(os.fsencode(b"bad\xff"), "wb"):
        pass
    assert not [path for path in paths("") if path.startswith("bad")]


def test_reading_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    (files / "full").mkdir()
    for number in range(1000):
        (files / "full" / f"{number:04}").touch()
    seconds = count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("plxsh.paths.time", clock)
    monkeypatch.setattr("plxsh.paths._DEADLINE", 1.5)
    assert 0 < len(paths("full/")) < 600
