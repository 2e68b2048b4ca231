"""What a quick command pays for: nothing that it does not use. And long lists are quick."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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
    """Processor time of the whole process, the interpreter's start included."""
    path = tmp_path / "many.dat"
    store_of_clones(path, 10_000)
    spent = []
    for _ in range(3):
        before = time.process_time(), _children()
        done = subprocess.run(
            [sys.executable, "-m", "plxsh", "-s", str(path), "vdi", "list"],
            capture_output=True,
            text=True,
            check=True,
        )
        spent.append(_children() - before[1])
    assert done.stdout.count("\n") == 10_001
    assert min(spent) < 1.0


def _children() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
