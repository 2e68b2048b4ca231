"""The systemd units: systemd itself finds nothing wrong with them, and neither do the programs."""

from __future__ import annotations

import re
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


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_little_exposed(unit: Path) -> None:
    """10 is a service that may do anything; what it gives a setting differs between versions."""
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    judged = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", judged)
    assert exposure, judged
    assert float(exposure[1]) < 3.0, judged


CONFINED = """
    NoNewPrivileges=yes CapabilityBoundingSet= ProtectSystem=strict ProtectHome=yes PrivateTmp=yes
    PrivateDevices=yes DevicePolicy=closed ProtectProc=invisible ProtectClock=yes
    ProtectHostname=yes ProtectKernelLogs=yes ProtectKernelModules=yes ProtectKernelTunables=yes
    ProtectControlGroups=yes KeyringMode=private RemoveIPC=yes RestrictNamespaces=yes
    RestrictRealtime=yes RestrictSUIDSGID=yes LockPersonality=yes MemoryDenyWriteExecute=yes
    SystemCallArchitectures=native SystemCallFilter=@system-service SystemCallErrorNumber=EPERM
    UMask=0077
"""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_says_when_it_is_ready_and_is_confined(unit: Path) -> None:
    told = lines(unit.name)
    assert "Type=notify" in told
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6" in told
    assert not [line for line in CONFINED.split() if line not in told]
    for limit in ("MemoryMax", "TasksMax", "LimitNOFILE"):
        assert [line for line in told if re.fullmatch(rf"{limit}=\d+[MG%]?", line)], limit


def test_the_tap_may_use_io_uring_whatever_the_version_of_systemd() -> None:
    told = lines("parallaxd.service")
    removed = told.index("SystemCallFilter=~@privileged @resources @keyring")
    given = told.index("SystemCallFilter=io_uring_setup io_uring_enter io_uring_register")
    assert given > removed


def test_the_tap_has_a_folder_for_its_sockets_and_the_lock_master_one_for_its_state() -> None:
    assert "RuntimeDirectory=parallax" in lines("parallaxd.service")
    assert "StateDirectory=parallax" in lines("plxlockmaster.service")


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
