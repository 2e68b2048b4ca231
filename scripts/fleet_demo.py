"""A fleet from one image, on three simulated hosts: what `make fleet-demo` runs.

It does what an operator would do, with the playbooks as they are, checks each result with a client
of NBD that is not ours, and fails if anything is not as it should be. It leaves nothing behind.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet import Fleet, Ran

HOSTS = {
    "host1": ["vm01", "vm04", "vm07", "vm10"],
    "host2": ["vm02", "vm05", "vm08"],
    "host3": ["vm03", "vm06", "vm09"],
}
PROGRAMS = {"ip": "iproute2", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils"}
IMAGE_SIZE = 16 << 20
WIDTH = 79


class Wrong(Exception):
    """Something is not as it should be."""


class Demo:
    """Runs playbooks and commands on a fleet, and shows each with the time that it took."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._steps = 0

    def step(self, what: str) -> None:
        """Say what the next commands are for."""
        self._steps += 1
        print(f"\n{self._steps:2}. {what}", flush=True)

    @contextmanager
    def timed(self, line: str) -> Iterator[None]:
        """Show a line, and how long what is in the `with` block took."""
        print(f"    {line}", end="", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = f" {time.monotonic() - start:.1f} s"
            print(seconds.rjust(WIDTH - len(line) - 4), flush=True)

    def expect(self, what: str, true: bool) -> None:
        """State something that has to be true."""
        if not true:
            raise Wrong(f"not true: {what}")
        print(f"      ok: {what}", flush=True)

    def play(self, name: str, *options: str, failing: bool = False) -> Ran:
        """Run a playbook; show how many tasks changed something on how many hosts."""
        with self.timed(" ".join(["$ ansible-playbook", name, *options])):
            ran = self.fleet.play(name, *options)
        if (ran.status != 0) != failing:
            print(ran.shown)
            raise Wrong(f"exit status {ran.status}: {name}")
        changed = {host: count for host, count in ran.changed.items() if count}
        total = sum(changed.values())
        print(f"      {len(ran.changed)} hosts and machines, {total} changes", flush=True)
        return ran

    def on(self, name: str, *words: str, status: int = 0) -> str:
        """Run a command on the host of a machine; return what it said."""
        host = self.fleet.host_of[name]
        done = self.fleet.on(host, *words)
        if done.returncode != status:
            print(done.stdout + done.stderr)
            raise Wrong(f"exit status {done.returncode}, expected {status}: {' '.join(words)}")
        return done.stdout


def same_as_image(demo: Demo, name: str) -> bool:
    """Compare a disk with the gold image, byte by byte, on the host of its machine."""
    words = ["qemu-img", "compare", "-f", "raw", "-F", "raw"]
    done = demo.fleet.on(
        demo.fleet.host_of[name], *words, demo.fleet.disk(name), str(demo.fleet.image)
    )
    if done.returncode not in (0, 1):
        raise Wrong(f"qemu-img compare: {done.stderr}")
    return done.returncode == 0


def begin(demo: Demo) -> None:
    """Three bare hosts, and an image."""
    demo.step("Three hosts that have nothing but ssh, and a folder that they share")
    with demo.timed("$ simulated_hosts.py up --hosts host1 host2 host3 --shared ..."):
        demo.fleet.up()
    demo.fleet.image.write_bytes(random.Random(1).randbytes(IMAGE_SIZE))
    print("      one host runs the lock master, all run a tap, ten machines live on them")


def provision(demo: Demo) -> None:
    """Everything from one playbook, and nothing when it runs again."""
    demo.step("Install, lock master, store, taps, gold image, ten machines: one playbook")
    demo.play("site.yml")
    demo.step("Run it again: nothing changes")
    again = demo.play("site.yml")
    demo.expect("changed=0 everywhere", sum(again.changed.values()) == 0)
    demo.step("Every machine reads the gold image, through the tap of its own host")
    with demo.timed("$ qemu-img compare nbd+unix:///vm01?socket=... gold.img   (and so on)"):
        same = [name for name in demo.fleet.host_of if same_as_image(demo, name)]
    demo.expect(f"{len(same)} disks hold the image", len(same) == len(demo.fleet.host_of))
    print(f"      {demo.on('vm05', 'tail', '-n', '1', '/etc/xen/vm05.cfg').strip()[:66]}...")


def go_back(demo: Demo) -> None:
    """A snapshot of all machines; one of them is spoilt and comes back."""
    demo.step("Take a snapshot of every machine")
    demo.play("snapshot_fleet.yml", "-e", "label=monday")
    demo.step("Spoil one of them, as a guest would")
    spoil = ["qemu-io", "-f", "raw", "-c", "write -q -P 66 1M 1M", "-c", "flush"]
    with demo.timed("$ qemu-io -c 'write -P 66 1M 1M' nbd+unix:///vm05?socket=..."):
        demo.on("vm05", *spoil, demo.fleet.disk("vm05"))
    demo.expect("vm05 differs from the image", not same_as_image(demo, "vm05"))
    demo.step("Roll it back; what no snapshot has is lost only by force")
    one = ["--limit", "vm05", "-e", "label=monday"]
    demo.play("rollback.yml", *one, failing=True)
    demo.play("rollback.yml", *one, "-e", "force=true")
    demo.expect("vm05 holds the image again", same_as_image(demo, "vm05"))


def look(demo: Demo) -> None:
    """Retire one machine and look at the rest."""
    demo.step("Retire a machine")
    options = ["-e", "delete_vdi=true", "-e", "delete_snapshots=true"]
    demo.play("retire.yml", "--limit", "vm10", *options)
    demo.step("The fleet then")
    shown = demo.play("status.yml").shown
    for table in re.findall(r"msg: \|-\n((?:        .*\n)+)", shown):
        print("".join(f"      {line[8:]}\n" for line in table.splitlines()))
    demo.step("The store is sound")
    with demo.timed("$ plxsh store check"):
        demo.on("vm02", "plxsh", "store", "check")


def missing() -> str | None:
    """What keeps the demo from running, in one line."""
    if os.geteuid():
        return "only root can make simulated hosts: run it as root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    packages = {PROGRAMS[name] for name in PROGRAMS if not shutil.which(name, path=path)}
    return f"missing Debian packages: {' '.join(sorted(packages))}" if packages else None


def main() -> int:
    """Take the tour; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # end in good order: leave nothing behind
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    start = time.monotonic()
    print("Parallax: three hosts, one store, ten machines from one image, by playbooks.")
    why = missing()
    if why:
        print(f"fleet-demo: {why}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="parallax-fleet-") as folder:
        fleet = Fleet(Path(folder), HOSTS)
        try:
            demo = Demo(fleet)
            for part in (begin, provision, go_back, look):
                part(demo)
        except (Wrong, FileNotFoundError, subprocess.CalledProcessError) as wrong:
            print(f"\nfleet-demo: {wrong}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nfleet-demo: interrupted", file=sys.stderr)
            return 130
        finally:
            fleet.down()
    print(f"\nAll is as it should be, after {time.monotonic() - start:.0f} s. Nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
