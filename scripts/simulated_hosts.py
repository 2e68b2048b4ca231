"""Simulated hosts: try playbooks on several machines that are all this one.

    simulated_hosts.py up FOLDER --hosts host1 host2 host3 [--shared PATH]...
    simulated_hosts.py exec FOLDER host1 -- COMMAND...
    simulated_hosts.py exec FOLDER control -- ansible-playbook -i FOLDER/inventory.yml ...
    simulated_hosts.py down FOLDER

`up` makes namespaces (network, mount, PID, host name) for each host and for `control`, from where
the others are managed, and a bridge between them. A host has sshd, a `systemctl` that does what
Ansible needs, and this machine's files under a layer of its own in memory; `control` has the files
of this machine as they are. PATH is shared by all, as a disk or a network file system would be.
FOLDER gets inventory.yml and ssh_config. Nothing else on this machine changes, and nothing listens
on its network. `down` ends all of it, however it came about, and as often as one likes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from simulated.failure import Failure
from simulated.world import CONTROL, World

PROGRAMS = {
    "hostname": "hostname",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}


def ready() -> None:
    """Refuse at once what would fail half way."""
    if os.geteuid():
        raise Failure("only root can make namespaces with networks and mounts: run this as root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    if missing:
        raise Failure(f"missing Debian packages: {' '.join(sorted(missing))}")


def parsed(words: list[str] | None) -> argparse.Namespace:
    summary, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="make hosts")
    enter = verbs.add_parser("exec", help="run a command on a host, or on control")
    down = verbs.add_parser("down", help="end all hosts of a folder")
    for verb in (up, enter, down):
        verb.add_argument("folder", type=Path)
    up.add_argument("--hosts", nargs="+", metavar="NAME", required=True)
    up.add_argument("--shared", action="append", default=[], type=Path, metavar="PATH")
    enter.add_argument("host")
    enter.add_argument("command", nargs="+")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    given = parsed(words)
    try:
        ready()
        world = World(given.folder)
        if given.verb == "up":
            plan = world.up(given.hosts, given.shared)
            for name, address in plan.addresses.items():
                print(f"{name} {address}")
            print(f"{CONTROL}: exec {given.folder} {CONTROL} -- ansible all "
                  f"-i {given.folder}/inventory.yml -m ping")  # fmt: skip
        elif given.verb == "exec":
            world.enter(given.host, given.command)
        else:
            world.down()
    except Failure as error:
        sys.exit(f"simulated hosts: {error}")


if __name__ == "__main__":
    main()
