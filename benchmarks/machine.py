"""What a run was made on: no figure means anything without it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

_PEERS = ("qemu-nbd --version", "nbdkit --version", "fio --version")


def described(folder: Path) -> dict[str, str]:
    """Return the machine, the file system of a folder and the versions of the peers."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    facts = {
        "processor": f"{os.cpu_count()} × {cpu[1] if cpu else platform.machine()}",
        "memory": f"{memory:,} MiB",
        "kernel": platform.release(),
        "file system": _first_line("stat", "-f", "-c", "%T", str(folder)),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    for command in _PEERS:
        facts[command.split()[0]] = _first_line(*command.split())
    return facts


def _first_line(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]
