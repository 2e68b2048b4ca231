"""All that the command line does, beside a tap that serves the store."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from shell.conftest import OpenShell, Plx
from shell.tap import connect, environment, serving
from support.tap import RawClient

from core.tap.status import query_status
from plxsh.commands.lock import break_

pytestmark = pytest.mark.slow


@pytest.fixture
def tap(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The socket of a tap that serves `base` and `web`; the store is whole in the end."""
    variables = environment()
    with serving("tap", "serve", environment=variables):
        folder = variables["PARALLAX_RUN_DIR"]
        monkeypatch.setenv("PARALLAX_RUN_DIR", folder)
        yield os.path.join(folder, "nbd.sock")
    plx("store", "check")


def contents(path: str, export: str, length: int = 64 << 10) -> bytes:
    with RawClient(path).go(export) as client:
        data = client.read(0, length)
    while export in [served["name"] for served in query_status(path)["exports"]]:
        time.sleep(0.05)  # a tap gives up what nobody has open, but not at once
    return data


def test_what_nobody_has_open_is_changed_as_ever(plx: Plx, tap: str) -> None:
    Path("disk.img").write_bytes(b"d" * 8192)
    assert plx("vdi", "create", "new", "--size", "1M").out == "2\n"
    assert plx("vdi", "create", "copy", "--from", "base@clean").out == "3\n"
    plx("vdi", "fill", "new", "disk.img")
    assert contents(tap, "new", 12288) == b"d" * 8192 + bytes(4096)
    plx("snap", "create", "new", "--label", "one")
    plx("vdi", "rename", "new", "newer")
    plx("vdi", "resize", "newer", "2M")
    plx("-y", "vdi", "delete", "copy")
    plx("vdi", "restore", "copy")
    assert contents(tap, "copy")[4096:12288] == b"a" * 8192
    plx("-y", "snap", "rollback", "newer", "newer@one")
    plx("vdi", "export", "base@clean", "out.img")
    assert Path("out.img").read_bytes()[4096:12288] == b"a" * 8192
    plx("vdi", "validate", "newer", "disk.img", status=1)  # it is larger
    plx("vdi", "export", "newer", "newer.img")
    plx("vdi", "validate", "newer", "newer.img")
    plx("-y", "snap", "delete", "newer@one")
    assert "newer" in plx("tree").out
    assert plx("snap", "diff", "base@clean", "base").out == "8192\t4096\n"
    plx("store", "grow", "--extents", "8")
    plx("-y", "store", "gc")
    assert contents(tap, "newer", 8192) == b"d" * 8192


def test_what_is_open_is_changed_through_the_tap(plx: Plx, tap: str) -> None:
    with RawClient(tap).go("web") as client:
        assert client.write(0, b"n" * 4096) == 0
        block, offset = plx("snap", "create", "web", "--label", "live").out.split()
        assert client.write(0, b"o" * 4096) == 0
        assert contents(tap, "web@live", 4096) == b"n" * 4096
        plx("vdi", "rename", "web", "www")
        assert client.read(0, 4096) == b"o" * 4096
        assert [v["name"] for v in plx("-o", "json", "vdi", "list").json["vdis"]] == ["base", "www"]
        plx("vdi", "create", "twin", "--from", f"{block}.{offset}")
        assert contents(tap, "twin", 4096) == b"n" * 4096
        plx("-y", "snap", "delete", "www@live")
        plx("-y", "store", "gc")
        assert client.read(0, 4096) == b"o" * 4096
        assert contents(tap, "twin", 4096) == b"n" * 4096


