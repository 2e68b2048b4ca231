"""The lines for xl, QEMU and libvirt, and the historic one."""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from shell.conftest import Plx

from core.errors import BadRequest
from plxsh.commands.disk import (
    LibvirtDisk,
    XenDisk,
    nbd_uri,
    parse_legacy,
    qemu_blockdev,
    qemu_drive,
)

SOCKET = "/run/parallax/nbd.sock"
ODD = '/run/my\tdisks/it\'s, <odd> & "long"?.sock'


def uuid_of(plx: Plx, name: str) -> str:
    """The UUID of a VDI, by which lines name it."""
    return str(plx("-o", "json", "vdi", "show", name).json["vdi"]["uuid"])


def test_xen(plx: Plx) -> None:
    web = uuid_of(plx, "web")
    line = plx("disk", "xen", "web", "xvda", "w", "--socket", SOCKET).out
    assert line == (
        "disk = [ 'format=raw,vdev=xvda,access=rw,script=block-plx,"
        f"target=nbd+unix:///{web}?socket=/run/parallax/nbd.sock' ]\n"
    )
    line = plx("disk", "xen", "web", "sda1", "r", "--backend", "disks", "--socket", SOCKET).out
    assert line == (
        "disk = [ 'format=raw,vdev=sda1,access=ro,backend=disks,script=block-plx,"
        f"target=nbd+unix:///{web}?socket=/run/parallax/nbd.sock' ]\n"
    )


def test_xen_legacy_there_and_back(plx: Plx) -> None:
    assert plx("disk", "xen", "base", "sda1", "w", "--legacy").out == (
        "disk = ['tap:parallax:0,sda1,w,0' ]\n"
    )
    modern = plx("disk", "xen", "base", "sda1", "w").out
    for line in (
        "tap:parallax:0,sda1,w,0",
        "tap:parallax:0,sda1,w",
        "disk = ['tap:parallax:0,sda1,w,0' ]",
        'disk=["tap:parallax:0,sda1,w,0"]',
    ):
        assert plx("disk", "xen", "--from-legacy", line).out == modern
    assert plx("disk", "xen", "base", "sda1", "--legacy", "--by=id").out.startswith(
        "disk = ['tap:parallax:0,"
    )
    assert "backend=2," in plx("disk", "xen", "--from-legacy", "tap:parallax:0,hda,r,2").out


def test_snapshots_are_never_writable(plx: Plx, snapshot: tuple[str, str]) -> None:
    name = f"{uuid_of(plx, 'base')}@{'.'.join(snapshot)}"
    assert f"access=ro,script=block-plx,target=nbd+unix:///{name}?" in (
        plx("disk", "xen", "base@clean", "xvda").out
    )
    assert "is a snapshot and never written" in (
        plx.fails(2, "disk", "xen", "base@clean", "xvda", "w")
    )
    assert f"///{name}?" in plx("disk", "qemu", "base@clean").out
    assert plx("disk", "qemu", "base@clean").out.endswith(",readonly=on\n")
    assert plx("disk", "qemu", "base@clean", "--blockdev").out.endswith(",read-only=on\n")
    assert "<readonly/>" in plx("disk", "libvirt", "base@clean").out


def test_qemu(plx: Plx) -> None:
    web = uuid_of(plx, "web")
    assert plx("disk", "qemu", "web", "--socket", SOCKET).out == (
        f"-drive file=nbd+unix:///{web}?socket=/run/parallax/nbd.sock,format=raw,if=virtio\n"
    )
    assert plx("disk", "qemu", "web", "--blockdev", "--socket", SOCKET).out == (
        "-blockdev driver=nbd,node-name=d0,server.type=unix,"
        f"server.path=/run/parallax/nbd.sock,export={web},reconnect-delay=10\n"
    )


def test_libvirt(plx: Plx) -> None:
    assert plx("disk", "libvirt", "web", "--socket", SOCKET).out == (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
        f"<source protocol='nbd' name='{uuid_of(plx, 'web')}'>"
        "<host transport='unix' socket='/run/parallax/nbd.sock'/></source>"
        "<target dev='vda' bus='virtio'/></disk>\n"
    )


