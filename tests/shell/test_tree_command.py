"""`plxsh tree`: on the terminal, as data and into files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.stores import poke, small_store

from core.session import Session
from plxsh.cli import run
from plxsh.exports import OpenExport

NOT_FOUND, USAGE = 3, 2


@pytest.fixture
def store(tmp_path: Path) -> str:
    """base, its clone web, its clone web-1, and a stranger."""
    path = small_store(tmp_path)
    with Session.open(path) as session:
        for parent, name in (("", "base"), ("base", "web"), ("web", "web-1")):
            snapshot = None
            if parent:
                session.snapshot(session.registry.find(parent))
                snapshot = next(session.snapshots(session.registry.find(parent)))
            session.create(name, 0 if parent else 1 << 20, snapshot)
        session.create("stränger", 1 << 20)
    return path


def data(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("output", ["table", "plain"])
def test_it_draws_text(store: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", store, "-o", output, "tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12].rstrip() for line in lines] == [
        "ID  NAME",
        " 0  base",
        " 1  └─ web",
        " 2     └─ we",
        " 3  stränger",
    ]


def test_one_vdi_shows_its_family(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", store, "tree", "stränger"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run(["-s", store, "-o", "json", "tree", "1"]) == 0
    assert [vdi["name"] for vdi in data(capsys)["vdis"]] == ["base", "web", "web-1"]


def test_json_has_the_graph(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", store, "-o", "json", "tree"]) == 0
    base, web, _, stranger = data(capsys)["vdis"]
    [fork] = base["points"]
    assert (web["parent"], web["fork"]) == (0, {"block": fork["block"], "offset": fork["offset"]})
    assert (stranger["parent"], stranger["fork"], stranger["points"]) == (None, None, [])
    assert base["size"] == 1 << 20
    assert base["state"] == "live"


def test_yaml_works_too(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", store, "-o", "yaml", "tree"]) == 0
    assert "  name: web-1\n" in capsys.readouterr().out


def test_a_narrow_terminal_gets_narrow_lines(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(store) as session:
        session.create("n" * 255, 0)
    assert run(["-s", store, "tree"]) == 0
    assert "n" * 255 in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width in (60, 20):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(["-s", store, "--no-color", "tree"]) == 0
        out, told = capsys.readouterr()
        assert max(map(len, out.splitlines())) == width
    assert told == "no room for SIZE, OWN, SNAPS, AGE, FROM; -o json has it all\n"


def test_one_vdi_shows_its_snapshots(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", store, "tree", "base"]) == 0
    lines = [line[4:].split("  SIZE")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[2].startswith("└─ @")
    assert lines[3].startswith("   └─ web ")
    assert lines[4].startswith("      └─ @")
    assert lines[5].startswith("         └─ web-1 ")


def test_a_terminal_gets_colours_unless_it_should_not(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run(["-s", store, "tree"]) == 0
    assert "\x1b[1mID  NAME" in capsys.readouterr().out
    assert run(["-s", store, "--no-color", "tree"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_open_exports_are_shown(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(store, "read") as session:
        snapshot = next(session.snapshots(session.registry.find("base")))
    exports = [
        OpenExport(1, "web", None, False, ("vm-1", "vm-2"), store),
        OpenExport(0, f"base@{snapshot.id}", str(snapshot.id), True, ("vm-3",), store),
    ]
    monkeypatch.setattr("plxsh.commands.tree.open_exports", lambda _: exports)
    assert run(["-s", store, "tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines[0].index("OPEN")
    assert [line[at:].split("  ")[0].strip() for line in lines[1:4]] == ["s", "w 2 clients", ""]
    assert run(["-s", store, "-o", "json", "tree"]) == 0
    base, web, *_ = data(capsys)["vdis"]
    assert web["exports"] == [{"read_only": False, "clients": 2}]
    assert base["points"][0]["exports"] == [{"read_only": True, "clients": 1}]


def test_a_form_of_output_behind_the_command_is_no_file(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-s", store, "tree", "-o", "json"]) == 0
    assert len(data(capsys)["vdis"]) == 4


def test_a_terminal_without_unicode_gets_ascii(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    assert run(["-s", store, "tree"]) == 0
    text = raw.getvalue().decode("ascii")
    assert "`- web" in text
    assert "str\\xe4nger" in text


def test_an_empty_store_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_store(tmp_path)
    assert run(["-s", path, "-o", "table", "tree"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "there are no VDIs\n")
    assert run(["-s", path, "-o", "json", "tree"]) == 0
    assert data(capsys)["vdis"] == []


def test_damage_does_not_hide_the_rest(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Session.open(store, "read") as session:
        slots = [session.store.sb.vdi_slot(1, slot) for slot in (0, 1)]
    for block in slots:
        poke(store, block, b"\xff" * 64, 100)
    assert run(["-s", store, "tree"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("base", "(damaged)", "web-1", "stränger"))


def test_it_works_beside_a_writer(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Session.open(store) as session, session.opened(session.registry.find("web")) as vdi:
        vdi.write(0, b"x" * 5000)
        assert run(["-s", store, "tree"]) == 0
    assert "web-1" in capsys.readouterr().out


def test_dot_goes_into_a_file(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "tree.dot"
    assert run(["-s", store, "tree", "web", "-o", str(target)]) == 0
    assert capsys.readouterr() == ("", "")
    text = target.read_text()
    assert text.startswith("digraph parallax {")
    assert 'ID="vdi_2"' in text
    assert 'ID="vdi_3"' not in text


def test_json_and_a_file_go_together(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "tree.dot"
    assert run(["-s", store, "-o", "json", "tree", "-o", str(target)]) == 0
    told = data(capsys)
    assert (told["file"], told["vdis"]) == (str(target), 4)
    assert target.exists()


def test_a_dry_run_writes_no_file(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "tree.dot"
    assert run(["-s", store, "-n", "tree", "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"would draw 4 VDIs into {target}\n"
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["svg", "ps", "png", "pdf"])
def test_pictures_go_into_files(store: str, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"tree.{suffix}"
    assert run(["-s", store, "tree", "-o", str(target)]) == 0
    assert target.stat().st_size > 1000


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["tree", "-o", "tree.gif"], USAGE, "end its name in .svg, .ps, .png, .pdf or .dot"),
        (["tree", "nobody"], NOT_FOUND, "there is no VDI 'nobody'"),
        (["tree", "web", "base"], USAGE, "'base' is left over"),
        (["tree", "-o", "/no/such/folder/t.dot"], NOT_FOUND, "cannot write /no/such/folder"),
    ],
)
def test_mistakes(
    store: str, args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-s", store, *args]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("plxsh: tree: ")
    assert err.count("\n") == 1


def test_without_graphviz_the_package_is_named(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    target = tmp_path / "tree.svg"
    assert run(["-s", store, "tree", "-o", str(target)]) == NOT_FOUND
    assert "apt install graphviz" in capsys.readouterr().err
    assert not target.exists()
