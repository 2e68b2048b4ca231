"""Several hosts with a tap each, one lock master, one store: starting, killing, commanding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hosts.client import Client, Refused
from hosts.world import Host, World

_SOCKETS = Path("/run")  # of this world alone
_PORT = 8440
PATIENCE = 60.0
IN_USE, IO_FAILED = 4, 5
_FROZEN = "frozen.dat"
Seen = TypeVar("Seen")


class Said(NamedTuple):
    """How a command ended, and what it said."""

    command: str
    status: int
    out: str
    error: str


class Tap:
    """The tap of one host, running or not.

    Attributes:
        host: where.
        socket: what it listens on.
        suspended: whether it stands still.
    """

    def __init__(self, fleet: Fleet, host: Host) -> None:
        self.host = host
        self.socket = _SOCKETS / host.name / "nbd.sock"
        self.socket.parent.mkdir()
        self.suspended = False
        self._fleet = fleet
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.socket.unlink(missing_ok=True)
        command = ["tap", "serve", "--unix", str(self.socket), "--log", "text"]
        self._process = self._fleet.spawn(self.host, command, f"tap.{self.host.name}.log")
        self._fleet.wait_for(self.listens, f"the tap of {self.host.name}")

    def listens(self) -> bool:
        """Whether somebody answers."""
        assert self.running, f"the tap of {self.host.name} ended by itself"
        try:
            self.open("no such VDI", 1.0)
        except Refused:
            return True
        except (ConnectionError, TimeoutError):
            return False
        raise AssertionError("it opened what does not exist")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def suspend(self) -> None:
        """Have it stand still."""
        self.suspended = True
        self.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on."""
        self.send_signal(signal.SIGCONT)
        self.suspended = False

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit status."""
        self.send_signal(number)
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def open(self, export: str, patience: float = PATIENCE) -> Client:
        """Connect; raises as `Client`."""
        return Client(self.socket, export, patience)

    def take(self, export: str) -> Client:
        """Connect, as soon as whoever else has it has let go or lost it."""
        until = time.monotonic() + PATIENCE
        while True:
            assert self.running, f"the tap of {self.host.name} ended by itself"
            try:
                return self.open(export)
            except (Refused, ConnectionError) as error:
                if time.monotonic() > until:
                    raise AssertionError(f"{self.host.name} never got {export}: {error}") from error
            time.sleep(0.1)


def _stands(process: Tap | subprocess.Popen[str]) -> bool:
    """Whether no thread of a process is inside the kernel any more, or it has ended."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/stat")
    with suppress(FileNotFoundError, ProcessLookupError):
        return all(task.read_text().rpartition(")")[2].split()[0] in "TZX" for task in tasks)
    return False


