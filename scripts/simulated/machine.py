"""The first process of one simulated machine: makes its root and network, runs sshd, and reaps.

    machine.py FOLDER NAME

It runs in namespaces of its own (mount, network, PID, host name, IPC), which world.py made, waits
for "go" on its input, and answers "ready". When it ends, all of the machine is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulated import root, ssh
from simulated.world import CONTROL, PATIENCE, Plan

SET_NAME = 15  # of prctl(2)


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL)


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 22)) == 0


def serve(sshd: Path) -> None:
    """Run sshd, and wait until it listens."""
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    variables = {"PATH": ssh.PATH}
    libraries = [str(path.parent) for path in sshd.parents[2].glob("usr/lib/*/libwrap.so.0")]
    if libraries and sshd.is_relative_to(ssh.UNPACKED):
        variables["LD_LIBRARY_PATH"] = libraries[0]
    words = [str(sshd), "-D", "-e"]
    server = subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL, stdout=2)
    until = time.monotonic() + PATIENCE
    while not listens():
        if server.poll() is not None or time.monotonic() > until:
            sys.exit("sshd did not start")
        time.sleep(0.005)


def main(folder: Path, name: str) -> None:
    plan = Plan.read(folder)
    # Before anything is heard from the other side: a half-made machine is not used by anybody.
    if sys.stdin.readline() != "go\n":
        sys.exit("given up before it began")
    run("hostname", name)
    if name == CONTROL:
        root.mask(folder)
    else:
        root.make(folder, name, plan)
        run("ip", "link", "set", "lo", "up")
        run("ip", "addr", "add", f"{plan.addresses[name]}/24", "dev", "eth0")
        run("ip", "link", "set", "eth0", "up")
        serve(Path(plan.sshd))
    ctypes.CDLL(None).prctl(SET_NAME, b"init")  # what Ansible's facts look at
    print("ready", flush=True)
    quiet = os.open("/dev/null", os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
