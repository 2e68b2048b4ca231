"""The roles on a simulated host, over ssh: what they make, what they leave alone, who may do what.

The tests of one file share a host and run in their order; each leaves it as the next one expects
it, installed and unchanged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.rooted import SIMULATED_HOSTS

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "ansible_collection/roles"
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "scripts"))
from fleet import Fleet, Ran  # noqa: E402

KEY = "the key that nobody may ever see"
UNITS = ("parallaxd", "plxlockmaster")
TOLD = "because virtual machines are connected to it"

slow = pytest.mark.slow
on_a_host = [
    slow,
    pytest.mark.timeout(900),
    SIMULATED_HOSTS,
    pytest.mark.xdist_group("roles"),  # one host for all tests of this file, in their order
]


@dataclass
class World:
    """A host, a playbook with the roles, and what its first runs said."""

    fleet: Fleet
    variables: dict[str, Any]
    runs: dict[str, Ran] = field(default_factory=dict)

    def play(self, *options: str, only: str = "", **changes: object) -> Ran:
        """Run the playbook or a part of it, with some variables changed."""
        roles = "parallax.storage."
        made = {"path": self.variables["tap_store"], "extent_size": "4M", "extents": 8}
        tasks: list[dict[str, Any]] = [
            {"ansible.builtin.group": {"name": "kvm", "system": True}},
            {"ansible.builtin.import_role": {"name": f"{roles}lock_master"}},
            {f"{roles}blockstore": made, "when": "not ansible_check_mode"},
            {"ansible.builtin.import_role": {"name": f"{roles}tap"}},
            {"ansible.builtin.import_role": {"name": f"{roles}xen_host"}},
        ]
        if only:
            tasks = [{"ansible.builtin.import_role": {"name": roles + only}}]
        path = self.fleet.folder / "roles.yml"
        wanted = {**self.variables, **changes}
        play = {"hosts": "host1", "gather_facts": False, "vars": wanted, "tasks": tasks}
        path.write_text(json.dumps([play]))
        return self.fleet.play(str(path), *options)

    def sh(self, script: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        words = ["sh", "-c", script]
        if user != "root":
            words = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", *words]
        return self.fleet.on("host1", *words)

    def told(self, script: str, user: str = "root") -> str:
        done = self.sh(script, user)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def process(self, unit: str) -> str:
        return self.told(f"systemctl show --property MainPID --value {unit}.service")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    fleet = Fleet(tmp_path_factory.mktemp("roles"), {"host1": []})
    try:
        fleet.up()
        store = fleet.shared / "store.dat"
        variables = {
            "install_source": str(fleet.folder / "wheels"),
            "install_lock_key": KEY,
            "install_config": {
                "blockstore": {"data": str(store)},
                # Without an address, so that the tap need not wait for it to grant something.
                "lock_master": {"listen": "127.0.0.1:8440"},
            },
            "tap_store": str(store),
            "tap_socket_group": "kvm",
        }
        yield World(fleet, variables)
    finally:
        fleet.down()


@pytest.fixture
def installed(world: World) -> World:
    """The host after a first and a second run, each checked before."""
    if not world.runs:
        world.runs["foretold"] = world.play("--check", "--diff")
        world.runs["before"] = Ran(
            0, world.told("ls -d /opt/parallax* /etc/parallax /run/parallax; true")
        )
        world.runs["made"] = world.play("--diff", "-vv")
        world.runs["again"] = world.play("--diff")
        world.runs["checked"] = world.play("--check", "--diff")
    return world


def flat(ran: Ran) -> str:
    """Return what a run said in one line: messages are wrapped."""
    return " ".join(ran.shown.split())


def unchanged(ran: Ran) -> None:
    assert ran.status == 0, ran.shown
    assert ran.changed == {"host1": 0}, ran.shown


# -- what is on paper --------------------------------------------------------------------


def test_each_program_of_the_wheel_is_linked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    linked = yaml.safe_load((ROLES / "install/vars/main.yml").read_text())["install_programs"]
    assert sorted(linked) == sorted(project["scripts"])


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_each_variable_is_described_and_has_a_default(role: str) -> None:
    spec = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    required = {name for name, option in options.items() if option.get("required")}
    assert options.keys() == defaults.keys() | required
    for name, option in options.items():
        assert name.startswith(f"{role}_")
        assert option["description"]
        if "default" in option:
            assert option["default"] == defaults[name], name


@slow
def test_the_linter_finds_nothing(collection: Path, environment: dict[str, str]) -> None:
    words = [BIN / "ansible-lint", "--offline", "--profile", "production", "--nocolor", "roles"]
    ran = subprocess.run(
        words, cwd=collection, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# -- on a host ---------------------------------------------------------------------------


class TestOnAHost:
    pytestmark = on_a_host

    def test_a_fresh_host_is_checked_and_nothing_is_made(self, installed: World) -> None:
        foretold = installed.runs["foretold"]
        assert foretold.status == 0, foretold.shown
        assert foretold.changed["host1"] > 0
        assert installed.runs["before"].shown == ""

    def test_the_second_run_changes_nothing(self, installed: World) -> None:
        made = installed.runs["made"]
        assert made.status == 0, made.shown
        assert made.changed["host1"] > installed.runs["foretold"].changed["host1"]
        unchanged(installed.runs["again"])
        unchanged(installed.runs["checked"])

    def test_the_key_is_there_and_was_never_shown(self, installed: World) -> None:
        assert installed.told("stat -c '%U %a' /etc/parallax/lock.key") == "parallax 600"
        assert installed.told("cat /etc/parallax/lock.key") == KEY
        for ran in installed.runs.values():
            assert KEY not in flat(ran)

    def test_who_may_do_what(self, installed: World) -> None:
        """Root and the group of the tap all, the group of the socket disks only, others nothing."""
        installed.told("useradd -M -g parallax operator && useradd -M -U -G kvm guest")
        installed.told("useradd -M -U stranger")
        installed.told("plxsh vdi create first --size 4M")
        listed = "plxsh vdi list"
        named = "nbdinfo --size nbd+unix:///first?socket=/run/parallax/nbd.sock"
        tapped = "PARALLAX_RUN_DIR=/run/parallax plxsh tap list"
        allowed = {
            (user, what)
            for user in ("root", "parallax", "operator", "guest", "stranger")
            for what, script in (("store", listed), ("disk", named), ("tap", tapped))
            if subprocess.run(as_user(installed, user, script), capture_output=True).returncode == 0
        }
        everything = {(user, what) for user in ("root", "parallax") for what in ("store", "tap")}
        assert allowed >= everything | {("guest", "disk"), ("root", "disk")}
        assert {("operator", "store"), ("operator", "tap")} <= allowed
        assert not {("guest", "store"), ("guest", "tap")} & allowed
        assert not {(user, what) for user, what in allowed if user == "stranger"}

    def test_services_have_users_of_their_own_and_no_privileges(self, installed: World) -> None:
        for unit in UNITS:
            status = installed.told(f"cat /proc/{installed.process(unit)}/status")
            owner = installed.told("id -u parallax")
            assert re.search(rf"^Uid:\s+{owner}\s+{owner}\s+{owner}", status, re.MULTILINE)
            assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)

    @pytest.mark.parametrize("unit", UNITS)
    def test_systemd_understands_what_it_is_told(
        self, installed: World, unit: str, tmp_path: Path
    ) -> None:
        shipped = installed.told(f"cat /etc/systemd/system/{unit}.service")
        added = installed.told(f"cat /etc/systemd/system/{unit}.service.d/10-role.conf")
        assert shipped == (ROOT / f"deploy/{unit}.service").read_text().strip()
        copy = tmp_path / f"{unit}.service"
        copy.write_text(shipped.replace(f"/usr/local/bin/{unit}", str(BIN / unit)) + "\n")
        (tmp_path / f"{unit}.service.d").mkdir()
        (tmp_path / f"{unit}.service.d/10-role.conf").write_text(added + "\n")
        words = ["systemd-analyze", "verify", copy]
        verified = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
        words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", copy]
        judged = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        exposure = re.search(r"exposure level for \S+: ([0-9.]+)", judged)
        assert exposure, judged
        assert float(exposure[1]) < 3.0, judged  # 10 is a service that may do anything

    def test_xen_has_its_script(self, installed: World) -> None:
        assert installed.told("stat -c '%U %a' /etc/xen/scripts/block-plx") == "root 755"
        script = installed.told("cat /etc/xen/scripts/block-plx")
        assert script == (ROOT / "deploy/xen/block-plx").read_text().strip()
        assert "nbds_max=64" in installed.told("cat /etc/modprobe.d/parallax-nbd.conf")

    def test_the_tap_is_restarted_when_nobody_is_connected(self, installed: World) -> None:
        """A change is written at once; a guest keeps its disk; later runs go on telling."""
        odd = {'a "b"\\': 'vdi list "\\x" \u00e9 \U0001f600 \x7f', "plain": "tree"}
        config = {**installed.variables["install_config"], "shell": {"aliases": odd}}
        tap, master = installed.process("parallaxd"), installed.process("plxlockmaster")
        with connected(installed, "first"):
            first = installed.play("--diff", install_config=config)
            assert first.status == 0, first.shown
            assert TOLD in flat(first)
            second = installed.play(install_config=config)
            unchanged(second)
            assert TOLD in flat(second)
            assert installed.process("parallaxd") == tap
            assert installed.process("plxlockmaster") != master
            read = tomllib.loads(installed.told("cat /etc/parallax/parallax.toml"))
            assert read["shell"]["aliases"] == odd
            assert read["lock_master"]["key"] == "/etc/parallax/lock.key"
        gone = 'test -z "$(PARALLAX_RUN_DIR=/run/parallax plxsh tap list)"'
        installed.told(f"timeout 90 sh -c 'until {gone}; do sleep 0.2; done'")
        third = installed.play(install_config=config)
        assert third.changed == {"host1": 1}, third.shown
        assert installed.process("parallaxd") != tap
        assert installed.play().status == 0  # as it was

    def test_a_python_that_services_cannot_run_is_refused(self, installed: World) -> None:
        python = os.path.realpath(sys.executable)
        installed.told(f"mkdir -m 700 /srv/private && cp {python} /srv/private/python3")
        ran = installed.play(only="install", install_python="/srv/private/python3")
        assert ran.status != 0
        assert ran.changed == {"host1": 0}
        assert "The user parallax cannot run /srv/private/python3" in flat(ran)

    def test_a_damaged_environment_is_built_again(self, installed: World) -> None:
        installed.told("rm -r /opt/parallax/lib/python3*/site-packages/pydot")
        assert installed.sh("/opt/parallax/bin/python -c 'import pydot'").returncode != 0
        assert installed.play(only="install").status == 0
        installed.told("/opt/parallax/bin/python -c 'import pydot'; plxsh vdi list")
        installed.told("rm /opt/parallax/.complete; mv /opt/parallax/bin/plxsh /opt/x")
        assert installed.play(only="install").status == 0
        installed.told("plxsh vdi list")
        unchanged(installed.play(only="install"))

    def test_a_program_of_somebody_else_is_not_replaced(self, installed: World) -> None:
        place = "/usr/local/bin/vdi_list"
        installed.told(f"rm {place}; echo mine >{place}")
        ran = installed.play(only="install")
        assert ran.status != 0
        assert f"{place}: there is something else of that name" in flat(ran)
        assert installed.told(f"cat {place}") == "mine"
        installed.told(f"rm {place}")
        assert installed.play(only="install").changed == {"host1": 1}
        installed.told("vdi_list")

    def test_versions_go_up_and_down_only_if_told_to(self, installed: World) -> None:
        folder = installed.fleet.folder
        newer = folder / "newer"
        newer.mkdir()
        for wheel in (folder / "wheels").glob("*.whl"):
            if wheel.name.startswith("parallax_vdi-"):
                renumbered(wheel, newer, "9.0.0")
            else:
                os.link(wheel, newer / wheel.name)
        old = installed.told("readlink /opt/parallax")
        tap = installed.process("parallaxd")
        assert installed.play(install_source=str(newer)).status == 0
        assert installed.told("readlink /opt/parallax").startswith("/opt/parallax-9.0.0-")
        assert installed.process("parallaxd") != tap
        unchanged(installed.play(only="install", install_source=str(newer)))
        back = installed.play(only="install")
        assert back.status != 0
        assert "Parallax 9.0.0 is installed, which is newer than" in flat(back)
        assert installed.play(only="install", install_downgrade=True).status == 0
        assert installed.told("readlink /opt/parallax") == old
        unchanged(installed.play(only="install"))

    def test_a_failed_installation_leaves_the_old_one(self, installed: World) -> None:
        folder = installed.fleet.folder
        broken = folder / "broken"
        shutil.copytree(folder / "wheels", broken)
        (own,) = broken.glob("parallax_vdi-*.whl")
        renumbered(own, broken, "9.1.0")
        own.unlink()
        (changed,) = broken.glob("pydot-*.whl")
        with zipfile.ZipFile(changed, "a") as wheel:
            wheel.writestr("pydot/added.py", "what nobody has tested\n")
        before = installed.told("ls -d /opt/parallax*; readlink /opt/parallax")
        ran = installed.play(only="install", install_source=str(broken))
        assert ran.status != 0
        assert "what was there before is still there" in flat(ran)
        assert "DO NOT MATCH THE HASHES" in flat(ran)
        assert installed.told("ls -d /opt/parallax*; readlink /opt/parallax") == before
        unchanged(installed.play(only="install"))

    def test_what_is_not_there_is_named(self, installed: World) -> None:
        nowhere = installed.play(only="install", install_source="/nowhere/wheels")
        assert "install_source is /nowhere/wheels, which is not there" in flat(nowhere)
        gone = installed.play(only="tap", tap_store="/srv/none.dat")
        assert "There is no blockstore at /srv/none.dat" in flat(gone)
        odd = installed.play(only="tap", tap_socket_group="nobodys")
        assert "There is no group nobodys on host1" in flat(odd)
        for ran in (nowhere, gone, odd):
            assert ran.status != 0
            assert ran.changed == {"host1": 0}

    def test_the_tap_needs_no_more_than_the_unit_allows(self, installed: World) -> None:
        """It works without privileges, without writable code, and by ordinary system calls."""
        installed.told("mkdir -p /tmp/t && chown parallax: /tmp/t")
        make = "plxsh --config /dev/null store create --extents 8 --extent-size 4M /tmp/t/store.dat"
        installed.told(f"{make} && chown parallax: /tmp/t/store.dat")
        script = CONFINED.replace("PLACE", "/tmp/t")
        done = installed.fleet.on("host1", "/opt/parallax/bin/python", "-c", script)
        assert done.returncode == 0, done.stdout + done.stderr
        log = installed.told("cat /tmp/t/calls")
        used = set(re.findall(r"^(?:\d+ +)?(?:<\.\.\. )?([a-z][a-z_0-9]*)[( ]", log, re.MULTILINE))
        assert {"openat", "pwritev"} & used
        used -= {"resumed", "execve", "mbind"}  # numpy goes on without the last
        allowed = filtered_calls(ROOT / "deploy/parallaxd.service")
        assert used <= allowed, used - allowed


CONFINED = """
import ctypes, os, socket, subprocess, time
place = "PLACE"
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE: memory is writable or code, never both
words = ["setpriv", "--reuid", "parallax", "--regid", "parallax", "--init-groups",
         "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
         "strace", "-f", "-o", place + "/calls", "/usr/local/bin/plxsh", "--config", "/dev/null",
         "-s", place + "/store.dat", "tap", "serve", "--unix", place + "/nbd.sock",
         "--gc-every", "1s", "--metrics", "127.0.0.1:18441"]
