"""A host with Xen's own hotplug helpers, a xenstore of files and an nbd-client without a kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.apt import have_lists
from xen.world import World

HELPERS = (
    "block-common.sh",
    "xen-hotplug-common.sh",
    "xen-script-common.sh",
    "locking.sh",
    "logging.sh",
)
LIBRARIES = [
    "libxenmisc4.17",
    "libxentoolcore1",
    "libxentoollog1",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenstore4",
    "libyajl2",
]
"""What the parser of xl consists of, in Debian 12; none of them is installed."""


def unpacked(factory: pytest.TempPathFactory, name: str, packages: list[str]) -> Path:
    """Unpack Debian packages into a folder without installing them."""
    folder = factory.mktemp(name)
    have_lists(packages[0], factory)
    options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]
    got = subprocess.run(
        ["apt-get", "-qq", *options, "download", *packages],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert got.returncode == 0, f"cannot download {packages}: {got.stderr}"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
    return folder / "root"


@pytest.fixture(scope="session")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripts that come with Xen: those of this host, or Debian's."""
    installed = Path("/etc/xen/scripts")
    if (installed / HELPERS[0]).exists():
        return installed
    return unpacked(tmp_path_factory, "helpers", ["xen-utils-common"]) / "etc/xen/scripts"


@pytest.fixture(scope="session")
def xl_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of xl's libraries."""
    return unpacked(tmp_path_factory, "libraries", LIBRARIES) / "usr/lib/x86_64-linux-gnu"


@pytest.fixture(scope="session")
def xen_kit() -> Path:
    """The folder of the scripts that build and boot a Xen host."""
    usual = Path(__file__).parents[2].parent / "shared/tools/xenkit"
    kit = Path(os.environ.get("PARALLAX_XENKIT", usual))
    missing = [
        name for name in ("build.sh", "boot.sh", "xlu_parse.py") if not (kit / name).exists()
    ]
    if missing:
        why = f"no Xen kit: {kit} lacks {', '.join(missing)}; name its folder in PARALLAX_XENKIT"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return kit


@pytest.fixture
def new_world(helpers: Path, tmp_path: Path) -> Callable[[], World]:
    """Makes hosts, one in each folder."""

    def make() -> World:
        folder = tmp_path / f"host{len(list(tmp_path.glob('host*')))}"
        scripts = folder / "scripts"
        scripts.mkdir(parents=True)
        for name in HELPERS:
            text = (helpers / name).read_text()
            text = text.replace("/var/log/xen", str(folder)).replace("/var/run", str(folder))
            (scripts / name).write_text(text)
        return World(folder)

    return make


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    """A host with three devices, whose tap serves VDI 0 `web` and VDI 1 with an odd name."""
    assert shutil.which("setpriv"), "setpriv (util-linux) is missing"
    return new_world()
