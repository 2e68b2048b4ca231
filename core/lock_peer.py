"""Who is at the other end of a socket: for the log, and to know when that process has ended."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress
from typing import Any, Final

_CREDENTIALS: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77
"""Not in Python yet; the same on all machines that Linux runs on but PA-RISC and SPARC."""


def peer_name(sock: socket.socket) -> str:
    """Return who is at the other end, for the log."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = _credentials(sock)
            return f"process {pid} (user {uid})"
        address: Any = sock.getpeername()
    except OSError:
        return "somebody"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group at the other end of a Unix socket."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(found)
    return pid, uid, gid


def peer_pidfd(sock: socket.socket) -> int:
    """Return a descriptor that says when the process at the other end has ended; -1 for none.

    Without one its sessions are known to be dead only when their leases run out.
    """
    with suppress(OSError):
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    # A kernel before Linux 6.5 tells the number only, which may be another process's by now.
    # While the connection is open, its process lives, or has a child that has it as well.
    with suppress(OSError):
        pidfd = os.pidfd_open(_credentials(sock)[0])
        if _is_open(sock):
            return pidfd
        os.close(pidfd)
    return -1


def _is_open(sock: socket.socket) -> bool:
    """Return whether the other side has not hung up."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return not poll.poll(0)
