"""Hosts on one machine: each a network and a host name of its own, on one switch.

All of it lives in namespaces of one process (`inside`). When that ends, however it ends, the
kernel takes everything away: its processes, links, mounts. Nothing has a name outside.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

_SWITCH = "plxswitch"
_NET = "10.77.0."


def inside(command: Sequence[str]) -> list[str]:
    """The command that runs another as the first process of a world of its own."""
    rootless = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *rootless, *spaces, "--", *command]


class World:
    """The switch, and room for sockets that nobody outside sees; made by the first process."""

    def __init__(self) -> None:
        _run("mount", "-t", "tmpfs", "tmpfs", "/run")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", _SWITCH, "type", "bridge")
        _run("ip", "link", "set", _SWITCH, "up")
        self._hosts = 0

    def host(self, name: str) -> Host:
        """Add a host."""
        self._hosts += 1
        return Host(name, f"{_NET}{self._hosts}")


class Host:
    """One host.

    Attributes:
        name: its host name.
        address: its IPv4 address.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._link = f"to{name}"
        script = 'hostname "$0" && echo ready && exec sleep infinity'
        self._anchor = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", script, name], stdout=subprocess.PIPE
        )
        assert self._anchor.stdout is not None
        assert self._anchor.stdout.readline() == b"ready\n"
        peer = ["peer", "name", "eth0", "netns", str(self._anchor.pid)]
        _run("ip", "link", "add", self._link, "type", "veth", *peer)
        _run("ip", "link", "set", self._link, "up")
        self.join()
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            _run(*self.command(["ip", *words]))

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs another on this host; it keeps its process id."""
        return ["nsenter", "-t", str(self._anchor.pid), "--net", "--uts", "--", *command]

    def cut(self, silently: bool) -> None:
        """Cut it off: the switch drops what it sends, or the cable is pulled."""
        if silently:
            _run("ip", "link", "set", self._link, "nomaster")
        else:
            _run("ip", "link", "set", self._link, "down")

    def join(self) -> None:
        """Put the cable back."""
        _run("ip", "link", "set", self._link, "up", "master", _SWITCH)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"
