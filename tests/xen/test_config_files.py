"""Configuration files are read as xl's own parser reads them, and edited such that it can."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.module_utils import utility

from plxsh.commands.disk import XenDisk, nbd_uri

pytestmark = pytest.mark.slow

xlconfig = utility("xlconfig")
xldisk = utility("xldisk")

ASK = """
import json, sys
import xlu_parse
def tried(read, text):
    try:
        return read(text)
    except (ValueError, TypeError) as error:
        return str(error)
told = {"file": xlu_parse.disk_specs, "disk": xlu_parse.parse_disk}
json.dump([tried(told[sys.argv[1]], text) for text in json.load(sys.stdin)], sys.stdout)
"""


class Xl:
    """The parser of xl, in a process of its own."""

    def __init__(self, kit: Path, libraries: Path) -> None:
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(kit),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XLU_LIBDIR": str(libraries),
        }

    def __call__(self, kind: str, texts: list[str]) -> list[Any]:
        """What it makes of files (a list of disks) or disks (a dictionary); a text if refused."""
        ran = subprocess.run(
            [sys.executable, "-c", ASK, kind],
            env=self._environment,
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        told: list[Any] = json.loads(ran.stdout)
        assert len(told) == len(texts)
        return told


@pytest.fixture(scope="session")
def xl(xen_kit: Path, xl_libraries: Path) -> Xl:
    return Xl(xen_kit, xl_libraries)


FILE = [
    *("disk", "disk", "name", "on_crash", "Disk", "_x", "a9", "=", "=", "+=", "[", "]", "[", "]"),
    *("'phy:/a,xvda,w'", '"/b.img,raw,xvdb,ro"', "'a\"b'", '"é"', "''", "5", "0x1f", "1F", "-5"),
    *(",", ",", ";", "\n", "\n", "\n", " ", "\t", "# c\n", "#", "\r", "\r\n", "\\", "'", "x", "%"),
    *("disk = ['phy:/c,xvdc,w'", "disk += [ '/d,,xvdd' ]\n", "name = 'vm'\n", "('a')", "é", "\f"),
]


FILES = [
    "",
    "name = 'vm'",
    "name = 'vm'\n# disk = [ 'phy:/x,xvda,w' ]\n",
    "disk = []\n",
    "disk = [ 'phy:/dev/a,xvdz,w' ]; memory = 256\n",
    "disk = [\n\t'phy:/dev/a,xvdz,w', # data\n\t'/b.iso,,hdc,cdrom'\n]\nname = \"vm\"\n",
    "disk = [ 'phy:/dev/a,xvdz,w',\n         'tap:parallax:0,sda1,w,0', ]\n",
    'disk = [ "phy:/dev/a,xvdz,w" ]\ndisk += [ "/c.img,raw,xvdy,r" ]\n',
]


def test_files_are_read_as_xl_reads_them(xl: Xl) -> None:
    chance = random.Random(7)
    texts = ["".join(chance.choices(FILE, k=chance.randint(1, 9))) for _ in range(10_000)]
    for _ in range(10_000):
        text = chance.choice(FILES)
        for _ in range(chance.randint(1, 3)):
            at = chance.randint(0, len(text))
            text = text[:at] + chance.choice(FILE) + text[at + chance.randint(0, 3) :]
        texts.append(text)
    taken = 0
    for text, told in zip(texts, xl("file", texts), strict=True):
        try:
            config = xlconfig.Config(text)
        except xlconfig.Refused:
            continue
        entries = [config.entry(place) for place in config.entries]
        if "\\" in text:
            continue  # such disks are refused when they are looked at
        if config.unreadable:  # xl overlooks a single character at the end
            assert isinstance(told, str) or text[-1] in "#\r", text
        elif not config.lists:
            assert told == "no disk = [...]", text
        else:
            taken += 1
            assert told == entries, text
    assert taken > 1000


PARTS = [
    *("phy:/dev/a", "/a.img", "file:/a", "tap:aio:/x", "qcow2:/x", "raw:/x", "nbd:x", "iscsi:x"),
    *("rbd:pool/x", "aio:x", "foo:bar", "foo:/bar", "raw", "qcow2", "vhd", "empty", "", "none"),
    *("xvda", "hdc:cdrom", "hdc:disk", "hdc:tape", "w", "r", "rw", "ro", "!", "cdrom", "0", "a=b"),
    *("format=raw", "format=", "vdev=xvda", "vdev=xvdb", "vdev=hda:cdrom", "vdev =xvda", " vdev=a"),
    *("access=rw", "access=r", "access=w", "access=x", "backend=2", "backendtype=phy", "foo=bar"),
    *("script=block-plx", "devtype=cdrom", "devtype=disk", "target=/x,y", "target=", "VDEV=xvda"),
    *("discard", "no-discard", "direct-io-safe", "colo", "specification=xen", "discard "),
]


def test_disks_are_read_as_xl_reads_them(xl: Xl) -> None:
    chance = random.Random(7)
    entries = [
        chance.choice([",", ", "]).join(chance.choices(PARTS, k=chance.randint(1, 6)))
        for _ in range(40_000)
    ]
    both = 0
    for entry, told in zip(entries, xl("disk", entries), strict=True):
        try:
            ours = xldisk.described(entry)
        except ValueError:
            continue
        if isinstance(told, str):
            continue
        both += 1
        assert ours.get("vdev") == told["vdev"], entry
        target = ours.get("target")
        assert (told["target"] or "") in (target or "", (target or "").partition(":")[2]), entry
        cdrom = ours.get("devtype") == "cdrom"
        assert cdrom == told["cdrom"], entry
        assert (ours.get("access", "rw") == "rw" and not cdrom) == told["readwrite"], entry
        if "script" in ours:
            assert ours["script"] == told["script"], entry
        if ours.get("format") and not cdrom:
            assert ours["format"] == told["format"], entry
    assert both > 2000


NAMES = [
    "vm{}",
    "two words {}",
    "it's {}",
    'a"b{}',
    "größe 日本 {}",
    "a,b={}",
    "]#{}",
    "$(id){}",
    "%41{}",
]


def test_xl_reads_forty_machines(xl: Xl) -> None:
    """Added, changed, changed back and removed: at each step xl sees the disk that was meant."""
    texts, wanted = [], []
    for number in range(40):
        export = NAMES[number % len(NAMES)].format(number)
        text = FILES[number % len(FILES)]
        vdev = "sda1" if number % len(FILES) == 6 else f"xvd{'abc'[number % 3]}"
        for writable, backend, socket in (
            (True, "", "/run/parallax/nbd.sock"),
            (False, "disks-1", "/run/my disks/it's <odd>.sock"),
            (True, "", "/run/parallax/nbd.sock"),
        ):
            line = XenDisk(export, vdev, writable, backend).modern(socket)
            text = xlconfig.edited(text, vdev, xlconfig.entry_of(line))
            texts.append(text)
            wanted.append((vdev, nbd_uri(export, socket), writable))
        texts.append(xlconfig.edited(text, vdev, None))
        wanted.append((vdev, None, False))
    files = xl("file", texts)
    lists = [entries if isinstance(entries, list) else [] for entries in files]
    disks = iter(xl("disk", [entry for entries in lists for entry in entries]))
    for text, entries, (vdev, target, writable) in zip(texts, lists, wanted, strict=True):
        found = [next(disks) for _ in entries]
        mine = [disk for disk in found if f"'{vdev}'" in str(disk)]
        if target is None:
            assert mine == [], text
            continue
        (disk,) = mine
        assert disk["target"] == target
        assert disk["script"] == "block-plx"
        assert disk["format"] == "raw"
        assert disk["readwrite"] is writable
