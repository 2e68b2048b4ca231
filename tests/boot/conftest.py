"""A guest to boot: kernel, first file system and root image, made once from Debian packages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.apt import have_lists

KIT = Path(
    os.environ.get("PARALLAX_BOOTKIT", Path(__file__).parents[2].parent / "shared/tools/bootkit")
)
_NEEDED = ("build.sh", "boot.sh", "initramfs-init")


@pytest.fixture(scope="session")
def boot_kit() -> Path:
    """The folder of the scripts that build and boot a guest."""
    missing = [name for name in _NEEDED if not (KIT / name).is_file()]
    if missing:
        why = f"no boot kit: {KIT} lacks {', '.join(missing)}; name its folder in PARALLAX_BOOTKIT"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return KIT


@pytest.fixture(scope="session")
def guest(boot_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the guest: vmlinuz, initramfs.gz and root.img."""
    folder = tmp_path_factory.mktemp("guest")
    have_lists("linux-image-cloud-amd64", tmp_path_factory)
    built = subprocess.run(
        ["bash", boot_kit / "build.sh", folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert built.returncode == 0, f"the guest cannot be built: {built.stdout}{built.stderr}"
    return folder
