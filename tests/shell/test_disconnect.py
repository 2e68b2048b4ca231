"""`tap disconnect`: who is sent away, what is said of it, and that nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.tap import environment, serving
from shell.test_main import on_terminal
from support.tap import NbdError, RawClient

from core.session import Session

MIB = 1 << 20
HERE = os.uname().nodename


@pytest.fixture
def tap(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The socket of a tap that serves the store of `plx`."""
    variables = environment()
    with serving("tap", "serve", environment=variables) as folder:
        monkeypatch.setenv("PARALLAX_RUN_DIR", variables["PARALLAX_RUN_DIR"])
        yield str(Path(folder) / "parallax" / "nbd.sock")
    plx("store", "check")


@pytest.mark.slow
def test_all_clients_of_a_vdi(plx: Plx, tap: str, snapshot: tuple[str, str]) -> None:
    mine = f"pid {os.getpid()}"
    with RawClient(tap) as one, RawClient(tap) as two, RawClient(tap) as reader:
        assert one.go("web").write(0, b"o" * 4096) == 0
        two.go("1")
        reader.go("base@clean")
        told = plx("-n", "tap", "disconnect", "web").out
        who = f"2 clients ({mine} on {HERE}, {mine} on {HERE}) of VDI 1 'web'"
        assert told == f"would disconnect {who}\n"
        asked = plx.fails(2, "tap", "disconnect", "web")
        assert f"disconnecting {who}: a guest that does not connect again sees" in asked
        assert two.read(0, 4) == b"oooo"
        predicted = plx("-n", "-o", "json", "tap", "disconnect", "web").json
        done = plx("-y", "-o", "json", "tap", "disconnect", "web").json
        assert predicted["disconnected"] == done["disconnected"]
        assert predicted.keys() - done.keys() == {"dry_run", "would"}
        keys = {"export", "vdi", "snapshot", "peer", "access", "since", "host", "process"}
        assert [client.keys() for client in done["disconnected"]] == [keys, keys]
        assert one.hung_up()
        assert two.hung_up()
        with Session.open(str(plx.path), "read") as session:
            assert session.live_image(session.registry.find("web")).read(0, 4) == b"oooo"
        assert plx("tap", "disconnect", "web").out == "0\n"  # and asks nothing
        assert reader.read(4096, 4) == b"aaaa"
        assert plx("-y", "tap", "disconnect", *snapshot).out == "1\n"
        assert reader.hung_up()
    with RawClient(tap) as again:
        again.go("web")


@pytest.mark.slow
def test_some_clients_and_nobody_for_a_while(plx: Plx, tap: str) -> None:
    with RawClient(tap) as client:
        client.go("web")
        line = ("-y", "-v", "tap", "disconnect", "web")
        result = plx(*line, "--client", "10.0.0.7", "--client", "999999999")
        assert (result.out, result.err) == ("0\n", "disconnected no client of VDI 1 'web'\n")
        assert plx(*line, "--client", os.getpid()).out == "1\n"
        assert client.hung_up()
    with RawClient(tap) as client:
        client.go("web")
        result = plx(*line, "--refuse", "600")
        assert result.err.endswith(" of VDI 1 'web', refused to all for 600 s\n")
        with RawClient(tap) as late, pytest.raises(NbdError, match="an operator has VDI 'web'"):
            late.go("web")
    assert plx(*line, "--refuse", "0").err.endswith(", refused to nobody\n")
    with RawClient(tap) as client:
        client.go("web")
        plx(*line, "--refuse", "600")
    plx("-y", "vdi", "delete", "web")  # which nobody had taken again


_WRITER = """
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
done = 0
try:
    while True:
        h.pwrite((done + 1).to_bytes(8, "big") * 512, 0)
        done += 1
        if done == 20:
            print("writing", flush=True)
except nbd.Error:
    print(done, flush=True)
"""


