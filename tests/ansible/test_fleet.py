"""The proof of the playbooks: three hosts, one store, forty machines from one image, over ssh.

The playbooks run as an operator runs them, from a machine that reaches the hosts only by ssh. What
they made is looked at by others: clients of NBD on the hosts, and xl's own parser.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.rooted import SIMULATED_HOSTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import boot.conftest  # noqa: E402
import xen.conftest  # noqa: E402
from fleet import BIN, PLAYBOOKS, Fleet, Ran  # noqa: E402

boot_kit, guest = boot.conftest.boot_kit, boot.conftest.guest
xen_kit, xl_libraries = xen.conftest.xen_kit, xen.conftest.xl_libraries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    SIMULATED_HOSTS,
    pytest.mark.xdist_group("fleet"),  # one fleet for all tests of this file, in their order
]

MACHINES = [f"vm{number:02}" for number in range(1, 41)]
LIBVIRT = MACHINES[27:]
HOSTS = {
    "host1": MACHINES[:14],
    "host2": MACHINES[14:27],
    "host3": LIBVIRT,
}
VIRSH = """#!/bin/sh
# In the place of libvirt: remembers what was defined.
case $1 in
    domuuid) test -e "/root/defined/$2" ;;
    define) mkdir -p /root/defined && cp "$2" "/root/defined/$(basename "$2" .xml)" ;;
    *) exit 2 ;;