given = {**os.environ, "PARALLAX_RUN_DIR": place}
tap = subprocess.Popen(words, env=given)
try:
    until = time.monotonic() + 90
    while socket.socket(socket.AF_UNIX).connect_ex(place + "/nbd.sock"):
        assert time.monotonic() < until, "it does not listen"
        time.sleep(0.05)
    beside = ["plxsh", "--config", "/dev/null", "-s", place + "/store.dat", "-y"]
    def run(*words):
        subprocess.run(words, env=given, check=True, stdout=subprocess.DEVNULL)
    run(*beside, "vdi", "create", "a", "--size", "4M")
    disk = "nbd+unix:///a?socket=" + place + "/nbd.sock"
    open(place + "/image", "wb").write(os.urandom(1 << 20))
    run("nbdcopy", place + "/image", disk)
    run(*beside, "snap", "create", "a", "--label", "one")
    run("nbdcopy", place + "/image", disk)
    run("nbdcopy", disk, place + "/back")
    assert open(place + "/back", "rb").read(1 << 20) == open(place + "/image", "rb").read()
    run(*beside, "vdi", "create", "b", "--from", "a@one")
    run(*beside, "vdi", "delete", "b")
    time.sleep(2)
finally:
    child = open("/proc/%d/task/%d/children" % (tap.pid, tap.pid)).read().split()
    os.kill(int(child[0]) if child else tap.pid, 15)
    assert tap.wait(90) == 0
