"""`plxlockmaster` with two taps on one store, as if each were a host of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.tap import LEASE, PROGRAM, QUIET, environment, held_port, serving
from shell.tap import lock_master as serving_locks
from support.tap import NbdError, RawClient

from core.errors import IoFailed
from core.lock_messages import TAP, TOOL
from plxsh import classic
from plxsh.commands.lock import handover
from plxsh.context import Settings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several-hosts")]  # one lock master

KEY = "a key that only tests have, and all of them\n"


@pytest.fixture(scope="module")
def lock_master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and key of a lock master that is past its quiet time."""
    folder = tmp_path_factory.mktemp("locks")
    key = folder / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    state = str(folder / "state.epoch")
    with serving_locks("--key", str(key), "--lease", str(LEASE), "--state", state) as address:
        time.sleep(QUIET)  # it grants nothing before
        yield address, key


class Host:
    """A tap, and the tools beside it."""

    def __init__(self, name: str, variables: dict[str, str]) -> None:
        self.name = name
        self.variables = variables

    @property
    def socket(self) -> str:
        return os.path.join(self.variables["PARALLAX_RUN_DIR"], "nbd.sock")

    def __call__(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if not status else done.stderr


@pytest.fixture
def hosts(
    plx: Plx, lock_master: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Host, Host]]:
    """Two taps on the store of `plx`, which itself has the same lock master."""
    address, key = lock_master
    monkeypatch.setenv("PARALLAX_LOCK_MASTER", address)
    monkeypatch.setenv("PARALLAX_LOCK_KEY", str(key))
    with ExitStack() as stack:
        found = []
        for name in ("one", "two"):
            variables = environment()
            stack.enter_context(serving("tap", "serve", environment=variables))
            found.append(Host(name, variables))
        yield found[0], found[1]
    plx("store", "check")


def sessions(plx: Plx) -> list[str]:
    """The sessions of the taps, in the order in which they began."""
    rows = plx("-o", "json", "lock", "list").json["locks"]
    taps = [row for row in rows if row["lock"].startswith("session/")]
    return [row["lock"] for row in sorted(taps, key=lambda row: row["token"])]