def test_what_would_disturb_a_client_is_refused_with_its_name(
    plx: Plx, tap: str, snapshot: tuple[str, str]
) -> None:
    Path("disk.img").write_bytes(b"d" * 8192)
    where = plx("snap", "create", "web").out.split()
    with closing(connect(tap, "web")), closing(connect(tap, "base@clean")):
        client = f"pid {os.getpid()}"
        for args in (
            ["-y", "vdi", "delete", "web", "--snapshots"],
            ["-n", "vdi", "delete", "web", "--snapshots"],
            ["vdi", "resize", "1", "1M"],
            ["vdi", "fill", "web", "disk.img"],
            ["-y", "snap", "rollback", "web", *where],
        ):
            line = plx.fails(4, *args)
            assert "VDI 'web' is open on " in line, line
            assert "(plxsh tap serve)" in line, line
            if "fill" not in args:
                assert f"it serves it to {client}" in line, line
        line = plx.fails(4, "-y", "vdi", "delete", "web")
        assert "snapshot" in line
        assert client not in line  # that is not why
        for args in (["vdi", "export", "web", "out.img"], ["snap", "diff", "base@clean", "web"]):
            assert "(take a snapshot and read that)" in plx.fails(4, *args)
        assert f"snapshot {'.'.join(snapshot)}" in plx.fails(
            4, "-y", "snap", "delete", "base@clean"
        )
        shown = plx("-o", "json", "vdi", "list").json["vdis"]
        assert [row["clients"] for row in shown] == [[client], [client]]
        assert shown[0]["served_by"] is None
        assert "(plxsh tap serve)" in shown[1]["served_by"]
        assert plx("vdi", "show", "web").out.count(client) == 1
    while plx("-o", "json", "vdi", "list").json["vdis"][1]["served_by"]:
        time.sleep(0.05)
    plx("vdi", "resize", "web", "1M")
    with closing(connect(tap, f"web@{'.'.join(where)}")):
        line = plx.fails(4, "-y", "vdi", "delete", "web", "--snapshots")
        assert f"snapshot {'.'.join(where)} of VDI 1 'web' is open" in line
        assert client in line


def test_a_dry_run_changes_nothing(plx: Plx, tap: str) -> None:
    with RawClient(tap).go("web") as client:
        assert client.write(0, b"n" * 4096) == 0
        plx("snap", "create", "web")  # so that all is on disk
        plx("store", "check")  # and both records say so
        before = plx.bytes()
        assert plx("-n", "vdi", "create", "new", "--size", "1M").out.startswith(
            "would create VDI 2"
        )
        assert plx("-n", "snap", "create", "web").out.startswith("would take snapshot ")
        assert plx("-n", "vdi", "rename", "web", "www").out.startswith("would rename VDI 1 'web'")
        assert plx("-n", "snap", "delete", "base@clean").out.startswith("would delete snapshot ")
        assert plx("-n", "vdi", "delete", "web", "--snapshots", status=4).out == ""
        assert plx("-n", "store", "gc").out.startswith("would free ")
        assert client.read(0, 4096) == b"n" * 4096
        assert plx.bytes() == before
    assert plx("lock", "list").out.count("vdi/0") == 0


def test_the_list_of_locks(plx: Plx, tap: str) -> None:
    with closing(connect(tap, "web")):
        rows = plx("-o", "json", "lock", "list").json["locks"]
        by_name = {row["lock"]: row for row in rows}
        web = by_name["vdi/1"]
        assert web["what"] == "VDI 1 'web'"
        assert (web["access"], web["purpose"], web["state"]) == (
            "exclusive",
            "plxsh tap serve",
            "held",
        )
        assert web["host"] == os.uname().nodename
        assert isinstance(web["process"], int)
        assert isinstance(web["token"], int)
        assert any(name.startswith("session/") for name in by_name)
        assert "VDI 1 'web'" in plx("-o", "table", "lock", "list").out


def test_without_a_tap_there_are_no_locks(plx: Plx) -> None:
    assert plx("lock", "list").out == ""
    result = plx("-v", "lock", "list")
    assert "the lock master is embedded; the store is free" in result.err
    assert "there is no lock master" in plx.fails(3, "lock", "break", "vdi/1")
    for name in ("extent/1", "session/aa", "registry"):
        assert f"{name} cannot be taken from a session" in plx.fails(2, "-y", "lock", "break", name)


