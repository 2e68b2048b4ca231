"""The original tools: the output that old scripts read, usage lines, exit statuses."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shell.conftest import Plx, Result
from shell.test_bad_input import writer

from core.session import Session
from plxsh import classic

Tool = Callable[..., Result]

TOOLS = {
    "parallax-mkfs": classic.mkfs,
    "vdi_create": classic.vdi_create,
    "vdi_fill": classic.vdi_fill,
    "vdi_list": classic.vdi_list,
    "vdi_snap": classic.vdi_snap,
    "vdi_snap_delete": classic.vdi_snap_delete,
    "vdi_snap_list": classic.vdi_snap_list,
    "vdi_snap_offline": classic.vdi_snap_offline,
    "vdi_tree": classic.vdi_tree,
    "vdi_validate": classic.vdi_validate,
    "parallaxd": classic.parallaxd,
}


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    def run(name: str, *args: str, status: int = 0) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *args])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            TOOLS[name]()
        out, err = capfd.readouterr()
        assert left.value.code == status, err
        return Result(status, out, err)

    return run


def test_the_tour_of_the_original_quick_start(empty: Plx, tool: Tool) -> None:
    os.unlink(empty.path)
    image = os.urandom(20000)
    Path("image").write_bytes(image)
    assert tool("parallax-mkfs", str(empty.path), "1048576", "6").out == ""
    assert tool("vdi_create", "My new VDI").out == "0\n"
    assert tool("vdi_list").out == (
        "       0                                               My new VDI\n"
    )
    assert tool("vdi_fill", "0", "./image").out == "5\n"
    assert tool("vdi_validate", "0", "./image").out == ""
    block, offset = tool("vdi_snap_offline", "0").out.split()
    assert tool("vdi_create", "Copy 1", block, offset).out == "1\n"
    assert [line.split(maxsplit=1) for line in tool("vdi_list").lines] == [
        ["0", "My new VDI"],
        ["1", "Copy 1"],
    ]
    assert tool("vdi_validate", "1", "./image").out == ""
    assert "Copy 1" in tool("vdi_tree").out
    assert tool("vdi_snap", "1").out
    tool("vdi_snap_delete", block, offset)
    assert len(tool("vdi_snap_list", "0").lines) == 1


def test_the_columns_of_the_snapshot_list(plx: Plx, tool: Tool) -> None:
    with Session.open(str(plx.path), "read") as session:
        [snapshot] = session.snapshots(session.registry.find("base"))
    head, row = tool("vdi_snap_list", "0").lines
    assert head == "   Block idx                            timestamp   radix root d"
    assert len(row) == 63
    assert re.fullmatch(
        r" +\d+ +\d+ {7}[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4} \d{6} +\d+", row
    )
    assert row[:12].split() == [str(snapshot.id.block), str(snapshot.id.offset)]
    assert row.split()[-1] == str(snapshot.root_block)
    assert row.split()[-2] == f"{snapshot.time_ns // 1000 % 1_000_000:06d}"


def test_the_newest_snapshots(plx: Plx, tool: Tool) -> None:
    plx("snap", "create", "base")
    assert len(tool("vdi_snap_list", "base").lines) == 3
    assert len(tool("vdi_snap_list", "base", "1").lines) == 2


def test_fill_counts_up_on_a_terminal(
    plx: Plx, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("image").write_bytes(b"x" * 65536)
    plx("vdi", "create", "new")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    counts = [int(n) for n in tool("vdi_fill", "new", "image").out.replace("\r", " ").split()]
    assert counts[-1] == 16
    assert counts == sorted(counts)


def test_validate_says_no(plx: Plx, tool: Tool) -> None:
    Path("image").write_bytes(bytes(65536))
    plx("vdi", "export", "web", "copy")
    assert tool("vdi_validate", "web", "copy").err == ""
    result = tool("vdi_validate", "web", "image", status=1)
    assert result.err == "vdi_validate: image differs at byte 4096\n"


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_usage_and_help(tool: Tool, name: str) -> None:
    result = tool(name, "1", "2", "3", "4", status=2)
    assert result.out == ""
    assert result.err.startswith(f"usage: {name}")
    assert result.err.count("\n") == 1
    told = tool(name, "--help")
    assert told.lines[0] == result.err.rstrip("\n")
    assert f"Example: {name}" in told.out


def test_errors_name_the_tool(plx: Plx, tool: Tool) -> None:
    assert tool("vdi_snap", "bsae", status=3).err == (
        "vdi_snap: there is no VDI 'bsae' (did you mean 'base'?)\n"
    )
    assert "no number of" in tool("vdi_snap_list", "0", "x", status=2).err
    assert "is no snapshot id" in tool("vdi_snap_delete", "a", "b", status=2).err
    assert "give BLOCK and OFFSET" in tool("vdi_create", "x", "16", status=2).err
    assert "is no size in bytes" in tool("parallax-mkfs", "new", "2G", "6", status=2).err
    assert "already holds" in tool("parallax-mkfs", str(plx.path), "1048576", "6", status=2).err


def test_a_damaged_record_does_not_break_the_list(plx: Plx, tool: Tool) -> None:
    with open(plx.path, "r+b") as file:
        file.seek(2 * 4096)
        file.write(b"!" * 8192)
    result = tool("vdi_list")
    assert [line.split() for line in result.lines] == [["0", "(damaged)"], ["1", "web"]]
    assert "block 2" in result.err


def test_an_open_store_is_refused(plx: Plx, tool: Tool) -> None:
    with writer(plx.path) as pid:
        for args in (["vdi_snap", "0"], ["vdi_snap_offline", "0"], ["vdi_create", "x"]):
            assert f"(pid {pid})" in tool(*args, status=4).err
        assert len(tool("vdi_list").lines) == 2


def test_the_store_comes_from_the_environment_or_the_file(
    plx: Plx, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARALLAX_STORE")
    config = Path.home() / ".config" / "parallax" / "parallax.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[blockstore]\ndata = "{plx.path}"\n')
    assert len(tool("vdi_list").lines) == 2
    monkeypatch.setenv("PARALLAX_STORE", "other.dat")
    assert "no blockstore at other.dat" in tool("vdi_list", status=3).err
    monkeypatch.delenv("PARALLAX_STORE")
    config.unlink()
    monkeypatch.setattr(classic, "DEFAULT_STORE", "default.dat")
    assert "no blockstore at default.dat" in tool("vdi_list", status=3).err