class Fleet:
    """Hosts on one store.

    Args:
        folder: for the store and all logs.
        names: of the hosts.
        lease: seconds, of the lock master.
    """

    def __init__(self, folder: Path, names: Sequence[str], lease: float) -> None:
        self.folder = folder
        self.store = folder / "store.dat"
        self.lease = lease
        self.key = folder / "key"
        self.key.write_text(os.urandom(16).hex() + "\n")
        self.key.chmod(0o600)
        world = World()
        self._logs: list[Path] = []
        self.keeper = world.host("keeper")
        self.hosts = [world.host(name) for name in names]
        self.taps = {host.name: Tap(self, host) for host in self.hosts}
        self._master: subprocess.Popen[bytes] | None = None
        self._commands: list[subprocess.Popen[str]] = []
        self._still = threading.Lock()

    # -- processes ---------------------------------------------------------------------

    def _environment(self, host: Host) -> dict[str, str]:
        return {
            **{name: text for name, text in os.environ.items() if "PARALLAX" not in name},
            "PARALLAX_STORE": str(self.store),
            "PARALLAX_CACHE": "none",
            "PARALLAX_RUN_DIR": str(_SOCKETS / host.name),
            "PARALLAX_LOCK_MASTER": f"{self.keeper.address}:{_PORT}",
            "PARALLAX_LOCK_KEY": str(self.key),
            "XDG_CONFIG_HOME": str(self.folder / "none"),
            "HOME": str(self.folder / "none"),
        }

    def spawn(self, host: Host, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Start `plxsh` on a host, with a log of its own."""
        path = self.folder / log
        if path not in self._logs:
            self._logs.append(path)
        with path.open("ab") as file:
            return subprocess.Popen(
                host.command([sys.executable, "-m", "plxsh", *command]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment(host),
            )

    def run(self, host: Host, *command: str) -> Said:
        """Run `plxsh` on a host to its end."""
        process = self.begin(host, *command)
        return self.finish(process, command)

    def begin(self, host: Host, *command: str) -> subprocess.Popen[str]:
        """Start `plxsh` on a host; for `finish`."""
        with self._still:
            process = subprocess.Popen(
                host.command([sys.executable, "-m", "plxsh", *command]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment(host),
            )
            self._commands = [one for one in self._commands if one.poll() is None]
            self._commands.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], command: Sequence[str]) -> Said:
        """Wait for the end of a command."""
        try:
            out, error = process.communicate(timeout=2 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # with its stack on standard error
            out, error = process.communicate()
            raise AssertionError(f"{' '.join(command)} does not end: {error}") from None
        return Said(" ".join(command), process.returncode, out, error)

    def json(self, host: Host, *command: str) -> Any:
        """What a command that must succeed says, parsed."""
        said = self.run(host, "-o", "json", *command)
        assert said.status == 0, said
        return json.loads(said.out)

    def wait_for(self, condition: Any, what: str) -> None:
        """Wait until something is true."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"waited too long for {what}"
            time.sleep(0.02)

    # -- the lock master ---------------------------------------------------------------

    def start_master(self) -> None:
        """Start the lock master, and wait until it listens."""
        where = f"{self.keeper.address}:{_PORT}"
        command = ["lock", "master", "--listen", where, "--key", str(self.key)]
        command += ["--state", str(self.folder / "epoch"), "--lease", f"{self.lease:g}"]
        self._master = self.spawn(self.keeper, command, "master.log")
        self.wait_for(self._master_listens, "the lock master")

    def _master_listens(self) -> bool:
        assert self._master is not None
        assert self._master.poll() is None, "the lock master ended by itself"
        probe = ["sh", "-c", 'exec grep -q " [0-9A-F]*:$0 00000000:0000 0A" /proc/net/tcp']
        found = subprocess.run(self.keeper.command([*probe, f"{_PORT:04X}"]), check=False)
        return found.returncode == 0

    def connected(self) -> bool:
        """Whether each host has a connection to the lock master that neither side has closed."""
        address = "".join(f"{int(part):02X}" for part in reversed(self.keeper.address.split(".")))
        probe = ["grep", "-q", f" {address}:{_PORT:04X} 01 ", "/proc/net/tcp"]
        return not any(
            subprocess.run(host.command(probe), check=False).returncode for host in self.hosts
        )

    def kill_master(self) -> None:
        """End the lock master without a warning."""
        assert self._master is not None
        self._master.kill()
        self._master.wait()

    # -- all of it ---------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run."""
        if self._master is None or self._master.poll() is not None:
            self.start_master()
        for tap in self.taps.values():
            if not tap.running:
                tap.start()

    def stop(self) -> None:
        """End everything as a service manager would."""
        for tap in self.taps.values():
            assert tap.end() == 0, f"the tap of {tap.host.name} did not end well"
        said = self.run(self.hosts[0], "store", "check")
        assert said.status == 0, said
        assert self._master is not None
        self._master.terminate()
        assert self._master.wait(PATIENCE) == 0, "the lock master did not end well"

    def copy(self, look: Callable[[], Seen]) -> tuple[Path, Seen]:
        """The store as it is at one moment, which is what a power cut would leave.

        Args:
            look: called at that moment.
        """
        target = self.folder / _FROZEN
        target.unlink(missing_ok=True)
        with self._still:
            taps = [tap for tap in self.taps.values() if tap.running and not tap.suspended]
            commands = [process for process in self._commands if process.poll() is None]
            for one in (*taps, *commands):
                one.send_signal(signal.SIGSTOP)
            try:
                self.wait_for(lambda: all(map(_stands, (*taps, *commands))), "all to stand still")
                subprocess.run(
                    ["cp", "--sparse=always", "--reflink=auto", str(self.store), str(target)],
                    check=True,
                )
                return target, look()
            finally:
                for one in (*taps, *commands):
                    one.send_signal(signal.SIGCONT)

    def tails(self, lines: int = 25) -> str:
        """The ends of all logs."""
        parts = []
        for log in self._logs:
            text = [
                line
                for line in log.read_text(errors="replace").splitlines()
                if " refused: " not in line
            ][-lines:]
            parts += [f"-- {log.name}", *text]
        return "\n".join(parts)
