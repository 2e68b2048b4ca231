"""A fleet on simulated hosts: what `make fleet-demo` and the tests of the playbooks have in common.

A folder has all of it: the hosts, the folder that they share (store and image), wheels of this tree
to install, the collection, and the inventory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv/bin"
PLAYBOOKS = ROOT / "playbooks"
WHEELS = ROOT / ".venv/wheels"
"""What Parallax needs, gathered by scripts/setup.sh: the hosts have no network."""

SIMULATED = ROOT / "scripts/simulated_hosts.py"
SOCKET = "/run/parallax/nbd.sock"


@dataclass
class Ran:
    """A playbook that was run: its exit status, and all that it said."""

    status: int
    shown: str

    def _counts(self, what: str) -> dict[str, int]:
        recap = self.shown.rpartition("PLAY RECAP")[2]
        found = re.findall(rf"^(\S+) +: .*\b{what}=(\d+)", recap, re.MULTILINE)
        return {host: int(number) for host, number in found}

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, for each host and each machine."""
        return self._counts("changed")

    @property
    def failed(self) -> set[str]:
        """Hosts and machines for which it did not do all."""
        counts = [self._counts("failed"), self._counts("unreachable")]
        return {host for count in counts for host in count if count[host]}


class Fleet:
    """Hosts and machines described in an inventory, and ways to run playbooks on them.

    Args:
        folder: where everything is.
        hosts: the names of the hosts; the first one runs the lock master.
        machines: which machines live on which host.
        kinds: hosts that are not of the kind `xen`, and their kind.
        variables: more variables of the fleet.
    """

    def __init__(
        self,
        folder: Path,
        machines: Mapping[str, Sequence[str]],
        kinds: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.world = folder / "hosts"
        self.shared = folder / "shared"
        self.image = self.shared / "gold.img"
        self.store = self.shared / "blockstore.dat"
        self.hosts = list(machines)
        self.host_of = {name: host for host in machines for name in machines[host]}
        self.inventory = folder / "fleet.yml"
        self._kinds = dict(kinds or {})
        self._variables = dict(variables or {})

    # -- begin and end -----------------------------------------------------------------

    def up(self) -> None:
        """Begin the hosts, without anything of Parallax on them."""
        self.shared.mkdir(parents=True)
        self._lay_out_collection()
        build_wheels(self.folder / "wheels")
        self.inventory.write_text(json.dumps(self.described(), indent=2) + "\n")
        self._simulated("up", self.world, "--hosts", *self.hosts, "--shared", self.shared)

    def down(self) -> None:
        """End the hosts, whatever runs there; as often as one likes."""
        self._simulated("down", self.world)

    def _simulated(self, *words: object) -> None:
        line = [sys.executable, str(SIMULATED), *map(str, words)]
        subprocess.run(line, stdout=subprocess.DEVNULL, check=True)

    def _lay_out_collection(self) -> None:
        target = self.folder / "collections/ansible_collections/parallax/storage"
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / "ansible_collection", target, ignore=ignored)

    def described(self) -> dict[str, Any]:
        """The inventory: what an operator would write."""
        kinds = {host: self._kinds.get(host, "xen") for host in self.hosts}

        def of(kind: str) -> dict[str, Any]:
            return {"hosts": {host: {} for host in self.hosts if kinds[host] == kind}}

        return {
            "all": {"vars": {**self._fleet_variables(), **self._variables}},
            "parallax_hosts": {"hosts": {host: {} for host in self.hosts}},
            "parallax_lock_master": {"hosts": {self.hosts[0]: {}}},
            "parallax_xen_hosts": of("xen"),
            "parallax_libvirt_hosts": of("libvirt"),
            "parallax_vms": {
                "hosts": {name: {"vm_host": host} for name, host in self.host_of.items()}
            },
        }

    def _fleet_variables(self) -> dict[str, Any]:
        return {
            "parallax_store": str(self.store),
            "parallax_extent_size": "32M",
            "parallax_extents": 8,
            "parallax_lock_master": f"{self.hosts[0]}:8440",
            "parallax_lock_key": "a key that only these hosts know",
            "parallax_install_source": str(self.folder / "wheels"),
            "parallax_gold": {"name": "gold", "source": str(self.image), "label": "v1"},
            "install_packages": [],
            "install_python": os.path.realpath(sys.executable),
            "xen_host_packages": [],
        }

    # -- use ---------------------------------------------------------------------------

    def playbook(self, name: str, *options: object) -> tuple[list[str], dict[str, str]]:
        """The command line that runs a playbook from `control`, and its variables."""
        line = [sys.executable, SIMULATED, "exec", self.world, "control", "--"]
        line += [BIN / "ansible-playbook", "-i", self.world / "inventory.yml", "-i", self.inventory]
        line += [PLAYBOOKS / name, *options]
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ANSIBLE_", "PARALLAX_"))
        }
        variables = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            "ANSIBLE_HOME": str(self.folder / ".ansible"),
        }
        return [str(word) for word in line], {**kept, **variables}

    def play(self, name: str, *options: object) -> Ran:
        """Run a playbook from `control`."""
        line, variables = self.playbook(name, *options)
        done = subprocess.run(
            line,
            env=variables,
            cwd=PLAYBOOKS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout + done.stderr)

    def on_line(self, host: str, *words: object) -> list[str]:
        """The command line that runs a command on a host."""
        line = [sys.executable, SIMULATED, "exec", self.world, host, "--", *words]
        return [str(word) for word in line]

    def on(self, host: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command on a host; see for yourself how it ended."""
        return subprocess.run(
            self.on_line(host, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def disk(self, name: str) -> str:
        """The NBD address of a disk, on any host."""
        return f"nbd+unix:///{name}?socket={SOCKET}"


def build_wheels(folder: Path) -> None:
    """Put wheels of this tree and of what it needs into a folder; asks no network."""
    folder.mkdir(parents=True)
    needed = list(WHEELS.glob("*.whl"))
    if not needed:
        raise FileNotFoundError(f"no wheels in {WHEELS}: run 'sh scripts/setup.sh wheels'")
    for wheel in needed:
        shutil.copy2(wheel, folder)
    tree = folder.parent / "tree"  # a copy, as building writes beside what it reads
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, tree, ignore=ignored)
    line = [BIN / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    line += ["--disable-pip-version-check", "--no-index", "--wheel-dir", folder, tree]
    subprocess.run(line, stdin=subprocess.DEVNULL, check=True)
    shutil.rmtree(tree)
