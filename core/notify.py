"""systemd: tell it that the service is up, and take sockets it opened for us."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

_FIRST_FD: Final = 3


def notify(state: str) -> None:
    """Send a state such as "READY=1" to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A manager that is gone is no reason to stop serving.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that socket activation handed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + count)]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets
