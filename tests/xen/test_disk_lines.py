"""Every line that `plxsh disk xen` prints is understood by xl's own parser as it is meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from plxsh.commands.disk import XenDisk, nbd_uri, parse_legacy

pytestmark = pytest.mark.slow

EXPORTS = [
    *(
        "0",
        "17",
        "4294967295",
        "0@16.0",
        "web",
        "two words",
        "it's",
        '"',
        "größe 日本",
        "a?b#c%d&e",
    ),
    *(
        "a,b",
        "a=b",
        "a/b",
        "/",
        "back\\slash",
        "]",
        "[x]",
        "$(id)",
        "`id`",
        "100%41",
        "-x",
        ";",
        "~",
    ),
    *("phy:x", "tap:x", "raw:", "x" * 255, "vdev=hda,access=ro", "base@16.0"),
]
SOCKETS = [
    "/run/parallax/nbd.sock",
    '/run/my disks/it\'s, <odd> & "long"?#%=.sock',
    "/srv/größe/日本",
]
VDEVS = ["xvda", "xvdaa15", "hda", "sdb3", "d3p2"]


def _xl(kit: Path, libraries: Path, *args: str) -> list[str]:
    """What xl's parser makes of disk specs: a line for each, that says OK or BAD."""
    done = subprocess.run(
        [sys.executable, kit / "xlu_parse.py", *args],
        env={**os.environ, "XLU_LIBDIR": str(libraries)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == "", done.stderr
    return done.stdout.splitlines()


def test_lines_mean_to_xl_what_they_mean_to_us(
    xen_kit: Path, xl_libraries: Path, tmp_path: Path
) -> None:
    disks = [
        (XenDisk(export, vdev, writable, backend), socket)
        for (export, vdev), socket, (writable, backend) in product(
            zip(EXPORTS, VDEVS * len(EXPORTS), strict=False),
            SOCKETS,
            ((True, ""), (False, ""), (True, "0"), (False, "7"), (True, "disks.example-1")),
        )
    ]
    assert len(disks) > 400
    config = tmp_path / "vm.cfg"
    entries = []
    for disk, socket in disks:
        entry = re.fullmatch(r"disk = \[ ('[^']*') \]", disk.modern(socket))
        assert entry is not None
        entries.append(entry[1])
    config.write_text(f"name = 'vm'\ndisk = [\n  {', '.join(entries)},\n]\n")
    lines = _xl(xen_kit, xl_libraries, "--cfg", str(config))
    assert len(lines) == len(disks)
    for (disk, socket), line in zip(disks, lines, strict=True):
        assert line.startswith("OK "), line
        for part in (
            f"'target': {nbd_uri(disk.export, socket)!r}",
            f"'vdev': {disk.vdev!r}",
            "'format': 'raw'",
            "'script': 'block-plx'",
            f"'readwrite': {disk.writable}",
            "'cdrom': False",
        ):
            assert part in line


def test_a_line_alone_is_a_config(xen_kit: Path, xl_libraries: Path, tmp_path: Path) -> None:
    config = tmp_path / "vm.cfg"
    config.write_text(parse_legacy("tap:parallax:3,sda1,r,0").modern(SOCKETS[1]) + "\n")
    (line,) = _xl(xen_kit, xl_libraries, "--cfg", str(config))
    assert line.startswith("OK ")
    assert "'vdev': 'sda1'" in line
    assert "'readwrite': False" in line


def test_the_historic_line_is_refused_by_todays_xl(xen_kit: Path, xl_libraries: Path) -> None:
    """So it has to be translated; and a parser that took everything would be found out."""
    historic = XenDisk("0", "sda1", True).legacy()
    entry = re.search("'(.*)'", historic)
    assert entry is not None
    (line,) = _xl(xen_kit, xl_libraries, entry[1])
    assert line.startswith("BAD ")
    assert "too many positional parameters" in line