@pytest.mark.slow
def test_libnbd_loses_no_write_that_was_answered(plx: Plx, tap: str) -> None:
    command = ["/usr/bin/python3", "-c", _WRITER, f"nbd+unix:///web?socket={tap}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            (client,) = plx("-y", "-o", "json", "tap", "disconnect", "web").json["disconnected"]
            assert client["peer"] == f"pid {writer.pid}"
            answered = int(writer.stdout.readline())
        finally:
            writer.kill()
    with Session.open(str(plx.path), "read") as session:
        data = session.live_image(session.registry.find("web")).read(0, 8)
    assert int.from_bytes(data, "big") >= answered >= 20


@pytest.mark.slow
def test_qemu_sees_an_error_and_can_open_it_again(plx: Plx, tap: str) -> None:
    uri = f"nbd+unix:///web?socket={tap}"
    command = ["qemu-io", "-f", "raw", uri]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("write -P 7 0 4k\n")
        client.stdin.flush()
        while "ops" not in client.stdout.readline():
            assert client.poll() is None
        assert plx("-y", "tap", "disconnect", "web").out == "1\n"
        out, err = client.communicate("read 0 4k\nquit\n", timeout=60)
    assert "error" in out + err
    again = [*command, "-c", "read -P 7 0 4k"]
    shown = subprocess.run(again, capture_output=True, text=True, check=True).stdout
    assert "failed" not in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads of the tests
def test_it_asks_first(plx: Plx, tap: str) -> None:
    with RawClient(tap) as client:
        client.go("web")
        status, shown = on_terminal("tap", "disconnect", "web", answer="n\n")
        assert status == 130
        assert f"1 client (pid {os.getpid()} on {HERE}) of VDI 1 'web'" in " ".join(shown.split())
        assert client.read(0, 1)
        status, _ = on_terminal("tap", "disconnect", "web", answer="y\n")
        assert status == 0
        assert client.hung_up()
    assert plx("tap", "disconnect", "web").out == "0\n"


@pytest.mark.slow
def test_who_cannot_be_asked_is_not_taken_for_nobody(tap: str) -> None:
    """A tap whose folder of sockets this user does not know."""
    with RawClient(tap) as client:
        client.go("web")
        moved = {**os.environ, "PARALLAX_RUN_DIR": "/nonexistent"}
        command = [sys.executable, "-m", "plxsh", "-o", "json", "tap", "disconnect", "web"]
        done = subprocess.run(command, env=moved, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        assert error["code"] == "in_use"
        assert "cannot be asked who is connected" in error["message"]
        assert client.read(0, 1)


def test_without_a_tap_there_are_no_clients(plx: Plx, snapshot: tuple[str, str]) -> None:
    for words in (["web"], ["0"], ["base@clean"], snapshot, ["web", "--refuse", "5"]):
        assert plx("tap", "disconnect", *words).out == "0\n"
    told = plx("-o", "json", "tap", "disconnect", "web").json
    assert told == {"schema": 1, "disconnected": [], "refused_seconds": None}
    assert plx("-n", "tap", "disconnect", "web").out == (
        "would disconnect no client of VDI 1 'web'\n"
    )
    assert "there is no VDI 'nobody'" in plx.fails(3, "tap", "disconnect", "nobody")
    assert "there is no snapshot" in plx.fails(3, "tap", "disconnect", "web@nothing")
    both = ("web", "--client", "1", "--refuse", "1")
    assert "--refuse is for all clients" in plx.fails(2, "tap", "disconnect", *both)
    assert "--refuse" in plx.fails(2, "tap", "disconnect", "web", "--refuse", "601")


def test_a_tool_that_has_the_store_is_waited_for(plx: Plx) -> None:
    with open(plx.path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = plx.fails(4, "tap", "disconnect", "web")
    assert "cannot be asked who is connected" in line


def test_many_clients_are_counted() -> None:
    from plxsh.commands.disconnect import _listed

    clients = [{"peer": f"pid {number}", "host": "one"} for number in range(1, 8)]
    assert _listed(clients[:1]) == "1 client (pid 1 on one)"
    assert _listed(clients).startswith("7 clients (pid 1 on one, pid 2 on one, ")
    assert _listed(clients).endswith(", pid 5 on one and 2 more)")