def test_libvirt_target_and_bus(plx: Plx) -> None:
    def target(*words: str) -> str:
        disk = ElementTree.fromstring(plx("disk", "libvirt", *words).out)
        found = disk.find("target")
        assert found is not None
        access = "r" if disk.find("readonly") is not None else "w"
        return f"{found.get('dev')} {found.get('bus')} {access}"

    assert target("web", "--target", "vdb") == "vdb virtio w"
    assert target("web", "--target", "sda") == "sda scsi w"
    assert target("web", "--target", "hdd", "w") == "hdd ide w"
    assert target("web", "--target", "hde", "--bus", "sata") == "hde sata w"
    assert target("web", "r", "--bus", "usb") == "vda usb r"
    assert target("base@clean", "--target", "sdaa") == "sdaa scsi r"
    assert "is a snapshot and never written" in plx.fails(2, "disk", "libvirt", "base@clean", "w")


@pytest.mark.parametrize("name", ["xvda", "vd", "vda1", "VDA", "vda'", "fda", "vdaaaa"])
def test_targets_that_libvirt_does_not_have(plx: Plx, name: str) -> None:
    said = plx.fails(2, "disk", "libvirt", "web", "--target", name)
    assert f"{name!r} is no name of a disk in libvirt" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("web --target hde", "IDE has no disk hde"),
        ("web r --target hda", "no read-only disks on the bus ide"),
        ("base@clean --bus sata", "no read-only disks on the bus sata"),
        ("web --bus xen", "'xen' is not one of"),
    ],
)
def test_buses_that_cannot_have_a_disk(plx: Plx, words: str, said: str) -> None:
    assert said in plx.fails(2, "disk", "libvirt", *words.split())


def test_odd_socket_names_survive() -> None:
    uri = nbd_uri("1", ODD)
    assert uri.isascii()
    assert not set(uri) & set(" '\"<>,")
    assert XenDisk("1", "xvda", True).modern(ODD).endswith(f"target={uri}' ]")
    assert shlex.split(qemu_drive("1", ODD, True))[1].startswith(f"file={uri},format=raw")
    option = shlex.split(qemu_blockdev("1", ODD, True))[1]
    assert f"server.path={ODD.replace(',', ',,')},export=1" in option
    host = ElementTree.fromstring(LibvirtDisk("1", True).element(ODD)).find("source/host")
    assert host is not None
    assert host.get("socket") == ODD


@pytest.mark.parametrize(
    "vdev",
    [
        *("xvda", "xvdz15", "xvdaa", "xvda16", "xvda255", "xvdbgqcv"),
        *("sda1", "sdp", "sdp15", "hda", "hdd3", "hda63", "d0p0", "d5p1", "d1048575p255"),
    ],
)
def test_devices_that_are(vdev: str) -> None:
    assert f"vdev={vdev}," in XenDisk("0", vdev, True).modern(SOCKET)


@pytest.mark.parametrize(
    "vdev",
    [
        *(
            "banana",
            "xvd",
            "sdq",
            "hde",
            "xvda0",
            "xvda01",
            "xvda256",
            "sda16",
            "hda64",
            "sda,x",
        ),
        *("xvdbgqcw", "xvdaaaaaa", "XVDA", "xvdä", "xvda ", "xvda\n", "xvda¹", "vda", "51712"),
        *("d0", "d0p", "p0", "d00p0", "d0p00", "d1048576p0", "d0p256", "d-1p0", "dapb", "D0p0"),
    ],
)
def test_devices_that_are_not(plx: Plx, vdev: str) -> None:
    assert "is no name of a virtual device" in plx.fails(2, "disk", "xen", "web", vdev)


