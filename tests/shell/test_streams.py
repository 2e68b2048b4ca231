"""Standard streams that are full, closed, or of an encoding that lacks most characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.shell import PLXSH

from core.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]


def in_sh(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the Unix shell with `plxsh` in it."""
    line = line.replace("plxsh", " ".join(PLXSH))
    given = " ".join(f"{name}={value}" for name, value in environment.items())
    return subprocess.run(
        ["sh", "-c", f"export {given or 'X=1'}; {line}"],
        capture_output=True,
        check=False,
        encoding="latin-1",
    )


@pytest.mark.parametrize("command", ["vdi list", "vdi list -o table", "tree", "help", "--help"])
def test_output_to_a_full_disk(command: str) -> None:
    done = in_sh(f"plxsh {command} > /dev/full")
    assert done.returncode == 6
    assert done.stderr.endswith(
        ": cannot write the output: No space left on device"
        " (free space on the file system that holds it)\n"
    )
    assert done.stderr.count("\n") == 1


def test_output_to_a_full_disk_told_as_json() -> None:
    done = in_sh("plxsh -o json -c 'vdi list > /dev/full'")
    assert done.returncode == 6
    assert done.stdout == ""  # nothing of what did not fit comes out later
    assert json.loads(done.stderr.splitlines()[1])["error"]["code"] == "no_space"


def test_what_an_earlier_command_has_done_was_told_by_that() -> None:
    done = in_sh("plxsh -c 'vdi create zz; vdi list > /dev/full'")
    assert done.returncode == 6
    assert "created" not in done.stderr


def test_closed_streams(store: Path) -> None:
    before = store.read_bytes()
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        assert in_sh(f"plxsh vdi list {closed}").returncode == 0
        assert in_sh(f"plxsh vdi show nothing {closed}").returncode == 3
    assert in_sh("plxsh <&-").returncode == 0  # an empty script
    assert store.read_bytes() == before


@pytest.mark.parametrize("form", ["table", "plain", "yaml", "json"])
def test_an_encoding_without_the_characters(form: str) -> None:
    done = in_sh(f"plxsh vdi list -o {form}", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u65e5\u672c\u8a9e" in done.stdout
    assert "My new VDI" in done.stdout


def unread(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)


def test_output_that_nobody_reads() -> None:
    looked = unread(*PLXSH, "vdi", "list")
    assert (looked.returncode, looked.stderr) == (141, "")
    done = unread(*PLXSH, "vdi", "create", "zz")
    assert done.returncode == 141
    assert done.stderr.startswith("plxsh: vdi create: created VDI ")
    assert done.stderr.endswith(" 'zz' of 0 B, but nobody reads the output\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("vdi_create new", "created VDI {} 'new'"),
        ("vdi_fill new image", "filled VDI {} 'new'"),
        ("vdi_snap new", "took snapshot "),
        ("vdi_snap_offline new", "took snapshot "),
    ],
)
def test_the_original_tools_tell_it_too(store: Path, words: str, told: str) -> None:
    with Session.open(str(store)) as session:
        count = sum(1 for _ in session.registry.vdis())
        if not words.endswith("create new"):
            session.create("new")
    Path("image").write_bytes(b"data" * 1000)
    name = words.split()[0]
    done = in_sh(f"{Path(sys.executable).parent}/{words} > /dev/full")
    assert done.returncode == 6
    assert done.stderr.startswith(f"{name}: {told.format(count)}")
    assert ", but cannot write the output: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_full_standard_error_ends_nothing(store: Path, form: str) -> None:
    Path("image").write_bytes(b"data" * 1000)
    done = in_sh(f"plxsh -v -o {form} vdi create zz 2> /dev/full; echo $?")
    assert done.stdout.splitlines()[-1] == "0"
    done = in_sh(f"plxsh -v -o {form} vdi fill zz image 2> /dev/full; echo $?")
    assert done.stdout.splitlines()[-1] == "0"
    assert in_sh("plxsh vdi show nothing 2> /dev/full; echo $?").stdout == "3\n"
    assert in_sh(f"plxsh -s {store} vdi validate zz image; echo $?").stdout == "0\n"
