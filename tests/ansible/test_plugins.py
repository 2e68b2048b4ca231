"""Plugins on the controller: VDIs as an inventory, and the texts that give them to machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.stores import noise
from support.tap import RawClient

from core.blockstore import Blockstore
from core.format import BLOCK
from core.session import Session

BIN = Path(sys.executable).parent
PLUGINS = Path(__file__).resolve().parents[2] / "ansible_collection/plugins"
VDIS = "parallax.storage.vdis"
slow = pytest.mark.slow
Host = Any


def load(path: str) -> Any:
    spec = spec_from_file_location(Path(path).stem, PLUGINS / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- names of hosts ----------------------------------------------------------------------

host_names = load("plugin_utils/hostnames.py").host_names
TAKEN = {"all", "ungrouped", "localhost", "127.0.0.1", "fleet"}
names = st.one_of(
    st.text(min_size=1, max_size=6),
    st.text(alphabet="ab_ -1", min_size=1, max_size=4),
    st.sampled_from([*TAKEN, "a b", "a_b_0", "a_b_1", "all_0", "all_0_", "vm01", "vm-1.x"]),
)


@given(st.lists(names, unique=True, max_size=8))
def test_names_of_hosts_differ_and_mean_nothing_else(given_names: list[str]) -> None:
    vdis = [{"id": number, "name": name} for number, name in enumerate(given_names)]
    found = host_names(vdis, taken=["fleet"])
    assert len(set(found.values())) == len(vdis)
    assert not TAKEN.intersection(found.values())
    for vdi in vdis:
        host = found[vdi["id"]]
        assert not set(host) & set(" ,:;&!*?[]{}()<>|/\\'\"`$@#%~=+\n\t\0")
        assert host[0] not in ".-"
        if vdi["name"] in ("vm01", "vm-1.x", "a_b_0"):
            assert host == vdi["name"]
    assert host_names(vdis[::-1], taken=["fleet"]) == found


def test_a_prefix_stands_before_all_names() -> None:
    vdis = [{"id": 0, "name": "all"}, {"id": 1, "name": "a b"}]
    assert host_names(vdis, "s1-") == {0: "s1-all", 1: "s1-a_b_1"}


# -- the inventory -----------------------------------------------------------------------


class Fleet:
    """A store with a gold image and two clones, and a file that lists them."""

    def __init__(self, host: Host) -> None:
        self.host, self.folder, self.store = host, host.folder, str(host.store)
        self.environment: dict[str, str] = host.environment
        self.environment["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
        self.plx = host.plx
        with Session.open(self.store) as session:
            session.snapshot(session.create("gold", 1 << 20), "v1")
            for name in ("vm01", "vm02"):
                session.create(name, parent=session.find_snapshot("gold@v1"))

    def write(self, file: str = "fleet.parallax.yml", /, **options: object) -> Path:
        path: Path = self.folder / file
        given = {"plugin": VDIS, "store": self.store, "strict": True, **options}
        path.write_text(json.dumps(given))
        return path

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / program), *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def listed(self, *words: object, **options: object) -> Inventory:
        """What Ansible has of a file with these options, or of all that `words` name."""
        sources = words or ("-i", self.write(**options))
        ran = self.run("ansible-inventory", *sources, "--list")
        assert ran.returncode == 0, ran.stderr
        return Inventory(json.loads(ran.stdout), ran.stderr)

    def refused(self, *words: object, **options: object) -> str:
        """What Ansible says of a file that it cannot take, squeezed."""
        sources = words or ("-i", self.write(**options))
        ran = self.run("ansible-inventory", *sources, "--list")
        assert ran.returncode != 0, ran.stdout
        return squeezed(ran.stderr)

    def play(self, inventory: Path, plays: Sequence[Mapping[str, Any]], *words: str) -> list[Any]:
        """The results of all tasks of a playbook."""
        path, records = self.folder / "play.yml", self.folder / "records"
        path.write_text(json.dumps([{"gather_facts": False, **play} for play in plays]))
        records.write_text("")
        ran = self.run("ansible-playbook", "-i", inventory, path, "-c", "local", *words)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return [json.loads(line)["result"] for line in records.read_text().splitlines()]


class Inventory:
    """What `ansible-inventory --list` says."""

    def __init__(self, told: dict[str, Any], warnings: str) -> None:
        self.told, self.warnings = told, squeezed(warnings)

    def group(self, name: str) -> set[str]:
        return set(self.told.get(name, {}).get("hosts", ()))

    @property
    def hosts(self) -> set[str]:
        return self.group("parallax_vdis")

    def variables(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = plain(self.told["_meta"]["hostvars"][host])
        return found

    def vdi(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = self.variables(host)["parallax"]
        return found


def squeezed(text: str) -> str:
    """Leave out all blanks: where lines are broken is up to Ansible."""
    return "".join(text.split())


def plain(told: Any) -> Any:
    """Leave out how Ansible marks texts that are no templates."""
    if isinstance(told, dict):
        return told.get("__ansible_unsafe") or {key: plain(told[key]) for key in told}
    return [plain(inner) for inner in told] if isinstance(told, list) else told


@pytest.fixture
def fleet(stored: Host) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="plx") as run:  # a short path, for sockets
        stored.environment["PARALLAX_RUN_DIR"] = run
        yield Fleet(stored)


@contextmanager
def serving(fleet: Fleet) -> Iterator[str]:
    """A tap with the store; yields its socket."""
    unix = os.path.join(fleet.environment["PARALLAX_RUN_DIR"], "nbd.sock")
    words = [str(BIN / "plxsh"), "-v", "-s", fleet.store, "tap", "serve"]
    with subprocess.Popen(
        words, env=fleet.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            while not (line := process.stderr.readline()).startswith("serving "):
                assert line, "the tap has ended"
            yield unix
        finally:
            process.terminate()
            process.communicate()


@slow
def test_each_vdi_is_a_host_with_what_is_known_of_it(fleet: Fleet) -> None:
    found = fleet.listed(snapshots=True)
    assert found.hosts == {"gold", "vm01", "vm02"}
    assert found.group("parallax_gold") == {"gold"}
    for listed in fleet.plx("vdi", "list")["vdis"]:
        known = found.vdi(listed["name"])
        assert {key: known[key] for key in listed} == listed
        assert (known["store"], known["host"]) == (fleet.store, None)
    gold, clone = found.vdi("gold"), found.vdi("vm01")
    (snapshot,) = fleet.plx("snap", "list", "gold")["snapshots"]
    identity = f"{snapshot['block']}.{snapshot['offset']}"
    assert gold["snapshot_list"] == [
        {"id": identity, "label": "v1", "time": snapshot["time"], "size": 1 << 20}
    ]
    assert (gold["parent_name"], gold["clones"]) == (None, ["vm01", "vm02"])
    assert (clone["parent_name"], clone["parent_label"]) == ("gold", "v1")
    assert (clone["clones"], clone["snapshot_list"]) == ([], [])
    assert "snapshot_list" not in fleet.listed().vdi("gold")


@slow
def test_variables_and_groups_are_constructed(fleet: Fleet) -> None:
    found = fleet.listed(
        group="fleet",
        gold_group="images",
        compose={"vm_host": "parallax.host or 'host1'", "megabytes": "parallax.size // 2**20"},
        groups={"clones": "parallax.parent is not none"},
        keyed_groups=[{"key": "parallax.parent_label", "prefix": "of", "default_value": "none"}],
    )
    assert found.group("fleet") == {"gold", "vm01", "vm02"}
    assert found.group("images") == {"gold"}
    assert found.variables("vm01")["vm_host"] == "host1"
    assert found.variables("gold")["megabytes"] in (1, "1")  # a text before ansible-core 2.19
    assert found.group("clones") == found.group("of_v1") == {"vm01", "vm02"}
    assert found.group("of_none") == {"gold"}
    told = fleet.refused(compose={"no": "parallax.nothing.at.all"})
    assert squeezed("Could not set no for host gold") in told
    assert fleet.listed(compose={"no": "parallax.nothing.at.all"}, strict=False).hosts


@slow
def test_only_those_that_are_wanted(fleet: Fleet) -> None:
    fleet.plx("snap", "create", "gold", "--label", "v2")
    fleet.plx("vdi", "create", "new", "--from", "gold@v2")
    fleet.plx("vdi", "create", "None")
    everyone = {"gold", "vm01", "vm02", "new", "None"}
    cases: list[tuple[dict[str, object], set[str]]] = [
        ({"vdis": ["vm*", "go?d"]}, {"gold", "vm01", "vm02"}),
        ({"exclude": ["*2", "gold"]}, {"vm01", "new", "None"}),
        ({"vdis": ["vm*"], "exclude": ["vm01"]}, {"vm02"}),
        ({"clones_of": ["gold"]}, {"vm01", "vm02", "new"}),
        ({"clones_of": ["gold@v2", "None"]}, {"new"}),
        ({"clones_of": ["gold@v1"], "exclude": ["vm02"]}, {"vm01"}),
        ({"gold_images": "exclude"}, everyone - {"gold"}),
    ]
    sources: list[object] = []
    for at, (options, _) in enumerate(cases):
        own = {"host_prefix": f"{at}-", "group": f"all{at}", "gold_group": f"gold{at}"}
        sources += ["-i", fleet.write(f"{at}.vdis.yml", **own, **options)]
    found = fleet.listed(*sources)
    for at, (options, wanted) in enumerate(cases):
        assert found.group(f"all{at}") == {f"{at}-{name}" for name in wanted}, options
        assert found.group(f"gold{at}") == {f"{at}-gold"} & found.group(f"all{at}")


@slow
def test_odd_names_are_hosts_that_can_be_named(fleet: Fleet) -> None:
    odd = ["{{ 7*7 }}", "{% raw %}", "a b", "a_b_3", "a,b", "vm*", "-x", "x[1:3]", "!y", "häuser",
           "all", "localhost", "parallax_vdis", "../up", "a:b", "~.*", "None"]  # fmt: skip
    with Session.open(fleet.store) as session:
        for name in odd:
            session.create(name)
    inventory = fleet.write(compose={"again": "parallax.name"})
    hosts = host_names(fleet.plx("vdi", "list")["vdis"], taken=["parallax_vdis"])
    pattern = ":".join(host for number, host in hosts.items() if number > 2)
    told = {"msg": ["{{ parallax.name }}", "{{ again }}", "{{ inventory_hostname }}"]}
    play = {"hosts": "all", "tasks": [{"ansible.builtin.debug": told}]}
    found = [result["msg"] for result in fleet.play(inventory, [play], "--limit", pattern)]
    assert sorted(found) == sorted([name, name, hosts[at]] for at, name in enumerate(odd, 3))


@slow
def test_it_says_which_host_has_a_vdi_open(fleet: Fleet) -> None:
    keyed = {"key": "parallax.host", "prefix": "on", "default_value": "nowhere"}
    options = {"keyed_groups": [keyed]}
    with serving(fleet) as unix:
        with RawClient(unix) as client:
            client.go("vm01")
            (lock,) = [
                lock
                for lock in fleet.plx("lock", "list")["locks"]
                if lock["what"].startswith("VDI 1 ")
            ]
            found = fleet.listed(**options)
            assert found.vdi("vm01")["host"] == lock["host"] == socket.gethostname()
            assert len(found.vdi("vm01")["clients"]) == 1
            assert "plxsh tap serve" in found.vdi("vm01")["served_by"]
            assert found.group("on_nowhere") == {"gold", "vm02"}
        assert fleet.listed().hosts == {"gold", "vm01", "vm02"}
    assert fleet.listed(**options).group("on_nowhere") == {"gold", "vm01", "vm02"}


@slow
def test_a_lock_master_that_is_down_hides_only_who_has_what(fleet: Fleet) -> None:
    found = fleet.listed(lock_master=f"unix:{fleet.folder}/none", wait=0)
    assert found.hosts == {"gold", "vm01", "vm02"}
    assert found.vdi("vm01")["host"] is None
    assert squeezed("nobody says which host has a VDI open") in found.warnings


@slow
def test_a_damaged_vdi_is_left_out_and_told(fleet: Fleet) -> None:
    store = Blockstore.open(fleet.store, "write")
    for slot in (0, 1):
        store.device.pwritev(store.sb.vdi_slot(1, slot) * BLOCK, [noise(BLOCK, slot)])
    store.close()
    found = fleet.listed(snapshots=True)
    assert found.hosts == {"gold", "vm02"}
    assert squeezed(f"{fleet.store}: VDI 1 is damaged and left out") in found.warnings
    assert found.vdi("gold")["clones"] == ["vm02"]


@slow
def test_a_clone_outlives_its_snapshot(fleet: Fleet) -> None:
    fleet.plx("snap", "delete", "gold@v1")
    found = fleet.listed(clones_of=["gold@v1"]).vdi("vm01")
    assert (found["parent_name"], found["parent_label"]) == ("gold", "v1")


# -- where plxsh runs --------------------------------------------------------------------


def program(fleet: Fleet, name: str, script: str) -> str:
    path: Path = fleet.folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@slow
def test_through_ssh_words_stay_words(fleet: Fleet) -> None:
    """The stand-in does as sshd: it has the shell of the user read the command."""
    folder = fleet.folder / "it's $HOME; a `store`"
    folder.mkdir()
    store = str(folder / "blockstore.dat")
    os.rename(fleet.store, store)
    script = f'echo "$1" >>{fleet.folder}/asked\ntest $# = 2 && cd / && exec sh -c "$2"'
    ssh = program(fleet, "ssh", script)
    found = fleet.listed(store=store, ssh=[ssh, "host1"], plxsh=["env", "-u", "NO", "plxsh"])
    assert found.hosts == {"gold", "vm01", "vm02"}
    assert found.vdi("vm01")["store"] == store
    assert set((fleet.folder / "asked").read_text().split()) == {"host1"}


@slow
def test_errors_say_what_plxsh_or_ssh_said(fleet: Fleet) -> None:
    for options, message in (
        ({"store": "/no/store"}, "there is no blockstore at /no/store (make one with 'plxsh "),
        ({"plxsh": ["no-plxsh"]}, "cannot run no-plxsh: No such file or directory (install it"),
        ({"plxsh": []}, "plxsh is an empty list"),
        ({"ssh": ["sh", "-c", "echo h: refused >&2; exit 255"]}, "plxsh failed: h: refused"),
        ({"ssh": ["echo", "Welcome"]}, "plxsh answered no JSON: 'Welcome"),
        ({"gold_images": "maybe"}, "gold_images"),
    ):
        assert squeezed(message) in fleet.refused(**options), options


@slow
def test_a_command_that_hangs_is_ended_with_all_it_started(fleet: Fleet) -> None:
    pid = fleet.folder / "pid"
    hanging = program(fleet, "hanging", f"sleep 600 &\necho $! >{pid}\nwait")
    for seconds in (1, 10, 60):  # until it has come so far before its time is over
        told = fleet.refused(ssh=[hanging], timeout=seconds)
        assert squeezed(f"no answer within {seconds} seconds") in told
        if pid.exists() and pid.read_text().endswith("\n"):
            break
    while (state := state_of(int(pid.read_text()))) not in (None, "Z"):
        assert state != "S", "it was not killed"
        time.sleep(0.01)


def state_of(pid: int) -> str | None:
    """The letter for the state of a process, None for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


