"""Standard streams that are full, closed, or of an encoding that lacks most characters."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.shell import PLXSH

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
