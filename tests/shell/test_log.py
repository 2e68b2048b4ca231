"""The log of a running tap: in a file, in the journal, on a terminal, and as JSON."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from shell.conftest import Plx
from shell.tap import PROGRAM, connect, environment, read

from core.errors import IoFailed, NotFound
from core.tap.status import query_status
from plxsh import log


@contextmanager
def logging_into(
    path: Path, *words: str, before: tuple[str, ...] = (), variables: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A tap whose standard error is a file, until it has ended."""
    command = [sys.executable, "-c", PROGRAM, *before, "tap", "serve", "--unix", "nbd.sock", *words]
    with (
        path.open("wb") as file,
        subprocess.Popen(command, env=environment() | (variables or {}), stderr=file) as tap,
    ):
        try:
            wait_for(lambda: answers() or tap.poll() is not None)
            yield tap
        finally:
            tap.send_signal(signal.SIGTERM)
            assert tap.wait() == 0, path.read_text()


def wait_for(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def answers() -> bool:
    try:
        return bool(query_status("nbd.sock"))
    except (NotFound, IoFailed):  # not yet, or it is slow
        return False


def visit() -> None:
    """Open an export and read from it; then ask for one that is not there."""
    with closing(connect("nbd.sock", "web")) as sock:
        assert read(sock, 4096, 4096) == b"a" * 4096
    name = b"evil\n<0>\x1b[2Jname"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("nbd.sock")
        sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
        while sock.recv(100):
            pass


@pytest.mark.slow
def test_a_file_gets_lines_with_date_and_severity(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    file = tmp_path / "log"
    with logging_into(file):
        visit()
    lines = file.read_text().splitlines()
    said = [line.split(" ", 1)[1] for line in lines]
    assert all(line[10] == "T" and line.split()[0].endswith("Z") for line in lines)
    me = f"pid {os.getpid()}"
    assert said[0].startswith("info: ")
    assert said[0].endswith(": listening on nbd.sock")
    assert said[1] == f"info: web: opened by {me}"
    assert said[2].startswith(f"info: web: {me} left after ")
    assert "1 request, 4 KiB read, 0 B written" in said[2]
    assert said[3].startswith(f"warning: {me}: protocol error: cannot open the export: ")
    assert r"evil\n<0>\x1b[2Jname" in said[3]
    assert said[4:] == ["info: stopping", "info: stopped; everything is committed"]


@pytest.mark.slow
def test_json_is_one_object_a_line(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    file = tmp_path / "log"
    with logging_into(file, "--log", "json", before=("-v",)):
        visit()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert all({"time", "level", "event", "message"} <= event.keys() for event in events)
    named = {event["event"]: event for event in events}
    assert events[0]["event"] == "listening"
    assert events[0]["sockets"] == ["nbd.sock"]
    assert named["connect"]["export"] == "web"
    left = next(e for e in events if e["event"] == "disconnect" and "export" in e)
    assert (left["requests"], left["reads"], left["bytes_read"]) == (1, 1, 4096)
    assert left["peer"] == f"pid {os.getpid()}"
    assert named["refused"]["level"] == "warning"
    assert [event["event"] for event in events[-2:]] == ["stopping", "stopped"]


@pytest.mark.slow
def test_the_configuration_can_ask_for_both(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    config = tmp_path / "parallax.toml"
    config.write_text('[tap]\nlog = "json"\nmetrics = "127.0.0.1:0"\n')
    file = tmp_path / "log"
    with logging_into(file, before=("--config", str(config))):
        pass
    [url] = json.loads(file.read_text().splitlines()[0])["metrics"]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/metrics")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('log = "xml"', "there is no form of the log 'xml'"),
        ('metrics = "here"', "[tap] metrics of the configuration: 'here' is no address"),
        ("metrics = 8441", "[tap] metrics of the configuration is 8441, not a text"),
    ],
)
def test_a_configuration_that_makes_no_sense(
    plx: Plx, tmp_path: Path, line: str, said: str
) -> None:
    config = tmp_path / "parallax.toml"
    config.write_text(f"[tap]\n{line}\n")
    assert said in plx.fails(2, "--config", str(config), "tap", "serve", "--unix", "nbd.sock")
    assert not Path("nbd.sock").exists()


@pytest.mark.slow
def test_the_journal_gets_its_marks_of_severity(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    for form, first in (("text", "<6>"), ("json", '<6>{"time"')):
        file = tmp_path / form
        file.touch()
        status = file.stat()
        variables = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        with logging_into(file, "--log", form, variables=variables):
            visit()
        lines = file.read_text().splitlines()
        assert lines[0].startswith(first)
        assert {line[:3] for line in lines} == {"<4>", "<6>"}
        assert all(line[:3] != "<0>" for line in lines)


@pytest.mark.slow
def test_another_stream_than_the_journals_has_none(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    file = tmp_path / "log"
    with logging_into(file, variables={"JOURNAL_STREAM": "1:1"}):
        pass
    assert not file.read_text().startswith("<")


@pytest.mark.slow
def test_quiet_leaves_warnings(plx: Plx, tmp_path: Path) -> None:  # noqa: ARG001
    file = tmp_path / "log"
    with logging_into(file, before=("-q",)):
        visit()
    [line] = file.read_text().splitlines()
    assert " warning: " in line


@pytest.mark.slow
@pytest.mark.parametrize("foreground", [True, False])
def test_on_a_terminal(plx: Plx, foreground: bool) -> None:  # noqa: ARG001
    """In the foreground it tells all; in the background only what is wrong."""
    own = "import fcntl, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); " if foreground else ""
    master, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", own + PROGRAM, "tap", "serve", "--unix", "nbd.sock"],
        env=environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as tap:
        os.close(terminal)
        try:
            wait_for(lambda: answers() or tap.poll() is not None)
            visit()
        finally:
            tap.send_signal(signal.SIGTERM)
            assert tap.wait() == 0
    shown = b""
    with suppress(OSError):  # what the end of a terminal looks like
        while part := os.read(master, 1 << 16):
            shown += part
    os.close(master)
    lines = shown.decode().splitlines()
    assert lines[0].startswith("serving ")
    assert lines[0].endswith("; Ctrl-C ends it")
    clocks = [line for line in lines if line[2:6:3] == "::"]
    assert any(" warning: pid " in line for line in clocks)
    assert any(" web: opened by pid " in line for line in clocks) == foreground
    assert "\x1b[2J" not in shown.decode()


@pytest.mark.slow
def test_a_log_that_nobody_reads_stalls_nobody(plx: Plx) -> None:  # noqa: ARG001
    """The pipe is full long before the last client has left."""
    command = [sys.executable, "-c", PROGRAM, "tap", "serve", "--unix", "nbd.sock"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as tap:
        assert tap.stderr is not None
        os.set_blocking(tap.stderr.fileno(), False)
        try:
            wait_for(lambda: answers() or tap.poll() is not None)
            fill(tap.pid)
            with closing(connect("nbd.sock", "web")) as sock:
                assert read(sock, 4096, 4096) == b"a" * 4096
        finally:
            tap.send_signal(signal.SIGTERM)
            assert tap.wait(60) == 0


def fill(pid: int) -> None:
    """Write to the standard error of a process until nothing more goes in."""
    end = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * 4096)
    os.close(end)


class Stderr:
    """Stands in for standard error: a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, writing = os.pipe()
        monkeypatch.setattr(log, "_STDERR", writing)
        self.text = ""
        self.writing = writing

    def lines(self) -> list[str]:
        while select.select([self.reading], [], [], 0)[0]:
            self.text += os.read(self.reading, 1 << 16).decode()
        return self.text.splitlines()


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stderr]:
    pipe = Stderr(monkeypatch)
    yield pipe
    os.close(pipe.reading)
    os.close(pipe.writing)


LOGGER = logging.getLogger("core.test")


def hand_over(**fields: object) -> None:
    """Give a record to the log alone: pytest, which listens as well, could not take it."""
    record = logging.makeLogRecord(
        {"name": LOGGER.name, "levelno": logging.INFO, "levelname": "INFO", **fields}
    )
    logging.getLogger("core").handlers[-1].handle(record)


def test_a_flood_is_cut_and_told(stderr: Stderr, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with log.logging_to_stderr("text", logging.INFO):
        for number in range(1000):
            LOGGER.info("line %d", number)
            stderr.lines()
        LOGGER.error("heard all the same")
        assert len(stderr.lines()) == log._MOST + 2
        assert "info: line 199" in stderr.lines()[-3]
        assert stderr.lines()[-2].endswith("warning: 800 lines of the log left out")
        assert stderr.lines()[-1].endswith("error: heard all the same")
        clock.now += log._WINDOW + 0.1
        LOGGER.info("again")
    assert stderr.lines()[-1].endswith("info: again")


def test_a_full_pipe_loses_lines_and_says_so(stderr: Stderr) -> None:
    with log.logging_to_stderr("json", logging.INFO):
        writing = threading.Thread(target=lambda: [LOGGER.info("x" * 3000) for _ in range(100)])
        writing.start()
        writing.join(60)
        assert not writing.is_alive()
        stderr.lines()
        LOGGER.info("heard")
    events = [json.loads(line) for line in stderr.lines()]
    assert events[-1]["message"] == "heard"
    assert events[-2]["event"] == "lines_lost"
    assert len(events) - 2 + events[-2]["lines"] == 100


def test_a_long_trace_does_not_wait_for_room(stderr: Stderr) -> None:
    fcntl.fcntl(stderr.writing, fcntl.F_SETPIPE_SZ, 4096)

    def fail() -> None:
        try:
            raise ValueError("\n".join(["x" * 900] * 20))
        except ValueError:
            LOGGER.exception("a bug")

    with log.logging_to_stderr("text", logging.INFO):
        failing = threading.Thread(target=fail, daemon=True)
        failing.start()
        failing.join(30)
        assert not failing.is_alive()
        stderr.lines()
        LOGGER.info("the pipe has room for one line")
    assert stderr.lines()[-1].endswith("1 line of the log left out")


def test_a_long_or_strange_message_is_still_a_line(stderr: Stderr) -> None:
    with log.logging_to_stderr("json", logging.INFO):
        hand_over(msg="\udcff\n" * 5000, event="odd", peer="ü" * 5000)
        try:
            raise ValueError("why\nso")
        except ValueError:
            LOGGER.exception("a bug")
    odd, bug = (json.loads(line) for line in stderr.lines())
    assert odd["event"] == "odd"
    assert "ValueError: why\nso" in bug["traceback"]


def test_a_bug_in_text_has_its_trace_with_the_same_mark(stderr: Stderr) -> None:
    with log.logging_to_stderr("text", logging.INFO):
        try:
            raise ValueError("why\nso")
        except ValueError:
            LOGGER.exception("a bug\nhere")
    lines = stderr.lines()
    assert all(" error: " in line for line in lines)
    assert lines[0].endswith(r"a bug\nhere")
    assert any("ValueError: why" in line for line in lines)


def test_a_message_that_cannot_be_made_ends_nothing(stderr: Stderr) -> None:
    with log.logging_to_stderr("text", logging.INFO):
        hand_over(msg="%d", args=("no number",))
    assert stderr.lines() == ["a message of core.test cannot be shown"]


def test_the_logger_is_left_as_it_was() -> None:
    logger = logging.getLogger("core")
    before = logger.level, list(logger.handlers)
    with log.logging_to_stderr("text", logging.DEBUG):
        assert logger.level == logging.DEBUG
    assert (logger.level, list(logger.handlers)) == before