# -- beside other inventories ------------------------------------------------------------


@slow
def test_the_cache_has_what_was_read_before(fleet: Fleet) -> None:
    cached = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile"}
    cached["cache_connection"] = str(fleet.folder / "cache")
    assert fleet.listed(**cached).hosts == {"gold", "vm01", "vm02"}
    fleet.plx("vdi", "create", "vm03")
    assert fleet.listed(**cached).hosts == {"gold", "vm01", "vm02"}
    assert fleet.listed(**cached, vdis=["vm*"]).hosts == {"vm01", "vm02"}
    assert fleet.listed(**cached, snapshots=True).hosts == {"gold", "vm01", "vm02", "vm03"}
    assert fleet.listed().hosts == {"gold", "vm01", "vm02", "vm03"}
    inventory = fleet.write(**cached)
    assert "vm03" not in fleet.listed("-i", inventory).hosts
    fleet.play(inventory, [{"hosts": "vm03", "tasks": []}], "--flush-cache")
    assert "vm03" in fleet.listed("-i", inventory).hosts


@slow
def test_two_stores_and_a_static_inventory(fleet: Fleet, tmp_path: Path) -> None:
    other = str(tmp_path / "other.dat")
    plxsh = [BIN / "plxsh", "-s", other]
    subprocess.run([*plxsh, "store", "create", other, "--extent-size", "1M"], check=True)
    subprocess.run([*plxsh, "vdi", "create", "vm01"], check=True)
    static = tmp_path / "hosts.yml"
    static.write_text(json.dumps({"all": {"hosts": {"vm01": {"vm_host": "host7"}}}}))
    first = fleet.write()
    again, second = fleet.write("b.parallax.yml"), fleet.write("c.vdis.yml", store=other)
    found = fleet.listed("-i", static, "-i", first, "-i", again)
    assert found.variables("vm01")["vm_host"] == "host7"
    assert found.vdi("vm01")["store"] == fleet.store
    told = fleet.refused("-i", first, "-i", second)
    refusal = f"vm01 would be VDI 'vm01' of {other}, and is one of {fleet.store} already"
    assert squeezed(refusal) in told
    second = fleet.write("c.vdis.yml", store=other, host_prefix="other-")
    assert fleet.listed("-i", first, "-i", second).hosts == {"gold", "vm01", "vm02", "other-vm01"}


