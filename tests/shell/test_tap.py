"""Serving a store: readers work beside it, writers hear who holds it, `tap list` looks in."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.tap import connect, environment, read, serving

from core.tap.status import query_status
from plxsh.context import Settings
from plxsh.exports import open_exports

pytestmark = pytest.mark.slow


def test_a_folder_for_sockets_that_cannot_be_made(
    plx: Plx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARALLAX_RUN_DIR", str(tmp_path / "file/parallax"))
    told = plx.fails(3, "tap", "serve")
    assert f"cannot make the folder {tmp_path}/file/parallax: Not a directory" in told


def test_a_running_tap(plx: Plx, snapshot: tuple[str, str]) -> None:
    with serving("tap", "serve", "--unix", "nbd.sock", environment=environment()) as folder:
        path = str(Path(folder) / "nbd.sock")
        assert plx("tap", "list", "--unix", path).out == ""
        with closing(connect(path, "web")) as web, closing(connect(path, "base@clean")) as clean:
            assert read(web, 4096, 4096) == b"a" * 4096
            assert read(clean, 4096, 4096) == b"a" * 4096
            told = plx("-o", "json", "tap", "list", "--unix", path).json
            assert told["schema"] == 1
            rows = {row["export"]: row for row in told["connections"]}
            assert {(r["vdi"], r["access"], r["bytes_read"]) for r in rows.values()} == {
                (1, "w", 4096),
                (0, "r", 4096),
            }
            table = plx("-o", "table", "tap", "list", "--unix", path).lines
            assert table[0].split()[0] == "Export"
            assert len(table) == 3
            assert len(plx("tap", "list", "--unix", path).lines) == 2
        assert len(plx("vdi", "list").lines) == 2
        assert len(plx("snap", "list", "base").lines) == 1
        plx("tree")
        served_by = plx("-o", "json", "store", "info").json["store"]["served_by"]
        assert "(pid " in served_by
        for args in (["snap", "create", "base"], ["vdi", "create", "x"], ["store", "check"]):
            assert served_by in plx.fails(4, *args)
        plx("vdi", "export", *snapshot, "out.img")
    assert plx("vdi", "create", "x").out == "2\n"


def test_no_tap(plx: Plx) -> None:
    line = plx.fails(3, "tap", "list", "--unix", "none.sock")
    assert line.endswith("no tap listens on none.sock (start one with 'plxsh tap serve')")


def test_a_place_where_it_must_not_listen(plx: Plx) -> None:
    args = ("tap", "serve", "--unix", "nbd.sock")
    assert "there is no TLS" in plx.fails(2, *args, "--tcp", "0.0.0.0:0")
    assert "server-cert.pem" in plx.fails(3, *args, "--tls", "nowhere")
    assert not Path("nbd.sock").exists()


def test_the_original_daemon(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parallaxd` is `tap serve` on the usual socket."""
    from plxsh import classic
    from plxsh.commands import tap

    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(tap, "serve_store", lambda *args: called.append(args[1:]))
    monkeypatch.setattr(sys, "argv", ["parallaxd"])
    with pytest.raises(SystemExit) as left:
        classic.parallaxd()
    assert left.value.code == 0
    assert called == [(None, None, None)]
    assert plx("vdi", "list").out


def test_what_is_open_is_named_to_whoever_would_change_it(
    plx: Plx, snapshot: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ".".join(snapshot)
    variables = environment()
    with serving("tap", "serve", environment=variables) as folder:
        monkeypatch.setenv("PARALLAX_RUN_DIR", variables["PARALLAX_RUN_DIR"])
        path = str(Path(folder) / "parallax" / "nbd.sock")
        with closing(connect(path, "web")), closing(connect(path, "base@clean")):
            client = f"pid {os.getpid()}"
            for args in (
                ["-y", "vdi", "delete", "web"],
                ["vdi", "resize", "1", "1M"],
            ):
                line = plx.fails(4, *args)
                assert "VDI 'web' is open on " in line
                assert client in line
            rows = plx("-o", "json", "vdi", "list").json["vdis"]
            assert [row["clients"] for row in rows] == [[client], [client]]
            table = plx("-o", "table", "vdi", "list").lines
            assert table[0].endswith("In use by")
            assert table[2].endswith(client)
            assert plx("vdi", "show", "web").out.count(client) == 1
            found = open_exports(Settings(store=str(plx.path)))
            assert {(e.vdi, e.snapshot, e.read_only, e.clients) for e in found} == {
                (1, None, False, (client,)),
                (0, where, True, (client,)),
            }
            assert open_exports(Settings(store="another.dat")) == []
        while open_exports(Settings(store=str(plx.path))):
            time.sleep(0.01)


def test_what_can_be_done_beside_a_tap(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment()
    with serving("tap", "serve", environment=variables) as folder:
        monkeypatch.setenv("PARALLAX_RUN_DIR", variables["PARALLAX_RUN_DIR"])
        path = str(Path(folder) / "parallax" / "nbd.sock")
        with closing(connect(path, "web")):
            plx("snap", "create", "web", "--label", "live")
            assert "live" in plx("snap", "list", "web").out
            assert plx("vdi", "create", "copy", "--from", "web@live").out
            plx("snap", "every", "web", "1h", "--keep", "3")
            [row] = plx("-o", "json", "tap", "list", "--unix", path).json["connections"]
            assert row["schedule"] == "every 1h, keep 3"
            plx("vdi", "rename", "web", "www")
            plx("snap", "delete", "www@live", "-y")
            told = query_status(path)["lock_master"]
            assert told["place"] == "hosted"
            assert told["address"].endswith(".locks")
        assert len(plx("vdi", "list").lines) == 3


def test_an_interval_that_is_none(plx: Plx) -> None:
    assert "is no interval" in plx.fails(2, "tap", "serve", "--gc-every", "often")


def test_a_tap_that_does_not_answer_is_none(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.exports._TIMEOUT", 0.5)
    monkeypatch.setattr("plxsh.exports.default_socket", lambda: "nbd.sock")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind("nbd.sock.status")
        assert open_exports(Settings(store=str(plx.path))) == []  # nobody listens
        deaf.listen()
        assert open_exports(Settings(store=str(plx.path))) == []  # nobody answers
    assert plx("-o", "json", "vdi", "list").json["vdis"][1]["clients"] == []


def test_rates_are_those_of_the_last_seconds() -> None:
    from plxsh.commands.tap import _described

    counts = {"requests": 9, "bytes_read": 50_000, "bytes_written": 9_000}
    before = {"requests": 1, "bytes_read": 20_000, "bytes_written": 9_000}
    connection = {"peer": "pid 1", "since": 100.0, "counts": counts}
    connection["recent"] = {"since": 1000.0, "counts": before}
    export = {"name": "web", "id": 1, "snapshot": None, "size": 4096, "read_only": False}
    row = _described(export, connection, 1010.0)
    assert (row["read_rate"], row["write_rate"]) == (3000, 0)
    assert row["since"] == 100 * 10**9


def test_a_socket_path_may_be_as_long_as_is_said(plx: Plx) -> None:
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        path = f"{folder}/".ljust(100, "n")
        with (
            serving("tap", "serve", "--unix", path, environment=environment()),
            closing(connect(path, "web")),
        ):
            assert len(plx("tap", "list", "--unix", path).lines) == 1
        assert os.listdir(folder) == []
