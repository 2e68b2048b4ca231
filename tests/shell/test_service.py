"""The systemd units: systemd itself finds nothing wrong with them, and neither do the programs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from plxsh.config_check import complaints
from plxsh.context import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def lines(name: str) -> list[str]:
    return (DEPLOY / name).read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    installed = Path(sys.executable).parent / unit.stem
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert f"ExecStart=/usr/local/bin/{unit.stem}\n" in text
    copy.write_text(text.replace(f"/usr/local/bin/{unit.stem}", str(installed)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_says_when_it_is_ready_and_is_confined(unit: Path) -> None:
    told = lines(unit.name)
    assert "Type=notify" in told
    assert "NoNewPrivileges=yes" in told
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6" in told


def test_the_tap_has_a_folder_for_its_sockets_and_the_lock_master_one_for_its_state() -> None:
    assert "RuntimeDirectory=parallax" in lines("parallaxd.service")
    assert "StateDirectory=parallax" in lines("plxlockmaster.service")
    assert "CapabilityBoundingSet=" in lines("plxlockmaster.service")


def test_the_configuration_in_the_unit_is_one(tmp_path: Path) -> None:
    from plxsh.cli import cli

    text = lines("plxlockmaster.service")
    start = text.index("#     [lock_master]")
    shown = [line.removeprefix("#") for line in text[start:] if line.startswith("#     ")]
    config = tmp_path / "parallax.toml"
    config.write_text("\n".join(shown))
    settings = Settings()
    settings.configure(str(config))
    assert [*complaints(cli, settings)] == []
    assert settings.lock_master == tomllib.loads(config.read_text())["lock_master"]["listen"]
    assert settings.lock_key == "/etc/parallax/lock.key"
