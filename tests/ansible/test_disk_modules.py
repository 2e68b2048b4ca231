"""The modules libvirt_disk and xen_disk on files as operators have them, read back by libvirt."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

DOMAIN = """\
<!-- größe -->
<domain type='kvm'>
  <name>vm</name>
  <memory unit="KiB">65536</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type="file" device="disk"> <!-- data -->
      <source file="/srv/größe &amp; more.img"/>
      <target dev="vdb"/>
    </disk>
  </devices>
</domain>
""".replace("\n", "\r\n").encode()


@pytest.fixture
def disk(stored: Any) -> dict[str, str]:
    """A VDI, and the options that are always the same."""
    stored.plx("vdi", "create", "vm", "--size", "1M")
    (stored.folder / "vm.xml").write_bytes(DOMAIN)
    return {"path": str(stored.folder / "vm.xml"), "target": "vda"}


def test_a_disk_of_a_libvirt_domain(stored: Any, disk: dict[str, str]) -> None:
    path = Path(disk["path"])
    path.chmod(0o640)
    usual = {**disk, "vdi": "vm", "socket": "/run/parallax/nbd.sock"}
    told = stored.does("libvirt_disk", **usual, validate="grep -q nbd %s")
    assert told["element"].encode() in path.read_bytes()
    assert told["element"] in told["diff"]["after"]
    assert "größe" in told["diff"]["before"]
    assert told["element_before"] == ""
    assert path.read_bytes().replace(f"    {told['element']}\r\n".encode(), b"") == DOMAIN
    assert path.stat().st_mode & 0o777 == 0o640
    read_only = stored.does("libvirt_disk", **usual, readonly=True, backup=True)
    assert "<readonly/>" in read_only["element"]
    assert not stored("libvirt_disk", **usual, bus="virtio", readonly=True)["changed"]
    other = stored.does("libvirt_disk", **disk, vdi="vm", bus="usb", socket="/srv/a.sock")
    assert "bus='usb'" in other["element"]
    assert not stored("libvirt_disk", **disk, vdi="vm", socket="/srv/a.sock")["changed"]
    assert "no disk of Parallax" in stored.fails("libvirt_disk", **disk, state="absent")["msg"]
    gone = stored.does("libvirt_disk", **disk, state="absent", socket="/srv/a.sock")
    assert gone["element"] == ""
    assert gone["element_before"] == other["element"]
    assert path.read_bytes() == DOMAIN
    assert len(list(stored.folder.glob("vm.xml.*~"))) == 1


def test_what_is_not_safe_leaves_the_file_alone(stored: Any, disk: dict[str, str]) -> None:
    path = Path(disk["path"])
    here = {**disk, "vdi": "vm"}
    told = stored.fails("libvirt_disk", **{**here, "target": "vdb"})
    assert "vdb in" in told["msg"]
    assert "größe &amp; more.img" in told["msg"]
    assert told["code"] == "would_lose_data"
    assert (
        "no disk of Parallax"
        in (stored.fails("libvirt_disk", path=disk["path"], target="vdb", state="absent")["msg"])
    )
    assert (
        "refuses the new file" in stored.fails("libvirt_disk", **here, validate="false %s")["msg"]
    )
    assert (
        "is no name of a disk" in stored.fails("libvirt_disk", **{**here, "target": "xvda"})["msg"]
    )
    assert (
        "no read-only disks on the bus sata"
        in (stored.fails("libvirt_disk", **here, bus="sata", readonly=True)["msg"])
    )
    assert "there is no VDI 'other'" in stored.fails("libvirt_disk", **disk, vdi="other")["msg"]
    path.write_bytes(DOMAIN.replace(b"</name>", b"</nam>"))
    told = stored.fails("libvirt_disk", **here)
    assert "vm.xml, line 3: " in told["msg"]
    assert path.read_bytes() == DOMAIN.replace(b"</name>", b"</nam>")
    path.write_bytes(b"")
    assert "line 1: this is no XML" in stored.fails("libvirt_disk", **here)["msg"]
    path.unlink()
    assert stored.fails("libvirt_disk", **here)["code"] == "not_found"
    assert not stored.does("libvirt_disk", **disk, state="absent")["changed"]
    path.mkdir()
    assert "is no file of at most" in stored.fails("libvirt_disk", **here)["msg"]


def test_force_takes_the_place_of_another_disk(stored: Any, disk: dict[str, str]) -> None:
    mine = {**disk, "target": "vdb", "force": True}
    told = stored.does("libvirt_disk", **mine, vdi="vm")
    assert 'file="/srv/größe &amp; more.img"' in told["element_before"]
    assert "dev='vdb' bus='virtio'" in told["element"]
    assert stored.does("libvirt_disk", **mine, state="absent")["changed"]


@pytest.mark.parametrize("module", ["libvirt_disk", "xen_disk"])
@pytest.mark.usefixtures("disk")
def test_a_disk_under_another_name_is_that_disk(stored: Any, module: str) -> None:
    """It is found, whatever the VDI is called in the file, and called by its UUID from then on."""
    path = stored.folder / "machine"
    path.write_bytes(DOMAIN if module == "libvirt_disk" else b"name = 'vm'\n")
    device = {"target": "vda"} if module == "libvirt_disk" else {"vdev": "xvda"}
    task = {"path": str(path), **device, "vdi": "vm"}
    uuid = stored.plx("vdi", "show", "vm")["vdi"]["uuid"]
    for by, called in (("id", "0"), ("name", "vm")):  # as older versions wrote it, or somebody
        stored(module, **task, by=by)
        before = path.read_text()
        assert not stored(module, **task, by=by)["changed"]
        assert stored.does(module, **task)["changed"]
        after = path.read_text()
        called = f"name='{called}'" if module == "libvirt_disk" else f"///{called}?"
        by_uuid = f"name='{uuid}'" if module == "libvirt_disk" else f"///{uuid}?"
        assert before.count(called) == 1
        assert after == before.replace(called, by_uuid)
        stored.plx("vdi", "rename", "vm", "other")
        assert not stored(module, **{**task, "vdi": "other"})["changed"]
        stored.plx("vdi", "rename", "other", "vm")


@pytest.mark.usefixtures("disk")
def test_a_foreign_disk_is_found_however_its_device_is_written(stored: Any) -> None:
    path = stored.folder / "vm.cfg"
    before = "disk = ['file:/srv/root.img,51712,w', ',hdc:cdrom,r']\n"
    path.write_text(before)
    task = {"path": str(path), "vdev": "xvda"}
    for more in ({"vdi": "vm"}, {"state": "absent"}):
        told = stored.fails("xen_disk", **task, **more)
        assert told["code"] == "would_lose_data"
        assert "file:/srv/root.img,51712,w" in told["msg"]
        assert path.read_text() == before
    told = stored.does("xen_disk", **task, vdi="vm", force=True)
    assert path.read_text() == before.replace("file:/srv/root.img,51712,w", told["entry"])
    path.write_text(path.read_text().replace("vdev=xvda", "vdev=0xca00"))
    assert not stored("xen_disk", **task, vdi="vm")["changed"]
    assert stored.does("xen_disk", **task, state="absent")["changed"]
    assert path.read_text() == "disk = [',hdc:cdrom,r']\n"


@pytest.mark.parametrize("module", ["libvirt_disk", "xen_disk"])
@pytest.mark.usefixtures("disk")
def test_a_symbolic_link_stays_one(stored: Any, module: str) -> None:
    real = stored.folder / "real"
    real.write_bytes(DOMAIN if module == "libvirt_disk" else b"name = 'vm'\n")
    real.chmod(0o604)
    link = stored.folder / "auto"
    link.symlink_to("real")
    device = {"target": "vda"} if module == "libvirt_disk" else {"vdev": "xvda"}
    assert stored.does(module, path=str(link), **device, vdi="vm", backup=True)["changed"]
    assert os.readlink(link) == "real"
    assert b"nbd" in real.read_bytes()
    assert real.stat().st_mode & 0o777 == 0o604
    assert len(list(stored.folder.glob("real.*~"))) == 1
    link.unlink()
    link.symlink_to("nowhere")
    assert stored.fails(module, path=str(link), **device, vdi="vm")["code"] == "not_found"


def test_a_xen_file_is_told_as_people_read_it(stored: Any) -> None:
    """Names in UTF-8 and bytes that are none; line ends that xl will stumble over."""
    stored.plx("vdi", "create", "--size", "1M", "vm")
    path = stored.folder / "vm.cfg"
    before = "name = 'größe'\r\ndisk = ['phy:/dev/größe,xvda,w']\r\n".encode() + b"# \xff\r\n"
    path.write_bytes(before)
    task = {"path": str(path), "vdev": "xvda", "vdi": "vm"}
    assert "/dev/größe" in stored.fails("xen_disk", **task)["msg"]
    told = stored.does("xen_disk", **task, force=True, unsafe_writes=True)
    assert told["entry_before"] == "phy:/dev/größe,xvda,w"
    assert "name = 'größe'" in told["diff"]["before"]
    assert "does not read lines that end with CRLF" in str(told["warnings"])
    assert path.read_bytes() == before.replace(
        "phy:/dev/größe,xvda,w".encode(), told["entry"].encode()
    )
    path.write_bytes(b"#" * (17 << 20))
    assert "is no file of at most 16 MiB" in stored.fails("xen_disk", **task)["msg"]


@pytest.fixture
def virsh(tmp_path: Path) -> Any:
    """libvirt's driver for tests, which keeps domains in its memory and needs no daemon."""

    def virsh(*words: str) -> str:
        ran = subprocess.run(
            ["virsh", "-q", "-c", "test:///default", "; ".join(words)],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return virsh


SOCKETS = ["/run/parallax/nbd.sock"]
SOCKETS += [
    f"/run/{odd}/parallax/nbd.sock"
    for odd in ("two words", 'it\'s "quoted"', "größe 日本", "<a&b>", "a;b,c", "%20", "]]>")
]


def test_libvirt_reads_what_was_written(stored: Any, virsh: Any) -> None:
    """And what it writes itself is left as it is, with the addresses that it has chosen."""
    stored.plx("vdi", "create", "--size", "1M", "vm")
    stored.plx("snap", "create", "--label", "v1", "vm")
    uuid = stored.plx("vdi", "show", "vm")["vdi"]["uuid"]
    path = stored.folder / "vm.xml"
    path.write_bytes(DOMAIN.replace(b"'kvm'", b"'test'"))
    wanted: list[dict[str, str]] = [
        {"target": target, "socket": socket, "vdi": vdi, "bus": bus}
        for (target, vdi, bus), socket in zip(
            [
                *[("vda", "vm", "virtio"), ("vdc", "vm@v1", "virtio"), ("vdaa", "vm", "usb")],
                *[("sda", "vm@v1", "scsi"), ("sdb", "vm", "sata"), ("sdc", "vm", "virtio")],
                *[("hda", "vm", "ide"), ("hdd", "vm", "ide")],
            ],
            SOCKETS,
            strict=True,
        )
    ]
    for disk in wanted:
        assert stored("libvirt_disk", path=str(path), **disk)["changed"]
    told = virsh(f"define {path}", "dumpxml vm")
    path.write_text(told[told.index("<domain") :])
    shown = {part_of(disk, "target")["dev"]: disk for disk in ElementTree.parse(path).iter("disk")}
    assert shown.keys() == {"vdb", *(disk["target"] for disk in wanted)}
    for disk in wanted:
        element = shown[disk["target"]]
        source = part_of(element, "source")
        assert source["protocol"] == "nbd"
        assert re.fullmatch(uuid + ("@.*" if "@" in disk["vdi"] else ""), source["name"])
        assert part_of(element, "source/host") == {"transport": "unix", "socket": disk["socket"]}
        assert part_of(element, "target")["bus"] == disk["bus"]
        assert (element.find("readonly") is not None) == ("@" in disk["vdi"])
        del disk["bus"]
        assert not stored("libvirt_disk", path=str(path), **disk)["changed"]
    moved = {**wanted[4], "bus": "usb", "socket": "/run/b/parallax/nbd.sock"}
    told = stored.does("libvirt_disk", path=str(path), **moved)
    assert "<address" in told["element_before"]
    assert "<address" not in told["element"]
    virsh(f"define {path}")


def part_of(disk: ElementTree.Element, path: str) -> dict[str, str]:
    """The attributes of a part of a disk."""
    part = disk.find(path)
    assert part is not None
    return part.attrib
