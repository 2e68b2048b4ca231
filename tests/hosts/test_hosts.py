"""Several hosts with one store: whatever fails, nothing is lost and nothing is mixed up."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hosts.world import inside

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def play(module: str, folder: Path, **options: object) -> None:
    """Run a module in a world of its own, which is gone afterwards."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(
        inside([sys.executable, "-m", f"hosts.{module}", str(folder), *words]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        },
    )
    try:
        said = ""
        assert process.stdout is not None
        for line in process.stdout:
            said += line
        assert process.wait(60) == 0, said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("menu", "rounds", "seed"), [("calm", 34, 1), ("hard", 16, 2)])
def test_nothing_is_lost(menu: str, rounds: int, seed: int, tmp_path: Path) -> None:
    play("rounds", tmp_path, menu=menu, rounds=rounds, seed=seed)


@pytest.mark.timeout(900)
def test_a_write_that_lands_too_late_replaces_nothing(tmp_path: Path) -> None:
    play("late", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("menu", ["calm", "hard"])
def test_nothing_is_lost_in_hours(menu: str, tmp_path: Path) -> None:
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        play("rounds", folder, menu=menu, rounds=60, seed=random.SystemRandom().getrandbits(32))
