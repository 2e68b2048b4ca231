"""A world of simulated hosts in a folder: which there are, how they begin and how they all end.

Each machine (the hosts, and `control`, from where they are managed) is a process that is the first
of a PID namespace of its own: when it is killed the kernel ends everything in it, and its network
and mounts are gone with it. So all there is to remember is the number of that process.

A lock is on the folder as long as one of these processes lives; whoever gets it knows that nothing
of the world is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from simulated import ssh
from simulated.failure import Failure

CONTROL = "control"
NETWORK = "10.0.0"
PATIENCE = 90  # seconds, for a machine to begin or to end
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
OWN = ("world.json", "inventory.yml", "hosts", *ssh.FILES)
"""What a world writes into its folder, beside one folder for each machine."""


@dataclass(frozen=True)
class Plan:
    """What the machines have to know of each other."""

    hosts: list[str]
    shared: list[str]
    sshd: str

    @property
    def addresses(self) -> dict[str, str]:
        """Each host's address; `control` has the first one of the network."""
        return {name: f"{NETWORK}.{11 + place}" for place, name in enumerate(self.hosts)}

    @property
    def machines(self) -> list[str]:
        return [CONTROL, *self.hosts]

    def write(self, folder: Path) -> None:
        new = folder / "world.json.new"
        new.write_text(json.dumps(asdict(self)))
        new.replace(folder / "world.json")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        try:
            return cls(**json.loads((folder / "world.json").read_text()))
        except FileNotFoundError:
            raise Failure(f"no simulated hosts in {folder}: make them with 'up'") from None


