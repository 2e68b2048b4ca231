"""The systemd unit: systemd itself finds nothing wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy/parallaxd.service"


@pytest.mark.slow
def test_the_unit_is_valid(tmp_path: Path) -> None:
    installed = Path(sys.executable).parent / "parallaxd"
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/parallaxd", str(installed)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_the_unit_says_when_it_is_ready() -> None:
    lines = UNIT.read_text().splitlines()
    assert "Type=notify" in lines
    assert "RuntimeDirectory=parallax" in lines
