"""`plxsh disk`: the line to paste into the configuration of a virtual machine.

Lines name the VDI by its UUID: it needs no quoting anywhere, survives a rename, and never means
another VDI. A name may be given to another one, and some day an id is: the line that was left of
the VDI that had it would then give a machine somebody else's disk.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

import click
from click.shell_completion import CompletionItem

from core.errors import BadRequest
from core.format import VdiRecord
from core.registry import Registry
from core.text import uuid_text
from plxsh import render
from plxsh.context import Settings, default_socket, pass_settings
from plxsh.groups import Group
from plxsh.params import FILE, VDI_OR_SNAPSHOT, VIRTUAL_DEVICE, names_snapshot

_VDEV: Final = re.compile(r"(xvd|sd|hd)([a-z]{1,5})([1-9][0-9]{0,2})?")
_VDEV_BY_NUMBER: Final = re.compile(r"d(0|[1-9][0-9]{0,6})p(0|[1-9][0-9]{0,2})")
_MOST: Final = {"xvd": (1 << 20, 255), "d": (1 << 20, 255), "hd": (4, 63), "sd": (16, 15)}
"""How many disks and partitions Xen's interface has room for, by the kind of name."""
_TARGET: Final = re.compile(r"(vd|sd|hd)[a-z]{1,3}")
_BUSES: Final = ("virtio", "scsi", "sata", "ide", "usb")
_USUAL_BUS: Final = {"vd": "virtio", "sd": "scsi", "hd": "ide"}
"""What libvirt itself takes for names of that kind."""
_IN_QUOTES: Final = {"'": "&apos;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
"""What XML would read as something else in the value of an attribute."""
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_.+-]+")
_SHELL_SAFE: Final = re.compile(r"[A-Za-z0-9_./:@%+=,?-]+")
_LEGACY: Final = re.compile(
    r"(?:disk\s*=\s*)?\[?\s*(?P<quote>['\"]?)\s*"
    r"tap:parallax:(?P<vdi>\d+),(?P<vdev>[^,]+),(?P<mode>[rw])(?:,(?P<backend>[^,'\"\]]+))?"
    r"\s*(?P=quote)\s*\]?"
)


@dataclass(frozen=True, slots=True)
class XenDisk:
    """What a Xen disk line says; `export` is a VDI's UUID, name or id, or a snapshot of it.

    Raises:
        BadRequest: a device or domain name that xl would accept and then fail on.
    """

    export: str
    vdev: str
    writable: bool
    backend: str = ""

    def __post_init__(self) -> None:
        """Check the names."""
        if not is_virtual_device(self.vdev):
            raise BadRequest(
                f"{self.vdev!r} is no name of a virtual device",
                "take one such as xvda, xvdb1, sda1, hda or d0p1",
            )
        if self.backend and not _DOMAIN.fullmatch(self.backend):
            raise BadRequest(
                f"{self.backend!r} is no name of a domain", "give its name or its number"
            )

    def modern(self, socket: str) -> str:
        """Return the line for today's xl; `target` must come last."""
        backend = f"backend={self.backend}," if self.backend not in ("", "0") else ""
        access = "rw" if self.writable else "ro"
        return (
            f"disk = [ 'format=raw,vdev={self.vdev},access={access},{backend}script=block-plx,"
            f"target={nbd_uri(self.export, socket)}' ]"
        )

    def legacy(self) -> str:
        """Return the line of the original tap driver.

        Raises:
            BadRequest: that driver knew VDIs by their ids and nothing else.
        """
        if not self.export.isdecimal():
            raise BadRequest(
                f"the original tap driver has no line for {self.export!r}",
                "it takes VDIs by id: leave out --legacy or --by, or clone the snapshot",
            )
        mode = "w" if self.writable else "r"
        return f"disk = ['tap:parallax:{self.export},{self.vdev},{mode},{self.backend or 0}' ]"


def is_virtual_device(name: str) -> bool:
    """Say whether Xen knows a disk or partition of that name; xl itself finds out late."""
    match = _VDEV.fullmatch(name)
    if match is not None:
        kind, disk = match[1], _disk_number(match[2])
        partition = int(match[3] or 0)
    else:
        match = _VDEV_BY_NUMBER.fullmatch(name)
        if match is None:
            return False
        kind, disk, partition = "d", int(match[1]), int(match[2])
    disks, partitions = _MOST[kind]
    return disk < disks and partition <= partitions