@slow
def test_only_files_with_its_name_are_read(fleet: Fleet) -> None:
    for name in ("vdis.yml", "parallax.yaml", "host1.vdis.yaml"):
        assert fleet.listed("-i", fleet.write(name)).hosts
    fleet.refused("-i", fleet.write("fleet.yml"))


@slow
def test_a_play_sees_a_vdi_that_an_earlier_one_has_made(fleet: Fleet) -> None:
    made = {"store": fleet.store, "name": "vm03", "from": "gold@v1", "plxsh": str(BIN / "plxsh")}
    plays = [
        {
            "hosts": "localhost",
            "tasks": [
                {"parallax.storage.vdi": made},
                {"ansible.builtin.meta": "refresh_inventory"},
            ],
        },
        {"hosts": "fresh", "tasks": [{"ansible.builtin.debug": {"msg": "{{ parallax.id }}"}}]},
    ]
    inventory = fleet.write(groups={"fresh": "parallax.name == 'vm03'"})
    assert fleet.play(inventory, plays)[-1]["msg"] in (3, "3")


# -- texts -------------------------------------------------------------------------------


@slow
def test_texts_are_those_of_plxsh(fleet: Fleet) -> None:
    odd = 'it\'s, an <odd> "näme" & more'
    fleet.plx("vdi", "create", odd, "--size", "1M")
    calls = {
        "'vm01', device='xvda'": ("xen", "vm01", "xvda"),
        "'gold@v1', vdev='sda1'": ("xen", "gold@v1", "sda1"),
        "'vm01', vdev='xvdb', access='r', backend='stor', by='name', socket='/run/s s'":
            ("xen", "vm01", "xvdb", "r", "--backend=stor", "--by=name", "--socket=/run/s s"),
        "odd, kind='xen', vdev='xvda', by='name'": ("xen", 3, "xvda", "--by=name"),
        "'vm01', kind='qemu'": ("qemu", "vm01"),
        "odd, kind='blockdev', by='name'": ("qemu", "--blockdev", 3, "--by=name"),
        "odd, kind='libvirt', by='name'": ("libvirt", 3, "--by=name"),
        "'vm01', kind='libvirt', target='sdb', bus='scsi', access='r'":
            ("libvirt", "vm01", "r", "--target=sdb", "--bus=scsi"),
    }  # fmt: skip
    texts = [f"{{{{ lookup('parallax.storage.disk', {arguments}) }}}}" for arguments in calls]
    variables = {"parallax_store": fleet.store, "odd": odd}
    tasks = [{"ansible.builtin.debug": {"msg": texts}}]
    (told,) = fleet.play(fleet.write(), [{"hosts": "localhost", "vars": variables, "tasks": tasks}])
    for text, words in zip(told["msg"], calls.values(), strict=True):
        line = fleet.plx("disk", *words)["disk"]["line"]
        assert (f"disk = [ '{text}' ]" if words[0] == "xen" else text) == line