esac
"""
IMAGE_SIZE = 3 << 20
WRITTEN = 64 << 10
PATIENCE = 90
HOLD = "-c 'sleep 1800000'"  # milliseconds: longer than any test; it is killed


@dataclass
class Story:
    """A fleet, and what the first runs of site.yml said."""

    fleet: Fleet
    foretold: Ran
    made: Ran
    again: Ran
    checked: Ran


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), HOSTS, kinds={"host3": "libvirt"})
    try:
        fleet.up()
        put = "cat >/usr/local/bin/virsh && chmod +x /usr/local/bin/virsh"
        line = fleet.on_line("host3", "sh", "-c", put)
        subprocess.run(line, input=VIRSH, text=True, check=True)
        fleet.image.write_bytes(random.Random(5).randbytes(IMAGE_SIZE))
        foretold = fleet.play("site.yml", "--check")
        there = fleet.store.exists()
        made = fleet.play("site.yml")
        again = fleet.play("site.yml")
        few = f"parallax_hosts:{MACHINES[0]}:{LIBVIRT[0]}"
        checked = fleet.play("site.yml", "--check", "--diff", "--limit", few)
        assert not there, "check mode made a store"
        yield Story(fleet, foretold, made, again, checked)
    finally:
        fleet.down()


@pytest.fixture
def fleet(story: Story) -> Fleet:
    assert story.made.status == 0, story.made.shown
    return story.fleet


def plxsh(fleet: Fleet, *words: object) -> dict[str, Any]:
    ran = fleet.on("host1", "plxsh", "-o", "json", "-y", *words)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def on_all(fleet: Fleet, names: Sequence[str], command: str) -> dict[str, str]:
    """Run a shell command on the host of each machine; `NAME`, `NUMBER` and `URI` are its."""

    def run(name: str) -> str:
        number = str(1 + MACHINES.index(name)) if name in MACHINES else "99"
        words = command.replace("NAME", name).replace("NUMBER", number)
        ran = fleet.on(fleet.host_of[name], "sh", "-ec", words.replace("URI", fleet.disk(name)))
        assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))


def test_lint(environment: dict[str, str], tmp_path: Path) -> None:
    """All that is in playbooks/, in the production profile."""
    shutil.copytree(PLAYBOOKS, tmp_path / "playbooks")
    words = [BIN / "ansible-lint", "--offline", "--profile", "production", "--nocolor", "."]
    ran = subprocess.run(
        words, cwd=tmp_path / "playbooks", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_example_describes_one_machine(environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PLAYBOOKS, tmp_path / "playbooks")
    words = [BIN / "ansible-inventory", "-i", "inventory", "--list"]
    told = subprocess.check_output(words, cwd=tmp_path / "playbooks", env=environment, text=True)
    found = json.loads(told)
    assert found["parallax_vms"]["hosts"] == ["vm01", "vm02", "vm03"]
    assert found["parallax_hosts"]["hosts"] == found["parallax_lock_master"]["hosts"] == ["host1"]
    assert {found["_meta"]["hostvars"][name]["vm_host"] for name in ("vm01", "vm03")} == {"host1"}


def test_the_first_run_makes_everything(story: Story) -> None:
    assert story.made.status == 0, story.made.shown
    assert not story.made.failed
    for name in MACHINES:
        # The clone, the configuration, the disk in it; then libvirt, and for the first its folder.
        expected = 3 if name not in LIBVIRT else 4 + (name == LIBVIRT[0])
        assert story.made.changed[name] == expected, name
    listed = plxsh(story.fleet, "vdi", "list")["vdis"]
    assert {one["name"] for one in listed} == {"gold", *MACHINES}
    (gold,) = [one for one in listed if one["name"] == "gold"]
    assert all(one["size"] == gold["size"] for one in listed)


def test_the_second_run_changes_nothing(story: Story) -> None:
    assert story.again.status == 0, story.again.shown
    assert sum(story.again.changed.values()) == 0, story.again.shown


def test_check_mode_afterwards_foretells_nothing(story: Story) -> None:
    assert story.checked.status == 0, story.checked.shown
    assert sum(story.checked.changed.values()) == 0, story.checked.shown


def test_check_mode_before_foretells_what_is_done_to_machines(story: Story) -> None:
    assert story.foretold.status == 0, story.foretold.shown
    for name in MACHINES:
        assert story.foretold.changed[name] == story.made.changed[name], name


def test_every_machine_has_its_own_disk(fleet: Fleet) -> None:
    """Each writes through the tap of its host; all read back what they wrote and the image."""
    image = fleet.image.read_bytes()
    write = "qemu-io -f raw -c 'write -q -P NUMBER 0 65536' -c flush 'URI'"
    on_all(fleet, MACHINES, write)
    read = on_all(fleet, MACHINES, "nbdcopy 'URI' - | sha256sum")
    for number, name in enumerate(MACHINES, 1):
        expected = hashlib.sha256(bytes([number]) * WRITTEN + image[WRITTEN:]).hexdigest()
        assert read[name].split()[0] == expected, name
    gold = fleet.on("host3", "sh", "-c", f"nbdcopy '{fleet.disk('gold@v1')}' - | sha256sum")
    assert gold.stdout.split()[0] == hashlib.sha256(image).hexdigest()
    assert not plxsh(fleet, "store", "check")["check"]["damaged"]


def test_no_disk_is_any_other_hosts_business(fleet: Fleet) -> None:
    """One that is open on its host is refused by the tap of another one."""
    hold = f"qemu-io -f raw -c 'write -q 0 4096' {HOLD} '{fleet.disk('vm01')}'"
    with held(fleet, "host1", hold, "vm01"):
        other = fleet.on("host2", "qemu-io", "-f", "raw", "-c", "read 0 512", fleet.disk("vm01"))
    assert other.returncode != 0
    assert "held by" in other.stderr + other.stdout


def test_every_xen_machine_has_a_line_that_xl_reads(
    fleet: Fleet, xen_kit: Path, xl_libraries: Path, tmp_path: Path
) -> None:
    names = [name for name in MACHINES if name not in LIBVIRT]
    uuids = {one["name"]: one["uuid"] for one in plxsh(fleet, "vdi", "list")["vdis"]}
    for name, text in on_all(fleet, names, "cat /etc/xen/NAME.cfg").items():
        config = tmp_path / f"{name}.cfg"
        config.write_text(text)
        (line,) = subprocess.run(
            [sys.executable, xen_kit / "xlu_parse.py", "--cfg", config],
            env={**os.environ, "XLU_LIBDIR": str(xl_libraries)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert line.startswith("OK "), line
        assert f"'target': 'nbd+unix:///{uuids[name]}?socket=/run/parallax/nbd.sock'" in line
        assert "'script': 'block-plx'" in line


def test_every_libvirt_machine_is_defined_with_its_disk(fleet: Fleet) -> None:
    uuids = {one["name"]: one["uuid"] for one in plxsh(fleet, "vdi", "list")["vdis"]}
    for name, text in on_all(fleet, LIBVIRT, "cat /root/defined/NAME").items():
        (disk,) = ElementTree.fromstring(text).findall("devices/disk")
        source, target = disk.find("source"), disk.find("target")
        assert source is not None
        assert target is not None
        assert (source.get("protocol"), source.get("name")) == ("nbd", uuids[name])
        assert target.get("dev") == "vda"


def test_a_machine_of_a_new_image_boots(fleet: Fleet, boot_kit: Path, guest: Path) -> None:
    """Another gold image and a machine from it: it boots; those that were there stay."""
    kit = fleet.shared / "guest"
    shutil.copytree(guest, kit)
    shutil.copytree(boot_kit, fleet.shared / "kit")
    fleet.host_of["boots"] = "host2"
    gold = {"name": "debian", "source": str(kit / "root.img"), "label": "v1"}
    fleet.inventory.write_text(json.dumps(fleet.described()))
    ran = fleet.play("site.yml", "-e", json.dumps({"parallax_gold": gold}))
    assert ran.status == 0, ran.shown
    assert {name for name, count in ran.changed.items() if count} == {"host1", "boots"}
    script, log = fleet.shared / "kit/boot.sh", fleet.shared / "boot.log"
    variables = [f"KIT={kit}", "TIMEOUT=900", f"LOG={log}"]
    booted = fleet.on("host2", "env", *variables, "bash", script, fleet.disk("boots"), "fleet")
    assert booted.returncode == 0, booted.stdout + log.read_text(errors="replace")
    assert "BOOTKIT-OK tag=fleet boots=1" in booted.stdout
    (fleet.shared / "boots.img").unlink(missing_ok=True)
    plxsh(fleet, "vdi", "export", "boots", fleet.shared / "boots.img")
    command = ["/usr/sbin/debugfs", "-R", "cat /var/lib/marker", fleet.shared / "boots.img"]
    marker = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert marker.startswith("tag=fleet boots=1")
    plxsh(fleet, "vdi", "validate", "debian@v1", kit / "root.img")


@contextmanager
def held(fleet: Fleet, host: str, command: str, name: str) -> Iterator[None]:
    """A client that keeps a disk open on a host until the end of the block."""
    line = fleet.on_line(host, "sh", "-c", f"exec {command}")
    client = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def wait_until(is_open: bool) -> None:
        until = time.monotonic() + PATIENCE
        while bool(plxsh(fleet, "vdi", "show", name)["vdi"]["clients"]) != is_open:
            assert not is_open or client.poll() is None, "the client has ended"
            assert time.monotonic() < until, f"{name} is not {'open' if is_open else 'closed'}"
            time.sleep(0.2)

    try:
        wait_until(True)
        yield
        assert client.poll() is None, "the client has ended too early"
    finally:
        client.kill()
        client.wait()
    wait_until(False)


def test_a_limit_is_one_machine(fleet: Fleet) -> None:
    ran = fleet.play("provision_vms.yml", "--limit", "vm07")
    assert ran.status == 0, ran.shown
    assert ran.changed == {"vm07": 0}


def test_one_that_fails_does_not_stop_the_others(fleet: Fleet) -> None:
    spoil = "cp -p /etc/xen/vm02.cfg /root/kept && echo 'disk = [ oops' >>/etc/xen/vm02.cfg"
    on_all(fleet, ["vm02"], spoil)
    on_all(fleet, ["vm03"], "mv /etc/xen/vm03.cfg /root/vm03.cfg")
    ran = fleet.play("provision_vms.yml", "--limit", "vm01:vm02:vm03")
    on_all(fleet, ["vm02"], "mv /root/kept /etc/xen/vm02.cfg")
    assert ran.status != 0
    assert ran.failed == {"vm02"}
    assert ran.changed == {"vm01": 0, "vm02": 0, "vm03": 2}
    assert re.search(r"/etc/xen/vm02.cfg, line \d+", ran.shown), ran.shown


def test_the_text_of_an_operator_stays(fleet: Fleet) -> None:
    """A configuration is written once; later only the entry of the disk is changed."""
    on_all(fleet, ["vm04"], "printf 'extra = \"mine\"  # mine\\n' >>/etc/xen/vm04.cfg")
    on_all(fleet, ["vm04"], "sed -i 's/access=rw/access=ro/' /etc/xen/vm04.cfg")
    before = on_all(fleet, ["vm04"], "cat /etc/xen/vm04.cfg")["vm04"]
    ran = fleet.play("provision_vms.yml", "--limit", "vm04", "--diff")
    assert ran.changed == {"vm04": 1}, ran.shown
    after = on_all(fleet, ["vm04"], "cat /etc/xen/vm04.cfg")["vm04"]
    assert after == before.replace("access=ro", "access=rw")


def test_snapshots_and_a_rollback(fleet: Fleet) -> None:
    two = ["--limit", "vm05:vm20"]
    assert fleet.play("snapshot_fleet.yml", *two, "-e", "label=before").changed == {
        "vm05": 1,
        "vm20": 1,
    }
    assert sum(fleet.play("snapshot_fleet.yml", *two, "-e", "label=before").changed.values()) == 0
    before = on_all(fleet, ["vm05", "vm20"], "nbdcopy 'URI' - | sha256sum")
    on_all(fleet, ["vm05", "vm20"], "qemu-io -f raw -c 'write -q -P 250 0 8192' -c flush 'URI'")
    assert on_all(fleet, ["vm05", "vm20"], "nbdcopy 'URI' - | sha256sum") != before

    unlabelled = fleet.play("rollback.yml", *two)
    assert unlabelled.failed == {"vm05", "vm20"}
    unforced = fleet.play("rollback.yml", *two, "-e", "label=before")
    assert unforced.failed == {"vm05", "vm20"}
    assert "force" in unforced.shown
    hold = f"qemu-io -f raw -c 'read -q 0 4096' {HOLD} '{fleet.disk('vm05')}'"
    with held(fleet, "host1", hold, "vm05"):
        ran = fleet.play("rollback.yml", *two, "-e", "label=before", "-e", "force=true")
    assert ran.failed == {"vm05"}
    assert "vm05 is in use by " in ran.shown
    assert ran.changed == {"vm05": 0, "vm20": 1}
    checked = fleet.play("rollback.yml", *two, "-e", "label=before", "-e", "force=true", "--check")
    ran = fleet.play("rollback.yml", *two, "-e", "label=before", "-e", "force=true")
    assert checked.changed == ran.changed == {"vm05": 1, "vm20": 0}
    assert on_all(fleet, ["vm05", "vm20"], "nbdcopy 'URI' - | sha256sum") == before


def test_retiring(fleet: Fleet) -> None:
    all_of_them = fleet.play("retire.yml", "-e", "delete_vdi=true")
    assert all_of_them.failed == set(fleet.host_of)
    one = ["retire.yml", "--limit", "vm26"]
    hold = f"qemu-io -f raw -c 'read -q 0 4096' {HOLD} '{fleet.disk('vm26')}'"
    with held(fleet, "host2", hold, "vm26"):
        used = fleet.play(*one, "-e", "delete_vdi=true")
    assert used.failed == {"vm26"}
    assert "vm26 is in use by " in used.shown
    assert used.changed == {"vm26": 0}

    plxsh(fleet, "snap", "create", "vm26", "--label", "kept")
    unforced = fleet.play(*one, "-e", "delete_vdi=true")
    assert unforced.failed == {"vm26"}
    assert unforced.changed == {"vm26": 0}, "the line was taken although the VDI has to stay"
    kept = fleet.play(*one)
    assert kept.changed == {"vm26": 1}, kept.shown
    assert "script=block-plx" not in on_all(fleet, ["vm26"], "cat /etc/xen/vm26.cfg")["vm26"]
    options = ["-e", "delete_vdi=true", "-e", "delete_snapshots=true", "-e", "delete_config=true"]
    checked = fleet.play(*one, *options, "--check")
    ran = fleet.play(*one, *options)
    assert checked.changed == ran.changed == {"vm26": 2}, ran.shown
    assert fleet.play(*one, *options).changed == {"vm26": 0}
    assert "vm26" not in {vdi["name"] for vdi in plxsh(fleet, "vdi", "list")["vdis"]}
    again = fleet.play("provision_vms.yml", "--limit", "vm26")
    assert again.changed == {"vm26": 3}

    assert fleet.play("retire.yml", "--limit", "vm40").changed == {"vm40": 2}
    assert "<disk" not in on_all(fleet, ["vm40"], "cat /root/defined/vm40")["vm40"]
    assert fleet.play("provision_vms.yml", "--limit", "vm40").changed == {"vm40": 2}


def test_libvirt_is_told_after_a_run_that_was_killed_before_that(fleet: Fleet) -> None:
    """The file has the disk already; libvirt still has what was defined before."""
    stale = (
        "echo '<domain/>' >/root/defined/vm39; echo other >/etc/parallax/domains/vm39.xml.defined"
    )
    on_all(fleet, ["vm39"], stale)
    one = ["provision_vms.yml", "--limit", "vm39"]
    assert fleet.play(*one, "--check").changed == {"vm39": 1}
    assert fleet.play(*one).changed == {"vm39": 1}
    assert "<disk" in on_all(fleet, ["vm39"], "cat /root/defined/vm39")["vm39"]
    assert fleet.play(*one).changed == {"vm39": 0}


def test_status_shows_and_changes_nothing(fleet: Fleet) -> None:
    ran = fleet.play("status.yml")
    assert ran.status == 0, ran.shown
    assert sum(ran.changed.values()) == 0
    for host in HOSTS:
        assert re.search(rf"{host} +serves +0 ", ran.shown), ran.shown
    for name in MACHINES:
        assert re.search(rf"{name} +{fleet.host_of[name]} +3.00 MiB ", ran.shown), ran.shown


def test_a_killed_run_is_repeated(fleet: Fleet) -> None:
    """ansible-playbook dies at three moments; the next run goes on and the store is sound."""
    new = [f"new{number:02}" for number in range(1, 13)]
    for number, name in enumerate(new):
        fleet.host_of[name] = f"host{1 + number % 3}"
    fleet.inventory.write_text(json.dumps(fleet.described()))
    for task in ("Clone the gold image", "Write a configuration", "Give the disk to the Xen"):
        line, variables = fleet.playbook("provision_vms.yml", "--limit", "new*")
        with subprocess.Popen(
            line,
            env={**variables, "PYTHONUNBUFFERED": "1"},
            cwd=PLAYBOOKS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            assert running.stdout is not None
            within = False
            for said in running.stdout:
                within = within or task in said
                if within and said.startswith("changed: [new"):
                    os.killpg(running.pid, signal.SIGKILL)
                    break
            else:
                pytest.fail(f"nothing changed in {task}")
    ran = fleet.play("provision_vms.yml", "--limit", "new*")
    assert ran.status == 0, ran.shown
    assert 0 < sum(ran.changed.values()) < 3 * len(new)
    assert sum(fleet.play("provision_vms.yml", "--limit", "new*").changed.values()) == 0
    image = hashlib.sha256(fleet.image.read_bytes()).hexdigest()
    read = on_all(fleet, new, "nbdcopy 'URI' - | sha256sum")
    assert {text.split()[0] for text in read.values()} == {image}
    assert not plxsh(fleet, "store", "check")["check"]["damaged"]
