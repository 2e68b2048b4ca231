"""One host of the block script: what is attached, what xenstore says, and what goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy/xen/block-plx"
FAKES = Path(__file__).parent / "fakes"
ODD = 'ödd "näme"?#%\'x'
ODD_ENCODED = "%C3%B6dd%20%22n%C3%A4me%22%3F%23%25%27x"
SOCKET = "/run/parallax/nbd.sock"


def uuid_of(vdi: int) -> str:
    """The UUID of a VDI."""
    return f"{vdi:08x}-aaaa-4bbb-8ccc-dddddddddddd"


def listed(name: str, vdi: int) -> str:
    """What the tap says of a VDI in its list."""
    return f"{name}: VDI {vdi}, UUID {uuid_of(vdi)}, snapshots: 0\n"


class Run:
    """A block script that runs, or has run."""

    def __init__(self, world: World, command: str, path: str, **environment: str) -> None:
        self._world = world
        self.process = subprocess.Popen(
            # the shell tells its own id, which is the script's: the faults are for it
            ["bash", "-c", 'echo $$ >"$WORLD/pid"; exec "$0" "$1"', world.script, command],
            env={**world.environment, "XENBUS_PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> int:
        """Its exit status."""
        _, said = self.process.communicate(timeout=60)
        assert said == "", said  # Xen's helpers send it to their log
        return self.process.returncode


class World:
    """One host.

    Attributes:
        folder: all that it has.
        script: the block script, where Xen would have it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "scripts/block-plx"
        shutil.copy(SCRIPT, self.script)
        shutil.copytree(FAKES, folder / "bin")
        for program in ("read", "write", "rm", "list"):
            (folder / f"bin/xenstore-{program}").symlink_to("xenstore")
        for fake in (folder / "bin").iterdir():
            fake.chmod(0o755)
        (folder / "scripts/hotplugpath.sh").write_text(
            f'bindir="{folder}/bin"\nsbindir="{folder}/bin"\nLIBEXEC_BIN="{folder}/bin"\n'
        )
        for device in ("nbd0", "nbd1", "nbd2"):
            (folder / "dev").mkdir(exist_ok=True)
            (folder / "dev" / device).touch()
            (folder / "sys" / device).mkdir(parents=True)
            (folder / "sys" / device / "size").write_text("0\n")
        (folder / "dev/nbd0p1").touch()  # a partition is no device
        self.write("address", SOCKET)
        self.write("exports", listed("web", 0) + listed(ODD, 1))
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "WORLD": str(folder),
            "XENBUS_TYPE": "vbd",
            "XENBUS_BASE_PATH": "backend",
            "PLX_RUN_DIR": str(folder / "run"),
            "PLX_DEV_DIR": str(folder / "dev"),
            "PLX_SYS_DIR": str(folder / "sys"),
            "PLX_PATIENCE": "30",
        }

    # -- setting the scene -----------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """Write a file that the fakes look at."""
        (self.folder / name).write_text(text)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def fault(self, number: int, deed: str) -> None:
        """Have the call of that number, counted from now on, `fail`, or `kill` the script
        before it, or `kill-after` it."""
        self.calls(clear=True)
        self.write("fault", f"{number} {deed}\n")

    def no_fault(self) -> None:
        (self.folder / "fault").unlink(missing_ok=True)

    def calls(self, clear: bool = False) -> list[str]:
        """What was called since it was cleared."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        if clear:
            path.unlink(missing_ok=True)
        return lines

    def set(self, path: str, value: str) -> None:
        """Write into xenstore."""
        folder = self.folder / "xenstore" / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "=").write_text(value)

    def get(self, path: str) -> str:
        """Read from xenstore, empty if there is nothing."""
        file = self.folder / "xenstore" / path.lstrip("/") / "="
        return file.read_text() if file.exists() else ""

    def disk(
        self,
        domain: int,
        vdi: str = "0",
        mode: str = "w",
        target: str = "",
        device: int = 51712,
        uuid: str = "",
        name: str = "",
    ) -> str:
        """Have xl ask for a disk of a domain; returns the path of its backend."""
        path = f"/local/domain/0/backend/vbd/{domain}/{device}"
        self.set(f"{path}/params", target or f"nbd+unix:///{vdi}?socket={SOCKET}")
        self.set(f"{path}/mode", mode)
        self.set(f"{path}/frontend-id", str(domain))
        self.set(f"{path}/dev", "xvda")
        self.set(f"/local/domain/{domain}/name", name or f"vm{domain}")
        self.set(f"/local/domain/{domain}/vm", f"/vm/{uuid or f'uuid-of-{domain}'}")
        return path

    def gone(self, domain: int) -> None:
        """Have xl remove a domain from xenstore, without a word to the block script."""
        for path in (f"local/domain/{domain}", f"local/domain/0/backend/vbd/{domain}"):
            shutil.rmtree(self.folder / "xenstore" / path, ignore_errors=True)

    # -- running ---------------------------------------------------------------------------

    def start(self, command: str, path: str, **environment: str) -> Run:
        return Run(self, command, path, **environment)

    def run(self, command: str, path: str, **environment: str) -> int:
        """Run the block script; returns its status."""
        return self.start(command, path, **environment).wait()

    def refused(self, path: str, **environment: str) -> str:
        """Add what cannot be added; returns what the operator is told."""
        before = self.attached()
        assert self.run("add", path, **environment) == 1
        assert self.get(f"{path}/hotplug-status") in ("error", "busy")
        assert self.get(f"{path}/physical-device") == ""
        assert self.attached() == before
        return self.get(f"{path}/hotplug-error")

    # -- looking ---------------------------------------------------------------------------

    def attached(self) -> dict[str, str]:
        """The devices that are attached, and the exports they are attached to."""
        return {
            device.name: (device / "export").read_text().strip()
            for device in sorted((self.folder / "sys").iterdir())
            if (device / "pid").exists()
        }

    def records(self) -> set[str]:
        """The devices that the script knows of."""
        run = self.folder / "run"
        return {p.name for p in run.glob("nbd*") if p.suffix == ""} if run.exists() else set()

    def log(self) -> str:
        path = self.folder / "xen-hotplug.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def connected(self, path: str) -> bool:
        """Whether a backend has all that it needs, and it is true."""
        node = self.get(f"{path}/node")
        return (
            self.get(f"{path}/hotplug-status") == "connected"
            and self.get(f"{path}/physical-device") == "0:0"
            and self.get(f"{path}/physical-device-path") == node
            and os.path.basename(node) in self.attached()
        )