class World:
    """The simulated hosts of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    # -- begin -------------------------------------------------------------------------

    def up(self, hosts: Sequence[str], shared: Sequence[Path]) -> Plan:
        """Make the machines; all are there, or none."""
        for name in hosts:
            if not NAME.fullmatch(name) or name in (CONTROL, "localhost"):
                raise Failure(f"no host can be named {name!r}: use a-z, 0-9 and -")
        if len(set(hosts)) != len(hosts) or not 1 <= len(hosts) <= 200:
            raise Failure("name each host once, and 1 to 200 of them")
        plan = Plan(list(hosts), [str(path.absolute()) for path in shared], str(ssh.server()))
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._made:
            taken = [name for name in (*OWN, *plan.machines) if (self.folder / name).exists()]
            if taken:
                raise Failure(f"{self.folder} has another {taken[0]}: name a new folder")
        with self._lock(0) as lock:
            self._clean()
            for path in plan.shared:
                Path(path).mkdir(parents=True, exist_ok=True)
            plan.write(self.folder)
            ssh.write(self.folder, plan.addresses)
            self._write_names(plan)
            try:
                self._begin(plan, lock)
            except BaseException:
                self._kill()
                raise
        return plan

    def _write_names(self, plan: Plan) -> None:
        names = {CONTROL: f"{NETWORK}.1", **plan.addresses}
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        lines += [f"{address} {name}" for name, address in names.items()]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        hosts = {name: {"ansible_host": address} for name, address in plan.addresses.items()}
        found = {
            "ansible_user": "root",
            "ansible_ssh_args": ssh.arguments(self.folder),
            "ansible_ssh_timeout": PATIENCE,  # so many machines may keep this one busy
            "ansible_pipelining": True,
            "ansible_python_interpreter": os.path.realpath(sys.executable),
        }
        # JSON is YAML, and needs no library.
        text = json.dumps({"all": {"hosts": hosts, "vars": found}}, indent=2)
        (self.folder / "inventory.yml").write_text(text + "\n")

    def _begin(self, plan: Plan, lock: int) -> None:
        machines = {name: self._spawn(name, lock) for name in plan.machines}
        control = self._first(CONTROL)
        lines = ["link set lo up", "link add name bridge type bridge"]
        lines += [f"addr add {NETWORK}.1/24 dev bridge", "link set bridge up"]
        for place, name in enumerate(plan.hosts):
            ours, theirs = f"host{place}", f"name eth0 netns {self._first(name)}"
            lines.append(f"link add name {ours} type veth peer {theirs}")
            lines.append(f"link set {ours} master bridge up")
        into = ["nsenter", "--target", str(control), "--net", "ip", "-batch", "-"]
        made = subprocess.run(
            into, input="\n".join(lines), capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise Failure(f"no network for the hosts: {made.stderr.strip()}")
        for machine in machines.values():
            assert machine.stdin is not None
            machine.stdin.write(b"go\n")
            machine.stdin.close()
        for name, machine in machines.items():
            assert machine.stdout is not None
            if machine.stdout.readline() != b"ready\n":
                log = (self.folder / name / "log").read_text().strip()
                raise Failure(f"{name} did not begin: {log or 'it said nothing'}")
            machine.stdout.close()

    def _spawn(self, name: str, lock: int) -> subprocess.Popen[bytes]:
        """Start one machine. It waits for its network, and ends if we end before that."""
        folder = self.folder / name
        (folder / "root").mkdir(parents=True)
        words = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc"]
        words += ["--fork", "--kill-child", sys.executable, "-E", "-s"]
        words += [str(Path(__file__).with_name("machine.py")), str(self.folder), name]
        pipe = subprocess.PIPE
        with (folder / "log").open("wb") as log:
            machine = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=log, pass_fds=[lock],
                start_new_session=True, cwd="/",
            )  # fmt: skip
        first = _child(machine)
        if first is None:
            log_text = (folder / "log").read_text().strip()
            raise Failure(f"no namespaces for {name}: {log_text}")
        (folder / "pid").write_text(f"{first} {_started(first)}\n")
        return machine

    # -- use ---------------------------------------------------------------------------

    def enter(self, name: str, words: Sequence[str]) -> None:
        """Become a command that runs on one of the machines, and dies with this process."""
        plan = Plan.read(self.folder)
        if name not in plan.machines:
            raise Failure(f"no host {name!r}: there are {', '.join(plan.machines)}")
        first = str(self._first(name))
        line = ["nsenter", "--target", first, "--mount", "--net", "--pid", "--uts", "--ipc"]
        variables = dict(os.environ)
        if name == CONTROL:
            line.append(f"--wdns={os.getcwd()}")
        else:
            line.append("--wdns=/root")
            variables = {"HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "PATH": ssh.PATH}
            variables |= {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
        line += ["setpriv", "--pdeathsig", "KILL", "--", *words]
        os.execvpe(line[0], line, variables)

    # -- end ---------------------------------------------------------------------------

    def down(self) -> None:
        """End all machines; nothing to do if there are none."""
        if self._made:
            self._kill()
            with self._lock(PATIENCE):
                self._clean()
                (self.folder / "lock").unlink()
            with contextlib.suppress(OSError):  # somebody else has files there
                self.folder.rmdir()

    def _kill(self) -> None:
        for path in self.folder.glob("*/pid"):
            with contextlib.suppress(Failure, ProcessLookupError):
                os.kill(self._first(path.parent.name), signal.SIGKILL)

    @property
    def _made(self) -> bool:
        """Whether this folder is, or was, one of ours; other people's files are left alone."""
        return (self.folder / "world.json").exists()

    def _clean(self) -> None:
        if self._made:
            for name in Plan.read(self.folder).machines:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in reversed(OWN):  # world.json last: until then another try goes on here
                (self.folder / name).unlink(missing_ok=True)

    # -- processes ---------------------------------------------------------------------

    def _first(self, name: str) -> int:
        """The first process of a machine, unless its number is another's by now."""
        try:
            first, started = map(int, (self.folder / name / "pid").read_text().split())
        except (FileNotFoundError, ValueError):
            raise Failure(f"{name} did not begin") from None
        if _started(first) != started:
            raise Failure(f"{name} has ended: see {self.folder / name / 'log'}")
        return first

    @contextmanager
    def _lock(self, patience: float) -> Iterator[int]:
        """Be the only one who has anything to do with this folder."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        hint = f"end them with 'down {self.folder}'"
                        raise Failure(f"{self.folder} has simulated hosts: {hint}") from None
                    time.sleep(0.02)
                    self._kill()  # an `up` that is under way may have begun another one
            yield lock
        finally:
            os.close(lock)


def _started(process: int) -> int | None:
    """When a process began, in ticks since the boot; None if there is none."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _child(parent: subprocess.Popen[bytes]) -> int | None:
    """The number of the only child, once there is one; None if the parent ended without."""
    path = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    until = time.monotonic() + PATIENCE
    while parent.poll() is None and time.monotonic() < until:
        children = path.read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.005)
    return None
