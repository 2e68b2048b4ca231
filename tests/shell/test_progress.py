"""Progress: one line on a terminal, JSON lines for programs, nothing for nobody."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shell.conftest import Plx
from support.terminal import Terminal, asleep, program

from core.session import Session
from plxsh.context import Settings
from plxsh.progress import Progress

PLXSH = (sys.executable, "-m", "plxsh")
MIB = 1 << 20

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """A clock that stands until it is told to go on, and standard error is a terminal."""
    now = 1000.0

    def go_on(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("plxsh.progress.time", SimpleNamespace(monotonic=lambda: now))
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("plxsh.progress.sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setenv("COLUMNS", "80")
    return go_on


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What stood on the line, one after the other; a last one that is empty was erased."""
    written = capsys.readouterr().err
    assert "\x1b" not in written
    return [text.strip() for text in written.split("\r")[1:]]


def transfer(wait: Wait, progress: Progress, seconds: int, rate: int, total: int | None) -> None:
    for second in range(seconds * 10 + 1):
        progress(second * rate // 10, total)
        wait(0.1)


def broken_off(wait: Wait, settings: Settings, seconds: int) -> None:
    with Progress(settings, "fill") as progress:
        transfer(wait, progress, seconds, 10 * MIB, 100 * MIB)
        raise KeyboardInterrupt


def check_until(wait: Wait, progress: Progress) -> None:
    transfer(wait, progress, 2, 10, 100)
    raise KeyboardInterrupt


# -- on a terminal ---------------------------------------------------------------------


def test_a_quick_transfer_shows_its_end_only(
    wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(Settings(), "fill") as progress:
        progress(0, 64 * MIB)
        wait(0.2)
        progress(64 * MIB, 64 * MIB)
    assert shown(capsys) == ["fill: 64 MiB of 64 MiB (100 %), 320 MiB/s"]


def test_rate_and_time_left_come_when_they_are_known(
    wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(Settings(), "fill") as progress:
        transfer(wait, progress, 5, 10 * MIB, 100 * MIB)
    lines = shown(capsys)
    assert lines[0] == "fill: 3 MiB of 100 MiB (3 %), 10 MiB/s"
    assert "fill: 50 MiB of 100 MiB (50 %), 10 MiB/s, 0:05 left" in lines
    assert lines[-1].startswith("fill: 50 MiB of 100 MiB (50 %), 9.8 MiB/s")
    assert 20 < len(lines) < 60


def test_the_time_left_does_not_jump(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten seconds at 10 MiB/s, then every other tick stands still."""
    done = 0
    with Progress(Settings(), "fill") as progress:
        for tick in range(300):
            progress(done, 1000 * MIB)
            wait(0.1)
            done += MIB if tick < 100 or tick % 2 else 0
    lines = shown(capsys)[:-1]
    left = [int(m[1]) * 60 + int(m[2]) for m in re.finditer(r"(\d+):(\d+) left", " ".join(lines))]
    assert len(left) > 200
    assert max(abs(a - b) for a, b in pairwise(left)) <= 4
    assert left[50] in range(80, 100)
    assert left[-1] in range(130, 190)


def test_without_a_total(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Settings(), "fill") as progress:
        transfer(wait, progress, 2, 10 * MIB, None)
    lines = shown(capsys)
    assert lines[-1].startswith("fill: 20 MiB, ")
    assert not any("left" in line or "%" in line for line in lines)


def test_what_only_looks_leaves_nothing(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Settings(), "check", "blocks") as progress:
        transfer(wait, progress, 3, 100, 1000)
    lines = shown(capsys)
    assert lines[0] == "check: 30 of 1000 blocks (3 %), 100 blocks/s"
    assert "check: 200 of 1000 blocks (20 %), 100 blocks/s, 0:08 left" in lines
    assert lines[-1] == ""
    with Progress(Settings(), "check", "blocks") as progress:
        progress(10, 10)
    assert capsys.readouterr().err == ""


def test_a_line_covers_the_longer_one_before(
    wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(Settings(), "fill") as progress:
        transfer(wait, progress, 2, 10 * MIB, 100 * MIB)
    written = capsys.readouterr().err.removesuffix("\n").split("\r")
    for before, after in pairwise(written):
        assert len(after) >= len(before.rstrip())


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60])
def test_the_line_fits(
    width: int, wait: Wait, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with Progress(Settings(), "fill") as progress:
        transfer(wait, progress, 3, 10 * MIB, 100 * MIB)
    lines = shown(capsys)
    assert max(map(len, lines)) < width
    assert "10 %" in " ".join(lines)


def test_an_error_ends_the_line(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(wait, Settings(), 2)
    written = capsys.readouterr().err
    assert "left" in written
    last = written.rpartition("\r")[2]
    assert last.startswith("fill: 20 MiB of 100 MiB (20 %), 9.5 MiB/s  ")
    assert last.endswith(" \n")
    assert written.count("\n") == 1
    with pytest.raises(KeyboardInterrupt):
        broken_off(wait, Settings(), 0)
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt), Progress(Settings(), "check", "blocks") as progress:
        check_until(wait, progress)
    assert shown(capsys)[-1] == ""


def test_stages_have_lines_of_their_own(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Settings(), "fill") as progress:
        convert = progress.stage("convert")
        for done in (0, 1, 2):
            convert(done * MIB, 2 * MIB)
            wait(1)
        progress(0, 2 * MIB)
        wait(1)
        progress(2 * MIB, 2 * MIB)
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    ends = [line.rpartition("\r")[2].split(",")[0] for line in written.split("\n")[:-1]]
    assert ends == ["convert: 2 MiB of 2 MiB (100 %)", "fill: 2 MiB of 2 MiB (100 %)"]


@pytest.mark.parametrize("settings", [Settings(quiet=True), Settings(quiet=True, output="json")])
def test_quiet_is_quiet(settings: Settings, wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(settings, "fill") as progress:
        transfer(wait, progress, 2, MIB, 10 * MIB)
    assert capsys.readouterr().err == ""


# -- for programs ----------------------------------------------------------------------

KEYS = {"what", "unit", "done", "total", "per_second", "bytes_per_second", "seconds_left"}


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line)["progress"] for line in capsys.readouterr().err.splitlines()]


def test_json_lines(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Settings(output="json"), "fill") as progress:
        transfer(wait, progress, 3, 10 * MIB, 100 * MIB)
        progress(100 * MIB, 100 * MIB)
    lines = told(capsys)
    assert all(line.keys() == KEYS for line in lines)
    assert [line["done"] // MIB for line in lines] == [10, 20, 30, 100]
    assert {line["total"] for line in lines} == {100 * MIB}
    assert lines[1]["bytes_per_second"] == lines[1]["per_second"] == 10 * MIB
    assert lines[1]["seconds_left"] == pytest.approx(8, abs=0.2)
    assert lines[-1]["seconds_left"] == 0


def test_a_quick_command_tells_its_end(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Settings(output="json"), "fill") as progress:
        progress(5, None)
        wait(0.1)
        progress(7, None)
    [line] = told(capsys)
    assert (line["done"], line["total"]) == (7, 7)
    with Progress(Settings(output="json"), "check", "blocks") as progress:
        progress(70, 100)
    [line] = told(capsys)
    assert (line["done"], line["total"], line["unit"]) == (100, 100, "blocks")
    assert line["bytes_per_second"] is None


def test_an_error_is_no_end(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(wait, Settings(output="json"), 1)
    assert [line["done"] // MIB for line in told(capsys)] == [10]


# -- of commands -----------------------------------------------------------------------


def last_stages(err: str) -> dict[str, tuple[int, int]]:
    """The last that was told of each stage: done, total."""
    lines = [json.loads(line)["progress"] for line in err.splitlines()]
    return {line["what"]: (line["done"], line["total"]) for line in lines}


@pytest.mark.slow
def test_other_formats_show_their_conversion(plx: Plx) -> None:
    Path("raw.img").write_bytes(os.urandom(MIB) + bytes(3 * MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "raw.img", "disk.qcow2"], check=True)
    plx("vdi", "create", "new")
    whole = (4 * MIB, 4 * MIB)
    result = plx("-o", "json", "vdi", "fill", "new", "disk.qcow2")
    assert last_stages(result.err) == {"convert": whole, "fill": whole}
    result = plx("-o", "json", "vdi", "validate", "new", "disk.qcow2")
    assert last_stages(result.err) == {"convert": whole, "validate": whole}
    result = plx("-o", "json", "vdi", "export", "new", "out.qcow2", "--format", "qcow2")
    assert last_stages(result.err) == {"export": whole, "convert": whole}


@pytest.mark.slow
def test_a_dry_run_knows_the_size_of_the_disk_in_an_image(plx: Plx) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "3M"], check=True)
    plx("vdi", "create", "new")
    told = plx("-n", "-o", "json", "vdi", "fill", "new", "disk.qcow2").json
    assert (told["bytes"], told["vdi"]["size"]) == (3 * MIB, 3 * MIB)
    assert told["would"].endswith("from disk.qcow2: 3 MiB")
    line = plx.fails(2, "-n", "vdi", "fill", "base", "disk.qcow2")
    assert f"has {3 * MIB} bytes or more, the VDI has 65536" in line
    before = {key: value for key, value in told.items() if key not in ("dry_run", "would")}
    assert plx("-o", "json", "vdi", "fill", "new", "disk.qcow2").json == before


@pytest.mark.slow
def test_a_dry_run_of_an_export_refuses_what_cannot_be_written(plx: Plx) -> None:
    Path("there").write_bytes(b"x")
    for dry in ([], ["-n"]):
        assert "there exists already" in plx.fails(2, *dry, "vdi", "export", "base", "there")
        assert "blockstore itself" in plx.fails(
            2, *dry, "-y", "vdi", "export", "base", plx.path, "--force"
        )
        assert "No such file" in plx.fails(3, *dry, "vdi", "export", "base", "no/such/file")
        line = plx.fails(2, *dry, "vdi", "export", "base", "new", "--format", "banana")
        assert "Unknown file format 'banana'" in line
        line = plx.fails(2, *dry, "vdi", "export", "base", "-", "--format", "qcow2")
        assert "cannot be written to standard output" in line
    assert not Path("new").exists()


def test_what_is_overwritten_by_a_new_store_is_cleared(plx: Plx) -> None:
    size = plx.path.stat().st_size
    args = ("store", "create", plx.path, "--extent-size", "1M", "--force")
    assert last_stages(plx("-y", "-o", "json", *args).err) == {"clear": (size, size)}
    assert plx("-o", "json", "store", "create", "new.dat", "--extent-size", "1M").err == ""


def test_a_check_counts_the_blocks_that_are_allocated(plx: Plx) -> None:
    err = plx("-o", "json", "store", "check").err
    allocated = plx("-o", "json", "store", "check").json["check"]["allocated"] // 4096
    assert last_stages(err) == {"check": (allocated, allocated)}


def test_a_check_never_counts_beyond_the_end(plx: Plx) -> None:
    from core.check import check

    with Session.open(str(plx.path)) as session:
        record = session.registry.find("web")
        for number in range(5):
            with session.opened(session.registry.find("web")) as vdi:
                vdi.write(4096 * number, b"c" * 4096)
                vdi.snapshot(f"s{number}")
        session.delete(record, True)
    seen: list[tuple[int, int | None]] = []
    report = check(str(plx.path), progress=lambda *at: seen.append(at))
    assert not report.damaged
    assert len({total for _, total in seen}) == 1
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_on_a_real_terminal_it_is_one_line_and_ctrl_c_ends_it(
    plx: Plx, env: dict[str, str]
) -> None:
    plx("vdi", "create", "new")
    slow = f"(head -c {3 * MIB} /dev/urandom; sleep 1; head -c {2 * MIB} /dev/zero; sleep 99)"
    line = f"{slow} | exec {' '.join(PLXSH)} vdi fill new -; echo over"
    with Terminal(["sh", "-c", f"trap : INT; {line}"], env=env, columns=60) as terminal:
        terminal.wait_for("fill: 4 MiB")
        assert not terminal.transcript.count("\n")
        terminal.key("c-c")
        terminal.wait_for("over")
        rows = [row for row in terminal.screen if row]
        assert rows[0].startswith("fill: 4 MiB, ")
        assert rows[1].startswith("plxsh: vdi fill: interrupted: VDI 'new' is as before")
        assert "\x1b" not in terminal.transcript
    assert plx("-o", "json", "vdi", "show", "new").json["vdi"]["size"] == 0


@pytest.mark.slow
def test_a_conversion_that_is_interrupted_leaves_no_process(plx: Plx, tmp_path: Path) -> None:
    """What stands in for qemu-img says how far it is and then takes its time."""
    fake = tmp_path / "bin" / "qemu-img"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        """*--backing-chain*) echo '[{"filename": "disk.vmdk", "format": "vmdk"}]';;\n"""
        """info*) echo '{"virtual-size": 1048576}';;\n"""
        "check*) exit 63;;\n"
        "map*) echo '[]';;\n"
        f"*) echo $$ > {tmp_path}/pid; printf '    (50.00/100%%)\\r';\n"
        "   trap '' INT; exec sleep 99;;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    Path("disk.vmdk").write_bytes(b"KDMV" + bytes(600))
    plx("vdi", "create", "new")
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    command = [*PLXSH, "-o", "json", "vdi", "fill", "new", "disk.vmdk", "--format", "vmdk"]
    with subprocess.Popen(
        command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True
    ) as process:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.01)
        # Until the other process is past what it says, and this one waits for more.
        while program(int(pid.read_text())) != "sleep" or not asleep(process.pid):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait() == 130
    assert "VDI 'new' is as before" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