"""


def as_user(world: World, user: str, script: str) -> list[str]:
    group = world.told(f"id -gn {user}")
    words = ["setpriv", "--reuid", user, "--regid", group, "--init-groups", "sh", "-c", script]
    return world.fleet.on_line("host1", *words)


@contextmanager
def connected(world: World, name: str) -> Iterator[None]:
    """A guest that has a disk open."""
    client = (
        "import nbd, sys; h = nbd.NBD();"
        f"h.connect_uri('nbd+unix:///{name}?socket=/run/parallax/nbd.sock');"
        "print('open', flush=True); sys.stdin.read()"
    )
    line = world.fleet.on_line("host1", "/usr/bin/python3", "-c", client)
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe) as process:  # it ends with its input
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield


def renumbered(wheel: Path, folder: Path, version: str) -> None:
    """Write a wheel again as if it were another version."""
    old = wheel.name.split("-")[1]
    name = wheel.name.replace(f"-{old}-", f"-{version}-")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(folder / name, "w") as target:
        for item in source.namelist():
            data = source.read(item)
            if item.endswith("dist-info/METADATA"):
                data = data.replace(f"Version: {old}".encode(), f"Version: {version}".encode())
            if item.endswith("dist-info/RECORD"):
                continue
            target.writestr(item.replace(f"vdi-{old}.", f"vdi-{version}."), data)
        target.writestr(f"parallax_vdi-{version}.dist-info/RECORD", "")


def filtered_calls(unit: Path) -> set[str]:
    """The system calls that a unit allows: what is behind `~` it takes back."""
    allowed: set[str] = set()
    for line in unit.read_text().splitlines():
        key, _, names = line.partition("=")
        if key != "SystemCallFilter":
            continue
        for name in names.lstrip("~").split():
            calls = allowed_calls(name) if name.startswith("@") else {name}
            allowed = allowed - calls if names.startswith("~") else allowed | calls
    return allowed


def allowed_calls(name: str) -> set[str]:
    """The system calls of one of systemd's groups, with those of the groups in it."""
    words = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    calls: set[str] = set()
    for line in told.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            calls |= allowed_calls(word)
        elif word and not word.startswith("#"):
            calls.add(word)
    return calls


