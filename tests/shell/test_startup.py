"""What a quick command pays for: nothing that it does not use. And long lists are quick."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.many import store_of_clones

HEAVY = {"numpy", "rich", "pydot", "prompt_toolkit", "prometheus_client", "websockets"}
HEAVY |= {"core.session", "core.transfer", "core.lock_master"}

SCRIPT = """
import json, os, sys
from plxsh.cli import run
status = run(sys.argv[1:])
sys.stdout.flush()
print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)
"""


def imported_by(*args: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *args], capture_output=True, text=True, check=True
    )
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0
    assert done.stdout
    return set(modules)


@pytest.mark.parametrize("form", ["plain", "json", "yaml", "table"])
def test_quick_commands_import_nothing_heavy(plx: Plx, form: str) -> None:  # noqa: ARG001
    for args in (
        ["vdi", "list"],
        ["snap", "list", "base"],
        ["store", "info"],
        ["vdi", "show", "0"],
    ):
        assert imported_by("-o", form, *args) & HEAVY == set()


def test_disk_lines_and_help_import_nothing_heavy(plx: Plx) -> None:  # noqa: ARG001
    assert imported_by("disk", "qemu", "base") & HEAVY == set()
    assert imported_by("vdi", "create", "--help") & HEAVY == set()
    assert imported_by("snap", "--help") & HEAVY == set()


def test_the_test_can_fail(plx: Plx) -> None:  # noqa: ARG001
    assert {"numpy", "core.session"} <= imported_by("vdi", "create", "x")


@pytest.mark.slow
def test_ten_thousand_clones_are_listed_quickly(tmp_path: Path) -> None:
    """Processor time of the whole process, in times of one that does nothing: machines differ."""
    path = tmp_path / "many.dat"
    store_of_clones(path, 10_000)
    listing, nothing = [], []
    for _ in range(3):
        nothing.append(_spent("--version")[0])
        seconds, shown = _spent("-s", str(path), "vdi", "list")
        listing.append(seconds)
        assert shown.count("\n") == 10_001
    assert min(listing) < 12 * min(nothing)


def _spent(*args: str) -> tuple[float, str]:
    """Run a command; return its seconds of processor time, and what it shows."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "plxsh", *args], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, done.stdout
