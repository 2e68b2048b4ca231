"""The root of a simulated host: the outer machine's files under a layer of its own.

The layer is in memory. What is written on the host goes there, and what the outer machine has of
Parallax, Xen or its users is hidden there, before anything runs on the host.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from simulated import ssh

if TYPE_CHECKING:
    from simulated.world import Plan

# Directories that begin empty on every host.
FRESH = (
    "/etc/xen",
    "/etc/systemd/system",
    "/etc/libvirt",
    "/home",
    "/root",
    "/srv",
    "/var/cache/parallax",
    "/var/lib/libvirt",
    "/var/log",
    "/var/tmp",
)
# What is not there on any host, whatever the outer machine has.
GONE = (
    "etc/parallax",
    "etc/default/parallax*",
    "etc/modprobe.d/nbd.conf",
    "etc/modules-load.d/nbd.conf",
    "opt/parallax*",
    "usr/local/bin/parallax*",
    "usr/local/bin/plx*",
    "usr/local/bin/vdi_*",
    "var/lib/parallax*",
)
OURS = ("parallax", "libvirt-qemu")  # users and groups that the outer machine may have
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kvm")
STAND_INS = Path(__file__).with_name("stand_ins")
LIBRARY = "/usr/local/lib/simulated"


def python() -> str:
    """The interpreter that hosts use: the one below this .venv."""
    return os.path.realpath(sys.executable)


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL)


def mask(folder: Path) -> None:
    """On `control`, which has the outer machine's files: hide what is the outer machine's state."""
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "--bind", folder / "hosts", "/etc/hosts")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    if Path("/etc/parallax").is_dir():
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/etc/parallax")


def make(folder: Path, name: str, plan: Plan) -> None:
    """Make the root and change to it."""
    place = folder / name / "root"
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    layer, work, new = place / "layer", place / "work", place / "new"
    for path in (layer, work, new):
        path.mkdir(mode=0o755)
    _fill(Layer(layer), folder, name, Path(plan.sshd))
    layers = f"lowerdir=/,upperdir={layer},workdir={work}"
    run("mount", "-t", "overlay", "-o", layers, "overlay", new)
    _mount(new, [*plan.shared, *_needed(Path(plan.sshd))], set(plan.shared))
    os.chdir(new)
    (new / ".outer").mkdir()
    run("pivot_root", ".", ".outer")
    os.chdir("/")
    run("umount", "-l", "/.outer")
    os.rmdir("/.outer")
    for path in ("/run/systemd/system", "/run/lock", "/run/simulated"):
        os.makedirs(path, mode=0o755)


def _needed(sshd: Path) -> Iterable[str]:
    """Folders of the outer machine that a host uses, wherever they are mounted."""
    if sshd.is_relative_to(ssh.UNPACKED):
        yield str(ssh.UNPACKED)
    if not sys.base_prefix.startswith("/usr"):
        yield sys.base_prefix


def _mount(new: Path, bound: Iterable[str], writable: set[str]) -> None:
    """Everything that is mounted below the root."""
    run("mount", "-t", "proc", "proc", new / "proc")
    for path in ("sys", "sysrq-trigger"):  # settings of the kernel, which is the outer machine's
        if (new / "proc" / path).exists():
            run("mount", "--bind", new / "proc" / path, new / "proc" / path)
            run("mount", "-o", "remount,bind,ro", new / "proc" / path)
    run("mount", "-t", "sysfs", "-o", "ro", "sysfs", new / "sys")
    for path, mode in (("dev", "755"), ("run", "755"), ("tmp", "1777")):
        run("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", new / path)
    dev = new / "dev"
    for device in DEVICES:
        if Path("/dev", device).exists():
            (dev / device).touch()
            run("mount", "--bind", f"/dev/{device}", dev / device)
    for path, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / path).symlink_to(f"/proc/self/{target}")
    for path in ("pts", "shm"):
        (dev / path).mkdir()
    run("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=666,mode=620", "devpts", dev / "pts")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", dev / "shm")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for shared in bound:
        target = new / shared.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", shared, target)
        if shared not in writable:
            run("mount", "-o", "remount,bind,ro", target)


class Layer:
    """The upper layer, before it is mounted. Its folders are as those that they cover."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copystat("/", folder)

    def place(self, path: str) -> Path:
        """Where to write a path of the host; the folders that lead there are made."""
        target = self.folder
        *parents, last = Path(path).relative_to("/").parts
        for at, part in enumerate(parents):
            target /= part
            if not target.exists():
                target.mkdir(mode=0o755)
                below = Path("/", *parents[: at + 1])
                if below.is_dir():
                    shutil.copystat(below, target)
        return target / last

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.place(path)
        target.write_text(text)
        target.chmod(mode)

    def fresh(self, path: str) -> None:
        """An empty directory, whatever is below."""
        target = self.place(path)
        target.mkdir(mode=0o755)
        if Path(path).is_dir():
            shutil.copystat(path, target)
            os.setxattr(target, "trusted.overlay.opaque", b"y")

    def hide(self, path: str) -> None:
        os.mknod(self.place(path), stat.S_IFCHR, os.makedev(0, 0))  # as overlayfs marks it