NAMES = [
    "two words",
    'it\'s "quoted"',
    "größe 日本",
    "a?b#c%d&e=f",
    "a,b",
    "a/b",
    "/slash",
    "back\\slash",
    "<tag>",
    "$(id)`id`",
    "]",
    "100%41",
    "-dash",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_vdi_by_its_name(empty: Plx, name: str) -> None:
    empty("vdi", "create", "--size", "1M", "--", name)
    line = empty("disk", "xen", "0", "xvda", "--by", "name", "--socket", SOCKET).out.strip()
    spec = re.fullmatch(r"disk = \[ '([!-~]+)' \]", line)
    assert spec is not None
    assert not set(spec[1]) & set("'\"\\ ")
    target = spec[1].partition(",target=")[2]
    uri = urlsplit(target)
    assert (uri.scheme, uri.netloc, unquote(uri.path)) == ("nbd+unix", "", f"/{name}")
    assert (uri.query, uri.fragment) == (f"socket={SOCKET}", "")
    drive = shlex.split(empty("disk", "qemu", "0", "--by", "name", "--socket", SOCKET).out)
    assert drive == ["-drive", f"file={target},format=raw,if=virtio"]
    long = shlex.split(empty("disk", "qemu", "0", "--by", "name", "--blockdev").out)
    assert f",export={name.replace(',', ',,')},reconnect-delay=10" in long[1]
    source = ElementTree.fromstring(empty("disk", "libvirt", "0", "--by", "name").out).find(
        "source"
    )
    assert source is not None
    assert source.get("name") == name


@pytest.mark.parametrize("words", [("xen", "web", "xvda"), ("qemu", "web"), ("libvirt", "web")])
def test_a_vdi_by_its_id_or_its_uuid(plx: Plx, words: tuple[str, ...]) -> None:
    def export(*options: str) -> str:
        return str(plx("-o", "json", "disk", *words, *options).json["disk"]["export"])

    assert export("--by", "id") == "1"
    assert export("--by", "uuid") == export() == uuid_of(plx, "web")
    plx("vdi", "rename", "web", "www")
    assert plx("disk", *words[:1], uuid_of(plx, "www"), *words[2:]).out == (
        plx("disk", *words[:1], "1", *words[2:]).out
    )


def test_a_snapshot_by_the_name_of_its_vdi(plx: Plx, snapshot: tuple[str, str]) -> None:
    wanted = f"///base@{'.'.join(snapshot)}?"
    assert wanted in plx("disk", "xen", "base@clean", "xvda", "--by", "name").out
    assert wanted in plx("disk", "qemu", ".".join(snapshot), "--by", "name").out


def test_the_original_driver_knew_no_snapshots(plx: Plx) -> None:
    said = plx.fails(2, "disk", "xen", "base@clean", "xvda", "--legacy")
    assert "leave out --legacy" in said
    assert "the original tap driver has no line for '0@" in said
    assert (
        "///base?"
        in plx("disk", "xen", "--from-legacy", "tap:parallax:0,sda1,w,0", "--by", "name").out
    )
    assert "has no line for 'base'" in (
        plx.fails(2, "disk", "xen", "base", "xvda", "--legacy", "--by", "name")
    )


def test_other_bad_input(plx: Plx) -> None:
    assert "VDI is missing" in plx.fails(2, "disk", "xen")
    assert "VDEV is missing" in plx.fails(2, "disk", "xen", "web")
    assert "is no name of a domain" in plx.fails(2, "disk", "xen", "web", "hda", "--backend=a,b")
    assert "'q' is not one of" in plx.fails(2, "disk", "xen", "web", "hda", "q")
    assert "there is no VDI 7" in plx.fails(
        3, "disk", "xen", "--from-legacy", "tap:parallax:7,sda1,w,0"
    )
    for besides in ("web", "--backend=2"):
        assert "takes all from its line" in (
            plx.fails(2, "disk", "xen", besides, "--from-legacy", "tap:parallax:0,sda1,w,0")
        )


@pytest.mark.parametrize(
    "line",
    ["phy:sda,sda1,w", "tap:parallax:x,sda1,w,0", "tap:parallax:0,sda1", "", "tap:aio:/x,a,w"],
)
def test_lines_that_are_not_historic(line: str) -> None:
    with pytest.raises(BadRequest, match="no disk line of the original tap driver"):
        parse_legacy(line)


def test_machines_get_the_parts(plx: Plx) -> None:
    told = plx("-o", "json", "disk", "qemu", "web", "--socket", SOCKET).json["disk"]
    web = uuid_of(plx, "web")
    assert told["export"] == web
    assert told["uri"] == f"nbd+unix:///{web}?socket=/run/parallax/nbd.sock"
    assert told["uri"] in told["line"]
    assert web in plx("-o", "yaml", "disk", "libvirt", "web").lines[3]


def test_the_default_socket(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARALLAX_RUN_DIR")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert "socket=/run/user/1000/parallax/nbd.sock" in plx("disk", "qemu", "web").out
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "socket=/run/parallax/nbd.sock" in plx("disk", "qemu", "web").out
    monkeypatch.setenv("PARALLAX_RUN_DIR", "/srv/plx")
    assert "socket=/srv/plx/nbd.sock" in plx("disk", "qemu", "web").out