def test_breaking_asks_and_takes_the_lock_from_a_tool(plx: Plx, tap: str) -> None:
    del tap
    words = [sys.executable, "-m", "plxsh", "vdi", "fill", "web", "-"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as filling:
        assert filling.stdin is not None
        while "vdi/1" not in plx("lock", "list").out:
            assert filling.poll() is None
            time.sleep(0.05)
        line = plx.fails(2, "lock", "break", "vdi/1")
        assert "its clients are disconnected" in line
        assert re.search(r"at the latest after \d+ s", line)
        assert "VDI 1 'web'" in line
        assert "what was written since its last commit is lost" in line
        assert plx("-n", "lock", "break", "vdi/1").out.startswith("would break vdi/1 (VDI 1 'web')")
        for example in break_.examples:
            assert plx(*example.split()[1:]).out == ""
        assert "vdi/1" not in plx("lock", "list").out
        filling.stdin.write(b"x" * 8192)
        filling.stdin.close()
        assert filling.wait(60) == 4
    assert "nobody holds vdi/1" in plx.fails(3, "-y", "lock", "break", "vdi/1")
    assert plx("vdi", "show", "web").out


def test_ctrl_c_leaves_nothing_held(plx: Plx, tap: str) -> None:
    before = contents(tap, "web")
    words = [sys.executable, "-m", "plxsh", "vdi", "fill", "web", "-"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as filling:
        assert filling.stdin is not None
        while "vdi/1" not in plx("lock", "list").out:
            assert filling.poll() is None
            time.sleep(0.05)
        filling.stdin.write(b"x" * 4096)
        filling.stdin.flush()
        filling.send_signal(signal.SIGINT)
        assert filling.wait(60) == 130
    rows = plx("-o", "json", "lock", "list").json["locks"]
    assert {row["purpose"] for row in rows} <= {"plxsh tap serve"}
    assert len(contents(tap, "web")) == len(before)
    plx("vdi", "resize", "web", "1M")


def test_the_original_tools(plx: Plx, tap: str) -> None:
    def tool(name: str, *args: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).parent / name
        return subprocess.run([program, *args], capture_output=True, text=True, check=False)

    with RawClient(tap).go("web") as client:
        assert client.write(0, b"n" * 4096) == 0
        live = tool("vdi_snap", "1")
        assert re.fullmatch(r"\d+ \d+\n", live.stdout), live.stderr
        refused = tool("vdi_snap_offline", "1")
        assert refused.returncode == 4
        assert "VDI 'web' is open on " in refused.stderr
        assert "(plxsh tap serve) (vdi_snap takes a snapshot" in refused.stderr
        assert tool("vdi_create", "more").stdout == "2\n"
    while "vdi/1" in plx("lock", "list").out:
        time.sleep(0.05)
    assert tool("vdi_snap_offline", "1").returncode == 0


def test_a_tap_that_was_killed_is_in_nobodys_way(
    plx: Plx, monkeypatch: pytest.MonkeyPatch, run_folder: str
) -> None:
    monkeypatch.setenv("PARALLAX_RUN_DIR", f"{run_folder}/killed")
    unix = f"{run_folder}/killed/nbd.sock"
    words = [sys.executable, "-m", "plxsh", "-v", "tap", "serve"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tap:
        assert tap.stderr is not None
        assert tap.stderr.readline().startswith("serving ")
        assert plx("lock", "list").out
        tap.kill()
    assert os.path.exists(unix)
    assert list(Path(unix).parent.glob("*.locks"))
    plx("vdi", "create", "new")
    assert plx("lock", "list").out == ""
    assert plx("vdi", "list").err == ""


def test_the_shell_beside_a_tap(store: Path, open_shell: OpenShell) -> None:
    variables = {**environment(), "PARALLAX_STORE": str(store)}
    with serving("tap", "serve", environment=variables):
        os.environ["PARALLAX_RUN_DIR"], before = (
            variables["PARALLAX_RUN_DIR"],
            os.environ["PARALLAX_RUN_DIR"],
        )
        try:
            shell = open_shell(columns=200)
        finally:
            os.environ["PARALLAX_RUN_DIR"] = before
        path = os.path.join(variables["PARALLAX_RUN_DIR"], "nbd.sock")
        shell.wait_for("lock master in the tap")
        with closing(connect(path, "0")):
            assert any("tap" in line for line in shell.run("lock list"))
            shell.run("snap create 0 --label live")
            assert any("live" in line for line in shell.run("snap list 0"))
            assert any("is open" in line for line in shell.run("vdi resize 0 1T"))