@slow
def test_a_whole_configuration_is_written_from_a_template(fleet: Fleet) -> None:
    template = fleet.folder / "xl.j2"
    template.write_text(
        "name = '{{ inventory_hostname }}'\n"
        "disk = [ '{{ query('parallax.storage.disk', inventory_hostname, 'gold@v1',"
        " device=['xvda', 'xvdb']) | join(\"', '\") }}' ]\n"
    )
    target = str(fleet.folder / "{{ inventory_hostname }}.cfg")
    task = {"ansible.builtin.template": {"src": str(template), "dest": target}}
    play = {"hosts": "parallax_vdis:!parallax_gold", "tasks": [task]}
    variables = {"parallax_store": "{{ parallax.store }}", "parallax_ssh": []}
    told = fleet.play(fleet.write(), [{**play, "vars": variables}])
    assert [result["changed"] for result in told] == [True, True]
    for name in ("vm01", "vm02"):
        read = fleet.host(
            "xen_disk", path=str(fleet.folder / f"{name}.cfg"), vdi=name, vdev="xvda", check=True
        )
        assert read["changed"] is False, read


@slow
def test_a_lookup_says_what_is_wrong(fleet: Fleet) -> None:
    calls = {
        "'nothing', vdev='xvda'": "no VDI 'nothing'",
        "'vm01'": "there are 1 disks and 0 devices",
        "'vm01', 'vm02', vdev='xvda'": "there are 2 disks and 1 devices",
        "'vm01', kind='qemu', vdev='xvda'": "device means nothing for qemu",
        "'vm01', kind='qemu', access='r'": "access means nothing for qemu",
        "'vm01', kind='libvirt', backend='stor'": "backend means nothing for libvirt",
        "'vm01', 'vm02', kind='libvirt'": "there are 2 disks and 0 devices",
        "'vm01', vdev='banana'": "is no name of a virtual device",
        "'vm01', kind='bochs'": "kind",
    }
    tasks = [
        {
            "ansible.builtin.debug": {"msg": f"{{{{ lookup('parallax.storage.disk', {call}) }}}}"},
            "ignore_errors": True,
        }
        for call in calls
    ]
    play = {"hosts": "localhost", "vars": {"parallax_store": fleet.store}, "tasks": tasks}
    for told, message in zip(fleet.play(fleet.write(), [play]), calls.values(), strict=True):
        assert message in told["msg"]