# -- gold images -------------------------------------------------------------------------


@slow
def test_a_label_means_one_image_for_ever(stored: Any) -> None:
    def run(image: Path, label: str, *options: str) -> Any:
        variables = {
            "gold_image_store": str(stored.store),
            "gold_image_plxsh": str(stored.plxsh),
            "gold_image_name": "gold",
            "gold_image_source": str(image),
            "gold_image_label": label,
        }
        role = {"name": "parallax.storage.gold_image"}
        return stored.play([{"ansible.builtin.import_role": role, "vars": variables}], *options)

    def changes(ran: Any) -> int:
        assert ran.status == 0, ran.shown
        return int(re.search(r"changed=(\d+)", ran.shown)[1])  # type: ignore[index]

    other = stored.folder / "other.img"
    other.write_bytes((b"another system" * 60_000)[: stored.image.stat().st_size])
    assert changes(run(stored.image, "v1", "--check")) == 1
    assert changes(run(stored.image, "v1")) == 2
    assert changes(run(stored.image, "v1")) == 0
    assert changes(run(stored.image, "v1", "--check")) == 0
    refused = run(other, "v1")
    assert refused.status != 0
    assert "choose another gold_image_label" in refused.shown
    assert changes(run(other, "v2")) == 2
    assert changes(run(stored.image, "v1")) == 0  # it still means what it meant
    stored.plx("vdi", "create", "old", "--from", "gold@v1")
    stored.plx("vdi", "validate", "old", stored.image)
    stored.plx("vdi", "create", "new", "--from", "gold@v2")
    stored.plx("vdi", "validate", "new", other)
    third = stored.folder / "third.img"
    third.write_bytes(b"written over by hand" * 20_000)
    stored.plx("vdi", "fill", "gold", third)
    assert run(stored.image, "v3").status != 0  # somebody wrote to it
    assert changes(run(other, "v2")) == 0