def _disk_number(letters: str) -> int:
    """Return which disk letters stand for: a is 0, z 25, aa 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def parse_legacy(line: str) -> XenDisk:
    """Return what a historic `tap:parallax:0,sda1,w,0` says, with or without `disk = [...]`.

    Raises:
        BadRequest: it is no such line.
    """
    match = _LEGACY.fullmatch(line.strip())
    if match is None:
        raise BadRequest(
            f"{line!r} is no disk line of the original tap driver",
            "it looks like tap:parallax:0,sda1,w,0",
        )
    return XenDisk(match["vdi"], match["vdev"], match["mode"] == "w", match["backend"] or "")


def nbd_uri(export: str, socket: str) -> str:
    """Return the NBD URI of an export on a Unix socket."""
    return f"nbd+unix:///{quote(export, safe='@')}?socket={quote(socket)}"


def qemu_drive(export: str, socket: str, writable: bool) -> str:
    """Return QEMU's short form."""
    read_only = "" if writable else ",readonly=on"
    return f"-drive {_word(f'file={nbd_uri(export, socket)},format=raw,if=virtio{read_only}')}"


def qemu_blockdev(export: str, socket: str, writable: bool) -> str:
    """Return QEMU's long form, which connects again when the tap was restarted."""
    read_only = "" if writable else ",read-only=on"
    path, name = (text.replace(",", ",,") for text in (socket, export))
    return "-blockdev " + _word(
        f"driver=nbd,node-name=d0,server.type=unix,server.path={path},"
        f"export={name},reconnect-delay=10{read_only}"
    )


def _word(text: str) -> str:
    """Quote a word for the shell if it needs that."""
    return text if _SHELL_SAFE.fullmatch(text) else shlex.quote(text)


@dataclass(frozen=True, slots=True)
class LibvirtDisk:
    """What a disk element of libvirt says; `export` is as that of `XenDisk`.

    Raises:
        BadRequest: what libvirt would refuse when the domain is defined or started.
    """

    export: str
    writable: bool
    target: str = "vda"
    bus: str = ""

    def __post_init__(self) -> None:
        """Check the target, and that the bus can have this disk."""
        if not _TARGET.fullmatch(self.target):
            raise BadRequest(
                f"{self.target!r} is no name of a disk in libvirt",
                "take one such as vda, sda or hda",
            )
        bus = self.actual_bus()
        if bus == "ide" and self.target[2:] not in "abcd":
            raise BadRequest(f"IDE has no disk {self.target}", "take hda to hdd, or --bus sata")
        if bus in ("ide", "sata") and not self.writable:
            raise BadRequest(
                f"libvirt has no read-only disks on the bus {bus}",
                "take another --bus, such as virtio or scsi",
            )

    def actual_bus(self) -> str:
        """Return the bus that was given, else the usual one of the target."""
        return self.bus or _USUAL_BUS[self.target[:2]]

    def element(self, socket: str) -> str:
        """Return the XML, for libvirt's QEMU driver."""
        read_only = "" if self.writable else "<readonly/>"
        path, name = (escape(text, _IN_QUOTES) for text in (socket, self.export))
        return (
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
            f"<source protocol='nbd' name='{name}'>"
            f"<host transport='unix' socket='{path}'/></source>"
            f"<target dev='{self.target}' bus='{self.actual_bus()}'/>{read_only}</disk>"
        )


class TargetType(click.ParamType[str]):
    """A disk as libvirt names it: `vda`, `sda`."""

    name = "DEV"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,  # noqa: ARG002
    ) -> list[CompletionItem]:
        """Return the first disks of each bus."""
        return [
            CompletionItem(kind + letter, help=bus)
            for kind, bus in _USUAL_BUS.items()
            for letter in "abcd"
        ]


@click.group(cls=Group)
def disk() -> None:
    """Print the line that gives a VDI to a virtual machine."""


_socket = click.option(
    "--socket", type=FILE, help="Socket of the tap.  [default: that of 'tap serve']"
)


_by = click.option(
    "--by",
    type=click.Choice(["uuid", "name", "id"]),
    help="What the VDI is called in it; only its UUID is never another's.  [default: uuid]",
)


