"""The roles under a real systemd: a container with this machine's files boots, and is rebooted.

Simulated hosts have a stand-in for systemd. Here systemd itself judges the units and confines the
services. It needs root, systemd-nspawn and a loop device, which not every machine grants.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "scripts"))
from fleet import Ran, build_wheels  # noqa: E402
from simulated.root import FRESH, GONE, Layer  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("systemd"),
]

UNITS = ("parallaxd", "plxlockmaster")
METRICS = "127.0.0.1:8441"
DISK = "nbd+unix:///{}?socket=/run/parallax/nbd.sock"


def run(*words: object) -> str:
    line = [str(word) for word in words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def wait_until(what: Callable[[], object], named: str, patience: float) -> None:
    until = time.monotonic() + patience
    while not what():
        assert time.monotonic() < until, named
        time.sleep(0.2)


class Machine:
    """A container with an overlay of this machine's files, in which systemd is the first process.

    Args:
        folder: for its files and what it shares with the tests.
        device: a block device of this machine that it may use.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.root = folder / "layers/root"
        self._bound = {sys.base_prefix, str(ROOT), str(folder)}
        self.device = device
        self._outer: subprocess.Popen[bytes] | None = None
        self._first = ""

    def make(self) -> None:
        layers = self.folder / "layers"
        layers.mkdir()
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", layers)
        for name in ("layer", "work", "root"):
            (layers / name).mkdir(mode=0o755)
        layer = Layer(layers / "layer")
        for path in FRESH:
            layer.fresh(path)
        for pattern in GONE:
            for found in Path("/").glob(pattern):
                layer.hide(str(found))
        layer.place("/root/x").parent.chmod(0o711)  # the interpreter may be below
        layer.write("/etc/machine-id", "")  # a first boot writes one
        options = f"lowerdir=/,upperdir={layers}/layer,workdir={layers}/work"
        run("mount", "-t", "overlay", "-o", options, "overlay", self.root)

    def remove(self) -> None:
        self.stop()
        for path in (self.root, self.folder / "layers"):
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)

    def boot(self) -> None:
        words = ["systemd-nspawn", "--directory", str(self.root), "--boot", "--register=no"]
        words += ["--keep-unit", "--private-network", "--console=pipe", "--machine=parallax-test"]
        words += [f"--bind-ro={path}" for path in sorted(self._bound - {str(self.folder)})]
        words += [f"--bind={self.folder}", f"--bind={self.device}"]
        with open(self.folder / "console", "ab") as console:
            self._outer = subprocess.Popen(
                # A place of its own for what nspawn keeps in /run.
                ["unshare", "--mount", "sh", "-c",
                 'mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && exec "$@"', "sh",
                 *words, "systemd.unit=multi-user.target"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        wait_until(self._has_begun, "systemd begins", 120)
        wait_until(lambda: self.sh("systemctl is-system-running --wait")[1], "it has booted", 300)

    def _has_begun(self) -> bool:
        """Find the first process of the container, which is a child of nspawn."""
        assert self._outer is not None
        assert self._outer.poll() is None, (self.folder / "console").read_text()
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        for pid in children.split():
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                self._first = pid
        return self._first != "" and self.sh("systemctl is-system-running")[1] != ""

    def stop(self) -> None:
        """Have systemd end everything and itself."""
        if self._outer is None:
            return
        if self._first:
            self.sh("systemctl poweroff")
        try:
            self._outer.wait(120)
        except subprocess.TimeoutExpired:
            self._outer.kill()
            self._outer.wait()
        self._outer, self._first = None, ""

    def line(self, *words: object) -> list[str]:
        enter = ["nsenter", "--target", self._first, "--all", "--", *map(str, words)]
        return ["env", "-i", f"PATH={BIN}:{os.environ['PATH']}", "HOME=/root", "LC_ALL=C.UTF-8",
                "ANSIBLE_LOCALHOST_WARNING=false", "ANSIBLE_INVENTORY_UNPARSED_WARNING=false",
                f"ANSIBLE_COLLECTIONS_PATH={self.folder}/collections", *enter]  # fmt: skip

    def sh(self, script: str) -> tuple[int, str]:
        done = subprocess.run(
            self.line("sh", "-c", script), capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def told(self, script: str) -> str:
        status, told = self.sh(script)
        assert status == 0, told + self.log()
        return told

    def log(self) -> str:
        return "\n" + self.sh("journalctl --no-pager -b -u parallaxd -u plxlockmaster")[1]


class Operator:
    """Runs the roles in it, on one store."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        folder = machine.folder
        build_wheels(folder / "wheels")
        target = folder / "collections/ansible_collections/parallax/storage"
        target.parent.mkdir(parents=True)
        run("cp", "-r", ROOT / "ansible_collection", target)
        self.variables: dict[str, Any] = {
            "install_source": str(folder / "wheels"),
            "install_packages": [],
            "install_python": os.path.realpath(sys.executable),
            "install_lock_key": "a key of this test",
            "install_config": {
                "blockstore": {"data": "{{ tap_store }}"},
                "lock_master": {"address": "127.0.0.1:8440", "listen": "127.0.0.1:8440"},
                "tap": {"metrics": METRICS, "gc_every": "10s"},
            },
            "tap_socket_group": "kvm",
        }

    def play(self, store: str, **changes: object) -> Ran:
        tasks: list[dict[str, Any]] = [
            {"ansible.builtin.group": {"name": "kvm", "system": True}},
            {"ansible.builtin.import_role": {"name": "parallax.storage.lock_master"}},
            {"parallax.storage.blockstore": {"path": store, "extent_size": "4M", "extents": 8}},
            {"ansible.builtin.import_role": {"name": "parallax.storage.tap"}},
        ]
        variables = {**self.variables, "tap_store": store, **changes}
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False}
        path = self.machine.folder / "play.yml"
        path.write_text(json.dumps([{**play, "vars": variables, "tasks": tasks}]))
        return Ran(*self.machine.sh(f"ansible-playbook -i localhost, {path}"))


@contextmanager
def loop_device(file: Path) -> Iterator[str]:
    with open(file, "wb") as image:
        image.truncate(300 << 20)
    device = run("losetup", "--find", "--show", file)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("systemd")
    with loop_device(folder / "disk") as device:
        machine = Machine(folder, device)
        machine.make()
        try:
            operator = Operator(machine)
            machine.boot()
            yield operator
        finally:
            machine.remove()


def works(
    machine: Machine, name: str, guest: str = "setpriv --reuid 65534 --regid kvm --clear-groups"
) -> None:
    """A VDI is made, filled through the tap as the group of the socket may, and read back."""
    machine.told(f"plxsh vdi create {name} --size 4M")
    disk = DISK.format(name)
    machine.told(f"head -c 1000000 /dev/urandom >/tmp/{name}; chmod 644 /tmp/{name}")
    machine.told(f"{guest} nbdcopy /tmp/{name} '{disk}'")
    machine.told(f"{guest} nbdcopy '{disk}' - | cmp --bytes 1000000 - /tmp/{name}")


def unchanged(ran: Ran) -> None:
    assert ran.status == 0, ran.shown
    assert ran.changed == {"localhost": 0}, ran.shown


def test_services_work_as_confined_as_their_units_say(operator: Operator) -> None:
    machine = operator.machine
    store = "/srv/blockstore.dat"
    made = operator.play(store)
    assert made.status == 0, made.shown + machine.log()
    unchanged(operator.play(store))
    works(machine, "first")
    owner = machine.told("id -u parallax")
    for unit in UNITS:
        main = machine.told(f"systemctl show --property MainPID --value {unit}")
        status = machine.told(f"cat /proc/{main}/status")
        assert re.search(rf"^Uid:\s+{owner}\s+{owner}\s+{owner}", status, re.MULTILINE)
        for line in (r"CapEff:\s+0+", r"NoNewPrivs:\s+1", r"Seccomp:\s+2"):
            assert re.search(rf"^{line}$", status, re.MULTILINE), status
        inside = f"nsenter --target {main} --mount --"
        assert machine.sh(f"{inside} touch /etc/x /usr/x /var/x")[1].count("Read-only") == 3
        judged = machine.told(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        assert float(re.findall(r"\d+\.\d+", judged)[0]) < 3.0, judged
        assert machine.sh(f"{inside} ls /run/dbus/system_bus_socket /run/systemd/private")[0] != 0


def test_it_collects_garbage_as_confined(operator: Operator) -> None:
    """A process that the tap starts, which gives what is free back to the file."""
    machine, freed = operator.machine, "parallax_tap_collections_total"
    used = int(machine.told("du --block-size=1 /srv/blockstore.dat").split()[0])
    machine.told("plxsh -y vdi delete first")
    told = f"curl --silent --fail http://{METRICS}/metrics | grep '^{freed}'"
    before = float(re.findall(r'"done".* ([0-9.]+)', machine.told(told))[0])
    wait_until(
        lambda: float(re.findall(r'"done".* ([0-9.]+)', machine.told(told))[0]) > before + 1,
        "garbage is collected",
        120,
    )
    assert re.search(r'"failed".* 0(\.0)?$', machine.told(told), re.MULTILINE)
    assert int(machine.told("du --block-size=1 /srv/blockstore.dat").split()[0]) < used - 900_000
    works(machine, "first")


def test_a_store_on_a_device(operator: Operator) -> None:
    machine, device = operator.machine, operator.machine.device
    machine.told(f"chgrp disk {device}; chmod 600 {device}")
    refused = operator.play(device)
    assert refused.status != 0
    assert f"The device {device} is for root alone" in " ".join(refused.shown.split())
    machine.told(f"chmod 660 {device}")
    assert operator.play(device).status == 0, machine.log()
    unchanged(operator.play(device))
    works(machine, "second")
    main = machine.told("systemctl show --property MainPID --value parallaxd")
    opened = machine.told(f"ls -l /proc/{main}/fd")
    assert device in opened
    other = "nsenter --target {} --mount -- sh -c 'head -c 1 /dev/kmsg'"
    assert machine.sh(other.format(main))[0] != 0


def test_both_are_there_after_a_boot(operator: Operator) -> None:
    """The tap is up before the lock master grants anything, and waits for it."""
    machine = operator.machine
    assert operator.play("/srv/blockstore.dat").status == 0, machine.log()
    before = machine.told("plxsh -o json vdi list")
    machine.stop()
    machine.boot()
    for unit in UNITS:
        wait_until(
            lambda: machine.sh(f"systemctl is-active {unit}")[1] == "active",  # noqa: B023
            f"{unit} is active",
            180,
        )
    assert machine.told("plxsh -o json vdi list") == before
    disk = DISK.format("first")
    machine.told(f"nbdinfo --size '{disk}'")


def test_a_python_that_only_root_may_run(operator: Operator) -> None:
    python = os.path.realpath(sys.executable)
    operator.machine.told(f"mkdir -m 700 /srv/private && cp {python} /srv/private/python3")
    refused = operator.play("/srv/blockstore.dat", install_python="/srv/private/python3")
    assert refused.status != 0
    told = " ".join(refused.shown.split())
    assert "The user parallax cannot run /srv/private/python3" in told


ALONE = "systemctl stop parallaxd plxlockmaster; rm -rf /etc/parallax"
"""What the role has added is away, as if there had never been one."""

OWN = "10-role.conf"


def configure(machine: Machine, store: str) -> None:
    written = f'[blockstore]\\ndata = "{store}"\\n'
    machine.told(f"mkdir -p /etc/parallax; printf '{written}' >/etc/parallax/parallax.toml")


def test_the_units_work_as_they_are_shipped(operator: Operator) -> None:
    """As root without privileges; a link, a file elsewhere and a device as their comments say."""
    machine, device = operator.machine, operator.machine.device
    added = "/etc/systemd/system/{}.service.d"
    assert operator.play("/srv/blockstore.dat").status == 0, machine.log()
    machine.told(ALONE)
    for unit in UNITS:
        machine.told(f"rm {added.format(unit)}/{OWN}")
        if re.match("/(home|root)/", sys.base_prefix):  # where its Python may be on this machine
            there = f"{added.format(unit)}/home.conf"
            machine.told(f"printf '[Service]\\nProtectHome=read-only\\n' >{there}")
    create = "plxsh store create --extents 8 --extent-size 4M"  # one that no lock master shares
    machine.told(f"rm /srv/blockstore.dat && {create} /srv/blockstore.dat")
    machine.told("ln -s /srv/blockstore.dat /blockstore.dat")
    machine.told("chown -R root: /run/parallax /var/lib/parallax /srv/blockstore.dat")
    machine.told("systemctl daemon-reload; systemctl start plxlockmaster parallaxd")
    works(machine, "third", guest="")
    main = machine.told("systemctl show --property MainPID --value parallaxd")
    assert re.search(r"^CapEff:\s+0+$", machine.told(f"cat /proc/{main}/status"), re.MULTILINE)
    inside = f"nsenter --target {main} --mount --"
    assert machine.sh(f"{inside} touch /etc/x /usr/x /var/x")[1].count("Read-only") == 3

    machine.told("mkdir -p /data && mv /srv/blockstore.dat /data/")
    configure(machine, "/data/blockstore.dat")
    assert machine.sh("systemctl restart parallaxd")[0] != 0
    assert "name it in ReadWritePaths=" in machine.log()
    unit = machine.told("cat /etc/systemd/system/parallaxd.service")
    shown = [line.removeprefix("#").strip() for line in unit.splitlines() if line[:5] == "#    "]
    edited = "\n".join(shown).replace("/dev/vg0/blockstore", device)
    assert "ReadWritePaths=/data/blockstore.dat" in edited
    assert f"DeviceAllow={device} rw" in edited
    machine.told(f"echo '{edited}' >{added.format('parallaxd')}/override.conf")
    machine.told("systemctl daemon-reload; systemctl reset-failed; systemctl restart parallaxd")
    works(machine, "fourth", guest="")
    machine.told(f"chown root:disk {device}; blkdiscard --force {device} && {create} {device}")
    configure(machine, device)
    machine.told("systemctl restart parallaxd")
    works(machine, "fifth", guest="")
    main = machine.told("systemctl show --property MainPID --value parallaxd")
    assert device in machine.told(f"ls -l /proc/{main}/fd")
