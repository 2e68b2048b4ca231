"""The way of an answer from plxsh into a module: nothing is lost, whatever plxsh says or does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SLOW_MACHINE = """
import selectors, time

real = selectors.PollSelector.select


def select(self, timeout=None):
    events = real(self, timeout)
    if not events:
        time.sleep(1)  # others have the processor
    return events


selectors.PollSelector.select = select
"""
"""A machine so busy that plxsh ends while the module is not given the processor."""


def stand_in(host: Any, script: str) -> str:
    """Make a program that takes the place of plxsh; return its path."""
    path = host.folder / "stand-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_an_answer_is_not_lost_on_a_busy_machine(stored: Any, tmp_path: Path) -> None:
    """Found by a test that failed once in hundreds of runs."""
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/sitecustomize.py").write_text(SLOW_MACHINE)
    slow = stand_in(stored, f'sleep 1.3; exec {stored.plxsh} "$@"')
    words, variables = stored.command("blockstore_info", plxsh=slow)
    variables = {**variables, "PYTHONPATH": f"{tmp_path}/busy:{variables['PYTHONPATH']}"}
    ran = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    told = json.loads(ran.stdout)
    assert told.get("exists") is True, told


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("true", "no_json", "answered no JSON: ''"),
        ("echo '[1, 2]'", "no_json", "answered no JSON"),
        ("echo 'Traceback' >&2; echo 'MemoryError' >&2; exit 1", "error", "plxsh failed: Memory"),
        ("exit 3", "error", "it said nothing"),
        ("kill -9 $$", "error", "it said nothing"),
        (r"printf '\377\376 broken\n' >&2; exit 5", "error", "broken"),
    ],
)
def test_what_is_no_answer_is_told(stored: Any, script: str, code: str, told: str) -> None:
    failed = stored.fails("blockstore_info", plxsh=stand_in(stored, script))
    assert failed["code"] == code
    assert told in failed["msg"]


def test_what_cannot_be_run_is_told(stored: Any) -> None:
    path = stored.folder / "no-program"
    path.write_text("plain text")
    failed = stored.fails("blockstore_info", plxsh=str(path))
    assert (failed["code"], str(path) in failed["msg"]) == ("no_plxsh", True)


def test_warnings_before_the_answer_do_no_harm(stored: Any) -> None:
    noisy = stand_in(stored, f'echo "plxsh: warning: x" >&2; exec {stored.plxsh} "$@"')
    assert stored("blockstore_info", plxsh=noisy)["exists"] is True
    assert stored.fails("snapshot_info", plxsh=noisy, vdi="none")["code"] == "not_found"
