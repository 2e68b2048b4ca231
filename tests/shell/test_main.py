"""The command line as a whole: options, precedence, interruptions, terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from shell.conftest import Plx
from support.terminal import asleep, unread

from plxsh.cli import cli
from plxsh.context import Settings

PLXSH = [sys.executable, "-m", "plxsh"]


def test_precedence_command_line_environment_file(
    plx: Plx, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("plx.toml").write_text(f'[blockstore]\ndata = "{plx.path}"\n[shell]\noutput = "json"\n')
    monkeypatch.delenv("PARALLAX_STORE")
    assert len(plx("--config", "plx.toml", "vdi", "list").json["vdis"]) == 2
    monkeypatch.setenv("PARALLAX_CONFIG", "plx.toml")
    assert len(plx("vdi", "list").json["vdis"]) == 2
    monkeypatch.setenv("PARALLAX_OUTPUT", "yaml")
    assert plx("vdi", "list").lines[0] == "schema: 1"
    assert plx("-o", "plain", "vdi", "list").lines[0].startswith("0\t")
    monkeypatch.setenv("PARALLAX_STORE", "other.dat")
    assert "at other.dat" in plx.fails(3, "vdi", "list")
    assert len(plx("-s", plx.path, "-o", "plain", "vdi", "list").lines) == 2


def test_the_users_configuration_file_is_found(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path.home() / ".config" / "parallax" / "parallax.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[blockstore]\ndata = "{plx.path}"\n')
    monkeypatch.delenv("PARALLAX_STORE")
    assert len(plx("vdi", "list").lines) == 2


def test_version_and_help(plx: Plx) -> None:
    assert plx("--version").out.startswith("plxsh 0.")
    assert "Exit status" in plx("--help").out
    assert plx().err == ""  # an empty script
    assert plx("vdi", status=2).err.startswith("Usage: plxsh vdi")


@pytest.mark.parametrize("group", ["store", "vdi", "snap", "tap", "disk"])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_of_a_list_of_commands_is_cut(
    plx: Plx, monkeypatch: pytest.MonkeyPatch, group: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    listed = plx(group, "--help").out.partition("Commands:")[2].partition("Example")[0]
    assert listed.strip()
    assert "..." not in listed


def test_the_usage_line_has_what_cannot_be_left_out(plx: Plx) -> None:
    assert plx("store", "grow", "-h").lines[0] == "Usage: plxsh store grow [OPTIONS] --extents N"


def test_an_unexpected_error_is_one_line(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Settings) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(Settings, "blockstore", broken)
    assert plx.fails(5, "vdi", "list") == (
        "plxsh: vdi list: unexpected RuntimeError: first second"
        " (this is a bug in Parallax; -v shows where)"
    )
    assert "Traceback" in plx("-v", "vdi", "list", status=5).err


def test_ctrl_c(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Settings, "blockstore", interrupted)
    result = plx("vdi", "list", status=130)
    assert result.err.strip() == "plxsh: vdi list: interrupted"


@pytest.mark.usefixtures("plx")
def test_a_reader_that_goes_away_is_no_error() -> None:
    for args in (["vdi", "list"], ["-o", "json", "vdi", "list"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*PLXSH, *args], stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert done.stderr == b""
        assert done.returncode != 0


def on_terminal(*args: str, answer: str = "", columns: int = 80) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its status and what it showed."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS=str(columns), TERM="xterm")
        os.execv(sys.executable, [*PLXSH, *args])
    shown = b""
    while True:
        ready, _, _ = select.select([fd], [], [], 60)
        assert ready, shown
        try:
            part = os.read(fd, 65536)
        except OSError:
            break
        shown += part
        if answer and shown.endswith(b": "):
            os.write(fd, answer.encode())
            answer = ""
        if not part:
            break
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads of the tests
def test_it_asks_on_a_terminal_and_no_is_the_default(plx: Plx) -> None:
    status, shown = on_terminal("vdi", "delete", "web", answer="\n")
    assert "deleting VDI 1 'web' (64 KiB, 0 B of its own); 'vdi restore' brings it back" in shown
    assert "Go on? [y/N]: " in shown
    assert "not confirmed, nothing was changed" in shown
    assert status == 130
    assert len(plx("vdi", "list").lines) == 2
    status, shown = on_terminal("vdi", "delete", "web", answer="y\n")
    assert status == 0
    assert "deleted VDI 1 'web'" in shown
    assert len(plx("vdi", "list").lines) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_terminal_gets_tables_that_fit(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    plx("vdi", "create", "a name that is much longer than a terminal is wide " * 3 + "x")
    status, shown = on_terminal("vdi", "list")
    lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert status == 0
    assert "\x1b[1m" in shown
    assert max(map(len, lines)) <= 80
    assert "…" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal("vdi", "list")[1]
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" not in on_terminal("--no-color", "vdi", "list")[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("plx")
def test_progress_on_a_terminal() -> None:
    Path("disk.img").write_bytes(os.urandom(65536))
    shown = on_terminal("vdi", "fill", "-y", "web", "disk.img")[1]
    assert "fill: 64 KiB of 64 KiB (100 %), " in shown
    assert "/s" in shown
    assert "fill:" not in on_terminal("-q", "vdi", "fill", "-y", "web", "disk.img")[1]


def test_progress_for_programs(plx: Plx) -> None:
    Path("disk.img").write_bytes(os.urandom(65536))
    result = plx("-o", "json", "vdi", "fill", "-y", "web", "disk.img")
    last = json.loads(result.err.splitlines()[-1])["progress"]
    assert (last["what"], last["done"], last["total"]) == ("fill", 65536, 65536)
    assert plx("vdi", "fill", "-y", "web", "disk.img").err == ""
    assert plx("-q", "-o", "json", "vdi", "fill", "-y", "web", "disk.img").err == ""


def test_every_command_has_help_with_an_example(plx: Plx) -> None:
    for words in commands(cli):
        told = plx(*words, "--help").out
        assert f"Usage: plxsh {' '.join(words)}" in told
        shown = [line for line in told.splitlines() if line.startswith("  plxsh ")]
        assert any(" ".join(words) in line for line in shown), words


def commands(group: click.Group, *path: str) -> list[list[str]]:
    """Every command of the command line, as words."""
    found: list[list[str]] = []
    context = click.Context(group, obj=Settings())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += commands(command, *path, name)
        elif command is not None and not command.hidden:
            found.append([*path, name])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_fill_and_says_what_is_left(plx: Plx, number: signal.Signals) -> None:
    plx("vdi", "create", "new")
    with subprocess.Popen(
        [*PLXSH, "vdi", "fill", "new", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"x" * (1 << 16))
        process.stdin.flush()
        while unread(process.stdin) or not asleep(process.pid):  # until it waits for more
            select.select([], [], [], 0.01)
        process.send_signal(number)
        err = process.stderr.read().decode()
        assert process.wait() == 128 + number
    assert err.strip().startswith("plxsh: vdi fill: interrupted")
    assert "VDI 'new' is as before" in err
    assert plx("-o", "json", "vdi", "show", "new").json["vdi"]["size"] == 0
