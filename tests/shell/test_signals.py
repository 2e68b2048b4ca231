"""Signals that end a program: commands put things in order first, and say what is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from shell.conftest import Plx
from support.shell import Shell

from core.errors import Interrupted
from plxsh.cli import run
from plxsh.context import Settings
from plxsh.guard import guarded
from plxsh.signals import Ended, ended_by, ending_in_order

Processes = list[subprocess.Popen[bytes]]


@pytest.fixture
def processes() -> Iterator[Processes]:
    started: Processes = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def plxsh(processes: Processes, *arguments: str, **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "plxsh", *arguments]
    processes.append(
        subprocess.Popen(command, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload]
    )
    return processes[-1]


@pytest.fixture
def endless(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VDI to export whose conversion never ends: qemu-img is replaced; a pipe tells its pid."""
    folder = plx.folder / "bin"
    folder.mkdir()
    started = folder / "started"
    os.mkfifo(started)
    fake = folder / "qemu-img"
    fake.write_text(
        "#!/bin/sh\n"
        "case $1 in create) exit;; info) echo '{\"virtual-size\": 65536}'; exit;; esac\n"
        f"echo $$ > {started}\n"
        "while echo '(1.00/100%)'; do sleep 0.1; done\n"
    )
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return started


def wait_for_end(pid: int) -> None:
    """At the latest it ends when it writes to a pipe that is closed."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            select.select([], [], [], 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1],
)
def test_an_export_that_a_signal_ends_leaves_nothing(
    plx: Plx, endless: Path, processes: Processes, number: signal.Signals
) -> None:
    before = set(os.listdir())
    process = plxsh(processes, "vdi", "export", "base", "out.qcow2", "--format", "qcow2")
    child = int(endless.read_text())
    assert len(os.listdir()) == len(before) + 1
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert said.decode().splitlines()[-1] == (
        "plxsh: vdi export: interrupted: out.qcow2 was not written (run the same command again)"
    )
    assert set(os.listdir()) == before
    wait_for_end(child)
    plx("store", "check")


@pytest.mark.slow
def test_what_is_ignored_stays_ignored(endless: Path, processes: Processes) -> None:
    """As under nohup."""
    process = plxsh(
        processes, "vdi", "export", "base", "o", "--format", "qcow2",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    endless.read_text()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_no_terminal_is_no_second_error(plx: Plx, processes: Processes, endless: Path) -> None:
    """A terminal that hung up refuses every word."""
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "plxsh", "vdi", "export", "base", "o", "--format", "qcow2"]
    process = subprocess.Popen(command, stderr=terminal, stdout=terminal, stdin=terminal)
    processes.append(process)
    os.close(terminal)
    endless.read_text()
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 129
    assert not Path("o").exists()
    assert plx.folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("", ">"),
        ("watch 600 vdi list", "every 600 s"),
        ("!echo be''gun; exec sleep 600", "begun"),
        ("vdi delete web", "Go on?"),
    ],
)
def test_the_shell_ends_wherever_it_is(shell: Shell, line: str, shown: str) -> None:
    """Ctrl-C ends a line; the others end the shell."""
    if line:
        shell.start(line)
    shell.wait_for(lambda: any(shown in row for row in shell.screen))
    os.kill(shell.pid, signal.SIGTERM)
    assert shell.wait() == 143


def test_a_script_does_not_go_on(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("plxsh.commands.vdi.render.rows", end)
    result = plx("-c", "vdi list; vdi create next", status=143)
    assert result.err == "\nplxsh: vdi list: ended by SIGTERM\n\n"
    assert "no VDI 'next'" in plx.fails(3, "vdi", "show", "next")


def test_handlers_are_there_for_a_command_only(plx: Plx) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    plx("vdi", "list")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_does_not_disturb_what_puts_things_in_order() -> None:
    tidied = []

    def program() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            tidied.append(True)
        return 0

    assert ending_in_order(program) == 143
    assert tidied


def test_an_error_on_the_way_out_knows_where_it_comes_from() -> None:
    told = Settings()

    def command() -> None:
        try:
            raise Ended(signal.SIGTERM)
        except KeyboardInterrupt:
            raise Interrupted("interrupted: half") from None

    with pytest.raises(Ended):
        guarded(command, told, "plxsh")
    assert ended_by(ValueError()) is None
    assert str(Ended(signal.SIGRTMIN + 1)) == f"signal {signal.SIGRTMIN + 1}"
    assert run(["--version"]) == 0