# -- documentation -----------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    ("kind", "name"), [("inventory", VDIS), ("lookup", "parallax.storage.disk")]
)
def test_documentation_is_shown(fleet: Fleet, kind: str, name: str) -> None:
    ran = fleet.run("ansible-doc", "--json", "-t", kind, name)
    told = json.loads(ran.stdout)[name]
    assert told["examples"]
    assert all(option["description"] for option in told["doc"]["options"].values())
    assert {"store", "lock_master", "plxsh", "ssh"} <= told["doc"]["options"].keys()


@slow
def test_examples_of_the_inventory_work(fleet: Fleet) -> None:
    examples = list(yaml.safe_load_all(load_text("inventory/vdis.py", "EXAMPLES")))
    assert len(examples) == 2
    for example in examples:
        own = {"store": fleet.store, "ssh": [], "lock_master": ""}
        assert fleet.listed(**{**example, **own, "strict": False}).hosts >= {"vm01", "vm02"}


@slow
def test_examples_of_the_lookup_pass_the_production_profile(fleet: Fleet) -> None:
    """With ansible-core before 2.19 the linter also asks for the disks, so they are there."""
    fleet.plx("vdi", "create", "vm01-data", "--size", "1M")
    tasks = yaml.safe_load(load_text("lookup/disk.py", "EXAMPLES"))
    path = fleet.folder / "play.yml"
    play = "---\n- name: Examples\n  hosts: all\n  tasks:\n"
    text = load_text("lookup/disk.py", "EXAMPLES").strip("\n")
    text = text.replace("/srv/blockstore.dat", fleet.store)
    path.write_text(play + "".join(f"    {line}\n" if line else "\n" for line in text.split("\n")))
    assert len(yaml.safe_load(path.read_text())[0]["tasks"]) == len(tasks)
    ran = fleet.run("ansible-lint", "--offline", "--profile", "production", "--nocolor", path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def load_text(path: str, name: str) -> str:
    source = (PLUGINS / path).read_text()
    text: str = source.split(f'{name} = r"""\n')[1].split('"""')[0]
    return text