@disk.command(
    examples=[
        "plxsh disk xen base xvda w",
        "plxsh disk xen base xvda --by name",
        "plxsh disk xen base sda1 r --legacy",
        "plxsh disk xen --from-legacy 'tap:parallax:0,sda1,w,0'",
    ]
)
@click.argument("vdi", metavar="VDI", type=VDI_OR_SNAPSHOT, required=False)
@click.argument("vdev", metavar="VDEV", type=VIRTUAL_DEVICE, required=False)
@click.argument("access", metavar="[r|w]", type=click.Choice(["r", "w"]), required=False)
@click.option(
    "--backend", metavar="DOM", default="", help="Domain that runs the tap.  [default: dom0]"
)
@click.option("--legacy", is_flag=True, help="The line of the original tap driver.")
@click.option("--from-legacy", metavar="LINE", help="Translate a line of the original tap driver.")
@_by
@_socket
@click.pass_context
@pass_settings
def xen(
    settings: Settings,
    ctx: click.Context,
    vdi: str | None,
    vdev: str | None,
    access: str | None,
    backend: str,
    legacy: bool,
    from_legacy: str | None,
    by: str | None,
    socket: str | None,
) -> None:
    """Print the disk line for xl.

    Without r or w a VDI is writable, a snapshot is not.
    """
    if legacy and by is None:
        by = "id"
    shifted = settings.vdi and access is None and vdev in (None, "r", "w")
    if shifted and from_legacy is None:  # the VDI is that of `use`
        vdi, vdev, access = settings.vdi, vdi, vdev
    if from_legacy is not None:
        if vdi is not None or backend:
            raise click.UsageError(
                "--from-legacy takes all from its line: give no VDI and no --backend besides"
            )
        line = parse_legacy(from_legacy)
        export, _ = _export(settings, line.export, by)  # refuse a VDI that there is not
        line = replace(line, export=export)
    elif vdi is None or vdev is None:
        missing = ctx.command.params[0 if vdi is None else 1]
        raise click.MissingParameter(ctx=ctx, param=missing)
    else:
        export, writable = _export(settings, vdi, by, access)
        line = XenDisk(export, vdev, writable, backend)
    path = _socket_path(socket)
    _show(settings, "xen", line.export, path, line.legacy() if legacy else line.modern(path))


@disk.command(examples=["plxsh disk qemu base", "plxsh disk qemu base --blockdev"])
@click.argument("vdi", type=VDI_OR_SNAPSHOT)
@click.option("--blockdev", is_flag=True, help="The long form, with a node name of its own.")
@_by
@_socket
@pass_settings
def qemu(settings: Settings, vdi: str, blockdev: bool, by: str | None, socket: str | None) -> None:
    """Print the option for QEMU.

    A snapshot is given read-only. --blockdev needs a -device with drive=d0 besides.
    """
    export, writable = _export(settings, vdi, by)
    path = _socket_path(socket)
    line = (qemu_blockdev if blockdev else qemu_drive)(export, path, writable)
    _show(settings, "qemu", export, path, line)


@disk.command(
    examples=[
        "plxsh disk libvirt base",
        "plxsh disk libvirt base --target sda --bus sata",
        "plxsh disk libvirt base@clean --target vdb",
    ]
)
@click.argument("vdi", metavar="VDI", type=VDI_OR_SNAPSHOT)
@click.argument("access", metavar="[r|w]", type=click.Choice(["r", "w"]), required=False)
@click.option(
    "--target", type=TargetType(), default="vda", help="Name of the disk.  [default: vda]"
)
@click.option(
    "--bus",
    type=click.Choice(_BUSES),
    help="What the disk hangs on.  [default: virtio for vda, scsi for sda, ide for hda]",
)
@_by
@_socket
@pass_settings
def libvirt(
    settings: Settings,
    vdi: str,
    access: str | None,
    target: str,
    bus: str | None,
    by: str | None,
    socket: str | None,
) -> None:
    """Print the disk element for libvirt (its QEMU driver).

    Without r or w a VDI is writable, a snapshot is not.
    """
    export, writable = _export(settings, vdi, by, access)
    path = _socket_path(socket)
    element = LibvirtDisk(export, writable, target, bus or "").element(path)
    _show(settings, "libvirt", export, path, element)


def _socket_path(socket: str | None) -> str:
    from core.tap.status import check_path

    path = os.path.abspath(socket) if socket else default_socket()
    check_path(path)
    return path


def _export(
    settings: Settings, reference: str, by: str | None, access: str | None = None
) -> tuple[str, bool]:
    """Return the export name of a VDI or snapshot that exists, and whether to write it."""
    if names_snapshot(reference):
        if access == "w":
            raise BadRequest(f"{reference} is a snapshot and never written", "clone it first")
        with settings.session("read") as session:
            snapshot = session.find_snapshot(reference)
            owner = session.registry.find(str(snapshot.vdi))
        return f"{_called(owner, by)}@{snapshot.id}", False
    with closing(settings.blockstore()) as opened:
        record = Registry(opened).find(reference)
    return _called(record, by), access != "r"


def _called(record: VdiRecord, by: str | None) -> str:
    """Return what a line calls a VDI; one whose name cannot be shown has only its id."""
    if by == "name" and record.name.isprintable():
        return record.name
    return str(record.id) if by in ("id", "name") else uuid_text(record.uuid)


def _show(settings: Settings, kind: str, export: str, socket: str, line: str) -> None:
    if settings.output in ("json", "yaml"):
        uri = nbd_uri(export, socket)
        render.data(settings, {"disk": {"for": kind, "export": export, "uri": uri, "line": line}})
    else:
        click.echo(line)
