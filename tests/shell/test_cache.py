"""`--cache none`: asked for on the command line, in the environment or in the configuration,
it reaches everything that opens the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell.conftest import Plx

from plxsh.classic import TOOLS, run
from plxsh.context import Settings


@pytest.fixture
def opened(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each time the store (or a new one) is opened, whether it was with O_DIRECT."""
    seen: list[bool] = []
    real = os.open

    def watched(path: str, flags: int, *mode: int) -> int:
        if path in (str(plx.path), "new.dat") and not flags & os.O_CREAT:
            seen.append(bool(flags & os.O_DIRECT))
        return real(path, flags, *mode)

    monkeypatch.setattr("core.device.os.open", watched)
    return seen


def test_command_line_before_environment_before_file(
    plx: Plx, opened: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    plx("vdi", "list")
    Path("plx.toml").write_text('[blockstore]\ncache = "none"\n')
    plx("--config", "plx.toml", "vdi", "list")
    monkeypatch.setenv("PARALLAX_CACHE", "host")
    plx("--config", "plx.toml", "vdi", "list")
    plx("--config", "plx.toml", "--cache", "none", "vdi", "list")
    plx("vdi", "list", "--cache", "none")
    monkeypatch.setenv("PARALLAX_CACHE", "none")
    plx("vdi", "list")
    plx("--cache", "host", "vdi", "list")
    assert opened[::2] == [False, True, False, True, True, True, False]
    assert opened[1::2] == opened[::2]  # once for the list, once to find its lock master


def test_another_word_is_refused(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'some' is not one of 'host', 'none'" in plx.fails(2, "--cache", "some", "vdi", "list")
    Path("plx.toml").write_text('[blockstore]\ncache = "some"\n')
    assert plx.fails(2, "--config", "plx.toml", "vdi", "list") == (
        "plxsh: there is no cache 'some' (take host or none)"
    )
    monkeypatch.setenv("PARALLAX_CACHE", "some")
    assert "'some' is not one of" in plx.fails(2, "vdi", "list")


@pytest.mark.parametrize(
    "line",
    [
        "store create new.dat --extent-size 16M",
        "-n store grow --extents 8",
        "store grow --extents 8",
        "store info",
        "store check",
        "store gc",
        "vdi create another",
        "-n vdi create another",
        "vdi list",
        "vdi export base image",
        "snap create base",
        "tree",
        "-n tap serve --unix sock",
    ],
)
def test_every_way_to_open_the_store_knows_it(plx: Plx, opened: list[bool], line: str) -> None:
    plx("--cache", "none", *line.split())
    assert opened
    assert all(opened)


def test_the_old_tools_take_it_from_the_environment(
    opened: list[bool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARALLAX_CACHE", "none")
    assert run(TOOLS["vdi_list"], []) == 0
    assert run(TOOLS["parallax-mkfs"], ["new.dat", "16777216", "6"]) == 0
    assert len(opened) == 2
    assert all(opened)
    monkeypatch.setenv("PARALLAX_CACHE", "some")
    capfd.readouterr()
    assert run(TOOLS["vdi_list"], []) == 2
    assert "there is no cache 'some'" in capfd.readouterr().err


def test_a_file_system_without_it_is_one_line(plx: Plx) -> None:
    said = plx.fails(2, "-s", "/proc/version", "--cache", "none", "vdi", "list")
    assert said == (
        "plxsh: vdi list: what holds /proc/version cannot do without the page cache (no"
        " O_DIRECT) (put the store elsewhere, or open it with --cache host)"
    )


def test_names_for_completion_are_read_that_way_too(plx: Plx, opened: list[bool]) -> None:
    settings = Settings(store=str(plx.path), cache="none")
    assert [vdi.name for vdi in settings.names.whole(30).live]
    assert opened
    assert all(opened)
