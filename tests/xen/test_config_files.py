"""Configuration files are read as xl's own parser reads them, and edited such that it can."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
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
    *("51712", "0xca00", "d0p0", "phy:", "phy: /dev/a", "http://x", "a:b:c", "hdc:", "enbd:/x"),
    *("backendtype=tap", "backendtype=x", "devtype=tape"),
    *("access=", "vdev=", "script=", "backend="),
    *("specification=x", "specification=virtio", "no-colo"),
    *("colo-port=8", "colo-port=x", "colo-host=h", "_x=1"),
    *("active-disk=/a", "hidden-disk=/b", "colo-export=e", "colo=1", "format=qcow2", "cdrom=1"),
]
USUAL = [
    "phy:/dev/a,xvda,w",
    "/a.img,raw,xvda,rw",
    ",hdc:cdrom,r",
    ",,hdc,cdrom",
    "format=raw,vdev=xvda,access=rw,target=/a",
]


def _tried(read: Callable[[str], dict[str, Any]], entry: str) -> dict[str, Any] | str:
    """What is read, or why it cannot be."""
    try:
        return read(entry)
    except ValueError as error:
        return str(error)


def _meant(told: dict[str, Any]) -> tuple[Any, ...]:
    """What our reading of a disk comes to, in the words of xl's."""
    cdrom = told.get("devtype") == "cdrom"
    return (
        told["vdev"],
        told.get("format", "raw"),
        cdrom,
        told.get("access", "rw") == "rw",
        told.get("script"),
    )


def test_disks_are_read_as_xl_reads_them(xl: Xl) -> None:
    """What xl refuses is refused, and what it takes is taken as the same, with few exceptions."""
    chance = random.Random(7)
    entries = [
        chance.choice([",", ", "]).join(chance.choices(PARTS, k=chance.randint(1, 6)))
        for _ in range(40_000)
    ]
    for _ in range(20_000):
        parts = chance.choice(USUAL).split(",")
        for _ in range(chance.randint(0, 2)):
            parts.insert(chance.randint(0, len(parts)), chance.choice(PARTS))
        entries.append(",".join(parts))
    both = 0
    for entry, told in zip(entries, xl("disk", entries), strict=True):
        ours = _tried(xldisk.described, entry)
        if isinstance(ours, str) or isinstance(told, str):
            alike = isinstance(ours, str) and isinstance(told, str)
            assert alike or "takes the space" in ours, (entry, ours, told)
            continue
        both += 1
        meant = [told[key] for key in ("vdev", "format", "cdrom", "readwrite", "script")]
        assert _meant(ours) == tuple(meant), entry
        target = ours.get("target") or ""
        assert (told["target"] or "") in (target, target.partition(":")[2]), entry
    assert both > 4000


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