def _fill(layer: Layer, folder: Path, name: str, sshd: Path) -> None:
    """What a host has of its own at the beginning."""
    for path in FRESH:
        layer.fresh(path)
    for pattern in GONE:
        for found in Path("/").glob(pattern):
            layer.hide(str(found))
    # Others may pass through root's home: the interpreter may be in it.
    layer.place("/root/x").parent.chmod(0o711)
    layer.place("/etc/xen/scripts").mkdir(mode=0o755)
    layer.write("/etc/hostname", f"{name}\n")
    layer.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
    layer.write("/etc/hosts", (folder / "hosts").read_text())
    layer.write("/etc/resolv.conf", "")
    _users(layer)
    layer.write("/etc/ssh/sshd_config", ssh.server_config(sshd))
    layer.write("/etc/ssh/host_key", (folder / "host_key").read_text(), 0o600)
    layer.write("/etc/ssh/authorized_keys", (folder / "key.pub").read_text())
    interpreter = python()
    if interpreter != "/usr/local/bin/python3":
        # No symbolic link: a venv made through one would take /usr/local for its home.
        layer.write("/usr/local/bin/python3", f'#!/bin/sh\nexec {interpreter} "$@"\n', 0o755)
    _stand_ins(layer, interpreter)


def _users(layer: Layer) -> None:
    """The users of the outer machine without those of Parallax; sshd's; root has no password."""
    for file in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid"):
        path = Path("/etc", file)
        if not path.exists():
            continue
        lines = [line.split(":") for line in path.read_text().splitlines()]
        lines = [line for line in lines if line[0] not in OURS]
        if file == "shadow":
            lines = [["root", "*", *line[2:]] if line[0] == "root" else line for line in lines]
        if file == "passwd" and not any(line[0] == "sshd" for line in lines):
            lines.append(["sshd", "x", "74", "65534", "", "/run/sshd", "/usr/sbin/nologin"])
        text = "\n".join(":".join(line) for line in lines) + "\n"
        layer.write(str(path), text, stat.S_IMODE(path.stat().st_mode))


def _stand_ins(layer: Layer, interpreter: str) -> None:
    """Programs that take the place of those that would need a real machine."""
    for path in STAND_INS.glob("*.py"):
        layer.write(f"{LIBRARY}/{path.name}", path.read_text())
    for program in ("/usr/bin/systemctl", "/usr/sbin/modprobe"):
        module = f"{LIBRARY}/{Path(program).name}.py"
        layer.write(program, f'#!/bin/sh\nexec {interpreter} -E -s {module} "$@"\n', 0o755)