def test_each_vdi_has_one_writer_and_tools_reach_it(plx: Plx, hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    with RawClient(one.socket).go("web") as client:
        assert client.write(0, b"n" * 4096) == 0
        for host in hosts:
            shown = host("vdi", "resize", "web", "1M", status=4)
            assert "VDI 'web' is open on " in shown
        assert re.fullmatch(r"\d+ \d+\n", two("snap", "create", "web", "--label", "live"))
        with RawClient(two.socket).go("web@live") as snapshot:
            assert snapshot.read(0, 4096) == b"n" * 4096
        two("vdi", "rename", "web", "www")
        assert client.read(0, 4096) == b"n" * 4096
        with RawClient(two.socket).go("base") as base:
            assert base.write(0, b"b" * 4096) == 0
            rows = plx("-o", "json", "vdi", "list").json["vdis"]
            assert all("(plxsh tap serve)" in row["served_by"] for row in rows)
            served = two("-o", "json", "store", "info")
            assert served.count("(plxsh tap serve)") == 2
        assert two("vdi", "create", "new", "--from", "www@live") == "2\n"
        assert one("vdi", "delete", "new", "-y") == ""
        assert one("vdi", "restore", "new") == ""
        one("store", "gc", "-y")
        assert client.read(0, 4096) == b"n" * 4096
        two("store", "grow", "--extents", "8")


def test_a_vdi_is_handed_over(
    plx: Plx, hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plxsh.commands.lock._PATIENCE", 60.0)
    one, two = hosts
    to = sessions(plx)[1]
    assert "nobody has VDI 1 'web' open" in plx.fails(3, "lock", "handover", "web", to)
    with RawClient(one.socket).go("web") as client:
        assert client.write(0, b"h" * 4096) == 0
        assert "no tap on 'nowhere'" in plx.fails(3, "lock", "handover", "web", "nowhere")
        assert "name one of them" in plx.fails(2, "lock", "handover", "web", os.uname().nodename)
        told = plx("-n", "lock", "handover", "web", to).out
        assert told.startswith("would hand over VDI 1 'web' from ")
        assert client.read(0, 4096) == b"h" * 4096
        for example in handover.examples:  # the other says that it is there already
            plx(*example.replace("host2", to).split()[1:])
        assert client.hung_up()
    rows = plx("-o", "json", "lock", "list").json["locks"]
    holder = {row["lock"]: row["process"] for row in rows}
    assert holder["vdi/1"] == holder[to]
    with RawClient(two.socket).go("web") as client:
        assert client.read(0, 4096) == b"h" * 4096
        assert client.write(0, b"i" * 4096) == 0


def test_clients_on_all_hosts_are_disconnected(plx: Plx, hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    with (
        RawClient(one.socket).go("base@clean") as here,
        RawClient(two.socket).go("base@clean") as there,
        RawClient(two.socket).go("web") as writer,
    ):
        assert writer.write(0, b"d" * 4096) == 0
        assert one("-n", "tap", "disconnect", "web").startswith("would disconnect 1 client ")
        told = plx("-y", "-o", "json", "tap", "disconnect", "base@clean").json["disconnected"]
        assert len({client["process"] for client in told}) == 2
        assert here.hung_up()
        assert there.hung_up()
        assert one("-y", "tap", "disconnect", "web", "--refuse", "600") == "1\n"
        assert writer.hung_up()
        for host in hosts:
            with RawClient(host.socket) as late, pytest.raises(NbdError, match="an operator has"):
                late.go("web")
        assert two("tap", "disconnect", "web", "--refuse", "0") == "0\n"
        with RawClient(one.socket).go("web") as again:
            assert again.read(0, 4096) == b"d" * 4096


def test_a_tap_that_does_not_answer_is_named(
    plx: Plx, hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = hosts
    monkeypatch.setattr("plxsh.commands.disconnect._ANSWER", 3.0)
    with RawClient(one.socket).go("base@clean"), RawClient(two.socket).go("web") as writer:
        rows = plx("-o", "json", "lock", "list").json["locks"]
        (pid,) = (row["process"] for row in rows if row["lock"] == sessions(plx)[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            line = plx.fails(5, "-y", "tap", "disconnect", "base@clean")
            assert f"process {pid} (plxsh tap serve): the holder did not answer" in line
            monkeypatch.setattr("plxsh.commands.disconnect._ANSWER", 60.0)
            assert plx("-y", "tap", "disconnect", "web").out == "1\n"  # which is not open there
            assert writer.hung_up()
        finally:
            os.kill(pid, signal.SIGCONT)


def test_who_may_not_or_cannot_is_told_in_one_line(
    plx: Plx, lock_master: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, key = lock_master
    with held_port() as port:
        nobody = f"127.0.0.1:{port}"
        assert nobody in plx.fails(5, "--lock-master", nobody, "vdi", "create", "x")
    wrong = tmp_path / "wrong"
    wrong.write_text("another key, but long enough\n")
    wrong.chmod(0o600)
    monkeypatch.setenv("PARALLAX_LOCK_KEY", str(wrong))
    assert "key" in plx.fails(5, "--lock-master", address, "vdi", "create", "x")
    monkeypatch.delenv("PARALLAX_LOCK_KEY")
    assert "key" in plx.fails(5, "--lock-master", address, "vdi", "create", "x")
    assert "names no lock master" in plx.fails(2, "--lock-master", "host", "vdi", "list")
    monkeypatch.setenv("PARALLAX_LOCK_KEY", str(key))
    plx("--lock-master", address, "vdi", "create", "x")


def test_who_is_not_there_is_no_reason_not_to_list(plx: Plx) -> None:
    with held_port() as port:
        nobody = f"127.0.0.1:{port}"
        result = plx("--lock-master", nobody, "vdi", "list")
        assert "web" in result.out
        assert f"warning: the lock master at {nobody} " in result.err
        result = plx("-o", "json", "--lock-master", nobody, "store", "info")
    assert result.json["store"]["served_by"] is None
    assert f"warning: the lock master at {nobody} " in result.err


@pytest.mark.parametrize(
    ("words", "purpose", "role"),
    [
        (["parallaxd"], "plxsh tap serve", TAP),
        (["vdi_create", "tap"], "vdi_create", TOOL),
        (["vdi_snap", "web"], "vdi_snap", TOOL),
        (["plxsh", "tap", "serve"], "plxsh tap serve", TAP),
        (["plxsh", "tap", "disconnect", "web"], "plxsh tap disconnect", TOOL),
        (["plxsh", "vdi", "create", "x"], "plxsh vdi create", TOOL),
    ],
)
def test_what_a_session_is_known_by(
    plx: Plx, monkeypatch: pytest.MonkeyPatch, words: list[str], purpose: str, role: str
) -> None:
    heard: list[tuple[str, str]] = []

    def connect(_settings: Settings, _address: str, purpose: str, role: str) -> None:
        heard.append((purpose, role))
        raise IoFailed("nobody is there")

    monkeypatch.setattr("plxsh.locking.connect", connect)
    monkeypatch.setenv("PARALLAX_LOCK_MASTER", "127.0.0.1:1")
    program, *args = words
    if program == "plxsh":
        plx.fails(5, *args)
    else:
        assert classic.run(classic.TOOLS[program], args) == 5
    assert heard == [(purpose, role)]


def test_the_tap_of_another_store_is_no_lock_master(plx: Plx, tmp_path: Path) -> None:
    other = tmp_path / "other.dat"
    plx("store", "create", other, "--extent-size", "1M")
    variables = {**environment(), "PARALLAX_STORE": str(other)}
    with serving("tap", "serve", environment=variables):
        folder = Path(variables["PARALLAX_RUN_DIR"])
        (socket,) = folder.glob("*.locks")
        line = plx.fails(4, "--lock-master", f"unix:{socket}", "vdi", "create", "x")
        assert "that of a tap with another store" in line
        plx("-s", other, "--lock-master", f"unix:{socket}", "vdi", "create", "x")
