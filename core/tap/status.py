"""What a running tap tells about itself: one JSON document on a socket beside its own.

`SOCKET.status` answers each connection with the document and closes it. `tap list` reads
it; readers ignore fields they do not know.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from core.device import io_error
from core.errors import IoFailed, NotFound
from core.listen import MOST_SOCKET_PATH, check_socket_path
from core.tap.crowd import Crowd
from core.tap.loop import GONE, WRITE, Loop

if TYPE_CHECKING:  # who only asks pays for no engine
    from core.session import Session
    from core.tap.exports import Export

SCHEMA: Final = 1
MOST_ASKING: Final = 16
"""Connections at a time; one more, and the oldest has to go."""
PATIENCE: Final = 10.0
"""Seconds that each has to take its document."""
_TIMEOUT: Final = 10.0


def status_path(unix: str) -> str:
    """Return where the tap that listens on `unix` tells about itself."""
    return f"{unix}.status"


def check_path(unix: str) -> None:
    """Raise BadRequest if a tap cannot listen on this path and tell about itself beside it."""
    check_socket_path(unix, MOST_SOCKET_PATH - len(status_path("")))


def document(session: Session, exports: Iterable[Export], since: float) -> dict[str, Any]:
    """Return what there is to tell; sizes in bytes, times in seconds of Unix time."""
    described = [_describe(export) for export in exports]
    totals: dict[str, int] = {"connections": 0}
    for export in described:
        for connection in export["connections"]:
            totals["connections"] += 1
            for name, value in connection["counts"].items():
                totals[name] = totals.get(name, 0) + value
    return {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "store": os.path.abspath(session.store.device.name),
        "since": since,
        "now": time.time(),
        "failed": str(session.store.failed) if session.store.failed else None,
        "exports": described,
        "totals": totals,
    }


def _describe(export: Export) -> dict[str, Any]:
    return {
        "name": export.name,
        "id": export.id,
        "snapshot": export.snapshot,
        "read_only": export.vdi is None,
        "size": export.image.size,
        "since": export.since,
        "schedule": _schedule(export),
        "connections": [
            {
                "peer": c.peer,
                "since": c.since,
                "counts": asdict(c.counts),
                "recent": {"since": c.recent.told[0], "counts": asdict(c.recent.told[1])},
            }
            for c in export.connections
        ],
    }


def _schedule(export: Export) -> dict[str, int] | None:
    """Return the snapshot schedule of an export: nanoseconds between, and how many are kept."""
    if export.vdi is None:
        return None
    every, keep = export.vdi.schedule
    return {"every_ns": every, "keep": keep} if every else None


class StatusReply:
    """One connection to the status socket, until its document is sent.

    Args:
        loop: tells when the socket is ready.
        sock: the socket.
        told: the document.
        crowd: those who have not taken theirs yet.
    """

    def __init__(self, loop: Loop, sock: socket.socket, told: dict[str, Any], crowd: Crowd) -> None:
        """Begin to send."""
        self.since = time.monotonic()
        self._loop = loop
        self._sock = sock
        self._crowd = crowd
        self._rest = memoryview(json.dumps(told).encode())
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._on_event, WRITE)
        crowd.add(self)

    def _on_event(self, events: int) -> None:
        try:
            if not events & GONE:
                self._rest = self._rest[self._sock.send(self._rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = self._rest[:0]
        if not self._rest or events & GONE:
            self.close()

    def close(self, _why: str = "") -> None:
        """Hang up; a second call does nothing."""
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._crowd.discard(self)


def query_status(unix: str, timeout: float = _TIMEOUT) -> dict[str, Any]:
    """Ask the tap that listens on the Unix socket `unix` for its document.

    Args:
        unix: the socket of the tap.
        timeout: seconds to wait for each part of the answer.

    Raises:
        BadRequest: no socket can have that path.
        NotFound: no tap listens there.
        ReadOnly: this user may not ask.
        IoFailed: it did not answer.
    """
    check_path(unix)
    parts = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(status_path(unix))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise NotFound(
                f"no tap listens on {unix}", "start one with 'plxsh tap serve'"
            ) from error
        except OSError as error:
            raise io_error(error, f"cannot ask the tap at {unix}") from error
        try:
            while part := sock.recv(1 << 16):
                parts.append(part)
        except OSError as error:
            raise IoFailed(
                f"the tap at {unix} did not answer: {error}", "look at its log"
            ) from error
    try:
        answer = json.loads(b"".join(parts))
    except ValueError as error:
        raise IoFailed(f"the tap at {unix} did not answer in full", "try again") from error
    assert isinstance(answer, dict)
    return answer
